//! An overlay: the thin qcow2 image that takes one VM's writes.
//!
//! ```text
//!                 ┌── overlay of VM 0   read-write, 12 KiB when new, every guest write
//! base  ◀─────────┼── overlay of VM 1   of that VM from any partition
//! read-only       └── overlay of VM 2   …
//! shared by all
//! ```
//!
//! A new overlay is version 3 (so that a guest's zeros become zero clusters), names its base by
//! absolute path and format, and records the base's size and key in an extension of its own
//! (`identity`), which QEMU keeps. It appears under its name whole or not at all.
//!
//! ```text
//! new       O_TMPFILE, length, refcount table, refcount block, header, mode, name
//! reuse     an overlay that stands there is checked against the base and kept (a VM's reboot)
//! rebase    the backing file name is rewritten in place, for trees that moved
//! ```

mod identity;
mod rebase;
mod reuse;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use qcow2_format::create::{BackingFile, BackingFormat};
use qcow2_format::{CreateOptions, Header};

use crate::base::{BaseFormat, BaseImage};
use crate::disk::chain::from_format;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::owner;
use crate::sys::pending::{Durability, Existing, FileMode, PendingFile};
pub use identity::BaseIdentity;
pub use rebase::{RebaseOptions, RebaseReport, rebase};

/// Only the VM's own user reads and writes its disk.
const DEFAULT_MODE: u32 = 0o600;

impl BaseImage {
    /// Starts an overlay of this base at `path`.
    pub fn overlay(&self, path: impl Into<PathBuf>) -> OverlayBuilder<'_> {
        OverlayBuilder {
            base: self,
            path: path.into(),
            min_size: 0,
            reuse: false,
            relative: false,
            mode: DEFAULT_MODE,
            owner: None,
            existing: Existing::Refuse,
            durability: Durability::None,
        }
    }
}

/// How an overlay is to be made.
#[derive(Clone, Debug)]
#[must_use]
pub struct OverlayBuilder<'base> {
    base: &'base BaseImage,
    path: PathBuf,
    min_size: u64,
    reuse: bool,
    relative: bool,
    mode: u32,
    owner: Option<(Option<u32>, Option<u32>)>,
    existing: Existing,
    durability: Durability,
}

impl OverlayBuilder<'_> {
    /// The disk's least size in bytes; grows the base's size and never cuts it.
    pub fn min_size(mut self, bytes: u64) -> Self {
        self.min_size = bytes;
        self
    }

    /// Keeps an overlay that already stands there, with the guest's state, if it fits this base
    /// and size; one that does not fit is an error that says how.
    pub fn reuse(mut self, reuse: bool) -> Self {
        self.reuse = reuse;
        self
    }

    /// Names the base relative to the overlay's folder, so that both can move together.
    pub fn relative(mut self, relative: bool) -> Self {
        self.relative = relative;
        self
    }

    /// The file's permission bits, whatever the umask; 0600 unless said otherwise.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Gives the file to another user or group. Needs the privilege, and user ids that exist in
    /// this user namespace.
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// What to do with another file of that name. [`OverlayBuilder::reuse`] comes first.
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// How hard to sync; not at all unless said otherwise.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Makes the overlay, or verifies and keeps the one that stands there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if something stands there and neither reuse nor replacement
    /// was asked for; [`ErrorKind::Mismatch`] if what stands there does not fit;
    /// [`ErrorKind::InvalidInput`] if the base's path cannot be a backing file name, or the overlay
    /// would replace its own base;
    /// otherwise what the system says. Nothing is left of an overlay that failed.
    pub fn create(&self) -> Result<Overlay> {
        if self.reuse && self.path.symlink_metadata().is_ok() {
            return self.verify();
        }
        match self.create_new() {
            // Someone else was faster: theirs is as good as ours, if it fits.
            Err(error) if self.reuse && error.kind() == ErrorKind::AlreadyExists => self.verify(),
            outcome => outcome,
        }
    }

    fn verify(&self) -> Result<Overlay> {
        let virtual_size = reuse::verify(&self.path, self.base, self.virtual_size()?)?;
        self.base.note_overlay(&self.path)?;
        Ok(Overlay { path: self.path.clone(), virtual_size, reused: true })
    }

    fn create_new(&self) -> Result<Overlay> {
        if self.existing != Existing::Refuse {
            BaseImage::refuse_as_overlay(self.base.path(), &self.path)?;
        }
        let backing = backing_file(self.base, &self.path, self.relative)?;
        let image = CreateOptions::new(self.virtual_size()?)
            .backing(backing)
            .unknown_extension(BaseIdentity::EXTENSION_TYPE, BaseIdentity::of(self.base).encode())
            .plan()
            .map_err(|error| from_format(error, &self.path))?;
        let pending = PendingFile::create(&self.path, self.existing, FileMode::Exact(self.mode))?;
        image.write_to(pending.file()).map_err(|error| from_format(error, &self.path))?;
        if let Some((user, group)) = self.owner {
            owner::change(pending.file(), &self.path, user, group)?;
        }
        // Before it is there: an overlay that nobody noted could lose its base.
        self.base.note_overlay(&self.path)?;
        pending.publish(self.durability)?;
        let virtual_size = image.header().virtual_size();
        Ok(Overlay { path: self.path.clone(), virtual_size, reused: false })
    }

    /// The size asked for, in whole sectors.
    fn virtual_size(&self) -> Result<u64> {
        self.base.virtual_size().max(self.min_size).checked_next_multiple_of(512).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "no disk is that large")
                .with_field("min-size")
                .with_path(&self.path)
        })
    }
}

/// An overlay that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    path: PathBuf,
    virtual_size: u64,
    reused: bool,
}

impl Overlay {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the disk the guest sees, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Whether it stood there before, with the guest's state.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }
}

/// The backing file of an overlay at `overlay`: absolute, or relative to the overlay's folder.
fn backing_file(base: &BaseImage, overlay: &Path, relative: bool) -> Result<BackingFile> {
    let name = if relative { relative_path(base.path(), overlay)? } else { base.path().into() };
    let format = match base.format() {
        BaseFormat::Raw => BackingFormat::Raw,
        BaseFormat::Qcow2 => BackingFormat::Qcow2,
    };
    Ok(BackingFile::new(name.as_os_str().as_bytes(), format))
}

/// `base`, which is absolute and without links, as seen from the folder of `overlay`.
pub(crate) fn relative_path(base: &Path, overlay: &Path) -> Result<PathBuf> {
    let folder = match overlay.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(|error| Error::io("resolve", folder, error))?;
    let shared = base.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(base.components().skip(shared)).collect();
    // QEMU would read `a:b` as a protocol; `./a:b` is a path.
    let is_protocol = qcow2_format::create::protocol(path.as_os_str().as_bytes()).is_some();
    Ok(if is_protocol { Path::new(".").join(path) } else { path })
}

/// The path a header's backing file name means, seen from the overlay's folder.
fn backing_path(header: &Header, overlay: &Path) -> Option<PathBuf> {
    let name = Path::new(OsStr::from_bytes(header.backing_file()?));
    Some(overlay.parent().unwrap_or(Path::new("")).join(name))
}

#[cfg(test)]
mod tests;
