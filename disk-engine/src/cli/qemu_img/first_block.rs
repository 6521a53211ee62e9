//! The first block of a new raw disk, which qemu-img has allocated: what opens the disk next finds out by it
//! how it may be read directly.
//!
//! ```text
//! new, all holes  [ 4096 zeros, allocated │ hole ……… ]      less than 4096 bytes: one sector of them
//! ```
//!
//! Callers: `place`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sys::sparse::next_data;

/// Zeros of the largest block that a file system has, and of a sector.
const BLOCK: &[u8] = &[0; 4096];
const SECTOR: &[u8] = &[0; 512];

/// Allocates the first block of the raw disk of `size` bytes, whole sectors, that was made at `path`. That it
/// cannot be is no error: nothing but time depends on it.
pub(super) fn allocate(path: &Path, size: u64) {
    if size == 0 || !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return;
    }
    let Ok(file) = File::options().read(true).write(true).open(path) else { return };
    if next_data(&file, 0).is_ok_and(|data| data.is_none_or(|data| data.start > 0)) {
        let _ = file.write_all_at(if size < BLOCK.len() as u64 { SECTOR } else { BLOCK }, 0);
    }
}
