//! A packed disk read from anywhere, without unpacking it: any range costs the frames it lies in.
//!
//! ```text
//! │ frame: headers, map │ frame │ frame │ … │ frame │ seek table │      the archive, zstd in frames
//!           │               ▲       ▲                     │
//! open ─────┴── where each stored range lies ─────────────┘
//! read_at(offset) ─▶ hole: zeros │ data: those frames, decoded, verified, the last ones kept
//! ```
//!
//! For archives by `pack --frames`, and for any tar, or bare disk, in the zstd seekable format.
//! Opening reads the seek table, the headers of all members and the archive's end, so that the disk is
//! the one that extracting would choose; data in between is jumped over.
//!
//! What a read returns was verified frame by frame. Frames that nobody reads are not: whether the archive
//! as a whole is sound, extracting tells. The table is not believed either: it has to account for
//! every byte of the archive, and each frame to be what it says. A frame that has no checksum, neither at
//! its end nor in the table, is verified for its length only.
//!
//! ```text
//! table     the seek table, read and added up          frames    frames decoded, the last ones kept
//! xxh64     the sum that stands in a table
//! ```
//!
//! Memory: 24 bytes per frame of the table, 24 per entry of the sparse map, the frames kept, and for
//! each thread that reads one frame, compressed and decoded.

pub(crate) mod frames;
mod table;
mod xxh64;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2_format::io::ReadAt;

use crate::control::Control;
use crate::disk::chain::open_top;
use crate::disk::{ContentRun, DiskContent};
use crate::error::{Error, ErrorKind, Result};
use crate::source::content::{Content, at_most};
use crate::source::decompress::Decoder;
use crate::source::limits::{Defect, Limits};
use crate::source::probe;
use crate::source::tar::header::Header;
use crate::source::tar::sparse::SparseMap;
use crate::source::tar::{Located, Tar};
use frames::FrameStore;

/// How to open a packed disk.
#[derive(Clone, Debug)]
pub struct SeekableOptions {
    /// The archive's member to take, rather than its single file or `disk.img`.
    pub member: Option<String>,
    /// How large and complex the archive may be.
    pub limits: Limits,
    /// Largest frame to accept, in bytes once decoded: 64 MiB.
    pub frame_max: u64,
    /// Bytes of decoded frames to keep: 64 MiB. One is kept in any case.
    pub cache_bytes: u64,
    /// Stops the opening.
    pub control: Control,
}

impl Default for SeekableOptions {
    fn default() -> Self {
        Self {
            member: None,
            limits: Limits::default(),
            frame_max: 64 << 20,
            cache_bytes: 64 << 20,
            control: Control::new(),
        }
    }
}

/// A disk inside an archive of many zstd frames with a seek table, read in place.
///
/// ```no_run
/// use disk_engine::disk::DiskContent;
/// use disk_engine::source::seekable::{SeekableDisk, SeekableOptions};
///
/// let disk = SeekableDisk::open("disk-img.tar.zst", &SeekableOptions::default())?;
/// let mut sector = [0; 512];
/// disk.read_at(&mut sector, 1 << 30)?;
/// # Ok::<(), disk_engine::Error>(())
/// ```
pub struct SeekableDisk {
    store: Arc<FrameStore>,
    label: PathBuf,
    member: Option<String>,
    size: u64,
    ranges: Vec<Stored>,
}

/// A range of the disk that the archive stores.
#[derive(Clone, Copy, Debug)]
struct Stored {
    offset: u64,
    length: u64,
    /// Where it lies in the decompressed archive.
    at: u64,
}

impl SeekableDisk {
    /// The disk packed in the file or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidInput`] for what is neither a regular file nor a
    /// block device, [`ErrorKind::Unsupported`] if there is no seek table,
    /// [`ErrorKind::Corrupt`] if it does not add up or what is decoded is damaged,
    /// [`ErrorKind::Limit`], and as extracting: the archive's members are looked at alike.
    pub fn open(path: impl AsRef<Path>, options: &SeekableOptions) -> Result<Self> {
        let path = path.as_ref();
        Self::of(open_top(path)?, path, options)
    }

