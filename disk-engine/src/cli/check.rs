//! `disk-engine check`: whether an image is consistent, and repairing it.
//!
//! The one command whose exit codes are qemu-img's, so that scripts move over: 0 nothing is wrong, or
//! everything was repaired; 1 the check did not come to an end; 2 there are corruptions; 3 there are
//! leaks and nothing worse; 63 the format has nothing to check. A plan ends as the repair would.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::check_listing::{self, Lines, Listing, line};
use crate::cli::check_report::{self, Fields};
use crate::cli::overlay::Format;
use crate::cli::{Output, progress, size};
use crate::disk::Locking;
use crate::disk::chain::probe_top;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::check::{CheckOptions, RepairMode, UNSUPPORTED, check};

/// What the program ends with if the format has nothing to check.
const EXIT_UNSUPPORTED: u8 = 63;

/// Check an image's tables and refcounts, and repair them, as qemu-img check does
///
/// Findings go to standard error, one a line, the first 1000 of them. Exit codes are qemu-img's: 0 nothing is wrong (any more);
/// 1 the check did not come to an end; 2 there are corruptions; 3 there are leaks; 63 the format has
/// nothing to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image
    file: PathBuf,
    /// The image's format; without it a file that begins as qcow2 is taken for that
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// Repair: space that is counted and not used, or everything
    #[arg(long, short = 'r', value_enum, value_name = "WHAT")]
    repair: Option<Repair>,
    /// Say what a repair would do, and do nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// About as much memory is taken for counts; larger images are checked in several passes
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory: Option<u64>,
    /// Read tables with so many threads
    #[arg(long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// Lines of findings and changes at most, or 'all'; what comes behind them is counted by kind
    #[arg(long, value_name = "LINES", default_value_t = Lines::First(check_listing::LINES))]
    list: Lines,
    /// Even while others write to it; what is found may then be of no single moment
    #[arg(long, short = 'U', conflicts_with = "repair")]
    force_share: bool,
}

/// qemu-img's report, and what was not listed beside it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    fields: Fields,
    #[serde(rename = "not-listed", skip_serializing_if = "BTreeMap::is_empty")]
    unlisted: &'a BTreeMap<&'static str, u64>,
}

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Repair {
    Leaks,
    All,
}

/// Returns the exit code, errors told.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> u8 {
    match checked(arguments, output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            let unsupported =
                error.kind() == ErrorKind::Unsupported && error.message() == UNSUPPORTED;
            if unsupported { EXIT_UNSUPPORTED } else { 1 }
        }
    }
}

fn checked(arguments: &Arguments, output: &Output) -> Result<u8> {
    let format = match arguments.format {
        Some(format) => format.into(),
        None => probe_top(&arguments.file)?,
    };
    let (control, drawing) = progress::draw(output);
    let options = CheckOptions {
        control,
        repair: arguments.repair.map(|repair| match repair {
            Repair::Leaks => RepairMode::Leaks,
            Repair::All => RepairMode::All,
        }),
        dry_run: arguments.dry_run,
        locking: if arguments.force_share { Locking::Shared } else { Locking::Auto },
        memory: arguments.memory,
        threads: arguments.threads.map(NonZeroUsize::get),
        ..CheckOptions::default()
    };
    let mut lines = BufWriter::new(io::stderr());
    let mut listing = Listing::new(arguments.list);
    // That nobody reads them is no failure of the check.
    let report = check(&arguments.file, format, &options, |event| {
        if !listing.takes(event) {
            return;
        }
        let _ = if drawing.is_there() {
            drawing.aside(|| line(&mut lines, event).and_then(|()| lines.flush()))
        } else {
            line(&mut lines, event)
        };
    });
    drop(drawing);
    let _ = listing.end(&mut lines).and_then(|()| lines.flush());
    let report = report?;
    let mut text = check_report::repaired(&report);
    if arguments.dry_run {
        text = text.replace("were found and repaired", "were found and would be repaired");
        text = text.replace("Double checking the fixed image now...", "The image would then be:");
    }
    text.push_str(&check_report::text(&report));
    let fields = Report { fields: Fields::from(&report), unlisted: listing.unlisted() };
    output.report(&fields, &text)?;
    if report.check_errors > 0 {
        output.error(&Error::new(ErrorKind::Corrupt, "Check failed").with_path(&arguments.file));
    }
    Ok(report.exit_code())
}
