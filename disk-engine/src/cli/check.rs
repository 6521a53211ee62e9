//! `disk-engine check`: whether an image is consistent, and repairing it.
//!
//! The one command whose exit codes are qemu-img's, so that scripts move over: 0 nothing is wrong, or
//! everything was repaired; 1 the check did not come to an end; 2 there are corruptions; 3 there are
//! leaks and nothing worse; 63 the format has nothing to check. A plan ends as the repair would.

use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::check_report::{self, Fields};
use crate::cli::overlay::Format;
use crate::cli::{Output, progress, size};
use crate::disk::Locking;
use crate::disk::chain::probe_top;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::check::{CheckEvent, CheckOptions, RepairMode, UNSUPPORTED, check};

/// What the program ends with if the format has nothing to check.
const EXIT_UNSUPPORTED: u8 = 63;

/// Check an image's tables and refcounts, and repair them, as qemu-img check does
///
/// Findings go to standard error, one a line. Exit codes are qemu-img's: 0 nothing is wrong (any more);
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
    /// Even while others write to it; what is found may then be of no single moment
    #[arg(long, short = 'U', conflicts_with = "repair")]
    force_share: bool,
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
    // That nobody reads them is no failure of the check.
    let report = check(&arguments.file, format, &options, |event| {
        let line = |lines: &mut BufWriter<io::Stderr>| match event {
            CheckEvent::Found(finding, 1) => writeln!(lines, "{finding}"),
            CheckEvent::Found(finding, times) => writeln!(lines, "{finding} ({times} times)"),
            CheckEvent::Fixing(fix) => {
                let lost = fix.lost().map(|(guest, length)| {
                    let end = guest.to_u64().saturating_add(length);
                    format!(" [lost: {guest} to {end:#x}]")
                });
                writeln!(lines, "{fix}{}", lost.unwrap_or_default())
            }
        };
        let _ = if drawing.is_there() {
            drawing.aside(|| line(&mut lines).and_then(|()| lines.flush()))
        } else {
            line(&mut lines)
        };
    });
    drop(drawing);
    let _ = lines.flush();
    let report = report?;
    let mut text = check_report::repaired(&report);
    if arguments.dry_run {
        text = text.replace("were found and repaired", "were found and would be repaired");
        text = text.replace("Double checking the fixed image now...", "The image would then be:");
    }
    text.push_str(&check_report::text(&report));
    output.report(&Fields::from(&report), &text)?;
    if report.check_errors > 0 {
        output.error(&Error::new(ErrorKind::Corrupt, "Check failed").with_path(&arguments.file));
    }
    Ok(report.exit_code())
}
