//! Into a new file: raw or qcow2, published once it is whole.
//!
//! Caller: `ops::convert`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use qcow2_format::image::Preallocation;
use qcow2_format::{CreateOptions, WriteAt};

use super::archive;
use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::{Origin, cannot_start};
use super::refuse_same;
use crate::disk::DiskContent;
use crate::disk::chain::from_format;
use crate::disk::policy::plain_path;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::create::{CreateFileOptions, NewFiles, storage_in};
use crate::sink::offload::Offload;
use crate::sink::qcow2::{Rules, qcow2};
use crate::sink::raw::{RawRules, raw};
use crate::source::extent::ExtentSource;
use crate::sys::image_file::ImageFile;
use crate::sys::pending::{self, PendingFile};
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    path: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    // A replacement that was killed may have left something, and what cannot be removed is in
    // nobody's way.
    let _ = pending::sweep(path);
    if let TargetFormat::Qcow2(image) = &options.format
        && image.has_data_file()
    {
        return with_data_file(origin, path, image, options);
    }
    let pending = match options.format {
        TargetFormat::Qcow2(_) => {
            PendingFile::create_or_device(path, options.existing, options.mode)
        }
        // Nothing tells where they end but the end of their file, or what is not written has to be zeros.
        TargetFormat::Archive(_) | TargetFormat::Raw { .. } => {
            PendingFile::create(path, options.existing, options.mode)
        }
    }?;
    let report = match &options.format {
        TargetFormat::Archive(pack) => {
            archive::write(origin, &mut pending.file(), path, pack, options)
        }
        format => origin
            .with_extents(options, |source| write(source, pending.file(), path, format, options)),
    }?;
    options.control.check()?;
    pending.publish(options.durability)?;
    Ok(report)
}

/// Into an image and its external data file.
fn with_data_file(
    origin: Origin,
    path: &Path,
    image: &CreateOptions,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let ConvertOptions { existing, durability, mode, data_file_names, .. } = *options;
    let plan = sized(image, options).plan().map_err(|error| from_format(error, path))?;
    if let Some(name) = plan.header().external_data_file() {
        refuse_same(&origin, options, &plain_path(data_file_names.from(path), name)?)?;
    }
    let files = NewFiles::create(
        path,
        plan.header(),
        &CreateFileOptions { existing, durability, mode, data_file_names },
    )?;
    let storage = (files.storage()?, files.data_storage()?);
    let report = origin.with_extents(options, |source| {
        write_qcow2(source, files.data_file(), storage, path, image, options)
    })?;
    options.control.check()?;
    files.publish(durability)?;
    Ok(report)
}

/// What no image can have is told before anything is read.
fn sized(image: &CreateOptions, options: &ConvertOptions) -> CreateOptions {
    image.clone().virtual_size(options.size.unwrap_or(0))
}

/// Writes `source` into `file`, which is empty; `path` is what errors call it.
pub(super) fn write(
    source: &mut dyn ExtentSource,
    file: &File,
    path: &Path,
    format: &TargetFormat,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    match format {
        TargetFormat::Raw { preallocation } => {
            write_raw(source, file, path, *preallocation, options)
        }
        TargetFormat::Qcow2(image) => {
            let storage = (storage_in(file, path)?, None);
            write_qcow2(source, file, storage, path, image, options)
        }
        TargetFormat::Archive(_) => {
            Err(Error::new(ErrorKind::InvalidInput, "an archive is made of a disk that is there"))
        }
    }
}

fn write_raw(
    source: &mut dyn ExtentSource,
    file: &File,
    path: &Path,
    preallocation: Preallocation,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let written = AtomicU64::new(0);
    let offload = Offload::new(options.offload);
    let full = preallocation == Preallocation::Full;
    let sparse = if full { 0 } else { options.sparse };
    let rules = RawRules { sparse: usize::try_from(sparse).unwrap_or(usize::MAX), sums: false };
    let virtual_size = thread::scope(|scope| {
        let (sink, writer) = raw(file, path, rules, &written);
        let mut sink = sink.offload(file, path, &offload);
        let writer = thread::Builder::new()
            .name("disk-writer".into())
            .spawn_scoped(scope, || writer.run())
            .map_err(cannot_start)?;
        let pumped = pump(source, &mut sink, &options.control);
        drop(sink);
        // When writing failed, pumping failed for want of a writer: the first is the reason.
        writer.join().map_err(|_| panicked())??;
        pumped
    })?;
    if preallocation == Preallocation::Falloc {
        storage_in(file, path)?
            .allocate_at(0, virtual_size)
            .map_err(|error| Error::io("take space for", path, error))?;
    }
    Ok(ConvertReport {
        virtual_size,
        stored_bytes: written.into_inner(),
        shared_bytes: offload.counts().0,
        kernel_bytes: offload.counts().1,
        file_length: virtual_size,
        ..ConvertReport::default()
    })
}

fn write_qcow2(
    source: &mut dyn ExtentSource,
    file: &File,
    storage: (ImageFile, Option<ImageFile>),
    path: &Path,
    image: &CreateOptions,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let plan = sized(image, options).plan().map_err(|error| from_format(error, path))?;
    let header = plan.header();
    let below = options.below.as_ref().map(|below| below.disk() as &dyn DiskContent);
    let compression = options.compress.then(|| header.compression_type());
    let rules = Rules::new(header.geometry(), compression, options.sparse, below);
    let threads = if rules.is_heavy() { options.threads() } else { 0 };
    let written = AtomicU64::new(0);
    let offload = Offload::new(options.offload);
    let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = if path.is_dir() { path } else { parent.unwrap_or(Path::new(".")) };
    let counts = thread::scope(|scope| {
        let (mut sink, examiners, writer) =
            qcow2(image, storage, &rules, threads, (&offload, folder), &written, &options.control);
        let writer = writer.in_file(file);
        // Gone with the last thread, so that the writing one hears of it.
        let examiners = examiners.map(Arc::new);
        for number in 0..threads {
            let Some(examiners) = examiners.clone() else { break };
            thread::Builder::new()
                .name(format!("disk-examiner-{number}"))
                .spawn_scoped(scope, move || examiners.run())
                .map_err(cannot_start)?;
        }
        drop(examiners);
        let writer = thread::Builder::new()
            .name("disk-writer".into())
            .spawn_scoped(scope, move || writer.run(path))
            .map_err(cannot_start)?;
        let pumped = pump(source, &mut sink, &options.control);
        drop(sink);
        let counts = writer.join().map_err(|_| panicked())??;
        pumped.map(|_| counts)
    })?;
    let Some((header, counts)) = counts else { return Err(panicked()) };
    Ok(ConvertReport {
        virtual_size: header.virtual_size(),
        stored_bytes: counts.stored,
        shared_bytes: offload.counts().0,
        kernel_bytes: offload.counts().1,
        compressed_clusters: counts.compressed,
        compressed_bytes: counts.payload_bytes,
        zeroed_bytes: counts.zeroed,
        file_length: counts.file_length,
        ..ConvertReport::default()
    })
}

fn panicked() -> Error {
    Error::new(ErrorKind::Io, "the writing thread stopped")
}
