//! A new raw disk, all zeros. Caller: `ops::create`'s callers.

use std::path::Path;

use qcow2_format::WriteAt;
use qcow2_format::image::Preallocation;

use super::CreateFileOptions;
use super::files::storage_of;
use crate::error::{Error, Result};
use crate::sys::pending::PendingFile;

/// Makes a raw disk of `size` bytes at `path`, all zeros. Preallocation of metadata takes nothing: it
/// has none.
///
/// # Errors
///
/// [`crate::ErrorKind::AlreadyExists`] if something stands there, else what the system says. Nothing is
/// left of a disk that failed.
pub fn create_raw(
    path: &Path,
    size: u64,
    preallocation: Preallocation,
    options: &CreateFileOptions,
) -> Result<()> {
    let pending = PendingFile::create(path, options.existing, options.mode)?;
    let failed = |error| Error::io("make the disk", path, error).with_offset(size);
    let storage = storage_of(&pending, path)?;
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => storage.allocate_at(0, size).map_err(failed)?,
        Preallocation::Full => storage.write_all_zeros_at(0, size).map_err(failed)?,
    }
    storage.set_length(size).map_err(failed)?;
    pending.publish(options.durability)
}
