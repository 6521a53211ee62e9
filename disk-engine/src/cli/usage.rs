//! `disk-engine usage`: what disks take, how far they have grown, and what is left for them.

use std::fmt::Write;
use std::path::PathBuf;

use crate::cli::output::is_hidden;
use crate::cli::{Output, size};
use crate::error::Result;
use crate::ops::usage::{UsageOptions, UsageReport, usage};

/// Show what disks take, how far overlays have grown, and what the file system has left
///
/// In a folder every qcow2 image and every primary.img is a disk, whatever its name says; links are
/// not followed there. Nothing is locked: run it again to watch, as in `watch disk-engine usage
/// DIR`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Disks, and folders that hold disks
    #[arg(value_name = "FILE|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// How many folders deep to look
    #[arg(long, value_name = "N", default_value_t = 16)]
    depth: u32,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let options = UsageOptions { depth: arguments.depth, ..UsageOptions::default() };
    let report = usage(&arguments.paths, &options)?;
    output.report(&report, &render(&report))
}

fn render(report: &UsageReport) -> String {
    let mut text = String::new();
    for disk in &report.disks {
        let _ = write!(
            text,
            "{:?}  {}, {} of disk in {}",
            disk.path,
            disk.format,
            size::human(disk.virtual_size),
            size::human(disk.allocated),
        );
        if let Some(growth) = disk.growth {
            let _ = write!(text, ", grown by {}", size::human(growth));
        }
        if disk.in_use == Some(true) {
            let _ = write!(text, ", in use");
        }
        if let Some(base) = &disk.base {
            let _ = write!(text, ", on {:?}", base.path);
        }
        text.push('\n');
    }
    for system in &report.file_systems {
        if system.total == 0 {
            let _ = writeln!(text, "{}: no limit", system.kind);
            continue;
        }
        let _ = writeln!(
            text,
            "{}: {} of {} available",
            system.kind,
            size::human(system.available),
            size::human(system.total),
        );
    }
    for skipped in &report.skipped {
        let reason: String = skipped
            .reason
            .chars()
            .map(|letter| if is_hidden(letter) { '?' } else { letter })
            .collect();
        let _ = writeln!(text, "{:?}  left out: {reason}", skipped.path);
    }
    text
}
