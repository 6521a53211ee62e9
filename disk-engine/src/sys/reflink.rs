//! Two files, one storage: `FICLONE` and `FICLONERANGE`.
//!
//! ```text
//! source       █ A █ B ░░░░ █ C █        the storage is shared until one of them is written to;
//! destination  █ A █ B ░░░░ █ C █        only then that block gets a place of its own
//! ```
//!
//! btrfs, bcachefs, OCFS2, and XFS made with `reflink=1` can; so do some network file systems. Both
//! files lie on one file system. Callers: `strategy`,
//! `sink::offload`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

mod call {
    #![allow(unsafe_code, missing_docs, reason = "the macros declare unsafe functions")]
    use nix::libc;
    nix::ioctl_write_int_bad!(clone_file, libc::FICLONE);
    nix::ioctl_write_ptr_bad!(clone_range, libc::FICLONERANGE, libc::file_clone_range);
}

/// Makes `destination`, which is empty, share all of `source`'s storage and have its length.
///
/// # Errors
///
/// What the system says; see [`is_unsupported`] and [`crosses_file_systems`].
pub fn clone_file(source: &File, destination: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: both descriptors are open while the references live, and the argument of FICLONE is a
    // number, not a pointer.
    unsafe { call::clone_file(destination.as_raw_fd(), source.as_raw_fd()) }?;
    Ok(())
}

/// Makes `range` of `destination` share the storage of the same range of `source`. Both ends are
/// multiples of the file system's block, or the end is the end of both files.
///
/// # Errors
///
/// What the system says; see [`is_unsupported`] and [`crosses_file_systems`].
pub fn clone_range(source: &File, destination: &File, range: Range<u64>) -> io::Result<()> {
    let to = range.start;
    clone_range_to(source, destination, range, to)
}

/// As [`clone_range`], into the range of `destination` that begins at `to`, a multiple of the file
/// system's block as well.
///
/// # Errors
///
/// What the system says; see [`is_unsupported`] and [`crosses_file_systems`].
pub fn clone_range_to(
    source: &File,
    destination: &File,
    range: Range<u64>,
    to: u64,
) -> io::Result<()> {
    let length = range.end.saturating_sub(range.start);
    if length == 0 {
        // To the system, a length of 0 means "to the end".
        return Ok(());
    }
    let argument = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: range.start,
        src_length: length,
        dest_offset: to,
    };
    #[expect(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: both descriptors are open while the references live; the argument is a whole
    // `file_clone_range`, which the kernel only reads, during the call.
    unsafe { call::clone_range(destination.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Whether a failed call means that these files cannot share storage, and nothing worse. A file
/// system that can still answers `EINVAL` for some pairs: btrfs for one with checksums and one
/// without.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::ENOSYS, Errno::EINVAL, Errno::EPERM, Errno::ETXTBSY]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// Whether a call that failed for a whole file may still succeed range by range.
#[must_use]
pub fn may_take_ranges(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EINVAL as i32)
}

/// Whether a failed call means that the files lie on different file systems, or on different mounts
/// of one, which old kernels tell apart.
#[must_use]
pub fn crosses_file_systems(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EXDEV as i32)
}
