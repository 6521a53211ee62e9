//! The files of a new image: one, or two if the guest's clusters are to lie outside.
//!
//! ```text
//! image.qcow2   names
//!   └─▶ data file    published first: no image ever names a file that is not there
//! ```
//!
//! Callers: `ops::create`, `ops::convert`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use qcow2_format::Header;

use super::CreateFileOptions;
use crate::disk::policy::plain_path;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;
use crate::sys::open::is_same_file;
use crate::sys::pending::{Durability, Existing, PendingFile};

/// Files that have no names yet.
pub(crate) struct NewFiles {
    image: PendingFile,
    path: PathBuf,
    data: Option<(PendingFile, PathBuf)>,
    existing: Existing,
}

impl NewFiles {
    /// The files of an image at `path` with this header. What its data file would replace is looked
    /// at before anything is written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the data file is the image or its backing file;
    /// [`ErrorKind::AlreadyExists`] unless told to replace; otherwise what the system says.
    pub(crate) fn create(
        path: &Path,
        header: &Header,
        options: &CreateFileOptions,
    ) -> Result<Self> {
        let data_path = match header.external_data_file() {
            None => None,
            Some(name) => Some(data_file_path(path, name, header, options)?),
        };
        let image = PendingFile::create_or_device(path, options.existing, options.mode)?;
        let data = match data_path {
            None => None,
            Some(path) => {
                Some((PendingFile::create_or_device(&path, options.existing, options.mode)?, path))
            }
        };
        Ok(Self { image, path: path.to_path_buf(), data, existing: options.existing })
    }

    /// The image.
    pub(crate) fn storage(&self) -> Result<ImageFile> {
        storage_of(&self.image, &self.path)
    }

    /// Its data file, if it has one.
    pub(crate) fn data_storage(&self) -> Result<Option<ImageFile>> {
        self.data.as_ref().map(|(data, path)| storage_of(data, path)).transpose()
    }

    /// The file that the guest's clusters lie in.
    pub(crate) fn data_file(&self) -> &fs::File {
        self.data.as_ref().map_or(&self.image, |(data, _)| data).file()
    }

    /// Gives the whole files their names. Of an image that fails nothing is left, unless its data
    /// file has replaced another by then.
    ///
    /// # Errors
    ///
    /// As [`PendingFile::publish`].
    pub(crate) fn publish(self, durability: Durability) -> Result<()> {
        let Some((data, data_path)) = self.data else { return self.image.publish(durability) };
        let metadata = data.file().metadata();
        let metadata = metadata.map_err(|error| Error::io("look at", &data_path, error))?;
        data.publish(durability)?;
        self.image.publish(durability).inspect_err(|_| {
            if self.existing == Existing::Refuse && is_same_file(&metadata, &data_path) {
                // The first error is the one that matters.
                let _ = fs::remove_file(&data_path);
            }
        })
    }
}

/// The new file as a storage.
pub(super) fn storage_of(pending: &PendingFile, path: &Path) -> Result<ImageFile> {
    storage_in(pending.file(), path)
}

/// A file that nobody else has open, as it has no name yet, or a block device, as an empty storage.
pub(crate) fn storage_in(file: &fs::File, path: &Path) -> Result<ImageFile> {
    let file = file.try_clone();
    let file = file.map_err(|error| Error::io("duplicate the descriptor of", path, error))?;
    ImageFile::new_image(ImageLock::none(file)).map_err(|error| Error::io("look at", path, error))
}

/// Where the data file of the image at `path` will be. What it would replace is looked at before
/// anything is written.
fn data_file_path(
    path: &Path,
    name: &[u8],
    header: &Header,
    options: &CreateFileOptions,
) -> Result<PathBuf> {
    let data = plain_path(options.data_file_names.from(path), name)?;
    let refuse = |message: &'static str| {
        Err(Error::new(ErrorKind::InvalidInput, message).with_path(&data).with_field("data_file"))
    };
    if file_name_in(&data) == file_name_in(path) {
        return refuse("an image cannot be its own data file");
    }
    let Ok(found) = fs::symlink_metadata(&data) else { return Ok(data) };
    if options.existing == Existing::Refuse {
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
