//! A raw image that is written to: each write goes where it is read.
//!
//! ```text
//! write         pwrite
//! write zeros   keep: zeros in place     unmap: a hole, where there can be one
//! discard       a hole, or nothing: a raw image has no other way to give space back
//! ```
//!
//! Its size is that of the file when it was opened, and stays so. Callers: `layer`.

use std::io;

use qcow2_format::WriteAt;
use qcow2_format::image::{DetectZeroes, Discard, Durability, ZeroMode};

use crate::disk::raw::RawDisk;
use crate::error::{Error, Result};
use crate::source::content::is_zero;
use crate::sys::image_file::ImageFile;

/// How a raw image is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawWriting {
    pub(super) durability: Durability,
    pub(super) detect_zeroes: DetectZeroes,
    pub(super) discard: Discard,
}

/// A raw image in a file that is open for writing.
#[derive(Debug)]
pub(super) struct WritableRaw {
    disk: RawDisk,
    how: RawWriting,
}

impl WritableRaw {
    pub(super) fn new(disk: RawDisk, how: RawWriting) -> Self {
        Self { disk, how }
    }

    /// The image as it is read.
    pub(super) fn disk(&self) -> &RawDisk {
        &self.disk
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let zeroes = match self.how.detect_zeroes {
            DetectZeroes::Off => None,
            DetectZeroes::On => Some(ZeroMode::Keep),
            DetectZeroes::Unmap => Some(ZeroMode::Unmap),
        };
        if let Some(mode) = zeroes
            && bytes.chunks(4096).all(is_zero)
        {
            // A slice's length fits in 64 bits.
            return self.write_zeroes(offset, bytes.len() as u64, mode);
        }
        self.change("write to the disk", offset, bytes.len() as u64, |file| {
            WriteAt::write_all_at(file, bytes, self.disk.host(offset))
        })
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let at = self.disk.host(offset);
        self.change("write zeros to the disk", offset, length, |file| match mode {
            ZeroMode::Keep => file.zero_in_place(at, length),
            ZeroMode::Unmap => file.write_zeros_at(at, length),
        })
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.change("discard part of the disk", offset, length, |file| match self.how.discard {
            Discard::Ignore => Ok(()),
            Discard::Unmap => file.punch_at(self.disk.host(offset), length),
        })
    }

    pub(super) fn flush(&self) -> Result<()> {
        if self.how.durability == Durability::None {
            return Ok(());
        }
        self.disk
            .storage()
            .flush()
            .map_err(|error| Error::io("sync the disk", self.disk.path(), error))
    }

    fn change(
        &self,
        doing: &'static str,
        offset: u64,
        length: u64,
        work: impl FnOnce(&ImageFile) -> io::Result<()>,
    ) -> Result<()> {
        self.disk.check(offset, length)?;
        work(self.disk.storage())
            .map_err(|error| Error::io(doing, self.disk.path(), error).with_offset(offset))?;
        if self.how.durability == Durability::Full { self.flush() } else { Ok(()) }
    }
}
