//! What a disk holds, for whoever reads it more than once or out of order.
//!
//! ```text
//! run_at(0)      data, 64 KiB        read_at() fills memory from anywhere
//! run_at(64 K)   zeros, 1 GiB        what a run calls data may still be zeros
//! ```
//!
//! Implemented by [`RawDisk`](crate::disk::RawDisk) and by opened chains. Callers: `ops::pack`, and
//! whatever else reads a disk that is there as a file.

use std::fs::File;

use crate::error::Result;

/// A part of a disk that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRun {
    /// How long it is in bytes; at least one.
    pub length: u64,
    /// Whether it is known to read as zeros without reading it.
    pub zero: bool,
    /// Whether it is stored compressed, so that reading it is work for several threads.
    pub compressed: bool,
}

/// A part of a disk that lies in a file as it is.
#[derive(Clone, Copy, Debug)]
pub struct StoredRun<'a> {
    /// The file.
    pub file: &'a File,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How long it is in bytes.
    pub length: u64,
}

/// A disk whose content can be read anywhere, by several threads at once.
pub trait DiskContent: Send + Sync {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The run that begins at `offset`, which lies inside the disk.
    ///
    /// # Errors
    ///
    /// The image's tables are damaged or cannot be read; `offset` is not in the disk.
    fn run_at(&self, offset: u64) -> Result<ContentRun>;

    /// Fills `bytes` from `offset` on; the range lies inside the disk.
    ///
    /// # Errors
    ///
    /// The image is damaged, shrank, or cannot be read; the range is not in the disk.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Where the bytes from `offset` on lie in a file, if they do.
    ///
    /// # Errors
    ///
    /// As [`DiskContent::run_at`].
    fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'_>>> {
        let _ = offset;
        Ok(None)
    }
}
