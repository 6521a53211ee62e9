//! `disk-engine cache prune`: making room, without taking what anybody needs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::cache::{Debris, KeptBase, KeptBecause, PruneOptions, PruneReport};
use crate::cli::cache::{OverlayReport, Place};
use crate::cli::cache_list::count;
use crate::cli::{Output, duration, size};
use crate::error::Result;

/// Remove bases that nobody needs, and what killed processes left
///
/// A base is needed while a process uses it, a QEMU has it open or an overlay stands on it. Without a
/// limit only left-overs and damaged bases go.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Remove bases that nobody asked for in this time, as in 7d or 12h
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    max_age: Option<Duration>,
    /// Remove bases, the least recently used first, until the rest take at most this, as in 20G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_size: Option<u64>,
    /// Remove bases, the least recently used first, until the file system has this left, as in 10G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    keep_free: Option<u64>,
    /// Let overlays that cannot be looked at (not mounted, in another sandbox) keep no base
    #[arg(long)]
    forget_unknown: bool,
    /// Say what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    dry_run: bool,
    removed: Vec<Removed>,
    kept: Vec<Kept>,
    temporaries: usize,
    orphans: usize,
    quarantined: usize,
    debris_size: u64,
    /// Bytes the bases that went took, and the disks they were.
    removed_actual_size: u64,
    removed_virtual_size: u64,
    available: u64,
    goals_met: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Removed {
    key: String,
    virtual_size: u64,
    actual_size: u64,
    source: Option<String>,
    last_used: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Kept {
    key: String,
    actual_size: u64,
    because: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overlays: Vec<OverlayReport>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let options = PruneOptions {
        max_age: arguments.max_age,
        max_size: arguments.max_size,
        keep_free: arguments.keep_free,
        forget_unknown: arguments.forget_unknown,
        dry_run: arguments.dry_run,
        ..PruneOptions::default()
    };
    let report = arguments.place.open()?.prune(&options)?;
    output.report(&summary(&report), &text(&report))
}

fn summary(report: &PruneReport) -> Report {
    let removed = report.removed.iter().map(|base| Removed {
        key: base.key.clone(),
        virtual_size: base.virtual_size,
        actual_size: base.allocated,
        source: base.source.clone(),
        last_used: base.last_used,
    });
    let kept = report.kept.iter().map(|base| Kept {
        key: base.key.clone(),
        actual_size: base.allocated,
        because: word(&base.because),
        overlays: overlays(base),
    });
    Report {
        dry_run: report.dry_run,
        removed: removed.collect(),
        kept: kept.collect(),
        temporaries: report.debris.temporaries,
        orphans: report.debris.orphans,
        quarantined: report.debris.quarantined,
        debris_size: report.debris.bytes,
        removed_actual_size: report.removed.iter().map(|base| base.allocated).sum(),
        removed_virtual_size: report.removed.iter().map(|base| base.virtual_size).sum(),
        available: report.available,
        goals_met: report.goals_met,
    }
}

const fn word(because: &KeptBecause) -> &'static str {
    match because {
        KeptBecause::Wanted => "wanted",
        KeptBecause::Changing => "changing",
        KeptBecause::Leased => "leased",
        KeptBecause::OpenInQemu => "open-in-qemu",
        KeptBecause::Unknown => "unknown",
        KeptBecause::Overlays(_) => "overlays",
        KeptBecause::RecordDamaged => "record-damaged",
    }
}

fn overlays(base: &KeptBase) -> Vec<OverlayReport> {
    match &base.because {
        KeptBecause::Overlays(overlays) => overlays.iter().map(OverlayReport::new).collect(),
        _ => Vec::new(),
    }
}

fn text(report: &PruneReport) -> String {
    let mut text = String::new();
    let would = if report.dry_run { "would be " } else { "" };
    for base in &report.removed {
        let _ = writeln!(
            text,
            "{}  {would}removed: {} of disk in {}",
            base.key,
            size::human(base.virtual_size),
            size::human(base.allocated)
        );
    }
    for base in report.kept.iter().filter(|base| base.because != KeptBecause::Wanted) {
        let reason = match &base.because {
            KeptBecause::Wanted => "wanted",
            KeptBecause::Changing => "somebody makes, replaces or removes it now",
            KeptBecause::Leased => "a process uses it",
            KeptBecause::OpenInQemu => "a QEMU has it open",
            KeptBecause::Unknown => "nobody can tell whether a process uses it",
            KeptBecause::Overlays(_) => "overlays stand on it",
            KeptBecause::RecordDamaged => {
                "its record of overlays is damaged (--forget-unknown lets it go)"
            }
        };
        let _ = writeln!(text, "{}  kept, {}: {reason}", base.key, size::human(base.allocated));
        for overlay in overlays(base) {
            let _ = writeln!(text, "  {}", overlay.text());
        }
    }
    let Debris { temporaries, orphans, quarantined, .. } = report.debris;
    let files = temporaries + orphans + quarantined;
    if files > 0 {
        let _ = writeln!(
            text,
            "{} {would}removed, {}",
            count(files, "left-over file"),
            size::human(report.debris.bytes)
        );
    }
    let _ = writeln!(
        text,
        "{} {would}removed in {}, {} left on the file system",
        count(report.removed.len(), "base"),
        size::human(report.removed.iter().map(|base| base.allocated).sum()),
        size::human(report.available)
    );
    if !report.goals_met {
        let _ =
            writeln!(text, "the rest is needed, so the size or free space asked for is not met");
    }
    text
}
