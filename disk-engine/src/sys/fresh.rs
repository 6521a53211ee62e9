//! A block device as a new file: as long as what was written to it, and zeros where nothing was.
//!
//! ```text
//! device   █████████████████ what an earlier user left ███████
//! file     ████░░░░████       its length so far: what is written behind it zeroes what lies between
//!              └ zeros
//! ```
//!
//! Writers of new images count on a new file's zeros. Caller: `image_file`.

use std::io;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

/// How much of a device is the file.
#[derive(Debug)]
pub(super) struct Fresh {
    length: Mutex<u64>,
    /// Bytes of the device.
    room: u64,
}

impl Fresh {
    pub(super) fn new(room: u64) -> Self {
        Self { length: Mutex::new(0), room }
    }

    pub(super) fn length(&self) -> u64 {
        *self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file reach to `end` for something that is written from `offset` on: `zero` makes zeros
    /// of a range.
    ///
    /// # Errors
    ///
    /// No space behind the device's end; what `zero` says.
    pub(super) fn reach(
        &self,
        offset: u64,
        end: u64,
        zero: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if end > self.room {
            return Err(Errno::ENOSPC.into());
        }
        // Held meanwhile: who writes into what is being zeroed comes after.
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if offset > *length {
            zero(*length, offset - *length)?;
        }
        *length = end.max(*length);
        Ok(())
    }

    pub(super) fn cut(&self, end: u64) {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        *length = end.min(*length);
    }
}
