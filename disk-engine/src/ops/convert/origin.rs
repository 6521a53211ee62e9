//! What is read: opened, checked, and told as extents with its threads.
//!
//! Callers: `ops::convert`, all its targets.

use std::path::Path;
use std::thread;

use super::joined::Joined;
use super::options::{ConvertOptions, ConvertReport, ConvertSource};
use super::piped::{self, Piped, PipedImage};
use super::same;
use crate::base::BaseFormat;
use crate::disk::{Disk, DiskOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::source::cut::{Cut, Wanted};
use crate::source::disk::{Ahead, DiskSource};
use crate::source::extent::ExtentSource;
use crate::source::paced::Paced;
use crate::source::{Opened, Source};

/// An opened source.
pub(super) enum Origin {
    Disks(Joined),
    /// A source that is read once. Its label is what errors call it.
    Packed {
        source: Source,
        label: String,
    },
    /// A qcow2 image from a pipe, whose tables came before the data.
    Streamed(Box<PipedImage>),
}

impl Origin {
    pub(super) fn open(source: ConvertSource, options: &ConvertOptions) -> Result<Self> {
        let mut spilled = 0;
        let disks = match source {
            ConvertSource::Piped { reader, label, snapshot } => {
                match piped::open(reader, &label, snapshot.as_deref(), options)? {
                    Piped::Streamed(image) => return Ok(Self::Streamed(image)),
                    Piped::Spilled(disk, kept) => {
                        spilled = kept;
                        vec![*disk]
                    }
                }
            }
            ConvertSource::Packed(source) => {
                if options.salvage {
                    let message = "only images are salvaged; a packed source is whole or useless";
                    return Err(Error::new(ErrorKind::InvalidInput, message).with_field("salvage"));
                }
                let source = match options.threads {
                    Some(threads) => source.with_threads(threads),
                    None => source,
                };
                let label = source.label();
                let named = |error: Error| error.or_path(&label);
                match source.plain_file(&options.control).map_err(named)? {
                    // As an image it is read anywhere, and its holes are known.
                    Some(path) => {
                        vec![Disk::open(path, BaseFormat::Raw, &DiskOptions::default())?]
                    }
                    None => return Ok(Self::Packed { source, label }),
                }
            }
            ConvertSource::Disks(disks) => disks,
            ConvertSource::Images(images) => images
                .into_iter()
                .map(|spec| {
                    let mut how = spec.disk;
                    // Threads of ours read pieces side by side, so that none of them needs help. The
                    // cache holds what each of them decodes.
                    how.threads = how.threads.or(Some(1));
                    let clusters = options.threads() as u64 + 2;
                    how.cluster_cache = how.cluster_cache.max(clusters << 21);
                    Disk::open(&spec.path, spec.format, &how)
                })
                .collect::<Result<_>>()?,
        };
        let joined = Joined::new(disks, spilled)?;
        for image in joined.disks().flat_map(Disk::images) {
            if image.corrupt && !options.salvage {
                return Err(Error::new(ErrorKind::Corrupt, "the image is marked corrupt")
                    .with_path(image.path)
                    .with_hint("repair it with qemu-img check -r all, or read what can be read"));
            }
        }
        Ok(Self::Disks(joined))
    }

    /// Whether `path` leads to a file that is read.
    pub(super) fn is_file(&self, path: &Path) -> bool {
        match self {
            Self::Disks(joined) => joined.files().iter().any(|file| same(file, path)),
            Self::Packed { source, .. } => source.is_file(path),
            // What it comes from has no name.
            Self::Streamed(_) => false,
        }
    }

    /// Has `work` read the source, and completes its report with what was read.
    pub(super) fn with_extents(
        self,
        options: &ConvertOptions,
        work: impl FnOnce(&mut dyn ExtentSource) -> Result<ConvertReport>,
    ) -> Result<ConvertReport> {
        let wanted = Wanted { offset: options.offset, length: options.length, size: options.size };
        match self {
            Self::Disks(joined) => with_disk(&joined, options, work),
            Self::Packed { source, label } => {
                let named = |error: Error| error.or_path(&label);
                let mut opened: Opened = source.open(false, &options.control).map_err(named)?;
                let mut report = {
                    let mut cut = Cut::new(&mut opened, wanted);
                    work(&mut Paced::new(&mut cut, options.rate_limit)).map_err(named)?
                };
                report.source_bytes = opened.finish().map_err(named)?.bytes;
                report.threads = options.threads();
                Ok(report)
            }
            Self::Streamed(mut image) => {
                let mut report = {
                    let mut cut = Cut::new(&mut *image, wanted);
                    work(&mut Paced::new(&mut cut, options.rate_limit))?
                };
                report.source_bytes = image.finish()?;
                report.threads = options.threads();
                Ok(report)
            }
        }
    }
}

/// Has `work` read disks, as [`Origin::with_extents`].
fn with_disk(
    joined: &Joined,
    options: &ConvertOptions,
    work: impl FnOnce(&mut dyn ExtentSource) -> Result<ConvertReport>,
) -> Result<ConvertReport> {
    let reading = joined.reading(options.salvage);
    let range = joined.range(options.offset, options.length);
    let read = range.end - range.start;
    let threads = options.threads();
    let ahead = Ahead::new(&reading, threads, joined.cluster());
    let mut report = thread::scope(|scope| {
        let _end = End(&ahead);
        for number in 0..threads {
            thread::Builder::new()
                .name(format!("disk-reader-{number}"))
                .spawn_scoped(scope, || ahead.run())
                .map_err(cannot_start)?;
        }
        let mut source = DiskSource::new(&reading, Some(&ahead), range);
        let whole = Wanted { offset: 0, length: None, size: options.size };
        let mut cut = Cut::new(&mut source, whole);
        work(&mut Paced::new(&mut cut, options.rate_limit))
    })?;
    report.source_bytes = read;
    report.spilled_bytes = report.spilled_bytes.saturating_add(joined.spilled());
    report.threads = threads;
    report.unreadable = reading.into_unreadable();
    Ok(report)
}

/// Ends the reading threads, whatever happens.
struct End<'a>(&'a Ahead<'a>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

pub(super) fn cannot_start(error: std::io::Error) -> Error {
    Error::new(ErrorKind::of_io(&error), "start a thread").with_source(error)
}
