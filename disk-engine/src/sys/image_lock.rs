//! The locks QEMU takes on an image it has open, so that a running QEMU and we see each other.
//!
//! ```text
//!                         100 101 102 103     200 201 202 203
//!                          uses permission     keeps it to itself
//! reads, QEMU's qcow2       R   ·   ·   ·       ·   R   ·   R      nobody else may write or resize
//! reads, force-share        R   ·   ·   ·       ·   ·   ·   ·      `-U`: others do as they like
//! writes                    R   R   ·   R       ·   R   ·   R
//!
//! permissions: 0 consistent read, 1 write, 2 write unchanged, 3 resize
//! ```
//!
//! They are byte-range read locks of the open file description (`F_OFD_SETLK`); the bytes need not
//! exist. A newcomer takes its own, then asks of each byte that would contradict whether somebody
//! else holds it (`F_OFD_GETLK`), so that of two newcomers at least one sees the other. QEMU's
//! backing files and external data files are locked as readers and writers are; a VM's raw disk
//! lacks 103 and 203, and a raw image that only `qemu-io` or `qemu-img` has open keeps nothing to
//! itself.
//!
//! Being the file description's, a lock is shared by every duplicate of the descriptor, also one
//! that a `fork` made: see [`ImageLock`]'s `Drop`.
//!
//! Callers: `image_file`, `disk`; who only asks: `overlay::rebase`, `sys::pending` (before it
//! replaces an image), `cache::users`, `ops`.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, ErrorKind};

use crate::sys::lock::{self, FORK_GRACE};

const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// Whether an image is locked when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Locking {
    /// It is, unless its file system cannot lock: QEMU's `locking=auto`.
    #[default]
    Auto,
    /// It is; a file system that cannot lock is an error.
    On,
    /// For readers: others may write meanwhile, and what is read may then be of no single moment.
    /// `-U` of `qemu-img` and `qemu-io`.
    Shared,
    /// It is not, and nobody is asked.
    Off,
}

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; nobody else may write. So are the images below a top locked, too.
    Read,
    /// Reading, whatever others do.
    ReadShared,
    /// Writing; others may at most read, as far as they let somebody write.
    Write,
}

impl Access {
    const fn uses(self) -> &'static [Permission] {
        match self {
            Self::Read | Self::ReadShared => &[Permission::ConsistentRead],
            Self::Write => &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
        }
    }

    const fn keeps(self) -> &'static [Permission] {
        match self {
            Self::ReadShared => &[],
            Self::Read | Self::Write => &[Permission::Write, Permission::Resize],
        }
    }
}

/// What one can do with an image, under QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read it, and find in it what belongs together.
    ConsistentRead,
    /// Write to it.
    Write,
    /// Change its length.
    Resize,
}

impl Permission {
    const fn bit(self) -> i64 {
        match self {
            Self::ConsistentRead => 0,
            Self::Write => 1,
            Self::Resize => 3,
        }
    }

    const fn doing(self) -> &'static str {
        match self {
            Self::ConsistentRead => "reading",
            Self::Write => "writing",
            Self::Resize => "resizing",
        }
    }
}

/// What another holder of an image does that cannot be at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// It does what we would have nobody do.
    Uses(Permission),
    /// It has nobody do what we would do.
    Keeps(Permission),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uses(permission) => {
                write!(f, "another process has it open for {}", permission.doing())
            }
            Self::Keeps(permission) => {
                write!(f, "another process has it open and allows no {}", permission.doing())
            }
        }
    }
}

impl std::error::Error for Conflict {}

/// Why an image could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(transparent)]
    InUse(#[from] Conflict),
    /// The system cannot, or will not.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LockError {
    /// As an error of the image at `path`, which was to be opened for `access`.
    pub(crate) fn of(self, path: &Path, access: Access) -> Error {
        match self {
            Self::InUse(conflict) => {
                let hint = match access {
                    Access::Write => "stop that process, as a VM, first",
                    Access::Read | Access::ReadShared => {
                        "stop that process, as a VM, first, or share the image with it: what is \
                         read may then be of no single moment"
                    }
                };
                Error::new(ErrorKind::Busy, "the image is in use")
                    .with_path(path)
                    .with_source(conflict)
                    .with_hint(hint)
            }
            Self::Io(error) => Error::io("lock the image", path, error),
        }
    }
}

/// An open image, and the lock on it if it has one. Dropping it releases the lock, in the process
/// that took it: by an explicit unlock, since a child that is about to `exec` may still carry the
/// descriptor. A forked child only closes its copy, because an unlock would be its parent's.
///
/// Whoever else holds a duplicate of the descriptor shares the lock, and loses it here.
#[derive(Debug)]
pub struct ImageLock {
    file: File,
    held: Option<Access>,
    owner: u32,
}

impl ImageLock {
    /// Locks `file`, which is open for reading, as `locking` says.
    ///
    /// # Errors
    ///
    /// Somebody else has the image in a way that forbids this; the file system cannot lock.
    pub fn acquire(file: File, access: Access, locking: Locking) -> Result<Self, LockError> {
        if locking == Locking::Off {
            return Ok(Self::none(file));
        }
        let access = match (locking, access) {
            (Locking::Shared, Access::Read) => Access::ReadShared,
            _ => access,
        };
        let held = settle(take_patiently(&file, access), locking)?.then_some(access);
        Ok(Self { file, held, owner: std::process::id() })
    }

