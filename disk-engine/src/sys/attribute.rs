//! Notes kept beside a file's bytes: extended attributes of the `user` namespace.
//!
//! ```text
//! file ─ bytes                    the guest's, every one of them
//!      └ user.disk-engine.base    ours; a guest cannot reach it
//! ```
//!
//! Not every file system has them, and not every program that copies a file copies them, so a note
//! that is absent says nothing. Callers: `strategy`, for disks that have no header to note anything
//! in.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// Keeps `value` under `name`; `false` where the file system keeps no attributes.
///
/// # Errors
///
/// What the system says.
pub fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<bool> {
    #[expect(unsafe_code, reason = "there is no safe form")]
    // SAFETY: the descriptor is open while the reference lives; `name` ends with a NUL byte;
    // `value` is readable for its length. The kernel writes to neither.
    let outcome = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    match Errno::result(outcome) {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The value kept under `name`, up to `N` bytes of it; `None` if there is none, it is longer, or
/// the file system keeps no attributes.
///
/// # Errors
///
/// What the system says.
pub fn get<const N: usize>(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0_u8; N];
    #[expect(unsafe_code, reason = "there is no safe form")]
    // SAFETY: the descriptor is open while the reference lives; `name` ends with a NUL byte; the
    // kernel writes at most `N` bytes to `value`, which has as many.
    let outcome =
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), N) };
    match Errno::result(outcome) {
        Ok(length) => {
            let length = usize::try_from(length).unwrap_or(0);
            Ok(value.get(..length).map(<[u8]>::to_vec))
        }
        Err(Errno::ENODATA | Errno::ERANGE | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_whole_or_not_found() {
        let file = tempfile::tempfile().unwrap();
        let name = c"user.disk-engine.test";
        assert_eq!(get::<8>(&file, name).unwrap(), None);
        if set(&file, name, b"12345678").unwrap() {
            assert_eq!(get::<8>(&file, name).unwrap().unwrap(), b"12345678");
            assert_eq!(get::<7>(&file, name).unwrap(), None);
        }
    }
}
