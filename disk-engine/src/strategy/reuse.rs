//! A VM reboots: a disk of its own that stands there is kept if it can be the right one.
//!
//! ```text
//! raw     a regular file, of the right user, at least as long as asked for; begins as qcow2 only if
//!         the base does; made from this base, as far as its attribute tells
//! qcow2   also a valid image, on the same backing file as the base
//! ```
//!
//! Every byte of a raw disk is the guest's, so what an overlay notes in its header is noted in an
//! extended attribute, `user.disk-engine.base`: the bytes that `overlay::BaseIdentity` draws. It is
//! absent where the file system keeps none (tmpfs before Linux 6.6, NFS) and in what `cp` makes.

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qcow2_format::ReadAt;

use super::source::BaseFile;
use super::{DiskBuilder, Provided, ProvidedDisk};
use crate::base::{BaseFormat, BaseImage, check_readable};
use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay::BaseIdentity;
use crate::sys::{attribute, host, open};

const ATTRIBUTE: &CStr = attribute::BASE;

/// Notes beside `file` which base it was made from, where that can be noted.
pub(super) fn note_base(file: &File, base: &BaseImage, path: &Path) -> Result<()> {
    match attribute::set(file, ATTRIBUTE, &BaseIdentity::of(base).encode()) {
        // A full attribute block costs the note, not the disk.
        Ok(_) => Ok(()),
        Err(error) if ErrorKind::of_io(&error) == ErrorKind::NoSpace => Ok(()),
        Err(error) => Err(Error::io("note the base of", path, error)),
    }
}

pub(super) fn verify(request: &DiskBuilder<'_>) -> Result<ProvidedDisk> {
    let path = request.path.as_path();
    // A link in its place could lead to any file of ours, and nothing in a raw disk tells them
    // apart.
    let file = open::existing(path).map_err(|error| match open::is_misplaced(&error) {
        true => misfit(path, "is no regular file").with_source(error),
        false => Error::io("open", path, error),
    })?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if !metadata.is_file() {
        return Err(misfit(path, "is no regular file"));
    }
    let user = request.owner.and_then(|(user, _)| user).unwrap_or_else(host::effective_user);
    if metadata.uid() != user {
        return Err(misfit(path, &format!("belongs to user {}, not {user}", metadata.uid())));
    }
    let noted = attribute::get(&file, ATTRIBUTE)
        .map_err(|error| Error::io("read the attributes of", path, error))?;
    let noted = noted.as_deref().and_then(BaseIdentity::parse);
    if let Some(difference) = noted.and_then(|noted| noted.difference(request.base)) {
        return Err(misfit(path, &difference));
    }
    let base = BaseFile::open(request.base)?;
    let virtual_size = match request.base.format() {
        BaseFormat::Raw => raw_size(request, &base, &file, path)?,
        BaseFormat::Qcow2 => qcow2_size(request, &base, &file, path)?,
    };
    Ok(ProvidedDisk {
        path: path.to_path_buf(),
        format: request.base.format(),
        how: Provided::Kept,
        virtual_size,
        reused: true,
    })
}

fn raw_size(
    request: &DiskBuilder<'_>,
    base: &BaseFile<'_>,
    file: &File,
    path: &Path,
) -> Result<u64> {
    let length = chain::length(file, path)?;
    let wanted = request.file_length(base.length)?;
    if length < wanted {
        return Err(misfit(path, &format!("has {length} bytes, not {wanted}")));
    }
    // An overlay of an earlier start may have grown past the base's length.
    if begins_as_qcow2(file, path)? && !begins_as_qcow2(&base.file, base.path)? {
        return Err(misfit(path, "begins as a qcow2 image, and a raw disk is asked for"));
    }
    Ok(length)
}

fn begins_as_qcow2(file: &File, path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let count = file
        .read_full_at(&mut magic, 0)
        .map_err(|error| Error::io("read the first bytes of", path, error))?;
    Ok(count == 4 && magic == *b"QFI\xfb")
}

fn qcow2_size(
    request: &DiskBuilder<'_>,
    base: &BaseFile<'_>,
    file: &File,
    path: &Path,
) -> Result<u64> {
    let header = chain::read_header(file, path).map_err(|error| match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Unsupported => {
            misfit(path, "is no qcow2 image that can be used").with_source(error)
        }
        // The storage is in trouble, which says nothing about the disk.
        _ => error,
    })?;
    check_readable(&header, path)?;
    let theirs = chain::read_header(&base.file, base.path)?;
    if header.backing_file() != theirs.backing_file()
        || header.external_data_file() != theirs.external_data_file()
    {
        return Err(misfit(path, "stands on other files than the base does"));
    }
    let wanted = request.base.virtual_size().max(request.min_size);
    if header.virtual_size() < wanted {
        let has = header.virtual_size();
        return Err(misfit(path, &format!("has {has} bytes, and at least {wanted} are asked for")));
    }
    Ok(header.virtual_size())
}

fn misfit(path: &Path, how: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("the disk does not fit: it {how}"))
        .with_path(path)
        .with_hint("it is left as it is: remove it, or choose another path")
}
