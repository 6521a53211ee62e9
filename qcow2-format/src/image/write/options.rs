//! How an image is written: how hard to sync, what becomes of zeros and of what is discarded, with
//! how much memory.
//!
//! Callers: `image::write`, and whoever opens an image for writing.

use crate::image::options::ReadOptions;

/// How hard what is written is made to last. A new file is not synced with `None`; otherwise it is
/// before it gets its name, and the folder afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing is synced. Each call leaves a file that is whole and up to date: a killed process
    /// loses nothing that was done, a power cut may cost anything.
    None,
    /// A flush makes durable what was written before. Until then new metadata stays in memory, and
    /// goes to the file with barriers between writes that depend on each other, so that a power cut
    /// leaves a whole image.
    #[default]
    Flush,
    /// As `Flush`, and each call is durable when it returns.
    Full,
}

/// What becomes of written data that is all zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// It is written like any other.
    #[default]
    Off,
    /// It is written as [`ZeroMode::Keep`].
    On,
    /// It is written as [`ZeroMode::Unmap`].
    Unmap,
}

/// What becomes of discarded ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Nothing: they stay as they are.
    Ignore,
    /// They read as zeros, and their space is given back.
    #[default]
    Unmap,
}

/// What becomes of the space of what is zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// It stays reserved for later writes.
    Keep,
    /// It is given back.
    Unmap,
}

/// How an image is written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub(super) read: ReadOptions,
    pub(super) durability: Durability,
    pub(super) detect_zeroes: DetectZeroes,
    pub(super) discard: Discard,
    pub(super) refcount_cache: u64,
    pub(super) l2_cache: u64,
    pub(super) below: Option<u64>,
}

impl Default for WriteOptions {
    /// Durable on flush; zeros are not looked for, discards honoured; 8 MiB of L2 entries, 1 MiB of
    /// refcounts, and the rest as in [`ReadOptions`].
    fn default() -> Self {
        let l2_cache = 8 << 20;
        Self {
            read: ReadOptions::new().l2_cache(l2_cache),
            durability: Durability::default(),
            detect_zeroes: DetectZeroes::default(),
            discard: Discard::default(),
            refcount_cache: 1 << 20,
            l2_cache,
            below: None,
        }
    }
}

impl WriteOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How hard to sync.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What becomes of written zeros.
    #[must_use]
    pub fn detect_zeroes(mut self, detect_zeroes: DetectZeroes) -> Self {
        self.detect_zeroes = detect_zeroes;
        self
    }

    /// What becomes of discarded ranges.
    #[must_use]
    pub fn discard(mut self, discard: Discard) -> Self {
        self.discard = discard;
        self
    }

    /// Keeps at most `bytes` of L2 entries in memory, and at least two slices; half of them may
    /// wait to be written.
    #[must_use]
    pub fn l2_cache(mut self, bytes: u64) -> Self {
        self.read = self.read.l2_cache(bytes);
        self.l2_cache = bytes;
        self
    }

    /// As [`ReadOptions::l2_slice`].
    #[must_use]
    pub fn l2_slice(mut self, bytes: u64) -> Self {
        self.read = self.read.l2_slice(bytes);
        self
    }

    /// Keeps at most `bytes` of refcounts in memory, and at least two pieces of 4 KiB.
    #[must_use]
    pub fn refcount_cache(mut self, bytes: u64) -> Self {
        self.refcount_cache = bytes;
        self
    }

    /// As [`ReadOptions::cluster_cache`].
    #[must_use]
    pub fn cluster_cache(mut self, bytes: u64) -> Self {
        self.read = self.read.cluster_cache(bytes);
        self
    }

    /// Decodes and compresses with at most `threads` threads at once, the caller's among them.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.read = self.read.threads(threads);
        self
    }

    /// The disk below has `bytes`: nothing behind them needs copying or hiding. Without this, an
    /// image that names a backing file is taken to stand on something without an end, and another
    /// one on nothing.
    #[must_use]
    pub fn below(mut self, bytes: u64) -> Self {
        self.below = Some(bytes);
        self
    }
}
