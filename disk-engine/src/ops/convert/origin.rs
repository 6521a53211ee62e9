//! What is read: opened, checked, and told as extents with its threads.
//!
//! Callers: `ops::convert`, all its targets.

use std::path::Path;
use std::thread;

use super::joined::Joined;
use super::options::{ConvertOptions, ConvertReport, ConvertSource};
use super::same;
use crate::disk::{Disk, DiskContent};
use crate::error::{Error, ErrorKind, Result};
use crate::source::cut::{Cut, Wanted};
use crate::source::disk::{Ahead, DiskSource, Reading};
use crate::source::extent::ExtentSource;
use crate::source::{Opened, Source};

/// An opened source.
pub(super) enum Origin {
    Disks(Joined),
    /// A source that is read once. Its label is what errors call it.
    Packed {
        source: Source,
        label: String,
    },
}

impl Origin {
    pub(super) fn open(source: ConvertSource, options: &ConvertOptions) -> Result<Self> {
        let disks = match source {
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
                return Ok(Self::Packed { source, label });
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
        let joined = Joined::new(disks)?;
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
        }
    }

    /// Has `work` read the source, and fills in the report what was read.
    pub(super) fn with_extents(
        self,
        options: &ConvertOptions,
        report: &mut ConvertReport,
        work: impl FnOnce(&mut dyn ExtentSource) -> Result<u64>,
    ) -> Result<()> {
        report.threads = options.threads();
        let wanted = Wanted { offset: options.offset, length: options.length, size: options.size };
        match self {
            Self::Disks(joined) => {
                let reading = if options.salvage {
                    Reading::to_salvage(&joined, joined.unit())
                } else {
                    Reading::strict(&joined)
                };
                let start = wanted.offset.min(joined.size());
                let length = wanted.length.unwrap_or(u64::MAX);
                let range = start..start.saturating_add(length).min(joined.size());
                report.source_bytes = range.end - range.start;
                let ahead = Ahead::new(&reading, options.threads());
                report.virtual_size = thread::scope(|scope| {
                    let _end = End(&ahead);
                    for number in 0..options.threads() {
                        thread::Builder::new()
                            .name(format!("disk-reader-{number}"))
                            .spawn_scoped(scope, || ahead.run())
                            .map_err(cannot_start)?;
                    }
                    let mut source = DiskSource::new(&reading, Some(&ahead), range);
                    let whole = Wanted { offset: 0, length: None, size: wanted.size };
                    work(&mut Cut::new(&mut source, whole))
                })?;
                report.unreadable = reading.into_unreadable();
                Ok(())
            }
            Self::Packed { source, label } => {
                let named = |error: Error| error.or_path(&label);
                let mut opened: Opened = source.open(false, &options.control).map_err(named)?;
                report.virtual_size = work(&mut Cut::new(&mut opened, wanted)).map_err(named)?;
                report.source_bytes = opened.finish().map_err(named)?.bytes;
                Ok(())
            }
        }
    }
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
