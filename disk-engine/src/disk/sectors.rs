//! A disk counted in sectors of 512 bytes, as QEMU counts every disk.
//!
//! ```text
//! raw file of 700 bytes   │ 512 bytes │ 188 bytes, and zeros │      two sectors
//! ```
//!
//! Callers: `status`, `ops::compare`, `ops::map`, `ops::measure`, `cli::io`.

use crate::disk::content::DiskContent;
use crate::error::Result;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// `size` bytes in whole sectors.
#[must_use]
pub fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR).unwrap_or(size)
}

/// Fills `bytes` from `offset` on; what the last sector lacks reads as zeros.
///
/// # Errors
///
/// As [`DiskContent::read_at`].
pub fn read_sectors(disk: &impl DiskContent, bytes: &mut [u8], offset: u64) -> Result<()> {
    let stored = disk.size().saturating_sub(offset);
    let stored = usize::try_from(stored).unwrap_or(usize::MAX).min(bytes.len());
    let (stored, beyond) = bytes.split_at_mut(stored);
    beyond.fill(0);
    if stored.is_empty() { Ok(()) } else { disk.read_at(stored, offset) }
}
