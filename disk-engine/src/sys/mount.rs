//! Mounts as the kernel lists them in `/proc/self/mountinfo`.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - nfs4 server:/export rw,vers=4.2,local_lock=none
//! │                │     └ of the mount    │   │    └ source       └ of the file system
//! └ number         └ where                 │   └ type
//!                                          └ ends the optional fields
//! ```
//!
//! Spaces and the like in paths are written as `\040`. Callers: `cache::locking`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::sys::file_system;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of its file system, as in `nfs4`.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
    /// The options of the mount and of its file system.
    pub options: Vec<String>,
}

impl Mount {
    /// The mount `file` was opened through; `None` where `/proc` does not say.
    #[must_use]
    pub fn of(file: &File) -> Option<Self> {
        let id = file_system::mount_id(file)?;
        let list = fs::read("/proc/self/mountinfo").ok()?;
        list.split(|&byte| byte == b'\n').filter_map(Self::parse).find(|mount| mount.id == id)
    }

    /// Reads one line; `None` if it is none.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let point = path(fields.nth(3)?);
        let of_mount = fields.next()?;
        fields.find(|field| *field == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        let source = path(fields.next()?);
        let of_file_system = fields.next()?;
        let options = [of_mount, of_file_system]
            .iter()
            .flat_map(|options| options.split(|&byte| byte == b','))
            .map(|option| String::from_utf8_lossy(&unescape(option)).into_owned())
            .collect();
        Some(Self { id, point, kind, source, options })
    }
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Replaces each backslash and three octal digits by the byte they stand for.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    u8::from_str_radix(digits, 8).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_field_by_field() {
        let line = br"36 35 98:0 /mnt\0401 /srv/a\040b\134c rw,noatime master:1 propagate_from:2 - nfs4 host:/x\011y rw,vers=4.2,local_lock=none";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.kind.as_str()), (36, "nfs4"));
        assert_eq!(mount.point, PathBuf::from(r"/srv/a b\c"));
        assert_eq!(mount.source, PathBuf::from("host:/x\ty"));
        assert_eq!(mount.options, ["rw", "noatime", "rw", "vers=4.2", "local_lock=none"]);
        // Without an optional field, and with bytes that are no escape.
        let line = br"7 1 0:5 / /a\9b\0 ro - tmpfs none ro";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.point, PathBuf::from(r"/a\9b\0"));
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in [
            "",
            "x 1 0:5 / /a rw - tmpfs none rw",
            "7 1 0:5 / /a rw tmpfs none rw",
            "7 1 0:5 / /a rw - tmpfs",
        ] {
            assert_eq!(Mount::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn the_mount_of_an_open_file_is_in_the_kernels_list() {
        let mount = Mount::of(&File::open("/proc/self/mountinfo").unwrap()).unwrap();
        assert_eq!((mount.kind.as_str(), mount.point), ("proc", PathBuf::from("/proc")));
    }
}
