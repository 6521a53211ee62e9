//! The `extract` command: archive or compressed image in, sparse raw file out.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::source::SourceOptions;
use crate::cli::{Output, progress, size};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{self, ExtractOptions, ExtractReport};
use crate::source::{Compression, Container};
use crate::sys::pending::Existing;

/// Extract an archive or a compressed image into a sparse raw file
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A tar archive or a disk image, plain or compressed (zstd, gzip, xz); '-' reads standard input
    source: PathBuf,
    /// The raw file to make; holes need a file, so '-' is refused ('./-' is a file of that name)
    destination: PathBuf,
    /// Fail unless the source's SHA-256 is this, as sha256sum prints it
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256Digest>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Pad the disk to whole units of 4096 bytes, for direct I/O (cache=none)
    #[arg(long)]
    pad: bool,
    #[command(flatten)]
    options: SourceOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    source: &'a str,
    destination: &'a Path,
    virtual_size: u64,
    padding: u64,
    written: u64,
    compression: Compression,
    frames: u64,
    threads: usize,
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
    let source = arguments.options.at(&arguments.source);
    let label = source.label();
    let (control, drawing) = progress::draw(output);
    let options = ExtractOptions {
        existing: if arguments.force { Existing::Replace } else { Existing::Refuse },
        expected_sha256: arguments.sha256,
        pad: arguments.pad,
        control,
        ..ExtractOptions::default()
    };
    let outcome = ops::extract(source, &arguments.destination, &options);
    drop(drawing);
    let report = outcome?;
    output.report(&summary(&label, &report), &text(&label, &report))
}

fn summary<'a>(label: &'a str, report: &'a ExtractReport) -> Report<'a> {
    let transfer = &report.transfer;
    Report {
        source: label,
        destination: &report.destination,
        virtual_size: transfer.virtual_size.saturating_add(report.padding),
        padding: report.padding,
        written: transfer.written_bytes,
        compression: transfer.compression,
        frames: transfer.frames,
        threads: transfer.threads,
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
    let frames = match transfer.frames {
        0 | 1 => String::new(),
        frames => format!(" in {frames} frames"),
    };
    let threads = if transfer.threads == 1 { "thread" } else { "threads" };
    format!(
        "{}: {} virtual, {} written, from {} ({}{frames}{member}), decoded on {} {threads}, {:.2} s",
        report.destination.display().to_string().escape_debug(),
        size::human(transfer.virtual_size.saturating_add(report.padding)),
        size::human(transfer.written_bytes),
        label.escape_debug(),
        transfer.compression.as_str(),
        transfer.threads,
        report.elapsed.as_secs_f64(),
    )
}
