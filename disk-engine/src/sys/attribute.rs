//! Notes kept beside a file's bytes: extended attributes of the `user` namespace.
//!
//! ```text
//! file ─ bytes                    the guest's, every one of them
//!      └ user.disk-engine.base    ours; a guest cannot reach it
//! ```
//!
//! Not every file system has them, and not every program that copies a file copies them, so a note
//! that is absent says nothing. Callers: `strategy`, for disks that have no header to note anything
//! in; `pending`, which passes on what a replaced file had.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// Which base a disk without a header was made from.
pub const BASE: &CStr = c"user.disk-engine.base";

/// Longest value of an attribute, and longest list of names, that the kernel takes: 64 KiB.
const LENGTH_MAX: usize = 1 << 16;

/// Keeps `value` under `name`; `false` where the file system keeps no attributes, or not that one of
/// this caller's.
///
/// # Errors
///
/// What the system says.
pub fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<bool> {
    match fsetxattr(file, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The value kept under `name`; `None` if there is none, or the file system keeps no attributes.
///
/// # Errors
///
/// What the system says.
pub fn get(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; LENGTH_MAX];
    match fgetxattr(file, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names of all that is kept, none where the file system keeps no attributes.
///
/// # Errors
///
/// What the system says.
pub fn names(file: &File) -> io::Result<Vec<CString>> {
    let mut list = vec![0_u8; LENGTH_MAX];
    match flistxattr(file, &mut list) {
        Ok(length) => {
            let list = list.get(..length).unwrap_or_default();
            let names = list.split_inclusive(|&byte| byte == 0);
            Ok(names
                .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
                .map(CStr::to_owned)
                .collect())
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Takes away what is kept under `name`, if anything is.
///
/// # Errors
///
/// What the system says.
pub fn remove(file: &File, name: &CStr) -> io::Result<()> {
    match fremovexattr(file, name) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_and_listed() {
        let file = tempfile::tempfile().unwrap();
        let name = c"user.disk-engine.test";
        assert_eq!(get(&file, name).unwrap(), None);
        if set(&file, name, b"12345678").unwrap() {
            assert_eq!(get(&file, name).unwrap().unwrap(), b"12345678");
            assert!(names(&file).unwrap().contains(&name.to_owned()));
            remove(&file, name).unwrap();
            assert_eq!(get(&file, name).unwrap(), None);
        }
    }
}
