//! Where the archive goes: written, counted, and hashed by a thread of its own.
//!
//! ```text
//! compressed bytes ─▶ write ─▶ SHA-256 (another thread) ─▶ memory again, or gone
//! ```
//!
//! `whole` fills memory it gets here; the frames of `frames` bring their own, and one of them at most
//! is kept. Six more may be waiting for their sum.
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
    /// Memory to fill next.
    spare: Option<Vec<u8>>,
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
        let (spare, written, told) = (None, 0, None);
        Ok(Self { writer, label, digester, spare, written, control, data_length, told })
    }

    /// Memory of `length` bytes to fill, used before where there is some.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is none.
    pub(crate) fn memory(&mut self, length: usize) -> Result<Vec<u8>> {
        let spare = self.spare.take().or_else(|| self.digester.emptied());
        let mut memory = spare.unwrap_or_default();
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
        self.digester.update(Arc::new(bytes), count)?;
        // What nobody asks for would pile up, as long as the archive.
        while let Some(memory) = self.digester.emptied() {
            self.spare = Some(memory);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_nobody_asks_for_does_not_pile_up() {
        let control = Control::new();
        let mut written = Vec::new();
        let mut output = Output::new(&mut written, Path::new("archive"), 0, &control).unwrap();
        for _ in 0..1000 {
            output.write(vec![7; 1000], 1000).unwrap();
        }
        // Those in the queue for the hashing thread, the one it has, and the one just given back.
        let left = std::iter::from_fn(|| output.digester.emptied()).count();
        assert!(left <= 6, "{left} pieces");
        assert_eq!(output.memory(10).unwrap().len(), 10);
        assert_eq!(output.written(), 1_000_000);
    }
}
