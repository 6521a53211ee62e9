//! Into a disk that is there: its image keeps its shape, and what is not written stays.
//!
//! Caller: `ops::convert`.

use std::path::Path;

use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::Origin;
use crate::base::BaseFormat;
use crate::disk::{DiskContent, WritableDisk};
use crate::error::Result;
use crate::sink::ExtentSink;
use crate::sink::disk::{DiskRules, DiskSink};
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    path: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let format = match options.format {
        TargetFormat::Raw { .. } | TargetFormat::Archive(_) => BaseFormat::Raw,
        TargetFormat::Qcow2(_) => BaseFormat::Qcow2,
    };
    let disk = WritableDisk::open(path, format, &options.target)?;
    let top = disk.images().next().and_then(|image| image.header);
    let cluster = top.map_or(512, |header| header.geometry().cluster_bits.bytes());
    let rules = DiskRules {
        is_zero: options.target_is_zero,
        compress: options.compress,
        sparse: usize::try_from(options.sparse).unwrap_or(usize::MAX),
        cluster,
        start: options.target_offset,
    };
    let mut sink = DiskSink::new(&disk, rules)?;
    let report = origin.with_extents(options, |source| {
        pump(source, &mut sink, &options.control).map_err(|error| error.or_path(path))?;
        Ok(ConvertReport {
            virtual_size: disk.size(),
            stored_bytes: sink.written(),
            ..ConvertReport::default()
        })
    })?;
    drop(sink);
    disk.close()?;
    Ok(report)
}
