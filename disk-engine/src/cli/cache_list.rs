//! `disk-engine cache ls`: the bases of a cache, who needs them and what they take.

use std::fmt::Write;
use std::time::SystemTime;

use serde::Serialize;

use crate::cache::{BaseState, CacheListing, ListedBase, OverlayState};
use crate::cli::cache::{OverlayReport, Place};
use crate::cli::{Output, duration, size};
use crate::error::Result;

/// List the bases of a cache, who needs them and what they take
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    cache: String,
    bases: Vec<Base>,
    temporaries: usize,
    temporary_size: u64,
    /// Bytes all bases take, and the disks they are.
    actual_size: u64,
    virtual_size: u64,
    available: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Base {
    key: String,
    filename: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    virtual_size: u64,
    actual_size: u64,
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    durable: bool,
    made: i64,
    last_used: i64,
    leased: bool,
    open_in_qemu: Option<bool>,
    overlays: Vec<OverlayReport>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let cache = arguments.place.open()?;
    let listing = cache.list()?;
    let report = Report {
        cache: cache.path().to_string_lossy().into_owned(),
        temporaries: listing.temporaries,
        temporary_size: listing.temporary_bytes,
        actual_size: listing.allocated(),
        virtual_size: listing.bases.iter().map(|base| base.virtual_size).sum(),
        available: listing.available,
        bases: listing.bases.iter().map(Base::new).collect(),
    };
    output.report(&report, &text(&listing))
}

impl Base {
    fn new(base: &ListedBase) -> Self {
        let (state, reason) = state(&base.state);
        Self {
            key: base.key.clone(),
            filename: base.path.to_string_lossy().into_owned(),
            state,
            reason: reason.map(ToOwned::to_owned),
            virtual_size: base.virtual_size,
            actual_size: base.allocated,
            source: base.source.clone(),
            name: base.name.clone(),
            durable: base.durable,
            made: base.made,
            last_used: base.last_used,
            leased: base.leased,
            open_in_qemu: base.open_in_qemu,
            overlays: base.overlays.iter().map(OverlayReport::new).collect(),
        }
    }
}

fn state(state: &BaseState) -> (&'static str, Option<&str>) {
    match state {
        BaseState::Good => ("good", None),
        BaseState::Damaged(reason) => ("damaged", Some(reason)),
        BaseState::Changing => ("changing", None),
    }
}

fn text(listing: &CacheListing) -> String {
    let mut text = String::new();
    for base in &listing.bases {
        let _ = writeln!(
            text,
            "{}  {} of disk in {}, {}{}",
            base.key,
            size::human(base.virtual_size),
            size::human(base.allocated),
            duration::ago(base.last_used, SystemTime::now()),
            needs(base),
        );
        if let (_, Some(reason)) = state(&base.state) {
            let _ = writeln!(text, "  damaged: {}", reason.escape_debug());
        }
        if let Some(source) = &base.source {
            let _ = writeln!(text, "  from {source:?}");
        }
        for overlay in base.overlays.iter().filter(|overlay| overlay.state != OverlayState::Gone) {
            let _ = writeln!(text, "  under {}", OverlayReport::new(overlay).text());
        }
    }
    let _ = writeln!(
        text,
        "{} in {}, {} left on the file system",
        count(listing.bases.len(), "base"),
        size::human(listing.allocated()),
        size::human(listing.available)
    );
    if listing.temporaries > 0 {
        let _ = writeln!(
            text,
            "{} files in {} being made or left by killed processes",
            listing.temporaries,
            size::human(listing.temporary_bytes)
        );
    }
    text
}

/// "1 base", "2 bases".
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn needs(base: &ListedBase) -> String {
    let mut needs = String::new();
    if base.leased {
        needs.push_str(", leased");
    }
    if base.open_in_qemu == Some(true) {
        needs.push_str(", open in QEMU");
    }
    let standing =
        base.overlays.iter().filter(|overlay| overlay.state != OverlayState::Gone).count();
    if standing > 0 {
        let _ = write!(needs, ", {}", count(standing, "overlay"));
    }
    needs
}
