//! Bytes that the kernel takes over from file to file, for sinks whose target lies on such a file system.
//!
//! ```text
//! FICLONERANGE      the storage is shared: nothing is copied     btrfs, XFS, …
//! copy_file_range   copied, without this process's memory        asked for only: zeros stay data
//! ```
//!
//! What cannot be done is asked for once. Callers: `sink::raw`, `sink::qcow2`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::StoredRun;
use crate::sys::{copy, pending, reflink};

/// What file systems take and give in one piece, at the most.
const BLOCK: u64 = 4096;

/// What is left to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyOffload {
    /// Nothing: each byte is looked at.
    Off,
    /// Sharing storage, where the file system can.
    #[default]
    Share,
    /// Sharing, or else copying. Zeros that are stored are copied as data.
    Copy,
}

/// What was left to the kernel so far.
#[derive(Debug)]
pub(crate) struct Offload {
    cannot_share: AtomicBool,
    cannot_copy: AtomicBool,
    works: OnceLock<bool>,
    shared: AtomicU64,
    copied: AtomicU64,
}

impl Offload {
    pub(crate) fn new(how: CopyOffload) -> Self {
        Self {
            cannot_share: AtomicBool::new(how == CopyOffload::Off),
            cannot_copy: AtomicBool::new(how != CopyOffload::Copy),
            works: OnceLock::new(),
            shared: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        }
    }

    /// Whether a place of `stored` and a target of multiples of `unit` can be taken over.
    pub(crate) fn suits(stored: StoredRun<'_>, unit: u64) -> bool {
        stored.offset.is_multiple_of(BLOCK) && unit.is_multiple_of(BLOCK)
    }

    /// Whether anything may still be left to it.
    pub(crate) fn is_possible(&self) -> bool {
        !self.cannot_share.load(Ordering::Relaxed) || !self.cannot_copy.load(Ordering::Relaxed)
    }

    /// Bytes whose storage is shared, and bytes that were copied.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.load(Ordering::Relaxed), self.copied.load(Ordering::Relaxed))
    }

    /// Whether it works at all with the file `stored` lies in and new files in `folder`: tried once.
    pub(crate) fn works(&self, stored: StoredRun<'_>, folder: &Path) -> bool {
        *self.works.get_or_init(|| {
            let block = StoredRun { length: BLOCK.min(stored.length), ..stored };
            let scratch = pending::unnamed_in(folder);
            let taken = scratch
                .is_ok_and(|scratch| self.take(block, &scratch, 0).is_ok_and(|taken| taken > 0));
            self.shared.store(0, Ordering::Relaxed);
            self.copied.store(0, Ordering::Relaxed);
            if !taken {
                self.cannot_share.store(true, Ordering::Relaxed);
                self.cannot_copy.store(true, Ordering::Relaxed);
            }
            taken
        })
    }

    /// Has `stored` taken over to `to` in `target`; says how many bytes of it were. They are whole
    /// blocks.
    ///
    /// # Errors
    ///
    /// The target is full, or what else the system says; not that it cannot do it.
    pub(crate) fn take(&self, stored: StoredRun<'_>, target: &File, to: u64) -> io::Result<u64> {
        let length = stored.length - stored.length % BLOCK;
        let aligned = stored.offset.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK);
        if length == 0 || !aligned {
            return Ok(0);
        }
        if !self.cannot_share.load(Ordering::Relaxed) {
            let range = stored.offset..stored.offset.saturating_add(length);
            match reflink::clone_range_to(stored.file, target, range, to) {
                Ok(()) => {
                    self.shared.fetch_add(length, Ordering::Relaxed);
                    return Ok(length);
                }
                Err(error)
                    if reflink::is_unsupported(&error) || reflink::crosses_file_systems(&error) =>
                {
                    self.cannot_share.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let mut done = 0;
        while done < length && !self.cannot_copy.load(Ordering::Relaxed) {
            let from = stored.offset.saturating_add(done);
            let to = to.saturating_add(done);
            match copy::copy_range_to(stored.file, target, from, to, length - done)? {
                Some(count) if count > 0 => done = done.saturating_add(count),
                Some(_) => break,
                None => self.cannot_copy.store(true, Ordering::Relaxed),
            }
        }
        self.copied.fetch_add(done, Ordering::Relaxed);
        Ok(done)
    }
}