    /// A file without a lock: one that only the caller knows.
    #[must_use]
    pub fn none(file: File) -> Self {
        Self { file, held: None, owner: std::process::id() }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether there is a lock, and as what.
    #[must_use]
    pub fn held(&self) -> Option<Access> {
        self.held
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        if let Some(access) = self.held
            && self.owner == std::process::id()
        {
            release(&self.file, access);
        }
    }
}

/// Locks `file` as a QEMU that writes to it would; the lock ends with the descriptor. `false` if
/// another program has the image open in a way that forbids this.
///
/// # Errors
///
/// The file system cannot lock byte ranges.
pub fn lock_for_writing(file: &File) -> io::Result<bool> {
    match take_patiently(file, Access::Write) {
        Ok(()) => Ok(true),
        Err(LockError::InUse(_)) => Ok(false),
        Err(LockError::Io(error)) => Err(error),
    }
}

/// What another program does with `file`, or keeps to itself, that is in the way of whoever would write
/// to it; `None` if nothing is, or nobody can say. No lock is left.
pub fn conflict_for_writing(file: &File) -> Option<Conflict> {
    match take_patiently(file, Access::Write) {
        Ok(()) => release(file, Access::Write),
        Err(LockError::InUse(conflict)) => return Some(conflict),
        Err(LockError::Io(_)) => {}
    }
    None
}

/// Whether a QEMU, or a program that locks like one, has `file` open in any way.
///
/// # Errors
///
/// The file system cannot lock byte ranges.
pub fn is_in_use(file: &File) -> io::Result<bool> {
    others(file, USED, 2 * (UNSHARED - USED))
}

/// Whether a question failed because ranges cannot be locked there at all: then no QEMU has locked any.
/// Another failure says nothing about who has.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// Whether a QEMU, or a program that locks like one, may be writing to `file`. Those that only read
/// do not count.
///
/// # Errors
///
/// The file system cannot lock byte ranges.
pub fn is_written(file: &File) -> io::Result<bool> {
    others(file, USED + Permission::Write.bit(), 1)
}

/// Whether the lock was taken: without one a file system that cannot lock gets by, where that will
/// do.
fn settle(outcome: Result<(), LockError>, locking: Locking) -> Result<bool, LockError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(LockError::Io(error)) if locking != Locking::On && cannot_lock(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// As QEMU's `auto` has it, also where the lock server is away.
fn cannot_lock(error: &io::Error) -> bool {
    is_unsupported(error) || lock::is_unsupported(error)
}

/// As [`take`], and again a few milliseconds later before it believes in a holder: the descriptor
/// of one that is gone may be on its way from `fork` to `exec`, and two newcomers may have
/// refused each other.
fn take_patiently(file: &File, access: Access) -> Result<(), LockError> {
    let mut outcome = take(file, access);
    for pause in FORK_GRACE {
        let Err(LockError::InUse(_)) = outcome else { break };
        std::thread::sleep(pause);
        outcome = take(file, access);
    }
    outcome
}

/// Takes the lock, or nothing.
fn take(file: &File, access: Access) -> Result<(), LockError> {
    let outcome = take_bytes(file, access);
    if outcome.is_err() {
        release(file, access);
    }
    outcome
}

fn take_bytes(file: &File, access: Access) -> Result<(), LockError> {
    // QEMU holds no byte exclusively; whoever does forbids what the byte stands for.
    for &permission in access.uses() {
        let free = set(file, libc::F_RDLCK, USED + permission.bit())?;
        free.then_some(()).ok_or(Conflict::Keeps(permission))?;
    }
    for &permission in access.keeps() {
        let free = set(file, libc::F_RDLCK, UNSHARED + permission.bit())?;
        free.then_some(()).ok_or(Conflict::Uses(permission))?;
    }
    // In QEMU's order, so that the same is told of the same holder.
    for &permission in access.uses() {
        if others(file, UNSHARED + permission.bit(), 1)? {
            return Err(Conflict::Keeps(permission).into());
        }
    }
    for &permission in access.keeps() {
        if others(file, USED + permission.bit(), 1)? {
            return Err(Conflict::Uses(permission).into());
        }
    }
    Ok(())
}

/// An unlock that fails leaves the close, which releases it as well.
fn release(file: &File, access: Access) {
    for permission in access.uses() {
        let _ = set(file, libc::F_UNLCK, USED + permission.bit());
    }
    for permission in access.keeps() {
        let _ = set(file, libc::F_UNLCK, UNSHARED + permission.bit());
    }
}

/// Locks or unlocks a byte; `false` if somebody else's lock is in the way.
fn set(file: &File, kind: i32, byte: i64) -> io::Result<bool> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, byte, 1))) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether anybody else holds a lock on one of the bytes.
fn others(file: &File, byte: i64, length: i64) -> io::Result<bool> {
    let mut probe = range(libc::F_WRLCK, byte, length);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

fn range(kind: i32, byte: i64, length: i64) -> libc::flock {
    libc::flock {
        // The constants are 0 to 2.
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: byte,
        l_len: length,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests;
