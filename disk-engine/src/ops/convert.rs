//! `convert`: a disk in any form into any other, by extents.
//!
//! ```text
//! images, chains, snapshots ─▶ runs, decoded ahead ─┐            ┌─▶ raw, sparse
//! archives, compressed images, pipes ───────────────┼─▶ pump ────┼─▶ qcow2, new: laid out in order
//! a range, another size ────────────────────────────┘            ├─▶ a disk that is there
//!                                                                 ├─▶ standard output
//!                                                                 └─▶ archive
//! ```
//!
//! A new file appears under its name whole or not at all. The bytes of the target follow from the
//! disk's content and the options alone, however many threads work. Zeros are stored nowhere.
//!
//! Memory: for each thread a decoded piece or two and two chunks of the target, each of 256 KiB or a
//! cluster, and four more; the L1 table, one L2 table and two refcount blocks of a new image; for a
//! pipe the map of what is stored, 64 MiB per TiB of data. Into a disk that is there one thread writes
//! and compresses.
//!
//! ```text
//! options   how to convert, and the report of it
//! origin    what is read: opened, checked, with its threads
//! joined    several disks one behind the other
//! new       into a new file
//! existing  into a disk that is there
//! archive   into an archive
//! pipe      to standard output
//! piped     qcow2 from standard input
//! spilled   what has to be kept somewhere before it can go on
//! ```
//!
//! Callers: the command line.

mod archive;
mod existing;
mod joined;
mod new;
mod options;
mod origin;
mod pipe;
mod piped;
mod spilled;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::pending::Existing;
pub use options::{
    Below, ConvertOptions, ConvertReport, ConvertSource, ConvertTarget, DiskSpec, Spill,
    TargetFormat,
};
use origin::Origin;

pub use crate::source::disk::{Unreadable, UnreadableParts};

/// Converts the disk in `source` into `target`.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for options that contradict each other, sizes that do not fit, and a
/// target that is part of its own source; [`ErrorKind::AlreadyExists`] unless told to replace;
/// [`ErrorKind::Busy`] if a VM uses what is read or written; [`ErrorKind::Corrupt`] for damaged
/// sources, and those marked so, unless told to salvage; otherwise as
/// [`Disk::open`](crate::disk::Disk::open), [`extract`](crate::ops::extract()) and the system say. Of
/// a new file nothing is left behind, and what stood there still stands; a disk that was there is
/// written in part.
pub fn convert(
    source: ConvertSource,
    target: ConvertTarget<'_>,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let start = Instant::now();
    options.check()?;
    if let ConvertTarget::File(path) = &target
        && !options.into_existing
        && options.existing == Existing::Refuse
        && fs::symlink_metadata(path).is_ok()
    {
        // Publishing would find out too, after all the work.
        return Err(Error::new(ErrorKind::AlreadyExists, "the file exists and is left as it is")
            .with_path(path));
    }
    if let ConvertTarget::Writer { label, .. } = &target
        && matches!(&options.format, TargetFormat::Qcow2(image) if image.has_data_file())
    {
        return Err(Error::new(ErrorKind::InvalidInput, "an image in a pipe has no data file")
            .with_path(label)
            .with_field("data_file"));
    }
    let origin = Origin::open(source, options)?;
    let mut report = match target {
        ConvertTarget::File(path) => {
            refuse_same(&origin, options, path)?;
            // A raw disk goes onto a device as into any disk that is there.
            let onto_device =
                matches!(options.format, TargetFormat::Raw { .. }) && is_block_device(path);
            let outcome = if options.into_existing || onto_device {
                existing::convert(origin, path, options)
            } else {
                new::convert(origin, path, options)
            };
            // What no file is to blame for, as threads that cannot be had, is told of this one.
            outcome.map_err(|error| error.or_path(path))
        }
        ConvertTarget::Writer { writer, label } => pipe::convert(origin, writer, label, options),
    }?;
    report.elapsed = start.elapsed();
    Ok(report)
}

/// What is said of a target that is read from.
pub(crate) const READ_FROM: &str = "the source would be replaced by what is read from it";

/// A target that is read from, or stood on, would be gone before it was read.
fn refuse_same(origin: &Origin, options: &ConvertOptions, target: &Path) -> Result<()> {
    let below = options.below.iter().flat_map(Below::files);
    if origin.is_file(target) || below.into_iter().any(|file| same(&file, target)) {
        return Err(Error::new(ErrorKind::InvalidInput, READ_FROM)
            .with_path(target)
            .with_hint("choose another target"));
    }
    Ok(())
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|target| target.file_type().is_block_device())
}

fn same(file: &Path, target: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| crate::sys::open::is_same_file(&file, target))
}
