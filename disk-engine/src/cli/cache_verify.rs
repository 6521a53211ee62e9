//! The `cache verify` command: whether what is in the cache is what was put there.

use std::fmt::Write;
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::cache::{CacheKey, Verdict, VerifiedBase, VerifyMode, VerifyOptions, VerifyReport};
use crate::cli::cache::Place;
use crate::cli::cache_list::count;
use crate::cli::output::is_hidden;
use crate::cli::{Output, progress, size};
use crate::error::{Error, ErrorKind, Result};

/// Check the bases in a cache, and quarantine damaged ones
///
/// The next request for a quarantined base makes it anew. One that is in use stays where it is, but is
/// not served any more. Exit code 3 if any base is damaged.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Read every byte; without it, only what the file system finds suspicious
    #[arg(long)]
    full: bool,
    /// How many threads read; without it, one a core
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Only report: leave damaged bases where they are
    #[arg(long)]
    keep: bool,
    /// The bases to check, as their files are named; without it, all
    #[arg(value_name = "KEY", value_parser = parse_key)]
    keys: Vec<CacheKey>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    bases: Vec<Base<'a>>,
    damaged: usize,
    bytes_read: u64,
    seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Base<'a> {
    key: String,
    path: String,
    virtual_size: Option<u64>,
    verdict: &'a str,
    reason: Option<String>,
    offset: Option<u64>,
    quarantined: Option<String>,
    obstacle: Option<String>,
    in_use: bool,
    overlays: Vec<String>,
    verified_fully: bool,
}

impl<'a> From<&'a VerifiedBase> for Base<'a> {
    fn from(base: &'a VerifiedBase) -> Self {
        Self {
            key: base.key.to_string(),
            path: base.path.to_string_lossy().into_owned(),
            virtual_size: base.virtual_size,
            verdict: base.verdict.as_str(),
            reason: base.reason.as_ref().map(chain),
            offset: base.reason.as_ref().and_then(Error::offset),
            quarantined: base.quarantined.as_ref().map(|path| path.to_string_lossy().into_owned()),
            obstacle: base.obstacle.as_ref().map(chain),
            in_use: base.in_use,
            overlays: base
                .overlays
                .iter()
                .map(|path| path.to_string_lossy().into_owned())
                .collect(),
            verified_fully: base.verified_fully,
        }
    }
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let cache = arguments.place.open()?;
    let (control, drawing) = progress::draw(output);
    let options = VerifyOptions {
        mode: if arguments.full { VerifyMode::Full } else { VerifyMode::Quick },
        keys: (!arguments.keys.is_empty()).then_some(arguments.keys),
        threads: arguments.threads,
        keep: arguments.keep,
        control,
    };
    let report = cache.verify(&options)?;
    drop(drawing);
    let damaged = report.damaged();
    let value = Report {
        bases: report.bases.iter().map(Base::from).collect(),
        damaged,
        bytes_read: report.bytes_read,
        seconds: report.elapsed.as_secs_f64(),
    };
    output.report(&value, &text(&report))?;
    if damaged > 0 {
        let message = format!("{damaged} of {} bases damaged", report.bases.len());
        return Err(Error::new(ErrorKind::Corrupt, message).with_path(cache.path()));
    }
    Ok(())
}

fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    for base in &report.bases {
        let _ = write!(text, "{}  {}", base.key, base.verdict.as_str());
        if base.verified_fully {
            text.push_str(", every byte read");
        }
        if let Some(reason) = &base.reason {
            let _ = write!(text, ": {}", chain(reason));
        }
        text.push('\n');
        if base.verdict == Verdict::Damaged {
            let _ = match (&base.quarantined, &base.obstacle) {
                (Some(place), None) => writeln!(text, "  moved to {place:?}"),
                (Some(place), Some(obstacle)) => {
                    writeln!(
                        text,
                        "  moved to {place:?}, but for its manifest: {}",
                        chain(obstacle)
                    )
                }
                (None, Some(obstacle)) => writeln!(text, "  not moved: {}", chain(obstacle)),
                (None, None) if base.in_use => writeln!(text, "  in use, and left where it is"),
                (None, None) => writeln!(text, "  left where it is"),
            };
        }
        for overlay in &base.overlays {
            let _ = writeln!(text, "  overlay {overlay:?}");
        }
    }
    let _ = writeln!(
        text,
        "{}, {} damaged; {} read in {:.3} s",
        count(report.bases.len(), "base"),
        report.damaged(),
        size::human(report.bytes_read),
        report.elapsed.as_secs_f64()
    );
    text
}

/// An error and its causes in one line, without letters that would drive a terminal.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text.chars().map(|letter| if is_hidden(letter) { '?' } else { letter }).collect()
}

fn parse_key(text: &str) -> Result<CacheKey> {
    text.parse()
}
