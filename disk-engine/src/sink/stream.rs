//! Raw bytes one after the other: what a pipe takes. Zeros are written like any other.
//!
//! Caller: `ops::convert`.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::ExtentSink;
use crate::source::extent::DiskShape;
use crate::source::input;

/// Bytes that are lent at once.
const WINDOW: usize = 256 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A disk written to a pipe.
pub(crate) struct StreamSink<'a> {
    writer: &'a mut dyn Write,
    path: &'a Path,
    memory: Vec<u8>,
    /// Bytes that have left.
    at: u64,
}

impl<'a> StreamSink<'a> {
    /// A sink into `writer`, which errors call `path`.
    pub(crate) fn new(writer: &'a mut dyn Write, path: &'a Path) -> Result<Self> {
        Ok(Self { writer, path, memory: input::zeroed(WINDOW)?, at: 0 })
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write the disk", self.path, error).with_offset(self.at)
    }

    fn zeros_until(&mut self, end: u64) -> Result<()> {
        zeros(self.writer, end.saturating_sub(self.at), self.path)?;
        self.at = self.at.max(end);
        Ok(())
    }
}

/// Writes `length` zeros.
pub(super) fn zeros(writer: &mut dyn Write, length: u64, path: &Path) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let count = left.min(ZEROS.len() as u64);
        let zeros = usize::try_from(count).ok().and_then(|count| ZEROS.get(..count));
        writer
            .write_all(zeros.unwrap_or_default())
            .map_err(|error| Error::io("write the disk", path, error))?;
        left -= count;
    }
    Ok(())
}

/// What was written to a pipe cannot be taken back.
pub(super) fn later_member() -> Error {
    let message = "the archive's disk turned out to be a later member, and what was written to a pipe \
                   cannot be taken back";
    Error::new(ErrorKind::InvalidInput, message).with_hint("name the member")
}

impl ExtentSink for StreamSink<'_> {
    fn begin(&mut self, _shape: DiskShape) -> Result<()> {
        if self.at == 0 { Ok(()) } else { Err(later_member()) }
    }

    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]> {
        self.zeros_until(offset)?;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.memory.len());
        Ok(self.memory.get_mut(..most).unwrap_or_default())
    }

    fn filled(&mut self, count: usize) -> Result<()> {
        let bytes = self.memory.get(..count).unwrap_or_default();
        self.writer.write_all(bytes).map_err(|error| self.failed(error))?;
        self.at = self.at.saturating_add(count as u64);
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.zeros_until(offset.saturating_add(length))
    }

    fn finish(&mut self, size: u64) -> Result<()> {
        self.zeros_until(size)?;
        self.writer.flush().map_err(|error| self.failed(error))
    }

    fn written(&self) -> u64 {
        self.at
    }
}
