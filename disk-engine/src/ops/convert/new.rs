//! Into a new file: raw or qcow2, published once it is whole.
//!
//! Caller: `ops::convert`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use qcow2_format::image::Preallocation;
use qcow2_format::{CreateOptions, WriteAt};

use super::archive;
use super::options::{ConvertOptions, ConvertReport, TargetFormat};
use super::origin::{Origin, cannot_start};
use crate::disk::DiskContent;
use crate::disk::chain::from_format;
use crate::disk::policy::plain_path;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::offload::Offload;
use crate::sink::qcow2::{Rules, qcow2};
use crate::sink::raw::{RawRules, raw};
use crate::source::extent::ExtentSource;
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;
use crate::sys::pending::{self, Existing, PendingFile};
use crate::transfer::pump;

pub(super) fn convert(
    origin: Origin,
    path: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    // A replacement that was killed may have left something, and what cannot be removed is in
    // nobody's way.
    let _ = pending::sweep(path);
    let pending = PendingFile::create(path, options.existing, options.mode)?;
    let data = data_file(path, options)?;
    let report = match &options.format {
        TargetFormat::Archive(pack) => {
            archive::write(origin, &mut pending.file(), path, pack, options)
        }
        format => origin.with_extents(options, |source| {
            let data = data.as_ref().map(|(pending, path)| (pending.file(), path.as_path()));
            write(source, (pending.file(), data), path, format, options)
        }),
    }?;
    options.control.check()?;
    let Some((data, data_path)) = data else {
        pending.publish(options.durability)?;
        return Ok(report);
    };
    // Before the image that names it.
    data.publish(options.durability)?;
    pending.publish(options.durability).inspect_err(|_| {
        if options.existing == Existing::Refuse {
            let _ = fs::remove_file(&data_path);
        }
    })?;
    Ok(report)
}

/// Starts the data file of an image that is to have one.
fn data_file(path: &Path, options: &ConvertOptions) -> Result<Option<(PendingFile, PathBuf)>> {
    let Some(data_file) = options.data_file() else { return Ok(None) };
    let data_path = plain_path(path, &data_file.name)?;
    let folder = |path: &Path| {
        let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()
    };
    if data_path.file_name() == path.file_name() && folder(&data_path) == folder(path) {
        let message = "an image is not its own data file";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
    }
    let pending = PendingFile::create(&data_path, options.existing, options.mode)?;
    Ok(Some((pending, data_path)))
}

/// Writes `source` into `file`, which is empty, and into that of its data file; `path` is what errors
/// call it.
pub(super) fn write(
    source: &mut dyn ExtentSource,
    (file, data): (&File, Option<(&File, &Path)>),
    path: &Path,
    format: &TargetFormat,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    match format {
        TargetFormat::Raw { preallocation } => {
            write_raw(source, file, path, *preallocation, options)
        }
        TargetFormat::Qcow2(image) => {
            let own = storage(file, path)?;
            let other = data.map(|(file, path)| storage(file, path)).transpose()?;
            let file = data.map_or(file, |(file, _)| file);
            write_qcow2(source, file, (own, other), path, image, options)
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
        storage(file, path)?
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

/// Nobody else can have a file open that has no name yet.
fn storage(file: &File, path: &Path) -> Result<ImageFile> {
    let file = file.try_clone();
    let file = file.map_err(|error| Error::io("duplicate the descriptor of", path, error))?;
    Ok(ImageFile::new(ImageLock::none(file)))
}

fn write_qcow2(
    source: &mut dyn ExtentSource,
    file: &File,
    storage: (ImageFile, Option<ImageFile>),
    path: &Path,
    image: &CreateOptions,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    // What no image can have is told before anything is read.
    let sized = image.clone().virtual_size(options.size.unwrap_or(0));
    let plan = sized.plan().map_err(|error| from_format(error, path))?;
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
