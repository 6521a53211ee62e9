//! From a chain to a disk: each image opened as what it is, the lowest first.
//!
//! ```text
//! chain (files, headers, locks) ─▶ data files, by policy ─▶ [n] … [1] for reading ─▶ [0] the top
//! ```
//!
//! Callers: `opened`.

use std::fs::File;
use std::path::{Path, PathBuf};

use qcow2_format::feature::IncompatibleFeatures;
use qcow2_format::{Header, Image, ReadOptions};

use crate::base::BaseFormat;
use crate::disk::chain::{Chain, ChainImage, from_format, identity, locked};
use crate::disk::layer::Layer;
use crate::disk::layers::Layers;
use crate::disk::opened::{DiskFile, DiskOptions};
use crate::disk::policy::BackingPolicy;
use crate::disk::raw::RawDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::Access;

/// Opens the disk at `path` for reading.
pub(super) fn open(path: &Path, format: BaseFormat, options: &DiskOptions) -> Result<Layers> {
    let chain = Chain::open_for(Access::Read, path, format, &options.policy, options.locking)?;
    if let Some(reason) = chain.not_followed {
        return Err(reason);
    }
    let mut files = Vec::new();
    for image in &chain.images {
        let file = match named_data_file(image, &options.data_files)? {
            None => None,
            Some((file, path)) => Some(locked(file, &path, Access::Read, options.locking)?),
        };
        files.push(file);
    }
    layers(chain.images, files, options)
}

/// The disk in `files`.
pub(super) fn of_files(
    files: impl IntoIterator<Item = DiskFile>,
    options: &DiskOptions,
) -> Result<Layers> {
    let mut data_files = Vec::new();
    let files = files.into_iter().map(|file| {
        data_files.push((file.data_file, file.path.clone()));
        (file.file, file.path, file.format)
    });
    let chain = Chain::of_files(Access::Read, files, options.locking)?;
    let data_files = data_files.into_iter().map(|(file, path)| {
        file.map(|file| locked(file, &path, Access::Read, options.locking)).transpose()
    });
    layers(chain.images, data_files.collect::<Result<_>>()?, options)
}

fn layers(
    images: Vec<ChainImage>,
    data_files: Vec<Option<ImageFile>>,
    options: &DiskOptions,
) -> Result<Layers> {
    let identities = images
        .iter()
        .map(|image| identity(image.file.file(), &image.path))
        .collect::<Result<Vec<_>>>()?;
    for (image, data) in images.iter().zip(&data_files) {
        if let Some(data) = data
            && identities.contains(&identity(data.file(), &image.path)?)
        {
            let message = "the external data file is an image of the chain";
            return Err(Error::new(ErrorKind::Corrupt, message).with_path(&image.path));
        }
    }
    // Each image gets its share.
    let share = images.len().max(1) as u64;
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
    let snapshot = options.snapshot.as_deref();
    if let Some(name) = snapshot {
        read = read.snapshot(name);
    }
    let top = reading(image, data, &read, snapshot.is_some())?;
    Ok(Layers::new(top, below))
}

fn reading(
    image: ChainImage,
    data: Option<ImageFile>,
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
        (BaseFormat::Qcow2, None) => Image::open(file, options),
        (BaseFormat::Qcow2, Some(data)) => Image::open_with_data(file, data, options),
    };
    opened.map(|image| Layer::qcow2(image, path.clone())).map_err(|error| from_format(error, &path))
}

fn raw_with_data_file(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, "a raw image has no external data file").with_path(path)
}

/// Opens the external data file that `image` has, as `policy` allows.
fn named_data_file(image: &ChainImage, policy: &BackingPolicy) -> Result<Option<(File, PathBuf)>> {
    let external = |header: &&Header| {
        header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
    };
    let Some(header) = image.header.as_ref().filter(external) else { return Ok(None) };
    let Some(name) = header.external_data_file() else {
        let message = "the image does not name its external data file";
        return Err(Error::new(ErrorKind::NotFound, message).with_path(&image.path));
    };
    let opened = policy.open_data_file(&image.path, name);
    opened.map(Some).map_err(|error| match error.kind() {
        ErrorKind::Refused if *policy == BackingPolicy::Deny => {
            error.with_hint("external data files are opened only where that is allowed")
        }
        _ => error,
    })
}
