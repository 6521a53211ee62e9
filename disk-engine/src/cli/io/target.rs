//! What the commands work on: an opened disk, as long as QEMU would say it is.
//!
//! ```text
//! Target   read, where it is allocated         every disk
//! Writer   write, zeros, discard, flush        a disk opened for that
//! ```
//!
//! QEMU counts a disk in sectors of 512 bytes. What a last, incomplete sector lacks reads as zeros, and
//! is there for zeros and discards; bytes have no place there, and writing some fails.
//! Callers: the commands.

use std::ops::Range;

use qcow2_format::feature::AutoclearFeatures;
use qcow2_format::header::Version;
use qcow2_format::image::ZeroMode;

use crate::disk::chain::QCOW2_MAGIC;
pub(super) use crate::disk::sectors::SECTOR;
use crate::disk::sectors::{read_sectors, whole_sectors};
use crate::disk::{Disk, DiskContent, DiskRuns, WritableDisk};
use crate::error::{Error, ErrorKind, Result};

/// A disk that is open.
pub(super) trait Target {
    /// Its size in bytes, in whole sectors.
    fn size(&self) -> u64;

    /// Fills `bytes` from `offset` on; the range lies on the disk.
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Whether the top image has what lies at `offset`, be it as zeros, and for how many bytes that
    /// holds: at least one and at most `limit`.
    fn allocated(&self, offset: u64, limit: u64) -> Result<(bool, u64)>;

    /// The disk as one that takes writes, if it was opened as that.
    fn writer(&self) -> Option<&dyn Writer> {
        None
    }

    /// Gives the disk back; whatever is still in memory is written.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A disk that takes writes. Every range lies on the disk.
pub(super) trait Writer {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// As [`Writer::write`], stored compressed: whole clusters.
    fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Zeros; with `unmap` what held other bytes may be given back.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()>;

    /// Whether [`Writer::write_zeroes`] is sure to take no time that grows with the range.
    fn zeroes_are_quick(&self, offset: u64, length: u64) -> Result<bool>;

    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    fn flush(&self) -> Result<()>;
}

impl Target for Disk {
    fn size(&self) -> u64 {
        whole_sectors(DiskContent::size(self))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        read_sectors(self, bytes, offset)
    }

    fn allocated(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        allocated(DiskContent::size(self), |range| self.map(range), offset, limit)
    }
}

/// A disk that is open for writing.
pub(super) struct Written {
    pub(super) disk: WritableDisk,
    /// Whether it counts as raw because nobody said what it is.
    pub(super) guessed_raw: bool,
}

impl Written {
    /// Refuses bytes that the disk has no place for, and those that would have the next one who
    /// guesses take the content of a raw disk for the header of an image.
    fn check(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let size = DiskContent::size(&self.disk);
        // A slice's length fits in 64 bits.
        let end = offset.saturating_add(bytes.len() as u64);
        if !bytes.is_empty() && end > size {
            let message = format!("the disk ends within its last sector, at {size} bytes");
            return Err(Error::new(ErrorKind::Io, message).with_offset(offset));
        }
        let mut magic = [0; QCOW2_MAGIC.len()];
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        if !self.guessed_raw || skip >= magic.len() {
            return Ok(());
        }
        read_sectors(&self.disk, &mut magic, 0)?;
        for (byte, new) in magic.iter_mut().skip(skip).zip(bytes) {
            *byte = *new;
        }
        if magic != QCOW2_MAGIC {
            return Ok(());
        }
        let message = "the disk was taken for raw and would be taken for qcow2 afterwards";
        Err(Error::new(ErrorKind::PermissionDenied, message).with_hint("say what it is, with -f"))
    }
}

impl Target for Written {
    fn size(&self) -> u64 {
        whole_sectors(DiskContent::size(&self.disk))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        read_sectors(&self.disk, bytes, offset)
    }

    fn allocated(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let size = DiskContent::size(&self.disk);
        allocated(size, |range| self.disk.map(range), offset, limit)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.disk.close()
    }
}

impl Writer for Written {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(bytes, offset)?;
        self.disk.write_at(bytes, offset)
    }

    fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(bytes, offset)?;
        self.disk.write_compressed(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        let mode = if unmap { ZeroMode::Unmap } else { ZeroMode::Keep };
        let stored = stored(&self.disk, offset, length);
        self.disk.write_zeroes(stored.start, stored.end - stored.start, mode)
    }

    /// Of a raw file nobody knows it beforehand. In a qcow2 image zeros are entries of a table, except
    /// in a part of what one entry tells of: that is quick if the rest of it is zeros already.
    fn zeroes_are_quick(&self, offset: u64, length: u64) -> Result<bool> {
        let size = DiskContent::size(&self.disk);
        let Some(header) = self.disk.images().next().and_then(|image| image.header) else {
            return Ok(false);
        };
        // Zeros are written to a raw data file too, and version 2 has no such entries.
        let raw_data = header.autoclear_features().contains(AutoclearFeatures::RAW_EXTERNAL_DATA);
        if raw_data || header.version() == Version::V2 {
            return Ok(false);
        }
        let cell = header.geometry().subcluster_bytes();
        let stored = stored(&self.disk, offset, length);
        let first = stored.start - stored.start % cell;
        let end = stored.end.checked_next_multiple_of(cell).unwrap_or(size).min(size);
        for rest in [first..stored.start, stored.end..end] {
            for run in self.disk.map(rest)? {
                if !run?.zero {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let stored = stored(&self.disk, offset, length);
        self.disk.discard(stored.start, stored.end - stored.start)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
}

/// What the disk really has of a range.
fn stored(disk: &impl DiskContent, offset: u64, length: u64) -> Range<u64> {
    let size = disk.size();
    offset.min(size)..offset.saturating_add(length).min(size)
}

/// [`Target::allocated`] of a disk of `size` bytes whose runs `map` tells.
fn allocated<'a>(
    size: u64,
    map: impl FnOnce(Range<u64>) -> Result<DiskRuns<'a>>,
    offset: u64,
    limit: u64,
) -> Result<(bool, u64)> {
    // What the last sector lacks belongs to the byte before it.
    let start = offset.min(size.saturating_sub(1));
    let end = offset.saturating_add(limit).clamp(start, size);
    match map(start..end)?.next() {
        None => Ok((false, limit)),
        Some(run) => {
            let run = run?;
            let reached = run.start.saturating_add(run.length);
            let reached = if reached == size { whole_sectors(size) } else { reached };
            let length = reached.saturating_sub(offset).clamp(1, limit.max(1));
            Ok((run.depth == 0 && run.present, length))
        }
    }
}
