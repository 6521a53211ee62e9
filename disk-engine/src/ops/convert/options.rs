//! What is converted, into what, and how; and what came of it.

use std::fmt;
use std::io::{Read, Write};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qcow2_format::CreateOptions;
use qcow2_format::image::Preallocation;

use crate::base::BaseFormat;
use crate::control::Control;
use crate::disk::policy::DataFileNames;
use crate::disk::{Disk, DiskContent, DiskOptions, WritableDiskOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::pack::PackOptions;
use crate::sink::CopyOffload;
use crate::source::Source;
use crate::source::disk::UnreadableParts;
use crate::sys::pending::{Durability, Existing, FileMode};

/// An image to open, and how.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Where it lies.
    pub path: PathBuf,
    /// Its format; never guessed.
    pub format: BaseFormat,
    /// How it and what it stands on is opened: policies, the snapshot that is read, locks.
    pub disk: DiskOptions,
}

/// Where a disk comes from.
pub enum ConvertSource {
    /// Images, each with what it stands on; several are one disk, one behind the other.
    Images(Vec<DiskSpec>),
    /// Disks the caller has opened, as `Images`.
    Disks(Vec<Disk>),
    /// An archive, a compressed image, or raw bytes from a pipe.
    Packed(Source),
    /// A qcow2 image from a pipe. It streams if its tables come before the data they name and that is
    /// in order, as in images written to pipes here; any other is spilled first.
    Piped {
        /// Where it comes from.
        reader: Box<dyn Read + Send>,
        /// What messages call it.
        label: PathBuf,
        /// The snapshot that is read, by id or name.
        snapshot: Option<String>,
    },
}

impl fmt::Debug for ConvertSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Images(images) => f.debug_tuple("Images").field(images).finish(),
            Self::Disks(disks) => f.debug_tuple("Disks").field(disks).finish(),
            Self::Packed(source) => f.debug_tuple("Packed").field(source).finish(),
            Self::Piped { label, .. } => f.debug_tuple("Piped").field(label).finish(),
        }
    }
}

/// Where a disk goes.
pub enum ConvertTarget<'a> {
    /// A file of that name.
    File(&'a Path),
    /// A pipe, or anything else that takes bytes in order.
    Writer {
        /// What takes them.
        writer: &'a mut dyn Write,
        /// What messages call it.
        label: &'a Path,
    },
}

/// What the target is to be.
#[derive(Clone, Debug)]
pub enum TargetFormat {
    /// A raw disk.
    Raw {
        /// How much of its space is taken at once; `Metadata` is the same as `Off`.
        preallocation: Preallocation,
    },
    /// A qcow2 image like this. Its virtual size is the source's, or [`ConvertOptions::size`].
    Qcow2(CreateOptions),
    /// A compressed sparse archive, as [`pack`](crate::ops::pack()) makes it. Of its options those
    /// about the disk and the file say nothing here.
    Archive(PackOptions),
}

/// Where what cannot go straight through a pipe is kept meanwhile, in a file without a name.
#[derive(Clone, Debug)]
pub struct Spill {
    /// The folder of that file.
    pub folder: PathBuf,
    /// Most bytes it may take.
    pub limit: u64,
}

impl Default for Spill {
    fn default() -> Self {
        Self { folder: PathBuf::from("/var/tmp"), limit: 1 << 40 }
    }
}

/// The disk a new image stands on, as far as its content is concerned: what is the same there is not
/// stored. The name in the header is [`CreateOptions::backing`]'s.
#[derive(Debug)]
pub struct Below(Disk);

/// How to convert.
#[derive(Debug)]
pub struct ConvertOptions {
    /// What the target is to be. Of a disk that is there, what it is.
    pub format: TargetFormat,
    /// Size of the target's disk in bytes, no smaller than what is written to it; as large unless
    /// given.
    pub size: Option<u64>,
    /// Bytes of the source that are passed over.
    pub offset: u64,
    /// Bytes of the source that are taken; all that follow unless given.
    pub length: Option<u64>,
    /// What is left to the kernel, where source and target are files.
    pub offload: CopyOffload,
    /// Store clusters compressed. qcow2 only.
    pub compress: bool,
    /// Zeros of at least so many bytes in a row are left out; 0 stores all of them.
    pub sparse: u64,
    /// What a new qcow2 image stands on.
    pub below: Option<Below>,
    /// Write into the disk that is there, instead of making a new file.
    pub into_existing: bool,
    /// Where in the disk that is there what is written begins, in bytes.
    pub target_offset: u64,
    /// The disk that is there reads as zeros from end to end.
    pub target_is_zero: bool,
    /// How the disk that is there is opened.
    pub target: WritableDiskOptions,
    /// Read what can be read, list the rest and take it for zeros.
    pub salvage: bool,
    /// Bytes of data in a second at the most; as many as there can be unless given. A
    /// cancel is noticed after what was read last, 256 KiB at the most, has had its time.
    pub rate_limit: Option<NonZeroU64>,
    /// Where what cannot go straight through a pipe is kept meanwhile.
    pub spill: Spill,
    /// Threads that decode, and threads that compress; as many as there are cores unless given.
    pub threads: Option<NonZeroUsize>,
    /// What to do when the target exists.
    pub existing: Existing,
    /// How hard to try to have the target on the medium.
    pub durability: Durability,
    /// Permission bits of a new file.
    pub mode: FileMode,
    /// What a relative name of the new image's external data file counts from.
    pub data_file_names: DataFileNames,
    /// Stops and watches the work.
    pub control: Control,
}

