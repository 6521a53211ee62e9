//! `measure`: how long the file of a new image gets, before it is made, as `qemu-img measure` counts.
//!
//! ```text
//! size ───────────────────────────▶ tables for all of the disk           ─▶ required
//! image ─▶ clusters with data in it ─▶ + those clusters, once each       ─▶ required
//!                                      + the whole disk                  ─▶ fully allocated
//!       └▶ its bitmaps ─▶ directory, tables and bits of each             ─▶ bitmaps
//! ```
//!
//! Callers: `cli::measure`, `cli::qemu_img`.

use std::path::Path;

use qcow2_format::create::measure::Shape;
use qcow2_format::header::Version;
use qcow2_format::image::Preallocation;
use serde::Serialize;

use crate::base::BaseFormat;
use crate::disk::sectors::whole_sectors;
use crate::disk::{Disk, DiskContent, DiskOptions, inspect};
use crate::error::{Error, ErrorKind, Result};

/// The fixed part of a bitmap directory entry (spec: "Bitmap directory").
const BITMAP_ENTRY_BYTES: u64 = 24;
/// Bytes of an entry of a bitmap table.
const BITMAP_TABLE_ENTRY_BYTES: u64 = 8;

/// What the new file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MeasureTarget {
    /// A raw disk.
    Raw,
    /// A qcow2 image.
    Qcow2(Shape),
}

/// What a new file takes, in bytes. The fields are qemu-img's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MeasureReport {
    /// Its length at most, with the source's data in it.
    pub required: u64,
    /// Its length once every cluster of the disk is stored.
    pub fully_allocated: u64,
    /// What the source's bitmaps take besides, where both can have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
}

/// Measures a new, empty disk of `size` bytes.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if the image's tables cannot tell of a disk that large.
pub fn measure_size(size: u64, target: &MeasureTarget) -> Result<MeasureReport> {
    let size = whole_sectors(size);
    match target {
        MeasureTarget::Raw => Ok(raw(size)),
        MeasureTarget::Qcow2(shape) => {
            let virtual_size = whole_clusters(shape, size);
            if shape.is_too_large(virtual_size) {
                let message = "the disk is too large for clusters of that size";
                return Err(Error::new(ErrorKind::InvalidInput, message)
                    .with_hint("larger clusters allow larger disks"));
            }
            Ok(qcow2(shape, virtual_size, 0))
        }
    }
}

/// Measures a copy of the disk at `path`. Its data is not read.
///
/// # Errors
///
/// As [`Disk::open`]; the tables are damaged or cannot be read.
pub fn measure(
    path: impl AsRef<Path>,
    format: BaseFormat,
    disk: &DiskOptions,
    target: &MeasureTarget,
) -> Result<MeasureReport> {
    let path = path.as_ref();
    let opened = Disk::open(path, format, &DiskOptions { holes: true, ..disk.clone() })?;
    let size = whole_sectors(DiskContent::size(&opened));
    let MeasureTarget::Qcow2(shape) = target else { return Ok(raw(size)) };
    let virtual_size = whole_clusters(shape, size);
    let data = if shape.backed { virtual_size } else { data_clusters(shape, &opened)? };
    let mut report = qcow2(shape, virtual_size, data);
    report.bitmaps = bitmaps(shape, path, format, size)?;
    Ok(report)
}

fn raw(size: u64) -> MeasureReport {
    MeasureReport { required: size, fully_allocated: size, bitmaps: None }
}

fn whole_clusters(shape: &Shape, size: u64) -> u64 {
    let cluster = shape.geometry.cluster_bits.bytes();
    size.checked_next_multiple_of(cluster).unwrap_or(size - size % cluster)
}

fn qcow2(shape: &Shape, virtual_size: u64, data: u64) -> MeasureReport {
    let data = match shape.preallocation {
        Preallocation::Falloc | Preallocation::Full => virtual_size,
        // Tables are counted for all of the disk anyway.
        Preallocation::Off | Preallocation::Metadata => data,
    };
    let fully_allocated = shape.fully_allocated_length(virtual_size);
    let required = fully_allocated.saturating_sub(virtual_size).saturating_add(data);
    MeasureReport { required, fully_allocated, bitmaps: None }
}

/// Bytes of the clusters of the new image that have data of `disk` in them.
fn data_clusters(shape: &Shape, disk: &Disk) -> Result<u64> {
    let cluster = shape.geometry.cluster_bits.bytes();
    let (mut bytes, mut counted) = (0_u64, 0_u64);
    for run in disk.map(0..DiskContent::size(disk))? {
        let run = run?;
        if run.zero || !run.data {
            continue;
        }
        let start = (run.start - run.start % cluster).max(counted);
        let end = run.start.saturating_add(run.length);
        let end = end.checked_next_multiple_of(cluster).unwrap_or(end);
        bytes = bytes.saturating_add(end.saturating_sub(start));
        counted = end.max(counted);
    }
    Ok(bytes)
}

/// What the bitmaps of the image at `path`, whose disk has `size` bytes, take in the new one.
fn bitmaps(shape: &Shape, path: &Path, format: BaseFormat, size: u64) -> Result<Option<u64>> {
    if shape.version == Version::V2 || format == BaseFormat::Raw {
        return Ok(None);
    }
    let image = inspect(path, format)?;
    if image.header.as_ref().is_none_or(|header| header.version() == Version::V2) {
        return Ok(None);
    }
    let cluster = shape.geometry.cluster_bits.bytes();
    let whole = |bytes: u64| bytes.checked_next_multiple_of(cluster).unwrap_or(bytes);
    let (mut bytes, mut directory) = (0_u64, 0_u64);
    // Those that may be wrong are counted as well, as in qemu-img.
    for bitmap in &image.bitmaps()? {
        let granularity = 1_u64.checked_shl(bitmap.granularity_bits.into()).unwrap_or(u64::MAX);
        let clusters = size.div_ceil(granularity).div_ceil(8).div_ceil(cluster);
        let table = whole(clusters.saturating_mul(BITMAP_TABLE_ENTRY_BYTES));
        bytes = bytes.saturating_add(clusters.saturating_mul(cluster)).saturating_add(table);
        // A name has at most 64 KiB, and there are at most 64 Ki of them.
        directory += (BITMAP_ENTRY_BYTES + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Ok(Some(bytes.saturating_add(whole(directory))))
}
