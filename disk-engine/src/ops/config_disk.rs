//! `config-disk`: a FAT image with a label, whole or not at all.
//!
//! ```text
//! ConfigDisk ─▶ unnamed or temporary file ─▶ written ─▶ published under its name, mode 0600
//! ```
//!
//! A config disk is raw: attach it as such. Callers: the command line, and anybody who has a
//! [`ConfigDisk`].

use std::path::{Path, PathBuf};

use crate::config_disk::{ConfigDisk, ConfigDiskShape};
use crate::error::Result;
use crate::sys::pending::{Durability, Existing, FileMode, PendingFile};

/// How the new file is put in place.
#[derive(Clone, Copy, Debug)]
pub struct ConfigDiskOptions {
    /// What to do if something stands there.
    pub existing: Existing,
    /// How hard to sync.
    pub durability: Durability,
    /// The file's permission bits: 0600 unless said otherwise, since secrets are in it.
    pub mode: FileMode,
}

impl Default for ConfigDiskOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durability: Durability::None,
            mode: FileMode::Exact(0o600),
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigDiskReport {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub shape: ConfigDiskShape,
}

/// Writes `disk` to a new file at `path`.
///
/// # Errors
///
/// As [`ConfigDisk::build`], [`crate::ErrorKind::AlreadyExists`] unless told to replace, else what the
/// system says. Nothing is left of a disk that failed.
pub fn config_disk(
    disk: &ConfigDisk,
    path: &Path,
    options: &ConfigDiskOptions,
) -> Result<ConfigDiskReport> {
    let pending = PendingFile::create(path, options.existing, options.mode)?;
    let shape = disk.write_to(pending.file(), path)?;
    pending.publish(options.durability)?;
    Ok(ConfigDiskReport { path: path.to_path_buf(), shape })
}
