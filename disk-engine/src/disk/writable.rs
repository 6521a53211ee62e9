//! A disk that is read and written: a chain whose top takes the writes.
//!
//! ```text
//! write ─▶ [0] vm.qcow2      its own place, copied around from below where clusters are cut
//!              │ copies
//!          [1] layer.qcow2   read only
//!          [2] base.img      read only
//! ```
//!
//! The top is a raw image, or a qcow2 image with or without an external data file. All that holds of a disk that is
//! read holds here too: explicit formats, names by policy, an error for whatever is gone. The top is
//! locked as QEMU locks what it writes to, everything below as what it reads, so that no VM and no
//! other writer comes in between; an overlay of a base that running VMs share can be written to.
//!
//! Everything below is opened and checked before the top, and nothing is written by an open that
//! fails. What a killed process or a power cut leaves is told by [`Durability`]; an error of a
//! flush is final.
//!
//! Callers: whoever writes to disks, as `ops`.

use std::ops::Range;
use std::path::Path;

use qcow2_format::image::{DetectZeroes, Discard, Durability, WriteOptions, ZeroMode};

use crate::base::BaseFormat;
use crate::disk::content::{ContentRun, DiskContent};
use crate::disk::layers::{DiskImage, Layers};
use crate::disk::map::DiskRuns;
use crate::disk::opened::{DiskFile, DiskOptions};
use crate::disk::opening::{self, Writing};
use crate::disk::raw_write::RawWriting;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;

/// How a disk is opened for writing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WritableDiskOptions {
    /// How the chain is opened and read: policies, memory, threads, locks. There is no snapshot to
    /// write to, and a writer shares its image with no other.
    pub disk: DiskOptions,
    /// How hard what is written is made to last.
    pub durability: Durability,
    /// What becomes of written data that is all zeros.
    pub detect_zeroes: DetectZeroes,
    /// What becomes of discarded ranges.
    pub discard: Discard,
    /// Bytes of refcounts kept in memory.
    pub refcount_cache: u64,
}

impl Default for WritableDiskOptions {
    fn default() -> Self {
        Self {
            disk: DiskOptions::default(),
            durability: Durability::default(),
            detect_zeroes: DetectZeroes::default(),
            discard: Discard::default(),
            refcount_cache: 1 << 20,
        }
    }
}

impl WritableDiskOptions {
    fn writing(&self) -> Writing {
        Writing {
            image: WriteOptions::new()
                .durability(self.durability)
                .detect_zeroes(self.detect_zeroes)
                .discard(self.discard)
                .refcount_cache(self.refcount_cache),
            raw: RawWriting {
                durability: self.durability,
                detect_zeroes: self.detect_zeroes,
                discard: self.discard,
            },
        }
    }
}

/// A chain of images whose top is open for writing. Reads and writes of several threads at once are
/// fine; who wants them in an order waits for one before the next.
///
/// [`WritableDisk::close`] tells what went wrong in the end. Dropped without it, the disk is left
/// the same way, and errors are lost.
#[derive(Debug)]
pub struct WritableDisk(Layers);

impl WritableDisk {
    /// Opens the image at `path` for writing, and everything it stands on for reading. An image
    /// whose refcounts may be wrong, as its dirty bit says, has them counted anew first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another process uses the image, or may write to one below;
    /// [`ErrorKind::PermissionDenied`] if the file must not be written to;
    /// [`ErrorKind::Unsupported`] for one marked corrupt; [`ErrorKind::InvalidInput`] for options
    /// that only fit a reader; otherwise as [`Disk::open`](crate::disk::Disk::open). Nothing is
    /// changed then.
    pub fn open(
        path: impl AsRef<Path>,
        format: BaseFormat,
        options: &WritableDiskOptions,
    ) -> Result<Self> {
        opening::open(path.as_ref(), format, &options.disk, Some(&options.writing())).map(Self)
    }

    /// The disk in files that the caller has opened, as
    /// [`Disk::from_files`](crate::disk::Disk::from_files). The first, and its data file, are open for
    /// reading and writing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the first is not; otherwise as
    /// [`Disk::from_files`](crate::disk::Disk::from_files) and [`WritableDisk::open`].
    pub fn from_files(
        files: impl IntoIterator<Item = DiskFile>,
        options: &WritableDiskOptions,
    ) -> Result<Self> {
        opening::of_files(files, &options.disk, Some(&options.writing())).map(Self)
    }

    /// The images of the disk, top first, as they are now.
    pub fn images(&self) -> impl ExactSizeIterator<Item = DiskImage<'_>> {
        self.0.images()
    }

    /// The runs of `range`, in order, each as long as it is. Writes meanwhile may be in them or not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the range is not on the disk.
    pub fn map(&self, range: Range<u64>) -> Result<DiskRuns<'_>> {
        self.0.map(range)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the range is not on the disk; [`ErrorKind::Corrupt`] if the
    /// write would damage an image whose tables contradict each other; what cannot be read below for
    /// copying; otherwise what the system says.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(bytes, offset)
    }

    /// Writes `bytes` at `offset`, stored compressed: whole clusters, of which the disk's last may be
    /// short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if the top is raw; otherwise as [`WritableDisk::write_at`].
    pub fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_compressed(bytes, offset)
    }

    /// Has `length` bytes from `offset` on read as zeros, whatever lies below.
    ///
    /// # Errors
    ///
    /// As [`WritableDisk::write_at`].
    pub fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.0.write_zeroes(offset, length, mode)
    }

    /// Gives back the space of `length` bytes from `offset` on, as far as
    /// [`WritableDiskOptions::discard`] and the image allow. What was there reads as zeros or as
    /// before, and never as what lies below.
    ///
    /// # Errors
    ///
    /// As [`WritableDisk::write_at`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.0.discard(offset, length)
    }

    /// Returns once everything written before survives a power cut, unless
    /// [`WritableDiskOptions::durability`] is [`Durability::None`].
    ///
    /// # Errors
    ///
    /// What the system says. It is final: what was written before may be lost, and nothing is
    /// written any more.
    pub fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    /// Flushes, leaves the image as one that nobody uses, and releases it.
    ///
    /// # Errors
    ///
    /// As [`WritableDisk::flush`].
    pub fn close(self) -> Result<()> {
        self.0.close()
    }
}

impl DiskContent for WritableDisk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        self.0.content_at(offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(bytes, offset)
    }
}
