//! Advisory locks on open files (`flock`), as values.
//!
//! A `flock` belongs to the open file description, not to the process: two threads that want to
//! exclude each other each open the file themselves, and a descriptor inherited through `fork`
//! *is* the parent's lock. From that follow the two rules of [`FileLock`]'s `Drop`:
//!
//! ```text
//! in the process that took it    unlock, explicitly: a forked child may still hold the descriptor
//! in a forked child              only close: an unlock would break the parent's lock
//! ```
//!
//! Between `fork` and `exec` in another thread a descriptor lives on for a moment, so a try-lock
//! right after a release retries for a few milliseconds before it believes in a holder.
//!
//! Callers: `sys::pending` (a temporary file in use), `cache` (one extraction a key, leases).

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How a lock excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Any number of holders at a time.
    Shared,
    /// One holder at a time.
    Exclusive,
}

/// A held lock. Dropping it releases it, in the process that took it.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    owner: u32,
}

/// How long a try-lock bears with a descriptor on its way from `fork` to `exec`.
const FORK_GRACE: [Duration; 3] =
    [Duration::from_micros(200), Duration::from_millis(1), Duration::from_millis(3)];

impl FileLock {
    /// Takes the lock if nobody is in the way; `Err` gives the file back when someone is.
    ///
    /// # Errors
    ///
    /// The outer error: the file system cannot lock at all.
    pub fn try_acquire(file: File, mode: LockMode) -> io::Result<Result<Self, File>> {
        Ok(if try_lock(&file, mode)? { Ok(Self::held(file)) } else { Err(file) })
    }

    /// As [`FileLock::try_acquire`], with a few milliseconds' patience for descriptors that a
    /// `fork` on another thread carries until its `exec`.
    ///
    /// # Errors
    ///
    /// The file system cannot lock at all.
    pub fn try_acquire_patiently(file: File, mode: LockMode) -> io::Result<Result<Self, File>> {
        if try_lock(&file, mode)? {
            return Ok(Ok(Self::held(file)));
        }
        for pause in FORK_GRACE {
            std::thread::sleep(pause);
            if try_lock(&file, mode)? {
                return Ok(Ok(Self::held(file)));
            }
        }
        Ok(Err(file))
    }

    fn held(file: File) -> Self {
        Self { file, owner: std::process::id() }
    }

    /// The locked file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether `path` still names the locked file: a cleaner may have removed or replaced it
    /// between the open and the lock.
    ///
    /// # Errors
    ///
    /// Metadata cannot be read, for another reason than absence.
    pub fn still_names(&self, path: &Path) -> io::Result<bool> {
        let held = self.file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            // An unlock that fails leaves the close, which releases it as well.
            let _ = self.file.unlock();
        }
    }
}

fn try_lock(file: &File, mode: LockMode) -> io::Result<bool> {
    let outcome = match mode {
        LockMode::Shared => file.try_lock_shared(),
        LockMode::Exclusive => file.try_lock(),
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
