//! From a chain to a disk: each image opened as what it is, the lowest first.
//!
//! ```text
//! chain (files, headers, locks) ─▶ data files, by policy ─▶ [n] … [1] for reading ─▶ [0] the top
//! ```
//!
//! The top comes last: opened for writing it may be repaired at once, and an open that fails has
//! changed nothing. Callers: `opened`, `writable`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow2_format::feature::IncompatibleFeatures;
use qcow2_format::image::{WritableImage, WriteOptions};
use qcow2_format::{Header, Image, ReadOptions};

use crate::base::BaseFormat;
use crate::disk::chain::{Chain, ChainImage, from_format, identity, locked, open_image};
use crate::disk::layer::Layer;
use crate::disk::layers::Layers;
use crate::disk::opened::{DiskFile, DiskOptions, PastEnd};
use crate::disk::policy::BackingPolicy;
use crate::disk::raw::RawDisk;
use crate::disk::raw_write::{RawWriting, WritableRaw};
use crate::disk::stated::RawPart;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::{Access, Locking};
use crate::sys::open;

/// How the top of a disk is opened for writing.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    /// For a qcow2 image.
    pub(super) image: WriteOptions,
    /// For a raw one.
    pub(super) raw: RawWriting,
}

/// Opens the disk at `path`; for writing if it is told how.
pub(super) fn open(
    path: &Path,
    format: BaseFormat,
    options: &DiskOptions,
    writing: Option<&Writing>,
) -> Result<Layers> {
    let access = access(options, writing)?;
    let (policy, stated) = (&options.policy, &options.top.backing);
    let chain = Chain::open_for(access, path, format, policy, stated, options.locking)?;
    if let Some(reason) = chain.not_followed {
        return Err(reason);
    }
    let mut files = Vec::new();
    for (depth, image) in chain.images.iter().enumerate() {
        let access = if depth == 0 { access } else { Access::Read };
        let stated = options.top.data_file.as_deref().filter(|_| depth == 0);
        let named = match stated {
            Some(path) => Some(stated_data_file(image, path, access)?),
            None => named_data_file(image, options, access)?,
        };
        let file = match named {
            None => None,
            Some((file, path)) => Some((locked(file, &path, access, options.locking)?, path)),
        };
        files.push(file);
    }
    layers(chain.images, files, options, writing)
}

/// The disk in `files`; for writing if it is told how.
pub(super) fn of_files(
    files: impl IntoIterator<Item = DiskFile>,
    options: &DiskOptions,
    writing: Option<&Writing>,
) -> Result<Layers> {
    let access = access(options, writing)?;
    let mut data_files = Vec::new();
    let mut images = Vec::new();
    for (depth, file) in files.into_iter().enumerate() {
        let access = if depth == 0 { access } else { Access::Read };
        if access == Access::Write {
            let opened = std::iter::once(&file.file).chain(&file.data_file);
            for opened in opened {
                check_writable(opened, &file.path)?;
            }
        }
        data_files.push((file.data_file, file.path.clone(), access));
        images.push((file.file, file.path, file.format));
    }
    let chain = Chain::of_files(access, images, options.locking)?;
    let headers = chain.images.iter().map(|image| image.header.as_ref());
    let data_files = data_files.into_iter().zip(headers).map(|((file, path, access), header)| {
        let file = file.map(|file| locked(file, &path, access, options.locking)).transpose()?;
        // It was not opened by its name, which says what it is called.
        let name = header.and_then(Header::external_data_file).unwrap_or_default();
        let beside = options.data_file_names.from(&path).parent().unwrap_or(Path::new(""));
        Ok(file.map(|file| (file, beside.join(OsStr::from_bytes(name)))))
    });
    let data_files = data_files.collect::<Result<_>>()?;
    layers(chain.images, data_files, options, writing)
}

fn access(options: &DiskOptions, writing: Option<&Writing>) -> Result<Access> {
    if writing.is_none() {
        return Ok(Access::Read);
    }
    let refuse = |message| Err(Error::new(ErrorKind::InvalidInput, message));
    if options.snapshot.is_some() {
        return refuse("a snapshot is not written to");
    }
    if options.locking == Locking::Shared {
        return refuse("an image that is written to is not shared with other writers");
    }
    Ok(Access::Write)
}

fn check_writable(file: &File, path: &Path) -> Result<()> {
    match open::is_writable(file) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Error::new(ErrorKind::InvalidInput, "the file is not open for reading and writing")
                .with_path(path))
        }
        Err(error) => Err(Error::io("look how the file is open", path, error)),
    }
}

