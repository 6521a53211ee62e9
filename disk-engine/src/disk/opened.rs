//! A disk that is read: a chain of raw and qcow2 images as the guest would read it.
//!
//! ```text
//! Disk ─▶ layers ─▶ [0] vm.qcow2 ─▶ [1] layer.qcow2 ─▶ [2] base.img      each locked as read
//! ```
//!
//! Formats are explicit, and names found inside images are opened by policy only: see `chain` and
//! `policy`. An image that is refused or gone is an error here, never zeros.
//!
//! Each image is locked as QEMU locks what it reads, unless [`DiskOptions::locking`] says
//! otherwise: while a VM runs on an image it cannot be opened, and while it is open no VM starts
//! that would write to it. VMs that only read it, as an overlay's base, are in nobody's way. Who
//! must read a running VM's disk says [`Locking::Shared`].
//!
//! Callers: whatever reads a disk through [`DiskContent`], as `ops::pack`.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use qcow2_format::image::SnapshotSize;

use crate::base::BaseFormat;
use crate::disk::chain;
use crate::disk::content::{ContentRun, DiskContent, StoredRun};
use crate::disk::layers::{DiskImage, Layers};
use crate::disk::map::DiskRuns;
use crate::disk::opening;
use crate::disk::policy::{BackingPolicy, DataFileNames};
use crate::disk::stated::StatedTop;
use crate::disk::status::BlockStatus;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::sys::image_lock::Locking;

/// How a disk is opened. Memory is for the whole chain.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskOptions {
    /// Which backing files may be opened: by default those beside or below the image that names
    /// them.
    pub policy: BackingPolicy,
    /// Which external data files may be opened: by default none.
    pub data_files: BackingPolicy,
    /// What their names count from if they are relative.
    pub data_file_names: DataFileNames,
    /// What is read of the top image otherwise than it says.
    pub top: StatedTop,
    /// The id or name of the top image's snapshot that is read, instead of its active disk.
    pub snapshot: Option<String>,
    /// How large its disk is.
    pub snapshot_size: SnapshotSize,
    /// Bytes of table entries kept in memory.
    pub l2_cache: u64,
    /// Bytes of decoded compressed clusters kept in memory.
    pub cluster_cache: u64,
    /// Threads that decode compressed clusters, the caller's among them; `None` leaves it to the
    /// number of processors.
    pub threads: Option<usize>,
    /// Whether the file of an image that was preallocated is asked for holes, which are zeros then, as
    /// `qemu-img` does. Telling whether it was takes a look at its refcounts.
    pub holes: bool,
    /// What clusters are that lie past the end of an image's file.
    pub past_end: PastEnd,
    /// Whether images and data files are locked, and who may use them meanwhile.
    pub locking: Locking,
}

/// What clusters are that lie past the end of the file they should lie in: the file was cut, or its
/// tables are damaged. The rest of a cluster that is there in part is zeros in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PastEnd {
    /// Zeros: what a guest reads there with QEMU.
    #[default]
    Zeros,
    /// [`crate::ErrorKind::Corrupt`], so that nobody takes the disk for whole.
    Fails,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            policy: BackingPolicy::default(),
            data_files: BackingPolicy::Deny,
            data_file_names: DataFileNames::default(),
            top: StatedTop::default(),
            snapshot: None,
            snapshot_size: SnapshotSize::Own,
            l2_cache: 4 << 20,
            cluster_cache: 8 << 20,
            threads: None,
            holes: false,
            past_end: PastEnd::Zeros,
            locking: Locking::Auto,
        }
    }
}

/// A file the caller has opened, as part of a disk.
#[derive(Debug)]
pub struct DiskFile {
    /// The file, open for reading; for reading and writing if it is to be written to.
    pub file: File,
    /// What messages call it.
    pub path: PathBuf,
    /// Its format.
    pub format: BaseFormat,
    /// Its external data file, if it has one, open like the file.
    pub data_file: Option<File>,
}

/// A chain of images, open for reading.
#[derive(Debug)]
pub struct Disk(Layers);

impl Disk {
    /// Opens the image at `path` and everything it stands on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another process may write to an image of the chain;
    /// [`ErrorKind::Refused`] or [`ErrorKind::NotFound`] for an image or data file that the policy
    /// forbids or that is gone, and for a snapshot that does not exist;
    /// [`ErrorKind::Corrupt`], [`ErrorKind::Unsupported`] or [`ErrorKind::Limit`] for an image that
    /// cannot be read; otherwise what the system says.
    pub fn open(path: impl AsRef<Path>, format: BaseFormat, options: &DiskOptions) -> Result<Self> {
        opening::open(path.as_ref(), format, options, None).map(Self)
    }

    /// The disk in files that the caller has opened, top first, each standing on the next one.
    /// Nothing is opened by name; the policies are not asked. The locks are those of the files as
    /// they were opened: whoever holds duplicates shares them, and loses them with this disk.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if there are none, if too few or too many, or if an external data
    /// file is missing or not needed; otherwise as [`Disk::open`].
    pub fn from_files(
        files: impl IntoIterator<Item = DiskFile>,
        options: &DiskOptions,
    ) -> Result<Self> {
        opening::of_files(files, options, None).map(Self)
    }

    /// The images of the disk, top first.
    pub fn images(&self) -> impl ExactSizeIterator<Item = DiskImage<'_>> {
        self.0.images()
    }

    /// What QEMU says of the piece that starts at `offset`.
    ///
    /// # Errors
    ///
    /// The tables are damaged or cannot be read; [`ErrorKind::InvalidInput`] if `offset` is not in the
    /// disk's last sector or before it.
    pub fn status_at(&self, offset: u64) -> Result<BlockStatus> {
        self.0.status_at(offset)
    }

    /// Which file each image stores its clusters in, top first: device and inode, as far as they can
    /// be told.
    pub(crate) fn data_files(&self) -> Vec<Option<(u64, u64)>> {
        let path = Path::new("");
        self.0
            .data_files()
            .map(|file| file.and_then(|file| chain::identity(file, path).ok()))
            .collect()
    }

    /// The runs of `range`, in order, each as long as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the range is not on the disk.
    pub fn map(&self, range: Range<u64>) -> Result<DiskRuns<'_>> {
        self.0.map(range)
    }
}

impl DiskContent for Disk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        self.0.content_at(offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(bytes, offset)
    }

    fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'_>>> {
        self.0.stored_at(offset)
    }
}
