//! `create`: a new qcow2 image under a name, whole or not at all.

use std::path::Path;

use qcow2_format::{CreateOptions, Header};

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
