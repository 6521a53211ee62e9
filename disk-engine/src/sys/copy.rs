//! Bytes from file to file inside the kernel: `copy_file_range`.
//!
//! ```text
//! one file system   XFS, btrfs: shared storage, as a reflink    NFS 4.2, CIFS: the server copies
//! otherwise         through the page cache, without this process's memory
//! ```
//!
//! So a "copy" may take no space at all; `fiemap` tells. Callers: `strategy`,
//! `sink::offload`.

use std::fs::File;
use std::io;

use nix::errno::Errno;

/// Copies up to `length` bytes at `offset` to the same place of `destination`; says how many.
/// `Some(0)` is the end of `source`, or a file system that does not tell. `None` if the system
/// cannot copy between these two files, and only reading and writing is left.
///
/// # Errors
///
/// What the system says. A call that a signal interrupts is repeated.
pub fn copy_range(
    source: &File,
    destination: &File,
    offset: u64,
    length: u64,
) -> io::Result<Option<u64>> {
    copy_range_to(source, destination, offset, offset, length)
}

/// As [`copy_range`], from `from` in `source` to `to` in `destination`.
///
/// # Errors
///
/// As [`copy_range`].
pub fn copy_range_to(
    source: &File,
    destination: &File,
    from: u64,
    to: u64,
    length: u64,
) -> io::Result<Option<u64>> {
    let beyond = |_| io::Error::from(Errno::EOVERFLOW);
    let (from, to) = (i64::try_from(from).map_err(beyond)?, i64::try_from(to).map_err(beyond)?);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    loop {
        let (mut from, mut to) = (from, to);
        match nix::fcntl::copy_file_range(
            source,
            Some(&mut from),
            destination,
            Some(&mut to),
            length,
        ) {
            Ok(count) => return Ok(Some(count as u64)),
            Err(Errno::EINTR) => {}
            // Across file systems; not between such files; not in this kernel; not in this sandbox.
            Err(
                Errno::EXDEV
                | Errno::EINVAL
                | Errno::ENOSYS
                | Errno::EOPNOTSUPP
                | Errno::EPERM
                | Errno::ETXTBSY,
            ) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
