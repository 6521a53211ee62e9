//! Sinks: where the extents of a disk go.
//!
//! ```text
//! Extent ──▶ lend() ─ memory at the disk's own alignment ─▶ filled by the source ──▶ written
//! ```
//!
//! A sink lends memory instead of taking it: the source decodes into the very window that is
//! written to the file. See [`crate::source::extent`] for the other half of the bargain.
//!
//! ```text
//! raw       a sparse raw file, written by a thread of its own
//! window    256 KiB of the disk at a time, and which of its blocks hold anything
//! checksum  CRC-32 of what was written, extent by extent, in bounded memory
//! archive   a disk packed again: the way back
//! qcow2     a new qcow2 image, examined by several threads
//! offload   bytes that the kernel takes over from file to file
//! disk      a disk that is there, written to
//! stream    raw bytes one after the other, as a pipe takes them
//! ```
//!
//! Callers: [`crate::transfer`]; `archive` is `ops::pack`'s.

pub(crate) mod archive;
mod checksum;
pub(crate) mod disk;
pub(crate) mod offload;
pub(crate) mod qcow2;
pub(crate) mod raw;
pub(crate) mod stream;
mod window;

pub use checksum::ExtentSum;
pub use offload::CopyOffload;

use crate::disk::StoredRun;
use crate::error::Result;
use crate::source::extent::DiskShape;

/// Something a disk can be written to, in guest order.
pub trait ExtentSink {
    /// A disk begins; whatever came before is taken back.
    ///
    /// # Errors
    ///
    /// There is no room for it, or the last one could not be taken back.
    fn begin(&mut self, shape: DiskShape) -> Result<()>;

    /// Lends memory for the disk's bytes from `offset` on: at least one byte, at most `most`.
    ///
    /// # Errors
    ///
    /// What was written before failed.
    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]>;

    /// The first `count` bytes of the memory lent last are the disk's.
    ///
    /// # Errors
    ///
    /// What was written before failed.
    fn filled(&mut self, count: usize) -> Result<()>;

    /// Whether [`ExtentSink::share`] is worth asking for.
    fn shares(&self) -> bool {
        false
    }

    /// Takes over, inside the kernel, bytes of the disk from `offset` on that lie in a file; says how
    /// many. The rest has to be lent memory for.
    ///
    /// # Errors
    ///
    /// What was written before failed.
    fn share(&mut self, offset: u64, stored: StoredRun<'_>) -> Result<u64> {
        let _ = (offset, stored);
        Ok(0)
    }

    /// The range reads as zeros.
    ///
    /// # Errors
    ///
    /// What was written before failed.
    fn zero(&mut self, offset: u64, length: u64) -> Result<()>;

    /// The disk ends at `size`.
    ///
    /// # Errors
    ///
    /// What was written before failed.
    fn finish(&mut self, size: u64) -> Result<()>;

    /// Bytes written so far: for progress.
    fn written(&self) -> u64;
}

/// Fills a range with zeros as if they were data.
pub(crate) fn lend_zeros(sink: &mut dyn ExtentSink, offset: u64, length: u64) -> Result<()> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end {
        let room = sink.lend(at, end - at)?;
        room.fill(0);
        let count = room.len();
        sink.filled(count)?;
        at = at.saturating_add(count as u64);
    }
    Ok(())
}
