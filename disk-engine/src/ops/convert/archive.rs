//! Into an archive: two passes over the disk, so that what comes from a pipe is kept first.
//!
//! Caller: `ops::convert`.

use std::io::Write;
use std::path::Path;

use super::joined::View;
use super::new;
use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::Origin;
use super::spilled::{Kept, Spilled};
use crate::disk::DiskContent;
use crate::error::Result;
use crate::ops::pack::{PackOptions, pack_disk};
use crate::source::disk::Reading;
use qcow2_format::image::Preallocation;

pub(super) fn write(
    origin: Origin,
    writer: &mut dyn Write,
    label: &Path,
    pack: &PackOptions,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let mut pack = pack.clone();
    pack.control = options.control.clone();
    pack.threads = options.threads.or(pack.threads);
    let mut packed = |disk: &dyn DiskContent| {
        let report = pack_disk(disk, writer, label, &pack)?;
        Ok(ConvertReport {
            virtual_size: report.virtual_size,
            stored_bytes: report.data_bytes,
            file_length: report.archive_bytes,
            threads: report.threads,
            ..ConvertReport::default()
        })
    };
    if let Origin::Disks(joined) = origin {
        let reading = joined.reading(options.salvage);
        let range = joined.range(options.offset, options.length);
        let read = range.end - range.start;
        let mut report = packed(&View::new(&reading, range, options.size))?;
        report.source_bytes = read;
        report.unreadable = reading.into_unreadable();
        return Ok(report);
    }
    let spilled = Spilled::new(&options.spill)?;
    let raw = TargetFormat::Raw { preallocation: Preallocation::Off };
    let source = origin.with_extents(options, |source| {
        let mut kept = Kept::new(source, &spilled);
        new::write(&mut kept, (spilled.file(), None), spilled.label(), &raw, options)
    })?;
    let kept = spilled.check()?;
    let disk = spilled.disk()?;
    let reading = Reading::strict(&disk);
    let mut report = packed(&View::new(&reading, 0..disk.size(), None))?;
    report.source_bytes = source.source_bytes;
    report.spilled_bytes = kept;
    Ok(report)
}
