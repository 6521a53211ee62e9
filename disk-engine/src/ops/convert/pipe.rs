//! To standard output, or whatever else takes bytes in order.
//!
//! ```text
//! raw                                   as it comes, zeros written
//! archive                               as it is made
//! qcow2   images                        looked through first: what is stored is known, tables first
//!         sparse archives               their map is known: tables first
//!         anything else, compressed,    made in a file without a name, then sent
//!         over another image
//! ```
//!
//! Caller: `ops::convert`.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use qcow2_format::CreateOptions;
use qcow2_format::create::StreamedImage;
use qcow2_format::image::Preallocation;

use super::joined::View;
use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::Origin;
use super::spilled::{Kept, Spilled};
use super::{archive, new};
use crate::disk::DiskContent;
use crate::disk::chain::from_format;
use crate::error::Result;
use crate::sink::ExtentSink;
use crate::sink::archive::map::DiskMap;
use crate::sink::qcow2::StreamedSink;
use crate::sink::stream::StreamSink;
use crate::source::disk::{DiskSource, Reading};
use crate::source::extent::{DiskShape, Extent, ExtentSource};
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    writer: &mut dyn Write,
    label: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    match &options.format {
        TargetFormat::Raw { .. } => origin.with_extents(options, |source| {
            let mut sink = StreamSink::new(writer, label)?;
            let size = pump(source, &mut sink, &options.control)?;
            Ok(sent(size, size))
        }),
        TargetFormat::Archive(pack) => archive::write(origin, writer, label, pack, options),
        TargetFormat::Qcow2(image) => {
            let plain = !options.compress
                && options.below.is_none()
                && options.sparse > 0
                && image.wanted_preallocation() == Preallocation::Off;
            let stored = match &origin {
                Origin::Disks(joined) if plain => {
                    let reading = joined.reading(options.salvage);
                    let range = joined.range(options.offset, options.length);
                    let view = View::new(&reading, range, options.size);
                    let map = DiskMap::scan(&view, options.threads(), &options.control)?;
                    let runs = map.runs.iter().map(|run| (run.offset, run.length));
                    let image = image.clone().virtual_size(map.size);
                    Some(lay_out(&image, runs, label)?)
                }
                _ => None,
            };
            origin.with_extents(options, |source| {
                let Some(Extent::Disk(shape)) = source.next_extent()? else {
                    return spill(source, None, writer, label, options);
                };
                let known = match (stored, shape.size, source.map()) {
                    (Some(stored), ..) => Some(stored),
                    (None, Some(size), Some(map)) if plain => {
                        let image = image.clone().virtual_size(size);
                        Some(lay_out(&image, map.into_iter(), label)?)
                    }
                    _ => None,
                };
                let Some(known) = known else {
                    return spill(source, Some(shape), writer, label, options);
                };
                let mut begun = Begun { shape: Some(shape), source };
                let mut sink = StreamedSink::new(&known, writer, label)?;
                pump(&mut begun, &mut sink, &options.control)?;
                Ok(sent(known.header().virtual_size(), sink.written()))
            })
        }
    }
}

fn sent(virtual_size: u64, bytes: u64) -> ConvertReport {
    ConvertReport {
        virtual_size,
        stored_bytes: bytes,
        file_length: bytes,
        ..ConvertReport::default()
    }
}

/// The image that stores the clusters in which `runs` lie, ascending, as bytes.
fn lay_out(
    image: &CreateOptions,
    runs: impl Iterator<Item = (u64, u64)>,
    label: &Path,
) -> Result<StreamedImage> {
    let failed = |error| from_format(error, label);
    let geometry = image.plan().map_err(failed)?.header().geometry();
    let bytes = geometry.cluster_bits.bytes();
    let mut stored: Vec<Range<u64>> = Vec::new();
    for (offset, length) in runs.filter(|(_, length)| *length > 0) {
        let (start, end) = (offset / bytes, offset.saturating_add(length).div_ceil(bytes));
        match stored.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => stored.push(start..end),
        }
    }
    image.lay_out(stored).map_err(failed)
}

/// Makes the image in a file first.
fn spill(
    source: &mut dyn ExtentSource,
    shape: Option<DiskShape>,
    writer: &mut dyn Write,
    label: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let spilled = Spilled::new(&options.spill)?;
    let mut begun = Begun { shape, source };
    let (file, name) = (spilled.file(), spilled.label());
    let mut kept = Kept::new(&mut begun, &spilled);
    let mut report = new::write(&mut kept, (file, None), name, &options.format, options)?;
    report.spilled_bytes = spilled.check()?;
    let disk = spilled.disk()?;
    let reading = Reading::strict(&disk);
    let mut sink = StreamSink::new(writer, label)?;
    pump(&mut DiskSource::new(&reading, None, 0..disk.size()), &mut sink, &options.control)?;
    Ok(report)
}

/// A source whose first word was heard already.
struct Begun<'a> {
    shape: Option<DiskShape>,
    source: &'a mut dyn ExtentSource,
}

impl ExtentSource for Begun<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        match self.shape.take() {
            Some(shape) => Ok(Some(Extent::Disk(shape))),
            None => self.source.next_extent(),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.source.read(bytes)
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }
}
