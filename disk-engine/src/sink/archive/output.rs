//! Where the archive goes: written, counted, and hashed by a thread of its own.
//!
//! ```text
//! compressed bytes ─▶ write ─▶ SHA-256 (another thread) ─▶ memory again
//! ```
//!
//! Callers: `whole` and `frames` write, `ops::pack` finishes.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::control::{Control, Event};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::digester::Digester;

/// Bytes of the disk between two progress events.
const PROGRESS: u64 = 16 << 20;

/// An archive being written.
pub(crate) struct Output<'a> {
    writer: &'a mut dyn Write,
    label: &'a Path,
    digester: Digester,
    written: u64,
    control: &'a Control,
    data_length: u64,
    told: Option<u64>,
}

impl<'a> Output<'a> {
    /// An archive of `data_length` bytes of disk content, written to `writer`; `label` is how messages
    /// call that.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(crate) fn new(
        writer: &'a mut dyn Write,
        label: &'a Path,
        data_length: u64,
        control: &'a Control,
    ) -> Result<Self> {
        let digester = Digester::start()?;
        Ok(Self { writer, label, digester, written: 0, control, data_length, told: None })
    }

    /// Memory of `length` bytes to fill, used before where there is some.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is none.
    pub(crate) fn memory(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut memory = self.digester.emptied().unwrap_or_default();
        let more = length.saturating_sub(memory.len());
        memory
            .try_reserve_exact(more)
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory for compressed bytes"))?;
        memory.resize(length, 0);
        Ok(memory)
    }

    /// Writes the first `count` bytes of `bytes`.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn write(&mut self, bytes: Vec<u8>, count: usize) -> Result<()> {
        self.writer
            .write_all(bytes.get(..count).unwrap_or_default())
            .map_err(|error| Error::io("write the archive", self.label, error))?;
        self.written += count as u64;
        self.digester.update(Arc::new(bytes), count)
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Tells the caller that `data` bytes of the disk were read.
    pub(crate) fn tell(&mut self, data: u64) {
        let due = self.told.is_none_or(|told| data >= told + PROGRESS);
        if due || (data == self.data_length && self.told != Some(data)) {
            self.told = Some(data);
            self.control.emit(&Event::Progress {
                source_bytes: data,
                source_length: Some(self.data_length),
                written_bytes: self.written,
            });
        }
    }

    /// The digest of all that was written, which has left this process.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn finish(self) -> Result<Sha256Digest> {
        self.writer.flush().map_err(|error| Error::io("write the archive", self.label, error))?;
        self.digester.finish()
    }
}
