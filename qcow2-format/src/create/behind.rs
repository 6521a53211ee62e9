//! Writes put together: what follows what was written last waits for more.
//!
//! ```text
//! payload ▸ payload ▸ payload ▸ L2 table ▸ …   ─▶ one call for about a MiB
//! ```
//!
//! Callers: `create::fill`.

use std::io;

use crate::io::WriteAt;

/// Bytes that wait at most. Longer pieces are written by themselves.
const MOST: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct WriteBehind<S> {
    storage: S,
    at: u64,
    bytes: Vec<u8>,
}

impl<S: WriteAt> WriteBehind<S> {
    pub(super) fn new(storage: S) -> Self {
        Self { storage, at: 0, bytes: Vec::new() }
    }

    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    pub(super) fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let follows = at == self.at.saturating_add(self.bytes.len() as u64);
        let long = bytes.len() >= MOST / 4;
        if !follows || long || self.bytes.len().saturating_add(bytes.len()) > MOST {
            self.flush()?;
        }
        if long {
            return self.storage.write_all_at(bytes, at);
        }
        if self.bytes.is_empty() {
            self.at = at;
            self.bytes.try_reserve_exact(MOST).map_err(|_| io::ErrorKind::OutOfMemory)?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what waits, and gives the storage back.
    pub(super) fn finish(mut self) -> io::Result<S> {
        self.flush()?;
        Ok(self.storage)
    }

    /// The storage, without what waits.
    pub(super) fn into_storage(self) -> S {
        self.storage
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.storage.write_all_at(&self.bytes, self.at)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