impl ConvertOptions {
    /// Into `format`, everything else as qemu-img has it.
    #[must_use]
    pub fn new(format: TargetFormat) -> Self {
        Self {
            format,
            size: None,
            offset: 0,
            length: None,
            offload: CopyOffload::default(),
            compress: false,
            sparse: 4096,
            below: None,
            into_existing: false,
            target_offset: 0,
            target_is_zero: false,
            target: WritableDiskOptions::default(),
            salvage: false,
            rate_limit: None,
            spill: Spill::default(),
            threads: None,
            existing: Existing::Refuse,
            durability: Durability::None,
            mode: FileMode::Umask,
            data_file_names: DataFileNames::default(),
            control: Control::new(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |message: &'static str, field: &'static str| {
            Err(Error::new(ErrorKind::InvalidInput, message).with_field(field))
        };
        let preallocation = match &self.format {
            TargetFormat::Raw { preallocation } => *preallocation,
            TargetFormat::Qcow2(image) => image.wanted_preallocation(),
            TargetFormat::Archive(_) => Preallocation::Off,
        };
        if self.compress && !matches!(self.format, TargetFormat::Qcow2(_)) {
            return refuse("only qcow2 images are compressed", "compress");
        }
        let data_file = matches!(&self.format, TargetFormat::Qcow2(image) if image.has_data_file());
        if self.compress && data_file {
            return refuse("nothing is compressed in an external data file", "compress");
        }
        if self.compress && preallocation != Preallocation::Off {
            return refuse("what is compressed takes no space at once", "preallocation");
        }
        if self.below.is_some() && !matches!(self.format, TargetFormat::Qcow2(_)) {
            return refuse("only qcow2 images stand on another", "backing file");
        }
        if self.into_existing && matches!(self.format, TargetFormat::Archive(_)) {
            return refuse("an archive is always made anew", "target");
        }
        if self.below.is_some() && self.into_existing {
            return refuse("the image that is there has its own backing file", "backing file");
        }
        if !self.into_existing && (self.target_is_zero || self.target_offset > 0) {
            return refuse("it is about a disk that is there, and this one is new", "target");
        }
        Ok(())
    }

    pub(super) fn threads(&self) -> usize {
        let threads = self.threads.or_else(|| std::thread::available_parallelism().ok());
        threads.map_or(1, NonZeroUsize::get).min(THREADS_MAX)
    }
}

/// Most threads of each kind, however many there are cores.
const THREADS_MAX: usize = 64;

impl Below {
    /// The disk in an image and what that stands on.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`].
    pub fn open(spec: &DiskSpec) -> Result<Self> {
        Disk::open(&spec.path, spec.format, &spec.disk).map(Self)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.0
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        files_of(&self.0)
    }
}

/// The files of a disk: its images, and their external data files as named.
pub(super) fn files_of(disk: &Disk) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for image in disk.images() {
        files.extend(image.data_file.map(Path::to_path_buf));
        files.push(image.path.to_path_buf());
    }
    files
}

/// What was converted.
#[derive(Clone, Debug, Default)]
pub struct ConvertReport {
    /// Size of the target's disk in bytes, as far as it was written.
    pub virtual_size: u64,
    /// Bytes of guest data that were stored as they are.
    pub stored_bytes: u64,
    /// Bytes of them whose storage is shared with the source's.
    pub shared_bytes: u64,
    /// Bytes of them that the kernel copied.
    pub kernel_bytes: u64,
    /// Clusters that were stored compressed.
    pub compressed_clusters: u64,
    /// Bytes they take.
    pub compressed_bytes: u64,
    /// Bytes that were marked as zeros, where something else lies below.
    pub zeroed_bytes: u64,
    /// Length of the target's file in bytes; 0 for a disk that was there.
    pub file_length: u64,
    /// Bytes that were kept in a file meanwhile; 0 if all went straight through.
    pub spilled_bytes: u64,
    /// Bytes of the source that were read: of a packed one as it is, else of its disk.
    pub source_bytes: u64,
    /// What could not be read and is zeros, if that was wanted.
    pub unreadable: UnreadableParts,
    /// Threads of each kind.
    pub threads: usize,
    /// Wall time from the first byte to the published name.
    pub elapsed: Duration,
}
