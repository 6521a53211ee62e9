//! `disk-engine measure`: how long the file of a new image gets, in qemu-img's fields.

use std::path::PathBuf;

use qcow2_format::create::measure::Shape;

use crate::base::BaseFormat;
use crate::cli::follow::Follow;
use crate::cli::overlay::Format;
use crate::cli::{Output, options, size};
use crate::disk::DiskOptions;
use crate::disk::chain::{from_format, probe_top};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::measure::{MeasureReport, MeasureTarget, measure, measure_size};

/// Show how long the file of a new image gets, for a size or a disk that is there
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The disk to be copied
    #[arg(required_unless_present = "size", conflicts_with = "size")]
    file: Option<PathBuf>,
    /// Size of an empty disk, as in 50G
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// The disk's format; without it a file that begins as qcow2 is taken for that
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// The new image's format
    #[arg(long, short = 'O', value_enum, default_value = "qcow2")]
    target_format: Format,
    /// Options of the new image, as qemu-img names them
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Measure this snapshot of the disk, by id or name
    #[arg(long, short = 'l', value_name = "NAME", conflicts_with = "size")]
    snapshot: Option<String>,
    /// Even while others write to it
    #[arg(long, short = 'U')]
    force_share: bool,
    #[command(flatten)]
    follow: Follow,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let target = match arguments.target_format.into() {
        BaseFormat::Raw => MeasureTarget::Raw,
        BaseFormat::Qcow2 => MeasureTarget::Qcow2(shape(&arguments.options)?),
    };
    let report = match (arguments.size, arguments.file) {
        (Some(size), _) => measure_size(size, &target)?,
        (None, Some(file)) => {
            let format = match arguments.format {
                Some(format) => format.into(),
                None => probe_top(&file)?,
            };
            let disk = arguments.follow.disk(arguments.force_share);
            let disk = DiskOptions { snapshot: arguments.snapshot, ..disk };
            measure(file, format, &disk, &target)?
        }
        (None, None) => {
            return Err(Error::new(ErrorKind::InvalidInput, "a size or a disk is needed"));
        }
    };
    output.report(&report, &render(&report))
}

fn shape(words: &[String]) -> Result<Shape> {
    let options = options::parse(words)?;
    let shape = options.image.shape().map_err(|error| from_format(error, "-o".as_ref()))?;
    Ok(Shape { backed: options.backing_file.is_some(), ..shape })
}

/// As qemu-img says it.
pub(crate) fn render(report: &MeasureReport) -> String {
    let MeasureReport { required, fully_allocated, bitmaps } = report;
    let bitmaps = bitmaps.map_or(String::new(), |bytes| format!("bitmaps size: {bytes}\n"));
    format!("required size: {required}\nfully allocated size: {fully_allocated}\n{bitmaps}")
}