fn layers(
    images: Vec<ChainImage>,
    data_files: Vec<Option<(ImageFile, PathBuf)>>,
    options: &DiskOptions,
    writing: Option<&Writing>,
) -> Result<Layers> {
    let mut identities = images
        .iter()
        .map(|image| identity(image.file.file(), &image.path))
        .collect::<Result<Vec<_>>>()?;
    // The top's data file comes first. If it is written to, no other may be the same.
    for (depth, (image, data)) in images.iter().zip(&data_files).enumerate() {
        let Some((data, _)) = data else { continue };
        let identity = identity(data.file(), &image.path)?;
        if identities.contains(&identity) {
            let message = "the external data file is an image of the chain";
            return Err(Error::new(ErrorKind::Corrupt, message).with_path(&image.path));
        }
        if depth == 0 && writing.is_some() {
            identities.push(identity);
        }
    }
    // Each image gets its share, and one that is written to as much as all others.
    let count = images.len().max(1) as u64;
    let share = if writing.is_some() && count > 1 { 2 * (count - 1) } else { count };
    let mut read = ReadOptions::new()
        .l2_cache(options.l2_cache / share)
        .cluster_cache(options.cluster_cache / share);
    if let Some(threads) = options.threads {
        read = read.threads(threads);
    }
    let mut below = Vec::new();
    let mut pairs = images.into_iter().zip(data_files);
    let top = pairs.next();
    for (image, data) in pairs.rev() {
        below.push(reading(image, data, &read, false)?);
    }
    below.reverse();
    let Some((image, data)) = top else {
        return Err(Error::new(ErrorKind::InvalidInput, "a disk has at least one image"));
    };
    let part = options.top.part;
    if part.is_some() && image.format != BaseFormat::Raw {
        let message = "a part is taken of raw images only";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_path(&image.path));
    }
    let top = match writing {
        None if part.is_some() && options.snapshot.is_none() => {
            let ChainImage { path, file, .. } = image;
            let disk = RawDisk::part_of(file, &path, part.unwrap_or_default())?;
            Layer::raw(disk, path)
        }
        None => {
            let snapshot = options.snapshot.as_deref();
            if let Some(name) = snapshot {
                read = read.snapshot(name).snapshot_size(options.snapshot_size);
            }
            reading(image, data, &read, snapshot.is_some())?
        }
        Some(writing) => {
            let mut writing = writing.clone();
            if let Some(threads) = options.threads {
                writing.image = writing.image.threads(threads);
            }
            let own = if below.is_empty() { 1 } else { 2 };
            writing.image = writing
                .image
                .l2_cache(options.l2_cache / own)
                .cluster_cache(options.cluster_cache / own)
                .below(below.first().map_or(0, Layer::size));
            for_writing(image, data, writing, part)?
        }
    };
    let mut layers = Layers::new(top, below);
    if options.past_end == PastEnd::Fails {
        layers.fail_past_end();
    }
    if options.holes {
        layers.look_for_holes()?;
    }
    Ok(layers)
}

fn reading(
    image: ChainImage,
    data: Option<(ImageFile, PathBuf)>,
    options: &ReadOptions,
    snapshot: bool,
) -> Result<Layer> {
    let ChainImage { path, format, file, .. } = image;
    let opened = match (format, data) {
        (BaseFormat::Raw, Some(_)) => return Err(raw_with_data_file(&path)),
        (BaseFormat::Raw, None) if snapshot => {
            let message = "a raw image has no snapshots";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
        }
        (BaseFormat::Raw, None) => return Ok(Layer::raw(RawDisk::over(file, &path)?, path)),
        (BaseFormat::Qcow2, None) => Image::open(file, options).map(|image| (image, None)),
        (BaseFormat::Qcow2, Some((data, data_path))) => {
            Image::open_with_data(file, data, options).map(|image| (image, Some(data_path)))
        }
    };
    let (image, data_path) = opened.map_err(|error| from_format(error, &path))?;
    Ok(Layer::qcow2(image, path, data_path))
}

fn for_writing(
    image: ChainImage,
    data: Option<(ImageFile, PathBuf)>,
    writing: Writing,
    part: Option<RawPart>,
) -> Result<Layer> {
    let ChainImage { path, format, file, .. } = image;
    let options = &writing.image;
    let opened = match (format, data) {
        (BaseFormat::Raw, Some(_)) => return Err(raw_with_data_file(&path)),
        (BaseFormat::Raw, None) => {
            let disk = match part {
                Some(part) => RawDisk::part_of(file, &path, part)?,
                None => RawDisk::over(file, &path)?,
            };
            return Ok(Layer::writable_raw(WritableRaw::new(disk, writing.raw), path));
        }
        (BaseFormat::Qcow2, None) => WritableImage::open(file, options).map(|image| (image, None)),
        (BaseFormat::Qcow2, Some((data, data_path))) => {
            WritableImage::open_with_data(file, data, options).map(|image| (image, Some(data_path)))
        }
    };
    let (image, data_path) = opened.map_err(|error| from_format(error, &path))?;
    Ok(Layer::writable_qcow2(image, path, data_path))
}

fn raw_with_data_file(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, "a raw image has no external data file").with_path(path)
}

/// Opens the external data file that the caller names for `image`.
fn stated_data_file(image: &ChainImage, path: &Path, access: Access) -> Result<(File, PathBuf)> {
    if !image.header.as_ref().is_some_and(has_data_file) {
        return Err(Error::new(ErrorKind::InvalidInput, NO_DATA_FILE).with_path(&image.path));
    }
    let write = access == Access::Write;
    let file = open_image(path, File::options().read(true).write(write))?;
    Ok((file, path.to_path_buf()))
}

/// What is said of an image that has no external data file, and for which one was named.
pub(crate) const NO_DATA_FILE: &str = "the image has no external data file";

fn has_data_file(header: &Header) -> bool {
    header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
}

/// Opens the external data file that `image` has, as `policy` allows.
fn named_data_file(
    image: &ChainImage,
    options: &DiskOptions,
    access: Access,
) -> Result<Option<(File, PathBuf)>> {
    let external = |header: &&Header| has_data_file(header);
    let Some(header) = image.header.as_ref().filter(external) else { return Ok(None) };
    let Some(name) = header.external_data_file() else {
        let message = "the image does not name its external data file";
        return Err(Error::new(ErrorKind::NotFound, message).with_path(&image.path));
    };
    let (policy, beside) = (&options.data_files, options.data_file_names.from(&image.path));
    let opened = match access {
        Access::Write => policy.open_data_file_for_writing(beside, name),
        Access::Read | Access::ReadShared => policy.open_data_file(beside, name),
    };
    opened.map(Some).map_err(|error| match error.kind() {
        ErrorKind::Refused if *policy == BackingPolicy::Deny => {
            error.with_hint("external data files are opened only where that is allowed")
        }
        _ => error,
    })
}
