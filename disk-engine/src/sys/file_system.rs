//! The file system a file lies on: what it is called, which mount it is, how large.
//!
//! Callers: `strategy` (errors that name it), `ops::usage`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::fstatvfs;

/// Numbers of `linux/magic.h`, and of file systems that keep theirs to themselves.
const NAMES: [(u32, &str); 22] = [
    (0xef53, "ext2/ext3/ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x7461_636f, "ocfs2"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x00c3_6400, "ceph"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x4d44, "vfat"),
    (0x2011_bab0, "exfat"),
    (0x7366_746e, "ntfs3"),
    (0x3153_464a, "jfs"),
    (0x5265_4973, "reiserfs"),
    (0x7371_7368, "squashfs"),
];

/// What the file system is called, as far as its number tells.
///
/// # Errors
///
/// The file system does not say.
pub fn name(file: &File) -> io::Result<String> {
    let number = fstatfs(file).map_err(io::Error::from)?.filesystem_type().0;
    // The type is as wide as the platform's long; the numbers have 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let number = number as u32;
    let known = NAMES.iter().find(|(magic, _)| *magic == number);
    Ok(known.map_or_else(|| format!("type {number:#x}"), |(_, name)| (*name).to_owned()))
}

/// Size of the file system in bytes; 0 if it knows none, as a tmpfs without a limit.
///
/// # Errors
///
/// The file system does not say.
pub fn total(file: &File) -> io::Result<u64> {
    let stat = fstatvfs(file).map_err(io::Error::from)?;
    Ok(stat.blocks().saturating_mul(stat.fragment_size()))
}

/// The number of the mount the file was opened through, as in `/proc/self/mountinfo`; `None`
/// without `/proc`.
#[must_use]
pub fn mount_id(file: &File) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The nearest folder at or above `path` that exists: where a file at `path` would take its space.
///
/// # Errors
///
/// The current folder is unknown, or none can be looked at.
pub fn nearest_folder(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for folder in absolute.ancestors() {
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => return Ok(folder.to_path_buf()),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_is_found_above_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().canonicalize().unwrap();
        fs::write(here.join("file"), b"x").unwrap();
        for (path, nearest) in [("", ""), ("a/b/c", ""), ("file/b", ""), ("file", "")] {
            assert_eq!(nearest_folder(&here.join(path)).unwrap(), here.join(nearest), "{path}");
        }
    }

    #[test]
    fn a_mount_is_known_by_the_number_the_kernel_lists() {
        let file = tempfile::tempfile().unwrap();
        let id = mount_id(&file).unwrap();
        let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(list.lines().any(|line| line.starts_with(&format!("{id} "))), "{id}\n{list}");
    }
}
