//! `map`: which part of a disk comes from which image of its chain, as `qemu-img map` tells it.
//!
//! ```text
//! guest 0         1 MiB      3 MiB       entries, each as long as it is
//!       │ depth 0 │ depth 1  │ …         start, length, depth, present, zero, data, compressed, offset
//! ```
//!
//! How many entries there are is the image's to say, so they are handed out one by one. As QEMU does, a
//! disk is counted in sectors of 512 bytes: each belongs to the entry that has its first byte. Callers:
//! `cli::map`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::base::BaseFormat;
use crate::disk::sectors::{SECTOR, whole_sectors};
use crate::disk::{Disk, DiskContent, DiskImage, DiskOptions, DiskRun};
use crate::error::Result;
use crate::ops::names;

/// What is told, and how the disk is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MapOptions {
    /// How the disk is opened: whose names are followed, and which snapshot it is.
    pub disk: DiskOptions,
    /// Where on the disk to start, in bytes.
    pub start: u64,
    /// How many bytes to tell of at most; `None` for all.
    pub length: Option<u64>,
}

/// A part of the disk that is all alike, and lies in one piece if it is stored. The fields are
/// qemu-img's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry<'a> {
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Which image has it: 0 is the top.
    pub depth: usize,
    /// Whether that image has it allocated, be it as zeros.
    pub present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
    /// Whether it is stored, as it is or compressed; in a hole of a preallocated file, if it is `zero`
    /// as well.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// Where it lies in `filename`; `None` if nowhere or compressed.
    pub offset: Option<u64>,
    /// The image, or its external data file.
    pub filename: &'a Path,
}

/// Tells `each` of the parts of the disk at `path`, in order. A range of no bytes is one entry of no
/// length, as in qemu-img.
///
/// # Errors
///
/// As [`Disk::open`]; the tables are damaged or cannot be read; what `each` returns.
pub fn map(
    path: impl AsRef<Path>,
    format: BaseFormat,
    options: &MapOptions,
    mut each: impl FnMut(&MapEntry<'_>) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let disk = Disk::open(path, format, &DiskOptions { holes: true, ..options.disk.clone() })?;
    let images: Vec<_> = disk.images().map(|image| Layer::of(&image, path)).collect();
    let size = whole_sectors(disk.size());
    let end = options.start.saturating_add(options.length.unwrap_or(u64::MAX)).min(size);
    let mut tell = |depth: usize, run: Option<DiskRun>, range: Range<u64>| {
        let is = |what: fn(&DiskRun) -> bool| run.as_ref().is_some_and(what);
        each(&MapEntry {
            start: range.start,
            length: range.end - range.start,
            depth,
            present: is(|run| run.present),
            zero: is(|run| run.zero),
            data: is(|run| run.data),
            compressed: is(|run| run.compressed),
            offset: run.and_then(|run| Some(run.offset?.saturating_add(range.start - run.start))),
            filename: images.get(depth).map_or(Path::new(""), |layer| &layer.file),
        })
    };
    if options.start >= end {
        return tell(0, None, options.start..options.start);
    }
    let mut at = options.start;
    // An image that ends within a sector has all of it: what has the sector's first byte, goes on.
    for run in disk.map(at - at % SECTOR..end.min(disk.size()))? {
        let run = run?;
        let run_end = run.start.saturating_add(run.length);
        let reached = whole_sectors(run_end).min(end);
        // A raw file that ends in data is followed by zeros.
        let raw_end = images.get(run.depth).and_then(|layer| layer.raw_end);
        if raw_end == Some(run_end) && run.data {
            let zeros = DiskRun { zero: true, data: false, ..run };
            for (run, end) in [(run, run_end.min(end)), (zeros, reached)] {
                if end > at {
                    tell(run.depth, Some(run), at..end)?;
                    at = end;
                }
            }
        } else if reached > at {
            tell(run.depth, Some(run), at..reached)?;
            at = reached;
        }
    }
    Ok(())
}

/// An image of the chain.
struct Layer {
    /// The file that what it stores lies in.
    file: PathBuf,
    /// Where it ends, if it is raw.
    raw_end: Option<u64>,
}

impl Layer {
    fn of(image: &DiskImage<'_>, top: &Path) -> Self {
        let file = image.data_file.unwrap_or(image.path);
        Self {
            file: names::reported(top, file).to_path_buf(),
            raw_end: (image.format == BaseFormat::Raw).then_some(image.size),
        }
    }
}
