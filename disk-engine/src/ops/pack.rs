//! Pack: a disk into a compressed archive that every reader of tar and zstd takes. Extract, backwards.
//!
//! ```text
//! disk ─▶ map of its data ─▶ tar, GNU sparse ─▶ zstd: one frame, or many and a seek table
//!           all cores                              all cores
//!                                    └─▶ unnamed or temporary file ─▶ published under its name
//! ```
//!
//! The same content and options give the same bytes, with any number of threads and on any file
//! system. The disk is read twice; if it changes meanwhile, the archive is not made. A disk that a VM
//! writes to is refused, and no VM can start on it meanwhile: its images are locked as QEMU locks what
//! it reads, unless [`DiskOptions::locking`] says otherwise.
//!
//! Memory: 64 MiB per TiB of data for the map. In one frame libzstd's window (128 MiB unless told
//! otherwise) and some 10 MiB per thread at the default level; in many frames, for each thread, a
//! compressed frame and libzstd's tables for it, and eight more compressed frames.
//!
//! Callers: the command line, and whoever publishes images.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::BaseFormat;
use crate::control::Control;
use crate::digest::Sha256Digest;
use crate::disk::chain::open_top;
use crate::disk::{Disk, DiskContent, DiskOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::archive::map::DiskMap;
use crate::sink::archive::output::Output;
use crate::sink::archive::seekable::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use crate::sink::archive::stream::{ArchiveStream, changed};
use crate::sink::archive::zstd::{Parameters, THREADS_MAX};
use crate::sink::archive::{frames, header, whole};
use crate::sys::open::is_same_file;
use crate::sys::pending::{Durability, Existing, FileMode, PendingFile};

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// The disk's format; never guessed.
    pub format: BaseFormat,
    /// How a chain is opened: which files it may name, which snapshot is read, whether a running
    /// VM is in the way.
    pub disk: DiskOptions,
    /// What the archive calls the disk.
    pub member: String,
    /// When the archive says the disk was changed last, in seconds since the Unix epoch.
    pub mtime: u64,
    /// How hard zstd tries, 1 to 22. 6 by default: on a Linux system's files it saves 6 % over 3,
    /// and what lies beyond costs twice the time for 2 % more.
    pub level: i32,
    /// The window as a power of two, 10 to 31. Readers take 27 (128 MiB) unless told to take more.
    pub window_log: u32,
    /// Bytes of the uncompressed archive in each frame, 64 KiB to 1 GiB; one frame unless given.
    pub frame_size: Option<u64>,
    /// Threads that scan and compress; as many as there are cores unless given.
    pub threads: Option<NonZeroUsize>,
    /// What to do when the destination exists.
    pub existing: Existing,
    /// How hard to try to have the archive on the medium.
    pub durability: Durability,
    /// Permission bits of the archive.
    pub mode: FileMode,
    /// Stops and watches the work. Progress counts the disk's bytes looked at while there is no
    /// length, and then, from 0 again, those packed.
    pub control: Control,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            format: BaseFormat::Raw,
            disk: DiskOptions::default(),
            member: "disk.img".into(),
            mtime: 0,
            level: 6,
            window_log: 27,
            frame_size: None,
            threads: None,
            existing: Existing::Refuse,
            durability: Durability::None,
            mode: FileMode::Umask,
            control: Control::new(),
        }
    }
}

/// What was packed, and into what.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes of it that the archive stores; the rest are holes.
    pub data_bytes: u64,
    /// Stretches of data in it.
    pub extents: usize,
    /// Bytes looked at as one: 4096, more where that would give over 100,000 extents.
    pub block_size: u64,
    /// Bytes of the archive before compression.
    pub tar_bytes: u64,
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// The archive's SHA-256, as `sha256sum` prints it and a stated key names it.
    pub sha256: Sha256Digest,
    /// zstd frames, the seek table not counted.
    pub frames: u64,
    /// Bytes of the uncompressed archive in each frame, if there are many.
    pub frame_size: Option<u64>,
    /// Threads that worked.
    pub threads: usize,
    /// Wall time from the first byte to the published name.
    pub elapsed: Duration,
}

/// Packs the disk at `source` into the archive `destination`, which appears whole or not at all.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for options out of range, and if the archive would replace the disk;
/// [`ErrorKind::AlreadyExists`] unless told to replace; [`ErrorKind::Busy`] if a VM writes to the
/// disk or what it stands on; [`ErrorKind::Mismatch`] if that changes meanwhile; otherwise as
/// [`Disk::open`] and the operating system say. Nothing is left behind, and what stood there still stands.
pub fn pack(source: &Path, destination: &Path, options: &PackOptions) -> Result<PackReport> {
    let start = Instant::now();
    check(options)?;
    if options.existing == Existing::Refuse && fs::symlink_metadata(destination).is_ok() {
        // Publishing would find out too, after all the work.
        return Err(Error::new(ErrorKind::AlreadyExists, "the file exists and is left as it is")
            .with_path(destination));
    }
    let opened = Opened::open(source, options)?;
    if opened.files.iter().any(|file| is_same_file(&file.metadata, destination)) {
        let message = "the disk would be replaced by its own archive";
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_path(destination)
            .with_hint("choose another destination"));
    }
    let pending = PendingFile::create(destination, options.existing, options.mode)?;
    let mut file = pending.file();
    let mut report = opened.pack(&mut file, destination, options)?;
    options.control.check()?;
    pending.publish(options.durability)?;
    report.elapsed = start.elapsed();
    Ok(report)
}

