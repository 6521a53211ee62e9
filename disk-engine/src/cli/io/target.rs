//! What the commands work on: an opened disk, as long as QEMU would say it is.
//!
//! ```text
//! Target   read, where it is allocated         every disk
//! Writer   write, zeros, discard, flush        a disk opened for that
//! ```
//!
//! QEMU counts a disk in sectors of 512 bytes: what a last, incomplete sector lacks reads as zeros.
//! Callers: the commands.

use crate::disk::{Disk, DiskContent};
use crate::error::Result;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;

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

    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    fn flush(&self) -> Result<()>;
}

impl Target for Disk {
    fn size(&self) -> u64 {
        whole_sectors(DiskContent::size(self))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let stored = DiskContent::size(self).saturating_sub(offset);
        let stored = usize::try_from(stored).unwrap_or(usize::MAX).min(bytes.len());
        let (stored, beyond) = bytes.split_at_mut(stored);
        beyond.fill(0);
        if stored.is_empty() { Ok(()) } else { self.read_at(stored, offset) }
    }

    fn allocated(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let size = DiskContent::size(self);
        // What the last sector lacks belongs to the byte before it.
        let start = offset.min(size.saturating_sub(1));
        let end = offset.saturating_add(limit).clamp(start, size);
        match self.map(start..end)?.next() {
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
}

fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR).unwrap_or(size)
}
