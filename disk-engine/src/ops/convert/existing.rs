//! Into a disk that is there: its image keeps its shape, and what is not written stays.
//!
//! Caller: `ops::convert`.

use std::path::Path;

use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::Origin;
use crate::base::BaseFormat;
use crate::disk::{DiskContent, WritableDisk};
use crate::error::Result;
use crate::sink::disk::{DiskRules, DiskSink};
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    path: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let format = match options.format {
        TargetFormat::Raw { .. } => BaseFormat::Raw,
        TargetFormat::Qcow2(_) => BaseFormat::Qcow2,
    };
    let disk = WritableDisk::open(path, format, &options.target)?;
    let rules = DiskRules {
        is_zero: options.target_is_zero,
        compress: options.compress,
        sparse: usize::try_from(options.sparse).unwrap_or(usize::MAX),
        start: options.target_offset,
    };
    let mut report = ConvertReport::default();
    let mut written = 0;
    let mut sink = DiskSink::new(&disk, rules)?;
    origin.with_extents(options, &mut report, |source| {
        let size =
            pump(source, &mut sink, &options.control).map_err(|error| error.or_path(path))?;
        written = crate::sink::ExtentSink::written(&sink);
        Ok(size)
    })?;
    report.virtual_size = disk.size();
    report.stored_bytes = written;
    drop(sink);
    disk.close()?;
    Ok(report)
}