/// Packs the disk at `source` into `writer`; `label` is what messages call that. What was written
/// before a failure is no archive.
///
/// # Errors
///
/// As [`pack`], with the writer's errors instead of the destination's.
pub fn pack_into(
    source: &Path,
    writer: &mut dyn Write,
    label: &Path,
    options: &PackOptions,
) -> Result<PackReport> {
    check(options)?;
    Opened::open(source, options)?.pack(writer, label, options)
}

/// Packs any disk into `writer`. Nobody looks whether another program writes to it; changes of what
/// was data are noticed all the same. [`PackOptions::format`] and [`PackOptions::disk`] say nothing
/// here.
///
/// # Errors
///
/// As [`pack_into`].
pub fn pack_disk(
    disk: &dyn DiskContent,
    writer: &mut dyn Write,
    label: &Path,
    options: &PackOptions,
) -> Result<PackReport> {
    check(options)?;
    let start = Instant::now();
    let control = &options.control;
    let threads = threads_of(options);
    let map = DiskMap::scan(disk, threads, control)?;
    let stream = ArchiveStream::new(disk, &map, &options.member, options.mtime)?;
    let mut output = Output::new(writer, label, map.stored, control)?;
    let parameters = Parameters { level: options.level, window_log: options.window_log };
    let frames = match options.frame_size {
        None => {
            whole::compress(&stream, parameters, threads, &mut output, control)?;
            1
        }
        Some(size) => frames::compress(&stream, size, parameters, threads, &mut output, control)?,
    };
    Ok(PackReport {
        virtual_size: map.size,
        data_bytes: map.stored,
        extents: map.runs.len(),
        block_size: map.block,
        tar_bytes: stream.length(),
        archive_bytes: output.written(),
        sha256: output.finish()?,
        frames,
        frame_size: options.frame_size,
        threads,
        elapsed: start.elapsed(),
    })
}

/// A disk the caller names, and the files that make it up as they were when it was opened.
struct Opened {
    disk: Disk,
    files: Vec<Seen>,
    source: PathBuf,
}

/// A file as it looked.
struct Seen {
    path: PathBuf,
    metadata: fs::Metadata,
}

impl Opened {
    fn open(source: &Path, options: &PackOptions) -> Result<Self> {
        // A raw disk is a chain of one.
        let images = Disk::open(source, options.format, &reading(options))?;
        let mut files = Vec::new();
        for image in images.images() {
            if image.corrupt {
                return Err(Error::new(ErrorKind::Corrupt, "the image is marked corrupt")
                    .with_path(image.path)
                    .with_hint("repair it with qemu-img check -r all"));
            }
            files.push(Seen::of(&open_top(image.path)?, image.path)?);
        }
        Ok(Self { disk: images, files, source: source.to_path_buf() })
    }

    fn pack(
        &self,
        writer: &mut dyn Write,
        label: &Path,
        options: &PackOptions,
    ) -> Result<PackReport> {
        let report = pack_disk(&self.disk, writer, label, options);
        // A disk that was cut fails in other words where it ended too early.
        for file in &self.files {
            if !matches!(&report, Err(error) if error.kind() == ErrorKind::Cancelled) {
                file.check()?;
            }
        }
        report.map_err(|error| error.or_path(&self.source))
    }
}

/// How to read the disk: threads of ours read frames side by side, so that none of them needs help.
/// The cache holds what each of them decodes, in clusters of up to 2 MiB.
fn reading(options: &PackOptions) -> DiskOptions {
    let mut reading = options.disk.clone();
    let clusters = threads_of(options) as u64 + 2;
    reading.cluster_cache = reading.cluster_cache.max(clusters << 21);
    if options.frame_size.is_some() {
        reading.threads = reading.threads.or(Some(1));
    }
    reading
}

fn threads_of(options: &PackOptions) -> usize {
    let threads = options.threads.or_else(|| thread::available_parallelism().ok());
    threads.map_or(1, NonZeroUsize::get).min(THREADS_MAX)
}

impl Seen {
    fn of(file: &File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
        Ok(Self { path: path.to_path_buf(), metadata })
    }

    /// Fails if the file is another one now, or was written to.
    fn check(&self) -> Result<()> {
        let looks = |seen: &fs::Metadata| {
            (seen.dev(), seen.ino(), seen.len(), seen.mtime(), seen.mtime_nsec())
        };
        let now =
            fs::metadata(&self.path).map_err(|error| Error::io("look at", &self.path, error))?;
        if looks(&now) != looks(&self.metadata) {
            return Err(changed().with_path(&self.path));
        }
        Ok(())
    }
}

fn check(options: &PackOptions) -> Result<()> {
    let refuse = |message: String, field: &'static str| {
        Err(Error::new(ErrorKind::InvalidInput, message).with_field(field))
    };
    header::check_name(&options.member)?;
    if !(1..=22).contains(&options.level) {
        return refuse(format!("level {} is not between 1 and 22", options.level), "level");
    }
    if !(10..=31).contains(&options.window_log) {
        let message = format!("a window of 2^{} is not between 2^10 and 2^31", options.window_log);
        return refuse(message, "long");
    }
    if let Some(size) = options.frame_size
        && !(FRAME_SIZE_MIN..=FRAME_SIZE_MAX).contains(&size)
    {
        return refuse(
            format!("frames of {size} bytes are not between 64 KiB and 1 GiB"),
            "frames",
        );
    }
    if options.mtime > i64::MAX as u64 {
        return refuse(format!("{} is no time a file can have", options.mtime), "mtime");
    }
    Ok(())
}
