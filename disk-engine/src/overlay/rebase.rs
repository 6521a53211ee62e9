//! A tree moved: the overlay learns its base's new place. Metadata only, in place.
//!
//! ```text
//! header │ backing format │ … │ our identity │ end │ backing file name     one write,
//!          ▲ rewritten          ▲ rewritten          ▲ rewritten            within a page
//! ```
//!
//! The base must be the one the overlay was made for, as far as the overlay remembers it: another
//! base under the same guest data is another disk. Clusters are not touched.

use std::fs::File;
use std::path::Path;

use crate::base::BaseImage;
use crate::disk::chain::{from_format, open_image, read_header};
use crate::error::{Error, ErrorKind, Result};
use crate::overlay::{BaseIdentity, backing_file};
use crate::sys::image_lock;
use crate::sys::pending::Durability;

/// How to rebase.
#[derive(Clone, Copy, Debug)]
pub struct RebaseOptions {
    /// Name the base relative to the overlay's folder.
    pub relative: bool,
    /// Accept a base other than the one the overlay remembers. The guest then sees another disk.
    pub force: bool,
    /// How hard to sync.
    pub durability: Durability,
}

impl Default for RebaseOptions {
    fn default() -> Self {
        Self { relative: false, force: false, durability: Durability::None }
    }
}

/// What a rebase changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebaseReport {
    /// The backing file name before, as it stood in the header.
    pub previous: Option<Vec<u8>>,
    /// The backing file name now.
    pub current: Vec<u8>,
}

/// Makes the overlay at `path` name `base` as its backing file.
///
/// # Errors
///
/// [`ErrorKind::Mismatch`] if the overlay was made for another base, or `base` is larger than the
/// overlay's disk; [`ErrorKind::InvalidInput`] if both are one file, or the overlay is no file;
/// [`ErrorKind::Busy`] if a QEMU has the overlay open; [`ErrorKind::Corrupt`] if it is not a valid
/// qcow2 image. The overlay is then as it was.
pub fn rebase(path: &Path, base: &BaseImage, options: &RebaseOptions) -> Result<RebaseReport> {
    BaseImage::refuse_as_overlay(base.path(), path)?;
    let file = open_image(path, File::options().read(true).write(true))?;
    let free = image_lock::lock_for_writing(&file)
        .map_err(|error| Error::io("lock the overlay", path, error))?;
    if !free {
        return Err(Error::new(ErrorKind::Busy, "another program has the overlay open")
            .with_path(path)
            .with_hint("stop its VM first"));
    }
    let previous = read_header(&file, path)?;
    if let Some(difference) = BaseIdentity::recorded_difference(&previous, base)
        && !options.force
    {
        return Err(Error::new(ErrorKind::Mismatch, format!("the overlay {difference}"))
            .with_path(path)
            .with_hint("the guest would see another disk; force it if that is meant"));
    }
    if previous.virtual_size() < base.virtual_size() && !options.force {
        let message = format!(
            "the overlay's disk has {} bytes, and the base's has {}",
            previous.virtual_size(),
            base.virtual_size()
        );
        return Err(Error::new(ErrorKind::Mismatch, message).with_path(path).with_hint(
            "the guest would see the start of the base only; force it if that is meant",
        ));
    }
    let mut header = previous.clone();
    let backing = backing_file(base, path, options.relative)?;
    header.set_backing_file(&backing).map_err(|error| from_format(error, path))?;
    header
        .set_unknown_extension(BaseIdentity::EXTENSION_TYPE, BaseIdentity::of(base).encode())
        .map_err(|error| from_format(error, path))?;
    base.note_overlay(path)?;
    header.replace(&previous, &file).map_err(|error| from_format(error, path))?;
    if options.durability != Durability::None {
        file.sync_all().map_err(|error| Error::io("sync the overlay", path, error))?;
    }
    Ok(RebaseReport {
        previous: previous.backing_file().map(<[u8]>::to_vec),
        current: backing.name,
    })
}
