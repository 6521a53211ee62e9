//! What an image says of itself, for who does not trust it.
//!
//! ```text
//! path ─▶ open: regular file or block device ─▶ header, checked ─▶ said
//!                                               names in it are bytes: nothing is opened, looked at
//!                                               or asked for
//! ```
//!
//! Callers: whoever decides by an image's header whether to open it.

use std::path::Path;

use qcow2_format::Header;
use qcow2_format::bitmap::Bitmap;
use qcow2_format::luks::LuksHeader;
use qcow2_format::snapshot::Snapshot;

use crate::base::BaseFormat;
use crate::disk::chain::{Chain, ChainImage, from_format};
use crate::disk::policy::BackingPolicy;
use crate::error::{Error, ErrorKind, Result};

/// Reads the header of the image at `path`, and follows nothing that it names. The image is neither
/// locked nor changed, so that a running VM's can be looked at; its data is not read.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Unsupported`] with the field, its value and its place;
/// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidInput`] for what is no regular file or block device;
/// otherwise what the system says.
///
/// # Example
///
/// ```no_run
/// use disk_engine::BaseFormat;
/// use disk_engine::disk::inspect;
///
/// let image = inspect("stranger.qcow2", BaseFormat::Qcow2)?;
/// if let Some(header) = &image.header {
///     assert_eq!(header.backing_file(), None, "stands on nothing");
/// }
/// # Ok::<(), disk_engine::Error>(())
/// ```
pub fn inspect(path: impl AsRef<Path>, format: BaseFormat) -> Result<ChainImage> {
    let path = path.as_ref();
    let mut chain = Chain::open(path, format, &BackingPolicy::Deny)?;
    // There is one: a chain begins with its top.
    let nothing = || Error::new(ErrorKind::NotFound, "there is no image").with_path(path);
    chain.images.drain(..).next().ok_or_else(nothing)
}

impl ChainImage {
    /// The snapshots of the image, as its table lists them; none if it is raw.
    ///
    /// # Errors
    ///
    /// The table is damaged or cannot be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.listed(|header| Snapshot::read_table(&self.file, header))
    }

    /// The bitmaps of the image that it vouches for; none if it is raw.
    ///
    /// # Errors
    ///
    /// The directory is damaged or cannot be read.
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        self.listed(|header| Bitmap::read_directory(&self.file, header))
    }

    /// What the image's LUKS header says, if it has one.
    ///
    /// # Errors
    ///
    /// It is damaged or cannot be read.
    pub fn luks(&self) -> Result<Option<LuksHeader>> {
        self.listed(|header| LuksHeader::read(&self.file, header))
    }

    fn listed<T: Default>(
        &self,
        read: impl FnOnce(&Header) -> qcow2_format::Result<T>,
    ) -> Result<T> {
        match &self.header {
            None => Ok(T::default()),
            Some(header) => read(header).map_err(|error| from_format(error, &self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcow2_format::CreateOptions;
    use qcow2_format::create::{BackingFile, BackingFormat};
    use std::fs::{self, File};

    #[test]
    fn what_an_image_names_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = folder.path().join("image");
        for name in ["fifo", "absent", "/proc/self/mem", "../../etc/shadow", "image"] {
            let backing = BackingFile::new(name, BackingFormat::Raw);
            let image = CreateOptions::new(1 << 20).backing(backing).plan().unwrap();
            image.write_to(&File::create(&path).unwrap()).unwrap();
            let found = inspect(&path, BaseFormat::Qcow2).unwrap();
            assert_eq!(found.header.unwrap().backing_file(), Some(name.as_bytes()));
            assert_eq!(found.virtual_size, 1 << 20);
        }
        assert_eq!(inspect(&fifo, BaseFormat::Raw).unwrap_err().kind(), ErrorKind::InvalidInput);
        fs::write(&path, b"QFI\xfb").unwrap();
        assert_eq!(inspect(&path, BaseFormat::Qcow2).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(inspect(&path, BaseFormat::Raw).unwrap().virtual_size, 512);
    }
}
