//! The locks QEMU takes on an image it has open, so that a running QEMU and we see each other.
//!
//! ```text
//! byte 100 + n   read-locked by whoever uses permission n     0 consistent read  1 write
//! byte 200 + n   read-locked by whoever does not share it     3 resize
//! ```
//!
//! They are byte-range locks of the open file description (`F_OFD_SETLK`); the bytes need not
//! exist. A newcomer takes its own locks, then asks whether someone's conflict with them.
//! Callers: `overlay::rebase`, `sys::pending` (before it replaces an image), `ops::pack`.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const USED: i64 = 100;
const UNSHARED: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks `file` as a QEMU that writes to it would; the lock ends with the descriptor. `false` if
/// another program has the image open in a way that forbids this.
///
/// # Errors
///
/// The file system cannot lock byte ranges.
pub fn lock_for_writing(file: &File) -> io::Result<bool> {
    let uses = [CONSISTENT_READ, WRITE, RESIZE];
    let keeps_to_itself = [WRITE, RESIZE];
    for byte in
        uses.iter().map(|bit| USED + bit).chain(keeps_to_itself.iter().map(|bit| UNSHARED + bit))
    {
        fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte)))?;
    }
    for byte in
        uses.iter().map(|bit| UNSHARED + bit).chain(keeps_to_itself.iter().map(|bit| USED + bit))
    {
        let mut probe = range(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
        if i32::from(probe.l_type) != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a QEMU, or a program that locks like one, has `file` open in any way.
///
/// # Errors
///
/// The file system cannot lock byte ranges.
pub fn is_in_use(file: &File) -> io::Result<bool> {
    let mut probe = libc::flock { l_len: 2 * (UNSHARED - USED), ..range(libc::F_WRLCK, USED) };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
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
    let mut probe = range(libc::F_WRLCK, USED + WRITE);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

fn range(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        // The constants are 0 to 2.
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writers_see_each_other_and_a_closed_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, b"x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let first = open();
        assert!(lock_for_writing(&first).unwrap());
        assert!(!lock_for_writing(&open()).unwrap());
        assert!(is_written(&File::open(&path).unwrap()).unwrap());
        drop(first);
        assert!(!is_written(&File::open(&path).unwrap()).unwrap());
        assert!(lock_for_writing(&open()).unwrap());
    }

    #[test]
    fn what_cannot_be_locked_is_told_from_what_cannot_be_asked() {
        for (errno, unsupported) in [(22, true), (95, true), (38, true), (37, false), (5, false)] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_unsupported(&error), unsupported, "{error}");
        }
    }
}
