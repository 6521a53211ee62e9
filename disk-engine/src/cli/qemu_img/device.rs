//! A block device as the file of a new raw disk: it is there already and has the length it has.
//!
//! ```text
//! device  ████████████████████   a disk of at most this length goes in; what is behind it stays
//! ```
//!
//! Callers: `create`, `convert`, `dd`.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use qcow2_format::image::Preallocation;
use qcow2_format::{ReadAt, WriteAt};

use super::complaint;
use crate::disk::sectors::SECTOR;
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;

/// The block device at `path`, if one is there, open for writing and long enough for `size` bytes.
///
/// # Errors
///
/// Why it cannot take the disk, in qemu-img's words.
pub(super) fn taking(
    path: &Path,
    size: u64,
    preallocation: Preallocation,
) -> Result<Option<File>, String> {
    if !path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return Ok(None);
    }
    if preallocation != Preallocation::Off {
        let mode = if preallocation == Preallocation::Full { "full" } else { "falloc" };
        return Err(format!("Unsupported preallocation mode '{mode}'"));
    }
    let failed = |error: &std::io::Error| {
        format!("Could not create '{}': {}", path.to_string_lossy(), complaint::strerror(error))
    };
    let device =
        File::options().read(true).write(true).open(path).map_err(|error| failed(&error))?;
    match ReadAt::length(&device) {
        Err(error) => Err(failed(&error)),
        Ok(length) if length < size => Err("Cannot grow device files".to_owned()),
        Ok(_) => Ok(Some(device)),
    }
}

/// Takes away what an earlier disk would be recognised by: its first sector.
///
/// # Errors
///
/// What the system says, in qemu-img's words.
pub(super) fn clear(device: File) -> Result<(), String> {
    let failed = |error: std::io::Error| {
        format!("Could not clear the new image's first sector: {}", complaint::strerror(&error))
    };
    let storage = ImageFile::new(ImageLock::none(device));
    let length = ReadAt::length(&storage).map_err(failed)?.min(SECTOR);
    WriteAt::write_zeros_at(&storage, 0, length).map_err(failed)
}
