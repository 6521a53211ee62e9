//! `create`: a new qcow2 image under a name, whole or not at all.
//!
//! ```text
//! image.qcow2   one new file
//! data file     a second one, if the guest's clusters are to lie outside: it gets its name first, so
//!               that no image ever names a file that is not there
//! ```
//!
//! Callers: the command line, and whoever makes images.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use qcow2_format::{CreateOptions, Header};

use crate::base::BaseImage;
use crate::disk::chain::from_format;
use crate::disk::policy::plain_path;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;
use crate::sys::open::is_same_file;
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

/// Makes the image `image` describes at `path`, and its external data file if it has one, and
/// returns its header. A relative name of the data file counts from the image's folder.
///
/// # Errors
///
/// [`crate::ErrorKind::InvalidInput`] for options that no image can have, and for an image that
/// would replace the backing file it names or its own data file,
/// [`crate::ErrorKind::AlreadyExists`] if something stands there, else what the system says.
/// Nothing is left of an image that failed, unless its data file has replaced another by then.
pub fn create(path: &Path, image: &CreateOptions, options: &CreateFileOptions) -> Result<Header> {
    let image = image.plan().map_err(|error| from_format(error, path))?;
    if let Some(name) = image.header().backing_file()
        && let Ok(base) = plain_path(path, name)
    {
        BaseImage::refuse_as_overlay(&base, path)?;
    }
    let data_path = match image.header().external_data_file() {
        None => None,
        Some(name) => Some(data_file_path(path, name, image.header(), options.existing)?),
    };
    let pending = PendingFile::create(path, options.existing, options.mode)?;
    let storage = storage_of(&pending, path)?;
    let Some(data_path) = data_path else {
        image.write_to(&storage).map_err(|error| from_format(error, path))?;
        pending.publish(options.durability)?;
        return Ok(image.header().clone());
    };
    let data = PendingFile::create(&data_path, options.existing, options.mode)?;
    image
        .write_with_data(&storage, &storage_of(&data, &data_path)?)
        .map_err(|error| from_format(error, path))?;
    let metadata = data.file().metadata();
    let metadata = metadata.map_err(|error| Error::io("look at", &data_path, error))?;
    data.publish(options.durability)?;
    pending.publish(options.durability).inspect_err(|_| {
        if options.existing == Existing::Refuse && is_same_file(&metadata, &data_path) {
            // The first error is the one that matters.
            let _ = fs::remove_file(&data_path);
        }
    })?;
    Ok(image.header().clone())
}

/// The new file as a storage.
fn storage_of(pending: &PendingFile, path: &Path) -> Result<ImageFile> {
    // Nobody else can have a file open that has no name yet.
    let file = pending.file().try_clone();
    let file = file.map_err(|error| Error::io("duplicate the descriptor of", path, error))?;
    Ok(ImageFile::new(ImageLock::none(file)))
}

/// Where the data file of the image at `path` will be. What it would replace is looked at before
/// anything is written.
fn data_file_path(
    path: &Path,
    name: &[u8],
    header: &Header,
    existing: Existing,
) -> Result<PathBuf> {
    let data = plain_path(path, name)?;
    let refuse = |message: &'static str| {
        Err(Error::new(ErrorKind::InvalidInput, message).with_path(&data).with_field("data_file"))
    };
    if file_name_in(&data) == file_name_in(path) {
        return refuse("an image cannot be its own data file");
    }
    let Ok(found) = fs::symlink_metadata(&data) else { return Ok(data) };
    if existing == Existing::Refuse {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            "the data file exists and is left as it is",
        )
        .with_path(&data));
    }
    let backing = header.backing_file().and_then(|name| plain_path(path, name).ok());
    if is_same_file(&found, path) {
        return refuse("an image cannot be its own data file");
    }
    if backing.is_some_and(|backing| is_same_file(&found, &backing)) {
        return refuse("the data file would replace the backing file");
    }
    Ok(data)
}

/// A name that may not exist yet, in the folder it really is in.
fn file_name_in(path: &Path) -> Option<(PathBuf, OsString)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).ok()?;
    Some((folder, path.file_name()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcow2_format::create::{BackingFile, BackingFormat, DataFile};

    fn image(name: &str) -> CreateOptions {
        CreateOptions::new(1 << 20).data_file(DataFile::new(name, false))
    }

    fn refused(path: &Path, image: &CreateOptions, existing: Existing) -> Error {
        let options = CreateFileOptions { existing, ..Default::default() };
        create(path, image, &options).unwrap_err()
    }

    #[test]
    fn a_data_file_appears_beside_its_image_or_neither_does() {
        let folder = tempfile::tempdir().unwrap();
        let (path, data) = (folder.path().join("image"), folder.path().join("d"));
        fs::write(&data, b"somebody's").unwrap();
        let error = refused(&path, &image("d"), Existing::Refuse);
        assert_eq!((error.kind(), error.path()), (ErrorKind::AlreadyExists, Some(data.as_path())));
        assert_eq!(fs::read(&data).unwrap(), b"somebody's");
        fs::remove_file(&data).unwrap();

        // The image cannot be made: its data file goes, too.
        fs::write(&path, b"somebody's").unwrap();
        let error = refused(&path, &image("d"), Existing::Refuse);
        assert_eq!((error.kind(), error.path()), (ErrorKind::AlreadyExists, Some(path.as_path())));
        assert!(!data.exists());

        let options = CreateFileOptions { existing: Existing::Replace, ..Default::default() };
        create(&path, &image("d"), &options).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().len(), 1 << 20);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_data_file_takes_nobodys_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, base) = (folder.path().join("image"), folder.path().join("base"));
        fs::write(&base, vec![9; 4096]).unwrap();
        fs::hard_link(&base, folder.path().join("same")).unwrap();
        for existing in [Existing::Refuse, Existing::Replace] {
            for name in ["image", "./image", path.to_str().unwrap()] {
                let error = refused(&path, &image(name), existing);
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
            }
        }
        let backing = BackingFile::new("base", BackingFormat::Raw);
        for name in ["base", "same"] {
            let error = refused(&path, &image(name).backing(backing.clone()), Existing::Replace);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        }
        assert_eq!(fs::read(&base).unwrap(), [9; 4096]);
        assert!(!path.exists());
    }
}
