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

use nix::errno::Errno;

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
pub(super) const FORK_GRACE: [Duration; 3] =
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

    /// Takes the exclusive lock, waiting for whoever holds it: for what is held for a moment.
    ///
    /// # Errors
    ///
    /// The file system cannot lock at all.
    pub fn acquire(file: File) -> io::Result<Self> {
        wait_for(&file)?;
        Ok(Self::held(file))
    }

    fn held(file: File) -> Self {
        Self { file, owner: std::process::id() }
    }

    /// Whether this process took the lock; a forked child only carries a copy of the value.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.owner == std::process::id()
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
        if self.is_ours() {
            // An unlock that fails leaves the close, which releases it as well.
            let _ = self.file.unlock();
        }
    }
}

/// Whether a failed lock means that the file system knows no locks, or its lock server is away.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    [Errno::ENOLCK, Errno::EOPNOTSUPP, Errno::ENOSYS]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// Whether an exclusive lock failed for want of a descriptor open for writing: NFS, where a folder
/// can have none.
#[must_use]
pub fn needs_writer(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBADF as i32)
}

/// Does `work` under an exclusive lock on `file`, waiting for whoever holds it: for work that takes a
/// moment.
///
/// # Errors
///
/// The file system cannot lock; what `work` says.
pub fn hold<T>(file: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    wait_for(file)?;
    let outcome = work();
    // An unlock that fails leaves the close, which releases it as well.
    let _ = file.unlock();
    outcome
}

fn wait_for(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn try_lock(file: &File, mode: LockMode) -> io::Result<bool> {
    loop {
        let outcome = match mode {
            LockMode::Shared => file.try_lock_shared(),
            LockMode::Exclusive => file.try_lock(),
        };
        match outcome {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            // It says nothing about who is in the way.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(path: &Path, mode: LockMode) -> Option<FileLock> {
        FileLock::try_acquire(crate::sys::open::lock_file(path).unwrap(), mode).unwrap().ok()
    }

    #[test]
    fn modes_exclude_each_other_across_descriptors_of_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        for (held, wanted, granted) in [
            (LockMode::Shared, LockMode::Shared, true),
            (LockMode::Shared, LockMode::Exclusive, false),
            (LockMode::Exclusive, LockMode::Shared, false),
            (LockMode::Exclusive, LockMode::Exclusive, false),
        ] {
            let first = attempt(&path, held).unwrap();
            assert_eq!(attempt(&path, wanted).is_some(), granted, "{held:?} then {wanted:?}");
            drop(first);
            assert!(attempt(&path, wanted).is_some(), "{wanted:?} after the release");
        }
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = attempt(&path, LockMode::Exclusive).unwrap();
        assert!(lock.still_names(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!lock.still_names(&path).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert!(!lock.still_names(&path).unwrap());
    }

    #[test]
    fn missing_lock_support_is_told_apart() {
        for (errno, unsupported) in [(37, true), (95, true), (38, true), (9, false), (5, false)] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_unsupported(&error), unsupported, "{error}");
        }
    }
}