    /// The disk packed in `source`; `label` is what messages call it.
    ///
    /// # Errors
    ///
    /// As [`SeekableDisk::open`].
    pub fn of(
        source: impl ReadAt + Send + Sync + 'static,
        label: impl Into<PathBuf>,
        options: &SeekableOptions,
    ) -> Result<Self> {
        let label = label.into();
        Self::locate(Box::new(source), label.clone(), options)
            .map_err(|error| error.or_path(&label))
    }

    fn locate(
        source: Box<dyn ReadAt + Send + Sync>,
        label: PathBuf,
        options: &SeekableOptions,
    ) -> Result<Self> {
        let SeekableOptions { member, limits, frame_max, cache_bytes, control } = options;
        let store = Arc::new(FrameStore::open(source, limits, *frame_max, *cache_bytes)?);
        let decoder = Decoder::framed(Arc::clone(&store));
        let content = Content::of(decoder, limits, control.clone())?;
        let is_tar = Header::probe(content.head()).map_err(|defect| content.fault(defect))?;
        let located = if is_tar {
            Tar::new(content, limits, member.as_deref()).locate()?
        } else if let Some(member) = member {
            let message = format!("the source is no archive, so it has no member {member:?}");
            return Err(Error::new(ErrorKind::NotFound, message));
        } else {
            let size = store.size();
            probe::refuse_encoded(content.head()).map_err(|defect| content.fault(defect))?;
            if size > limits.max_image_size {
                let message = format!("the disk is larger than {} bytes", limits.max_image_size);
                let limit = Defect::limit(message, "max_image_size (--max-size)");
                return Err(content.fault(limit));
            }
            Located { member: None, map: SparseMap::dense(size), start: 0 }
        };
        let mut at = located.start;
        let mut ranges = Vec::new();
        ranges
            .try_reserve_exact(located.map.ranges.len())
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory for a sparse map"))?;
        for range in &located.map.ranges {
            ranges.push(Stored { offset: range.offset, length: range.length, at });
            // What is stored lies inside the content, whose length fits.
            at = at.saturating_add(range.length);
        }
        Ok(Self { store, label, member: located.member, size: located.map.size, ranges })
    }

    /// The archive's member that is the disk; `None` if there is no archive around it.
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    /// Frames of the source, as its table counts them.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.store.count() as u64
    }

    /// The stored range that holds `offset` or, if there is none, the next one.
    fn range(&self, offset: u64) -> Option<Stored> {
        let next = self.ranges.partition_point(|range| range.offset + range.length <= offset);
        self.ranges.get(next).copied()
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!("{length} bytes are not in a disk of {} bytes", self.size);
        Err(Error::new(ErrorKind::InvalidInput, message).with_offset(offset).with_path(&self.label))
    }
}

impl DiskContent for SeekableDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        self.check(offset, 1)?;
        let (end, zero) = match self.range(offset) {
            Some(range) if range.offset <= offset => (range.offset + range.length, false),
            Some(range) => (range.offset, true),
            None => (self.size, true),
        };
        Ok(ContentRun { length: end - offset, zero, compressed: false })
    }

    fn read_at(&self, bytes: &mut [u8], mut offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let run = self.run_at(offset)?;
            let count = at_most(run.length, rest.len());
            let now = rest.get_mut(..count).unwrap_or_default();
            match self.range(offset).filter(|_| !run.zero) {
                None => now.fill(0),
                Some(range) => {
                    let at = range.at + (offset - range.offset);
                    let named = |error: Error| error.or_path(&self.label);
                    if self.store.read(now, at).map_err(named)? < count {
                        let message = "the archive ends before the disk's data does";
                        return Err(Error::new(ErrorKind::Corrupt, message).with_path(&self.label));
                    }
                }
            }
            done += count;
            offset += count as u64;
        }
        Ok(())
    }
}

impl std::fmt::Debug for SeekableDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeekableDisk")
            .field("path", &self.label)
            .field("member", &self.member)
            .field("size", &self.size)
            .field("frames", &self.frames())
            .finish_non_exhaustive()
    }
}
