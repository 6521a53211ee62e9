//! `create`: a new image under a name, qcow2 or raw, whole or not at all.

use std::path::Path;

use qcow2_format::image::Preallocation;
use qcow2_format::{CreateOptions, Header, WriteAt};

use crate::base::BaseImage;
use crate::disk::chain::from_format;
use crate::disk::policy::plain_path;
use crate::error::{Error, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;
use crate::sys::pending::{Durability, Existing, FileMode, PendingFile};

/// How the new file is put in place.
#[derive(Clone, Copy, Debug)]
pub struct CreateFileOptions {
    /// What to do if something stands there.
    pub existing: Existing,
    /// How hard to sync.
    pub durability: Durability,
    /// The file's permission bits.
    pub mode: FileMode,
}

impl Default for CreateFileOptions {
    fn default() -> Self {
        Self { existing: Existing::Refuse, durability: Durability::None, mode: FileMode::Umask }
    }
}

/// Makes the image `image` describes at `path` and returns its header.
///
/// # Errors
///
/// [`crate::ErrorKind::InvalidInput`] for options that no image can have, and for an image that
/// would replace the backing file it names,
/// [`crate::ErrorKind::AlreadyExists`] if something stands there, else what the system says.
/// Nothing is left of an image that failed.
pub fn create(path: &Path, image: &CreateOptions, options: &CreateFileOptions) -> Result<Header> {
    let image = image.plan().map_err(|error| from_format(error, path))?;
    if let Some(name) = image.header().backing_file()
        && let Ok(base) = plain_path(path, name)
    {
        BaseImage::refuse_as_overlay(&base, path)?;
    }
    let pending = PendingFile::create(path, options.existing, options.mode)?;
    // Nobody else can have a file open that has no name yet.
    let file = pending.file().try_clone();
    let file = file.map_err(|error| Error::io("duplicate the descriptor of", path, error))?;
    let storage = ImageFile::new(ImageLock::none(file));
    image.write_to(&storage).map_err(|error| from_format(error, path))?;
    pending.publish(options.durability)?;
    Ok(image.header().clone())
}

/// Bytes of zeros that are written at once.
const ZEROS: usize = 1 << 20;

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
    let file = pending.file().try_clone().map_err(failed)?;
    let storage = ImageFile::new(ImageLock::none(file));
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => storage.allocate_at(0, size).map_err(failed)?,
        Preallocation::Full => {
            let zeros = vec![0; ZEROS];
            let mut at = 0;
            while at < size {
                let count = usize::try_from(size - at).unwrap_or(usize::MAX).min(ZEROS);
                storage.write_all_at(zeros.get(..count).unwrap_or_default(), at).map_err(failed)?;
                at = at.saturating_add(count as u64);
            }
        }
    }
    storage.set_length(size).map_err(failed)?;
    pending.publish(options.durability)
}
