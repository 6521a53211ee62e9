//! `disk-engine overlay`: a thin overlay of a base.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::base::{BaseFormat, BaseImage};
use crate::cli::{Output, size};
use crate::disk::chain::probe_top;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::pending::Existing;

/// Make a thin overlay of a base
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The base: shared, only read
    base: PathBuf,
    /// The overlay to make
    file: PathBuf,
    /// Least size of the disk, as in 50G; the base's size is never cut
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    min_size: Option<u64>,
    /// The base's format; raw unless given, and never guessed
    #[arg(long, short = 'F', value_enum)]
    format: Option<Format>,
    /// Name the base relative to the overlay's folder
    #[arg(long)]
    relative: bool,
    /// Keep an overlay that stands there, after checking that it fits
    #[arg(long)]
    reuse: bool,
    /// Replace a file that stands there
    #[arg(long, conflicts_with = "reuse")]
    force: bool,
}

/// Formats a base can have.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl From<Format> for BaseFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

/// The base at `path` in the format the caller states. Without one it is raw, unless it looks
/// otherwise: then the caller has to say what is meant, since a guest may have written the look.
pub(crate) fn open_base(path: &PathBuf, format: Option<Format>) -> Result<BaseImage> {
    if format.is_none() && probe_top(path)? == BaseFormat::Qcow2 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the base begins as a qcow2 image, and its format is not stated",
        )
        .with_path(path)
        .with_hint("add --format qcow2, or --format raw if a guest wrote that"));
    }
    BaseImage::open(path, format.map_or(BaseFormat::Raw, BaseFormat::from))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    filename: String,
    virtual_size: u64,
    reused: bool,
    base: String,
    base_format: &'static str,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let base = open_base(&arguments.base, arguments.format)?;
    let existing = if arguments.force { Existing::Replace } else { Existing::Refuse };
    let overlay = base
        .overlay(&arguments.file)
        .min_size(arguments.min_size.unwrap_or(0))
        .relative(arguments.relative)
        .reuse(arguments.reuse)
        .existing(existing)
        .create()?;
    let report = Report {
        filename: overlay.path().to_string_lossy().into_owned(),
        virtual_size: overlay.virtual_size(),
        reused: overlay.reused(),
        base: base.path().to_string_lossy().into_owned(),
        base_format: base.format().as_str(),
    };
    let text = format!(
        "{:?}: overlay, {} ({} bytes), {} over {} base {:?}",
        overlay.path(),
        size::human(report.virtual_size),
        report.virtual_size,
        if report.reused { "reused" } else { "new" },
        report.base_format,
        base.path(),
    );
    output.report(&report, &text)
}
