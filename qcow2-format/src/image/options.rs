//! How an image is read: which of its disks, with how much memory and how many threads.
//!
//! Callers: `image`, and whoever opens one.

use std::sync::OnceLock;
use std::thread;

/// How an image is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    pub(super) snapshot: Option<Vec<u8>>,
    pub(super) size: SnapshotSize,
    pub(super) l2_cache: u64,
    pub(super) l2_slice: u64,
    pub(super) cluster_cache: u64,
    pub(super) threads: usize,
}

/// How large the disk of a snapshot is: the image may have been resized since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotSize {
    /// As large as when the snapshot was taken.
    #[default]
    Own,
    /// As large as the active disk, as QEMU has it: it is cut there, or what is behind its end is
    /// unallocated.
    Active,
}

impl Default for ReadOptions {
    /// The active disk; 1 MiB of L2 slices of 4 KiB, 4 MiB of decoded clusters, a thread for each
    /// processor, at most 8.
    fn default() -> Self {
        Self {
            snapshot: None,
            size: SnapshotSize::Own,
            l2_cache: 1 << 20,
            l2_slice: 4 << 10,
            cluster_cache: 4 << 20,
            threads: processors().min(8),
        }
    }
}

impl ReadOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the snapshot with the id `name`, or else the first one with that name.
    #[must_use]
    pub fn snapshot(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.snapshot = Some(name.into());
        self
    }

    /// How large the disk of a snapshot is that is read.
    #[must_use]
    pub fn snapshot_size(mut self, size: SnapshotSize) -> Self {
        self.size = size;
        self
    }

    /// Keeps at most `bytes` of L2 entries in memory, and at least two slices.
    #[must_use]
    pub fn l2_cache(mut self, bytes: u64) -> Self {
        self.l2_cache = bytes;
        self
    }

    /// Reads L2 tables in slices of `bytes`, rounded down to a power of two from 512 bytes to
    /// 64 KiB, and at most a table.
    #[must_use]
    pub fn l2_slice(mut self, bytes: u64) -> Self {
        self.l2_slice = bytes;
        self
    }

    /// Keeps at most `bytes` of decoded clusters in memory, and at least one cluster.
    #[must_use]
    pub fn cluster_cache(mut self, bytes: u64) -> Self {
        self.cluster_cache = bytes;
        self
    }

    /// Decodes with at most `threads` threads at once, the caller's among them.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

/// How many processors there are for this process. The system is asked once: it looks into several
/// files for it, which takes longer than all the rest of opening an image.
pub(super) fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}
