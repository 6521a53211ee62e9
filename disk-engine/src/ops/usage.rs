//! `usage`: what disks take, how far overlays have grown, and what their file systems have left.
//!
//! ```text
//! FILE   that disk                                            a link the caller names is followed
//! DIR    every qcow2 image below, and every primary.img       a link found below is not
//! ```
//!
//! A disk that runs out of space pauses its VM, or damages what is in it. To watch, call this now
//! and then: it reads one header a disk, locks nothing and follows no name found inside an image;
//! then ask [`UsageReport::growth_since`].

mod walk;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::base::BaseFormat;
use crate::control::Control;
use crate::disk::{chain, policy};
use crate::error::{Error, ErrorKind, Result};
use crate::overlay::BaseIdentity;
use crate::sys::{file_system, image_lock, space};

/// Bytes a new overlay takes: a header, a refcount table and a refcount block, a block of 4 KiB
/// each.
pub const NEW_OVERLAY: u64 = 12 << 10;

/// How to look.
#[derive(Clone, Debug)]
pub struct UsageOptions {
    /// Folders below the ones named that are looked into; deeper ones are told in
    /// [`UsageReport::skipped`].
    pub depth: u32,
    /// Stops the work.
    pub control: Control,
}

impl Default for UsageOptions {
    fn default() -> Self {
        Self { depth: 16, control: Control::new() }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UsageReport {
    /// The disks, in the order named; in a folder sorted by name.
    pub disks: Vec<DiskUsage>,
    /// The file systems they lie on, and those of the folders named.
    pub file_systems: Vec<FileSystemUsage>,
    /// What could not be looked at, or looks like an image and is none.
    pub skipped: Vec<Skipped>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskUsage {
    /// Where it lies.
    #[serde(rename = "filename", serialize_with = "lossy")]
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Size of the disk the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of storage the file takes; storage shared with other files counts too.
    #[serde(rename = "actual-size")]
    pub allocated: u64,
    /// qcow2 only: bytes beyond what a new overlay takes ([`NEW_OVERLAY`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<u64>,
    /// What it stands on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<NamedBase>,
    /// Whether a QEMU has it open; `None` where nobody can tell.
    pub in_use: Option<bool>,
    /// The file system's device number, as in [`FileSystemUsage::device`].
    pub device: u64,
}

/// The base an overlay names. It is not opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedBase {
    /// The path the header's backing file name means; the name itself where it is a protocol.
    #[serde(rename = "filename", serialize_with = "lossy")]
    pub path: PathBuf,
    /// The base's key in the cache it came from, if the overlay remembers one.
    pub key: Option<String>,
    /// The base's size in bytes, if the overlay remembers it.
    pub length: Option<u64>,
}

/// A file system, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileSystemUsage {
    /// The device number files on it have.
    pub device: u64,
    /// The mount's number in `/proc/self/mountinfo`; `None` without `/proc`.
    pub mount_id: Option<u64>,
    /// What it is called, as far as its number tells.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its size in bytes; 0 if it knows none, as a tmpfs without a limit.
    pub total: u64,
    /// Bytes an unprivileged writer has left, `u64::MAX` without a limit; an estimate on btrfs, and it
    /// knows no quotas.
    pub available: u64,
}

/// Something that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Skipped {
    /// Where it lies.
    #[serde(rename = "filename", serialize_with = "lossy")]
    pub path: PathBuf,
    /// The reason, for a person.
    pub reason: String,
}

/// A disk that takes more, or less, than it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes it took in the earlier report.
    pub before: u64,
    /// Bytes it takes now.
    pub after: u64,
}

impl UsageReport {
    /// What changed since an earlier report: disks that are in both and take another number of
    /// bytes.
    #[must_use]
    pub fn growth_since(&self, earlier: &Self) -> Vec<Growth> {
        let before: std::collections::HashMap<_, _> =
            earlier.disks.iter().map(|disk| (disk.path.as_path(), disk.allocated)).collect();
        self.disks
            .iter()
            .filter_map(|disk| {
                let before = *before.get(disk.path.as_path())?;
                (before != disk.allocated).then(|| Growth {
                    path: disk.path.clone(),
                    before,
                    after: disk.allocated,
                })
            })
            .collect()
    }
}

/// Looks at each of `paths`: a disk, or a folder of disks. A disk that is named twice is told once.
///
/// # Errors
///
/// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`] for what is neither a regular file nor a
/// folder, and what the system says, of the paths themselves; [`ErrorKind::Cancelled`].
pub fn usage<P: AsRef<Path>>(paths: &[P], options: &UsageOptions) -> Result<UsageReport> {
    let mut report = UsageReport::default();
    let mut seen = walk::Seen::default();
    for path in paths {
        walk::named(path.as_ref(), options, &mut seen, &mut report)?;
    }
    Ok(report)
}

impl UsageReport {
    /// Adds the disk in `file`, and the file system it lies on.
    fn add(&mut self, file: &File, path: &Path, format: BaseFormat) -> Result<()> {
        let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
        let allocated = space::allocated(&metadata);
        let (virtual_size, base) = match format {
            BaseFormat::Raw => (metadata.len(), None),
            BaseFormat::Qcow2 => {
                let header = chain::read_header(file, path)?;
                let base = header.backing_file().map(|name| named_base(&header, path, name));
                (header.virtual_size(), base)
            }
        };
        self.add_file_system(file, path)?;
        self.disks.push(DiskUsage {
            path: path.to_path_buf(),
            format: format.as_str(),
            virtual_size,
            allocated,
            growth: (format == BaseFormat::Qcow2).then(|| allocated.saturating_sub(NEW_OVERLAY)),
            base,
            in_use: image_lock::is_in_use(file).ok(),
            device: metadata.dev(),
        });
        Ok(())
    }

    fn add_file_system(&mut self, file: &File, path: &Path) -> Result<()> {
        let look = |error| Error::io("look at the file system of", path, error);
        let device = file.metadata().map_err(look)?.dev();
        if self.file_systems.iter().any(|known| known.device == device) {
            return Ok(());
        }
        self.file_systems.push(FileSystemUsage {
            device,
            mount_id: file_system::mount_id(file),
            kind: file_system::name(file).map_err(look)?,
            total: file_system::total(file).map_err(look)?,
            available: space::available(file).map_err(look)?,
        });
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &Error) {
        let mut text = reason.message().to_owned();
        if let Some(cause) = std::error::Error::source(reason) {
            text = format!("{text}: {cause}");
        }
        self.skipped.push(Skipped { path: path.to_path_buf(), reason: text });
    }
}

fn named_base(header: &qcow2_format::Header, image: &Path, name: &[u8]) -> NamedBase {
    use std::os::unix::ffi::OsStrExt;
    let plain = policy::plain_path(image, name);
    let identity = BaseIdentity::recorded(header);
    NamedBase {
        path: plain.unwrap_or_else(|_| PathBuf::from(std::ffi::OsStr::from_bytes(name))),
        key: identity.and_then(|identity| identity.key).map(|key| key.to_string()),
        length: identity.map(|identity| identity.base_length),
    }
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn not_a_disk(path: &Path) -> Error {
    let message = "a disk is a regular file, and what holds disks is a folder";
    Error::new(ErrorKind::InvalidInput, message).with_path(path)
}

#[cfg(test)]
mod tests;
