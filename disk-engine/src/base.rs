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

use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::FileLock;

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
    _lease: Option<FileLock>,
}

impl BaseImage {
    /// A base of the cache: `path` is absolute, `lease` a shared lock on the base file itself.
    pub(crate) fn leased(path: PathBuf, virtual_size: u64, key: String, lease: FileLock) -> Self {
        Self { path, format: BaseFormat::Raw, virtual_size, key: Some(key), _lease: Some(lease) }
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
