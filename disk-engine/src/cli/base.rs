//! The `base` command: makes sure that a base is in the cache, and says where.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cache::{BaseOptions, CachedBase, ImageCache, KeyPolicy, Origin};
use crate::cli::source::SourceOptions;
use crate::cli::{Output, progress, size};
use crate::error::Result;
use crate::sys::pending::Durability;

/// Make sure that a base is in the cache; its path is the last line printed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The archive or image; '-' reads standard input
    source: PathBuf,
    /// The cache's folder, made if it is not there
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// What makes it the same base: content, sha256:HEX (verified) or name:NAME (vouched for)
    #[arg(long, value_name = "KEY", default_value = "content", value_parser = parse_key)]
    key: KeyPolicy,
    #[command(flatten)]
    options: SourceOptions,
    /// How long to wait for others who make the base; without it, as long as it takes
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Sync a new base to the medium, so that it survives a power cut
    #[arg(long)]
    durable: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    path: String,
    key: Option<&'a str>,
    key_policy: &'a str,
    origin: &'a str,
    virtual_size: u64,
    actual_size: u64,
    sha256: Option<String>,
    seconds: f64,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let started = Instant::now();
    let cache = ImageCache::open(&arguments.cache)?;
    let source = arguments.options.at(&arguments.source);
    let (control, drawing) = progress::draw(output);
    let options = BaseOptions {
        policy: arguments.key,
        timeout: arguments.timeout,
        durability: if arguments.durable { Durability::Full } else { Durability::None },
        control,
    };
    let base = cache.base_with(source, &options)?;
    drop(drawing);
    let seconds = started.elapsed().as_secs_f64();
    let report = Report {
        path: base.image.path().to_string_lossy().into_owned(),
        key: base.image.key(),
        key_policy: options.policy.as_str(),
        origin: base.origin.as_str(),
        virtual_size: base.image.virtual_size(),
        actual_size: base.allocated,
        sha256: base.source_sha256.map(|digest| digest.to_string()),
        seconds,
    };
    output.report(&report, &text(&base, seconds))
}

fn text(base: &CachedBase, seconds: f64) -> String {
    let origin = match &base.origin {
        Origin::Hit => "found in the cache".to_owned(),
        Origin::Waited => "waited for someone else to extract it".to_owned(),
        Origin::Extracted(report) => {
            format!("extracted from {}", size::human(report.source_bytes))
        }
    };
    format!(
        "{origin} in {seconds:.3} s: {} of disk in {} of storage\n{}\n",
        size::human(base.image.virtual_size()),
        size::human(base.allocated),
        base.image.path().display()
    )
}

fn parse_key(text: &str) -> Result<KeyPolicy> {
    text.parse()
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("'{}' is not a number of seconds", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_stranger() {
        for (text, seconds) in [("0", 0.0), ("2", 2.0), ("0.25", 0.25)] {
            assert_eq!(parse_seconds(text), Ok(Duration::from_secs_f64(seconds)));
        }
        for text in ["", "-1", "1s", "inf", "NaN", "1e300"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
