//! `create`: a new image under a name, qcow2 or raw, whole or not at all.
//!
//! ```text
//! files   the files of a new qcow2 image: one, or two with an external data file
//! raw     a raw disk
//! ```
//!
//! Callers: the command line, and whoever makes images.

mod files;
mod raw;

use std::path::Path;

use qcow2_format::{CreateOptions, Header};

use crate::base::BaseImage;
use crate::disk::chain::from_format;
use crate::disk::policy::{DataFileNames, plain_path};
use crate::error::Result;
use crate::sys::pending::{Durability, Existing, FileMode};
pub(crate) use files::{NewFiles, storage_in};
pub use raw::create_raw;

/// How the new file is put in place.
#[derive(Clone, Copy, Debug)]
pub struct CreateFileOptions {
    /// What to do if something stands there.
    pub existing: Existing,
    /// How hard to sync.
    pub durability: Durability,
    /// The file's permission bits.
    pub mode: FileMode,
    /// What a relative name of an external data file counts from.
    pub data_file_names: DataFileNames,
}

impl Default for CreateFileOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durability: Durability::None,
            mode: FileMode::Umask,
            data_file_names: DataFileNames::default(),
        }
    }
}

/// Makes the image `image` describes at `path`, and its external data file if it has one, and
/// returns its header.
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
    let files = NewFiles::create(path, image.header(), options)?;
    let storage = files.storage()?;
    match files.data_storage()? {
        Some(data) => image.write_with_data(&storage, &data),
        None => image.write_to(&storage),
    }
    .map_err(|error| from_format(error, path))?;
    files.publish(options.durability)?;
    Ok(image.header().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use std::fs;

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
