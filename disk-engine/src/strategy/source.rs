//! A base as something to copy: open, of known length, and the same from start to end.
//!
//! ```text
//! open ─▶ length and change noted ─▶ clone or copy ─▶ still the same? ─▶ publish
//! ```

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qcow2_format::Header;
use qcow2_format::feature::IncompatibleFeatures;

use crate::base::{BaseFormat, BaseImage};
use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::sparse;

/// A base's file while it is copied.
#[derive(Debug)]
pub(super) struct BaseFile<'base> {
    pub(super) file: File,
    pub(super) path: &'base Path,
    /// Its length in bytes.
    pub(super) length: u64,
    written: (i64, i64),
}

impl<'base> BaseFile<'base> {
    /// Opens the base for reading; it must be as large as it was when it became a base.
    pub(super) fn open(base: &'base BaseImage) -> Result<Self> {
        let path = base.path();
        let file = chain::open_top(path)?;
        let length = chain::length(&file, path)?;
        if base.format() == BaseFormat::Raw && length != base.virtual_size() {
            return Err(changed(path).with_field("length"));
        }
        let written = last_write(&look_at(&file, path)?);
        Ok(Self { file, path, length, written })
    }

    /// The base's ranges of data, in order.
    pub(super) fn data(&self) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let next = sparse::next_data(&self.file, at)
                .map_err(|error| Error::io("look for data in the base", self.path, error));
            let range = match next.transpose()? {
                Ok(range) => range.start..range.end.min(self.length),
                Err(error) => {
                    at = self.length;
                    return Some(Err(error));
                }
            };
            at = range.end;
            (range.start < range.end).then_some(Ok(range))
        })
    }

    /// Fails if the base was written to or cut since it was opened: what was taken from it may then
    /// be neither what it was nor what it is.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let length = chain::length(&self.file, self.path)?;
        if length != self.length || last_write(&look_at(&self.file, self.path)?) != self.written {
            return Err(changed(self.path));
        }
        Ok(())
    }

    /// A base that is shorter than it was.
    pub(super) fn cut(&self, offset: u64) -> Error {
        changed(self.path).with_offset(offset)
    }
}

/// Refuses qcow2 images that are not whole in one file, by name: a copy in another folder would
/// look for a relative backing file in the wrong place, and two images that write to one data file
/// destroy it.
pub(super) fn check_can_be_copied(base: &BaseImage, source: &File, disk: &Path) -> Result<()> {
    if base.format() != BaseFormat::Qcow2 {
        return Ok(());
    }
    let header = chain::read_header(source, base.path())?;
    let refused = |message, field| {
        Err(Error::new(ErrorKind::Unsupported, message)
            .with_field(field)
            .with_path(base.path())
            .with_hint("use strategy overlay"))
    };
    if header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE) {
        return refused("a copy would share the data file with the base", "incompatible_features");
    }
    if names_relative_backing(&header) && !same_folder(base.path(), disk) {
        let message = "the base names its own backing file relative to its folder";
        return refused(message, "backing_file_name");
    }
    Ok(())
}

fn names_relative_backing(header: &Header) -> bool {
    header
        .backing_file()
        .is_some_and(|name| Path::new(std::ffi::OsStr::from_bytes(name)).is_relative())
}

fn same_folder(base: &Path, disk: &Path) -> bool {
    let folder = match disk.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    folder.canonicalize().is_ok_and(|folder| base.parent() == Some(folder.as_path()))
}

fn look_at(file: &File, path: &Path) -> Result<Metadata> {
    file.metadata().map_err(|error| Error::io("look at the base", path, error))
}

fn last_write(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Mismatch, "the base has changed while it was in use")
        .with_path(path)
        .with_hint("a base is only read: find out who writes to it")
}
