//! The `extract` command: archive or compressed image in, sparse raw file out.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{Output, size};
use crate::control::{Control, Event};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{self, ExtractOptions, ExtractReport};
use crate::source::{Compression, Container, Limits, Source};
use crate::sys::pending::Existing;

/// Extract an archive or a compressed image into a sparse raw file
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A tar archive or a disk image, plain or compressed (zstd, gzip, xz); '-' reads standard input
    source: PathBuf,
    /// The raw file to make; holes need a file, so '-' is refused ('./-' is a file of that name)
    destination: PathBuf,
    /// The archive's member to take [default: its only file, else disk.img]
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Fail unless the source's SHA-256 is this, as sha256sum prints it
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256Digest>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Largest decoder window to allow, as a power of two (zstd's --long)
    #[arg(long, value_name = "LOG", default_value_t = 27, value_parser = clap::value_parser!(u32).range(10..=31))]
    long: u32,
    /// Largest disk to accept
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_size: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    source: &'a str,
    destination: &'a Path,
    virtual_size: u64,
    written: u64,
    compression: Compression,
    member: Option<&'a str>,
    sha256: Option<String>,
    seconds: f64,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    if arguments.destination.as_os_str() == "-" {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a sparse file cannot be written to standard output",
        )
        .with_hint("write ./- for a file of that name"));
    }
    let mut limits = Limits { max_window: 1 << arguments.long, ..Limits::default() };
    if let Some(max_size) = arguments.max_size {
        limits.max_image_size = max_size;
    }
    let mut source = if arguments.source.as_os_str() == "-" {
        Source::stdin()
    } else {
        Source::path(&arguments.source)
    };
    source = source.with_limits(limits);
    if let Some(member) = arguments.member {
        source = source.with_member(member);
    }
    let label = source.label();
    let bar = output.draws_progress().then(progress_bar);
    let options = ExtractOptions {
        existing: if arguments.force { Existing::Replace } else { Existing::Refuse },
        expected_sha256: arguments.sha256,
        control: bar.as_ref().map_or_else(Control::new, watched_by),
        ..ExtractOptions::default()
    };
    let outcome = ops::extract(source, &arguments.destination, &options);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = outcome?;
    output.report(&summary(&label, &report), &text(&label, &report))
}

fn summary<'a>(label: &'a str, report: &'a ExtractReport) -> Report<'a> {
    let transfer = &report.transfer;
    Report {
        source: label,
        destination: &report.destination,
        virtual_size: transfer.virtual_size,
        written: transfer.written_bytes,
        compression: transfer.compression,
        member: match &transfer.container {
            Container::Tar { member } => Some(member),
            Container::Bare => None,
        },
        sha256: transfer.source_sha256.map(|digest| digest.to_string()),
        seconds: report.elapsed.as_secs_f64(),
    }
}

fn text(label: &str, report: &ExtractReport) -> String {
    let transfer = &report.transfer;
    let member = match &transfer.container {
        Container::Tar { member } => format!(", member {member:?}"),
        Container::Bare => String::new(),
    };
    format!(
        "{}: {} virtual, {} written, from {} ({}{member}) in {:.2} s",
        report.destination.display().to_string().escape_debug(),
        size::human(transfer.virtual_size),
        size::human(transfer.written_bytes),
        label.escape_debug(),
        transfer.compression.as_str(),
        report.elapsed.as_secs_f64(),
    )
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:30} {bytes}/{total_bytes} read, {msg} written, {elapsed} ({eta} left)",
    ) {
        bar.set_style(style);
    }
    bar
}

fn watched_by(bar: &ProgressBar) -> Control {
    let bar = bar.clone();
    Control::new().with_observer(move |event| {
        if let Event::Progress { source_bytes, source_length, written_bytes } = event {
            if let Some(length) = source_length {
                bar.set_length(*length);
            }
            bar.set_position(*source_bytes);
            bar.set_message(size::human(*written_bytes));
        }
    })
}
