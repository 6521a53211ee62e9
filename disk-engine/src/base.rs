//! A base: the disk many VMs share and nobody writes to.
//!
//! ```text
//! base (raw or qcow2, read-only, shared by all) ◀── overlay (qcow2, read-write, one VM's)
//! ```
//!
//! Callers: `cache` hands out leased bases, [`BaseImage::open`] takes any file the caller names;
//! `overlay` stands on either.

use std::fs;
use std::path::{Path, PathBuf};

use qcow2_format::Header;
use qcow2_format::feature::IncompatibleFeatures;
use qcow2_format::header::CryptMethod;

use crate::cache::{self, uses::Uses};
use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::FileLock;
use crate::sys::open;

/// The format of a base. Always stated by the caller, never guessed from content a guest wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BaseFormat {
    /// Guest bytes and nothing else.
    #[default]
    Raw,
    /// A qcow2 image, itself possibly an overlay.
    Qcow2,
}

impl BaseFormat {
    /// The name qemu knows the format by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A base image. While a value from the cache lives, the cache keeps the file.
#[derive(Debug)]
pub struct BaseImage {
    path: PathBuf,
    format: BaseFormat,
    virtual_size: u64,
    key: Option<String>,
    /// Where the cache notes overlays. Dropped before the lease: a use ends while it is held.
    uses: Option<Uses>,
    _lease: Option<FileLock>,
}

impl BaseImage {
    /// A base of the cache: `path` is absolute, `lease` a shared lock on the base file itself.
    pub(crate) fn leased(
        path: PathBuf,
        virtual_size: u64,
        key: String,
        lease: FileLock,
        uses: Option<Uses>,
    ) -> Self {
        let (format, key, _lease) = (BaseFormat::Raw, Some(key), Some(lease));
        Self { path, format, virtual_size, key, uses, _lease }
    }

    /// Has the cache note that an image at `overlay` is about to stand on this base. Nothing to do
    /// for a base of no cache, or of one that is read-only here.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn note_overlay(&self, overlay: &Path) -> Result<()> {
        self.uses.as_ref().map_or(Ok(()), |uses| uses.add(overlay))
    }

    /// Refuses to put a new image at `image` where the base itself lies.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`]: both are one file, under whichever names.
    pub(crate) fn refuse_as_overlay(base: &Path, image: &Path) -> Result<()> {
        if fs::metadata(base).is_ok_and(|base| open::is_same_file(&base, image)) {
            return Err(Error::new(ErrorKind::InvalidInput, "an image cannot stand on itself")
                .with_path(image)
                .with_hint("choose another base, or another path"));
        }
        Ok(())
    }

    /// A base the caller names, in the format the caller states. A qcow2 base's own header is
    /// checked; what it stands on in turn is not opened. A base of an [`ImageCache`] is leased, as if
    /// the cache had been asked for it.
    ///
    /// [`ImageCache`]: crate::ImageCache
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Corrupt`] or
    /// [`ErrorKind::Unsupported`] if it is not an image a guest could read through: damaged,
    /// encrypted, marked corrupt.
    pub fn open(path: impl AsRef<Path>, format: BaseFormat) -> Result<Self> {
        let path = path.as_ref();
        let file = chain::open_top(path)?;
        let virtual_size = match format {
            BaseFormat::Raw => chain::length(&file, path)?,
            BaseFormat::Qcow2 => {
                let header = chain::read_header(&file, path)?;
                check_readable(&header, path)?;
                header.virtual_size()
            }
        };
        let path = fs::canonicalize(path).map_err(|error| Error::io("resolve", path, error))?;
        if format == BaseFormat::Raw
            && let Some(base) = cache::lease_of(&path)?
        {
            return Ok(base);
        }
        Ok(Self { path, format, virtual_size, key: None, uses: None, _lease: None })
    }

    /// Where the base lies: absolute, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The base's format.
    #[must_use]
    pub fn format(&self) -> BaseFormat {
        self.format
    }

    /// Size of the disk a guest sees, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// The base's key in the cache it came from.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// Refuses images whose guest content cannot be relied on, by name.
pub(crate) fn check_readable(header: &Header, path: &Path) -> Result<()> {
    let unusable = if header.crypt_method() != CryptMethod::None {
        Some((ErrorKind::Unsupported, "crypt_method", "the image is encrypted"))
    } else if header.incompatible_features().contains(IncompatibleFeatures::CORRUPT) {
        Some((ErrorKind::Corrupt, "incompatible_features", "the image is marked corrupt"))
    } else {
        None
    };
    match unusable {
        Some((kind, field, message)) => {
            Err(Error::new(kind, message).with_path(path).with_field(field))
        }
        None => Ok(()),
    }
}
