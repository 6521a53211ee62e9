//! What cannot go straight through a pipe: kept in a file without a name, up to a limit.
//!
//! ```text
//! compressed or unknown in advance ─▶ image in the file ─▶ pipe
//! qcow2 in any order ─▶ file ─▶ opened as any image
//! ```
//!
//! Callers: `pipe`, `piped`, `archive`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::options::Spill;
use crate::disk::RawDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::source::extent::{Extent, ExtentSource};
use crate::sys::pending;
use crate::sys::space;

/// Bytes of the disk between two looks at the limit.
const LOOK: u64 = 16 << 20;

/// A file for that.
#[derive(Debug)]
pub(super) struct Spilled<'a> {
    file: File,
    spill: &'a Spill,
}

impl<'a> Spilled<'a> {
    pub(super) fn new(spill: &'a Spill) -> Result<Self> {
        Ok(Self { file: pending::unnamed_in(&spill.folder)?, spill })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// What messages call it.
    pub(super) fn label(&self) -> &Path {
        &self.spill.folder
    }

    /// Keeps all that `reader` gives.
    pub(super) fn keep(&mut self, reader: impl Read) -> Result<u64> {
        let most = self.spill.limit;
        let mut limited = reader.take(most.saturating_add(1));
        let count = io::copy(&mut limited, &mut self.file)
            .map_err(|error| Error::io("keep the image meanwhile in", self.label(), error))?;
        if count > most { Err(self.too_much()) } else { Ok(count) }
    }

    /// Bytes it takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if they are too many.
    pub(super) fn check(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| Error::io("look at", self.label(), error))?;
        let taken = space::allocated(&metadata);
        if taken > self.spill.limit { Err(self.too_much()) } else { Ok(taken) }
    }

    /// What was kept, as a raw disk.
    pub(super) fn disk(&self) -> Result<RawDisk> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| Error::io("duplicate", self.label(), error))?;
        RawDisk::of(file, self.label())
    }

    fn too_much(&self) -> Error {
        let message =
            format!("more than {} bytes would have to be kept meanwhile", self.spill.limit);
        Error::new(ErrorKind::Limit, message)
            .with_field("spill limit (--spill-limit)")
            .with_path(self.label())
    }
}

/// A source whose disk is being kept: it ends when that takes too much.
pub(super) struct Kept<'a> {
    source: &'a mut dyn ExtentSource,
    spilled: &'a Spilled<'a>,
    since: u64,
}

impl<'a> Kept<'a> {
    pub(super) fn new(source: &'a mut dyn ExtentSource, spilled: &'a Spilled<'a>) -> Self {
        Self { source, spilled, since: 0 }
    }
}

impl ExtentSource for Kept<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        self.source.next_extent()
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let count = self.source.read(bytes)?;
        self.since = self.since.saturating_add(count as u64);
        if self.since >= LOOK {
            self.since = 0;
            self.spilled.check()?;
        }
        Ok(count)
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }
}
