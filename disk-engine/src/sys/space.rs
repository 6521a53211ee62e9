//! Space: what a file takes, and what its file system has left for us.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::statvfs::fstatvfs;

/// Bytes of storage a file occupies, holes not counted.
#[must_use]
pub fn allocated(metadata: &Metadata) -> u64 {
    // POSIX: `st_blocks` counts units of 512 bytes, whatever the file system's block size.
    metadata.blocks().saturating_mul(512)
}

/// Bytes an unprivileged writer can still use on the file system that holds `file`; `u64::MAX` on one
/// that knows no size, as a tmpfs without a limit.
///
/// # Errors
///
/// The file system does not say.
pub fn available(file: &File) -> io::Result<u64> {
    let stat = fstatvfs(file).map_err(io::Error::from)?;
    if stat.blocks() == 0 {
        return Ok(u64::MAX);
    }
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
