//! `disk-engine compare`: whether two disks hold the same, in qemu-img's words and exit codes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::base::BaseFormat;
use crate::cli::follow::Follow;
use crate::cli::overlay::Format;
use crate::cli::{Output, progress};
use crate::disk::chain::probe_top;
use crate::disk::{DiskOptions, PastEnd};
use crate::error::Result;
use crate::ops::compare::{CompareOptions, CompareReport, Difference, Step, compare};

/// Say whether two disks hold the same
///
/// Exit codes are qemu-img's: 0 the same; 1 different; 2 a disk cannot be opened, or the command line
/// was wrong; 3 the tables of one are damaged; 4 one cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The first disk
    first: PathBuf,
    /// The second disk
    second: PathBuf,
    /// The first disk's format; without it a file that begins as qcow2 is taken for that
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// The second disk's format
    #[arg(long, short = 'F', value_enum)]
    second_format: Option<Format>,
    /// Sizes and allocation have to be equal, too
    #[arg(long, short = 's')]
    strict: bool,
    /// Say nothing but errors
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Even while others write to them
    #[arg(long, short = 'U')]
    force_share: bool,
    /// Threads that read and compare
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    follow: Follow,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<ExitCode> {
    let format = |path: &Path, format: Option<Format>| match format {
        Some(format) => Ok(BaseFormat::from(format)),
        None => probe_top(path),
    };
    let first = format(&arguments.first, arguments.format);
    let second = format(&arguments.second, arguments.second_format);
    let (first, second) = match (first, second) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(error), _) | (_, Err(error)) => {
            output.error(&error);
            return Ok(code(Step::Open));
        }
    };
    let disk = arguments.follow.disk(arguments.force_share);
    let disk = DiskOptions { past_end: PastEnd::Fails, ..disk };
    let (control, drawing) = progress::draw(output);
    let options = CompareOptions {
        first: disk.clone(),
        second: disk,
        strict: arguments.strict,
        threads: arguments.threads,
        control,
    };
    let compared = compare((&arguments.first, first), (&arguments.second, second), &options);
    drop(drawing);
    match compared {
        Err(error) => {
            output.error(&error.error);
            Ok(code(error.step))
        }
        Ok(report) => {
            if !arguments.quiet {
                output.report(&report, &render(&report))?;
            }
            Ok(ExitCode::from(u8::from(!report.identical)))
        }
    }
}

/// qemu-img's exit code for a comparison that failed.
pub(crate) fn code(step: Step) -> ExitCode {
    ExitCode::from(match step {
        Step::Open => 2,
        Step::Map => 3,
        Step::Read => 4,
    })
}

/// As qemu-img says it.
pub(crate) fn render(report: &CompareReport) -> String {
    let warning = if report.reached_shorter_end() { "Warning: Image size mismatch!\n" } else { "" };
    match report.difference {
        None => format!("{warning}Images are identical.\n"),
        Some(Difference::Size) => "Strict mode: Image size mismatch!\n".to_owned(),
        Some(Difference::Status { offset }) => {
            format!("Strict mode: Offset {offset} block status mismatch!\n")
        }
        Some(Difference::Content { offset }) => {
            format!("{warning}Content mismatch at offset {offset}!\n")
        }
    }
}
