//! A disk as a hypervisor wants it: the libvirt `<disk>` element and QEMU's arguments.
//!
//! ```text
//!                       Disk                                  what a hypervisor is told
//! path      /vms/0/primary.qcow2 ─┐                      ┌─▶ libvirt   <disk type='file' …>
//! format    qcow2                 ├─ check ─▶ render ────┤
//! backing   /cache/…/base.raw raw │                      └─▶ qemu      -blockdev … or -drive …
//! cache     none, discard, …     ─┘
//! ```
//!
//! Both renderings name the format of every file of the chain, so that nobody probes anything, and
//! carry every path literally: a comma, a quote or a colon in a name stays part of the name. Paths
//! are made absolute first, which also keeps QEMU from reading `x:disk` as a protocol.
//!
//! # Cache modes
//!
//! The default is [`CacheMode::None`]: the disk's own file is opened with `O_DIRECT`, its writes do
//! not crowd the host's page cache, and the base below it stays *in* the page cache, where one copy
//! serves all VMs. `O_DIRECT` has two conditions:
//!
//! - the file system must support it. tmpfs does since Linux 6.6; on an older kernel QEMU says "file
//!   system may not support O_DIRECT" and [`CacheMode::Writeback`] is the way out;
//! - a raw disk that is written must be whole in units of the request alignment, up to 4096 bytes.
//!   Which one that is depends on the file system, and QEMU fails at start where it is missed, so
//!   [`Disk::check`] refuses such a disk everywhere, with a hint.
//!
//! # Zeroes
//!
//! An overlay gets `discard=unmap` and `detect-zeroes=unmap`: a guest that writes zeros over its disk
//! makes zero clusters instead of growing the file. That is correct over a base only in qcow2
//! version 3, which is what this crate's overlays are. Raw disks get `discard=unmap` alone.

mod chain;
pub mod libvirt;
pub mod qemu;
mod target;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::base::{BaseFormat, BaseImage};
use crate::disk::chain::probe_top;
use crate::disk::pad::DIRECT_UNIT;
use crate::disk::policy::BackingPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::strategy::ProvidedDisk;
pub use target::Target;

/// How the host caches a disk's file, under the names libvirt and QEMU share.
///
/// ```text
///               host page cache   guest sees a write cache   guest's flush reaches the disk
/// writeback     yes               yes                        yes
/// none          no  (O_DIRECT)    yes                        yes
/// writethrough  yes               no                         every write does
/// directsync    no  (O_DIRECT)    no                         every write does
/// unsafe        yes               yes                        no: a power cut may cost the disk
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the host's page cache.
    Writeback,
    /// Past the host's page cache.
    #[default]
    None,
    /// Through the page cache, each write flushed.
    Writethrough,
    /// Past the page cache, each write flushed.
    Directsync,
    /// Through the page cache, flushes ignored. For VMs nobody misses.
    Unsafe,
}

impl CacheMode {
    /// Every mode, in the order of the table above.
    pub const ALL: [Self; 5] =
        [Self::Writeback, Self::None, Self::Writethrough, Self::Directsync, Self::Unsafe];

    /// The name libvirt and QEMU know the mode by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::None => "none",
            Self::Writethrough => "writethrough",
            Self::Directsync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Whether the file is opened with `O_DIRECT`.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether the guest's flushes are ignored.
    const fn ignores_flush(self) -> bool {
        matches!(self, Self::Unsafe)
    }

    /// Whether the guest is told of a write cache, and so has to flush it.
    const fn has_write_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::Directsync)
    }
}

/// How QEMU does I/O on a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// A pool of threads, QEMU's default.
    Threads,
    /// Linux AIO; only past the page cache, see [`CacheMode::is_direct`].
    Native,
    /// `io_uring`.
    IoUring,
}

impl Io {
    /// The name libvirt and QEMU know it by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

/// One file below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    path: PathBuf,
    format: BaseFormat,
}

impl Layer {
    /// A file the caller vouches for, with the format the caller states.
    ///
    /// # Errors
    ///
    /// The path holds a NUL byte or is empty, or the current folder is unknown.
    pub fn new(path: impl AsRef<Path>, format: BaseFormat) -> Result<Self> {
        Ok(Self { path: absolute(path.as_ref())?, format })
    }

    /// Where the file lies, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's format.
    #[must_use]
    pub fn format(&self) -> BaseFormat {
        self.format
    }
}

/// A disk to be attached to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    top: Layer,
    /// Nearest first, the base last.
    backing: Vec<Layer>,
    read_only: bool,
    cache: CacheMode,
    io: Option<Io>,
    discard: bool,
    detect_zeroes: bool,
    serial: Option<String>,
    boot_index: Option<u32>,
}

impl Disk {
    /// A raw disk, whatever its content looks like. This is the only safe way to name a raw disk
    /// that a guest has written to: a guest can write a qcow2 header into it.
    ///
    /// # Errors
    ///
    /// The path holds a NUL byte or is empty, or the current folder is unknown.
    pub fn raw(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(Layer::new(path, BaseFormat::Raw)?, Vec::new()))
    }

    /// A qcow2 disk. The files below it are those its header names, with the formats stated there;
    /// a relative name is looked up from the folder of the file that holds it, as QEMU does.
    ///
    /// The header is trusted to name files. Where the disk comes from a stranger, use
    /// [`Disk::overlay`] and say what the base is, or [`Disk::qcow2_within`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if a backing file has no stated format or its name is a protocol;
    /// [`ErrorKind::Unsupported`] for encryption, external data files and other formats;
    /// [`ErrorKind::Corrupt`] for a header that contradicts the format or a chain that is a loop;
    /// otherwise what the system says.
    pub fn qcow2(path: impl AsRef<Path>) -> Result<Self> {
        Self::qcow2_within(path, &BackingPolicy::Any)
    }

    /// As [`Disk::qcow2`], with the files the headers may name limited by `policy`.
    ///
    /// # Errors
    ///
    /// As [`Disk::qcow2`]; [`ErrorKind::Refused`] for a name the policy does not allow.
    pub fn qcow2_within(path: impl AsRef<Path>, policy: &BackingPolicy) -> Result<Self> {
        let top = Layer::new(path, BaseFormat::Qcow2)?;
        let backing = chain::below(&top, policy)?;
        Ok(Self::new(top, backing))
    }

    /// A qcow2 overlay on a base the caller names; the overlay's header is not asked.
    ///
    /// # Errors
    ///
    /// As [`Disk::qcow2`], for what lies below a qcow2 base.
    pub fn overlay(path: impl AsRef<Path>, base: &BaseImage) -> Result<Self> {
        let top = Layer::new(path, BaseFormat::Qcow2)?;
        let base = Layer::new(base.path(), base.format())?;
        let mut backing = vec![base.clone()];
        backing.extend(chain::below(&base, &BackingPolicy::Any)?);
        Ok(Self::new(top, backing))
    }

    /// A disk made from `base` by any strategy; neither its header nor its content is asked.
    ///
    /// # Errors
    ///
    /// As [`Disk::qcow2`], for what lies below a qcow2 base.
    pub fn provided(disk: &ProvidedDisk, base: &BaseImage) -> Result<Self> {
        if disk.stands_on_base() {
            return Self::overlay(disk.path(), base);
        }
        let top = Layer::new(disk.path(), disk.format())?;
        // A copy stands on what the base stands on.
        let base = Layer::new(base.path(), base.format())?;
        Ok(Self::new(top, chain::below(&base, &BackingPolicy::Any)?))
    }

    /// A disk whose format is told by its first bytes: qcow2 if they are a qcow2 header's, else raw.
    /// Not for a raw disk that a guest has written to; that is [`Disk::raw`].
    ///
    /// # Errors
    ///
    /// As [`Disk::qcow2`].
    pub fn probe(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match probe_top(path)? {
            BaseFormat::Qcow2 => Self::qcow2(path),
            BaseFormat::Raw => Self::raw(path),
        }
    }

    fn new(top: Layer, backing: Vec<Layer>) -> Self {
        let detect_zeroes = top.format == BaseFormat::Qcow2;
        Self {
            top,
            backing,
            read_only: false,
            cache: CacheMode::default(),
            io: None,
            discard: true,
            detect_zeroes,
            serial: None,
            boot_index: None,
        }
    }

    /// Whether the guest may only read. Off by default.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// How the host caches the disk's file; files below it always go through the page cache.
    #[must_use]
    pub fn cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }

    /// How QEMU does I/O. Left to the hypervisor by default.
    #[must_use]
    pub fn io(mut self, io: Io) -> Self {
        self.io = Some(io);
        self
    }

    /// Whether a guest's discards free space on the host. On by default.
    #[must_use]
    pub fn discard(mut self, discard: bool) -> Self {
        self.discard = discard;
        self
    }

    /// Whether zeros a guest writes are stored as zeros rather than as data. On by default for
    /// qcow2, off for raw.
    #[must_use]
    pub fn detect_zeroes(mut self, detect_zeroes: bool) -> Self {
        self.detect_zeroes = detect_zeroes;
        self
    }

    /// A serial number for the guest to know the disk by, at most 20 bytes of printable ASCII.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// The disk's place in the boot order, from 1.
    #[must_use]
    pub fn boot_index(mut self, index: u32) -> Self {
        self.boot_index = Some(index);
        self
    }

    /// Where the disk's own file lies, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.top.path
    }

    /// The format of the disk's own file.
    #[must_use]
    pub fn format(&self) -> BaseFormat {
        self.top.format
    }

    /// The files below, nearest first.
    #[must_use]
    pub fn backing(&self) -> &[Layer] {
        &self.backing
    }

    /// Checks what a hypervisor would refuse, so that it is said here and with a hint. Both
    /// renderings call it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for options that exclude each other, a serial number virtio cannot
    /// carry, what is no file, or a raw disk too uneven for its cache mode;
    /// [`ErrorKind::Unsupported`] for a block device; otherwise what the system says.
    pub fn check(&self) -> Result<()> {
        if let Some(serial) = &self.serial
            && (serial.len() > SERIAL_MAX
                || !serial.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()))
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a serial number is at most 20 bytes of printable ASCII",
            )
            .with_path(self.path()));
        }
        if self.boot_index == Some(0) {
            return Err(Error::new(ErrorKind::InvalidInput, "the boot order is counted from 1")
                .with_path(self.path()));
        }
        if self.io == Some(Io::Native) && !self.cache.is_direct() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("native I/O does not go with cache mode {}", self.cache.as_str()),
            )
            .with_path(self.path())
            .with_hint("use cache mode none or directsync"));
        }
        self.check_kind()?;
        self.check_alignment()
    }

    /// Nobody opens a raw disk before QEMU does. One that is not there yet may still come. A block
    /// device has a driver of its own in QEMU, and an element of its own in libvirt.
    fn check_kind(&self) -> Result<()> {
        for layer in std::iter::once(&self.top).chain(&self.backing) {
            let Ok(metadata) = fs::metadata(layer.path()) else { continue };
            if metadata.file_type().is_block_device() {
                let message = "block devices are not attached, only files";
                return Err(Error::new(ErrorKind::Unsupported, message).with_path(layer.path()));
            }
            if !metadata.is_file() {
                let message = "a disk is a regular file";
                return Err(Error::new(ErrorKind::InvalidInput, message).with_path(layer.path()));
            }
        }
        Ok(())
    }

    /// QEMU: "Cannot get 'write' permission without 'resize': Image size is not a multiple of
    /// request alignment". The alignment is the file system's secret; 4096 satisfies them all.
    fn check_alignment(&self) -> Result<()> {
        if self.format() != BaseFormat::Raw || self.read_only || !self.cache.is_direct() {
            return Ok(());
        }
        let length = fs::metadata(self.path())
            .map_err(|error| Error::io("look at the disk", self.path(), error))?
            .len();
        if length.is_multiple_of(DIRECT_UNIT) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a raw disk of {length} bytes cannot be written with cache mode {}, which takes \
                 whole units of {DIRECT_UNIT}",
                self.cache.as_str()
            ),
        )
        .with_path(self.path())
        .with_hint("use cache mode writeback, or pad the disk to whole units"))
    }

    /// What to say of discards, if anything: a disk that is only read frees nothing.
    fn discard_word(&self) -> Option<&'static str> {
        (self.discard && !self.read_only).then_some("unmap")
    }

    /// What to say of zeroes, if anything. QEMU takes `unmap` only together with discard.
    fn detect_zeroes_word(&self) -> Option<&'static str> {
        (self.detect_zeroes && !self.read_only).then_some(if self.discard { "unmap" } else { "on" })
    }
}

/// VIRTIO_BLK_ID_BYTES of the virtio specification.
const SERIAL_MAX: usize = 20;

/// An absolute path that any C program can open. Symbolic links and `..` stay as they are.
fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(
            Error::new(ErrorKind::InvalidInput, "a path cannot hold a NUL byte").with_path(path)
        );
    }
    std::path::absolute(path).map_err(|error| Error::io("make absolute", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn an_uneven_raw_disk_is_refused_only_where_qemu_would_refuse_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [0; 5000]).unwrap();
        let disk = Disk::raw(&path).unwrap();
        let error = disk.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.hint().unwrap().contains("writeback"));
        assert!(disk.clone().cache(CacheMode::Writeback).check().is_ok());
        assert!(disk.clone().read_only(true).check().is_ok());
        fs::write(&path, [0; 8192]).unwrap();
        assert!(disk.check().is_ok());
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [0; 4096]).unwrap();
        let disk = || Disk::raw(&path).unwrap();
        for (name, disk, good) in [
            ("native, direct", disk().io(Io::Native), true),
            ("native, page cache", disk().io(Io::Native).cache(CacheMode::Unsafe), false),
            ("serial", disk().serial("SN, 1"), true),
            ("long serial", disk().serial("123456789012345678901"), false),
            ("serial with a newline", disk().serial("a\nb"), false),
            ("boot index", disk().boot_index(1), true),
            ("boot index 0", disk().boot_index(0), false),
        ] {
            assert_eq!(disk.check().is_ok(), good, "{name}");
        }
    }

    #[test]
    fn a_probe_tells_qcow2_by_its_magic_and_raw_ignores_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, chain::tests::image(None)).unwrap();
        assert_eq!(Disk::probe(&path).unwrap().format(), BaseFormat::Qcow2);
        assert_eq!(Disk::raw(&path).unwrap().format(), BaseFormat::Raw);
        fs::write(&path, b"QF").unwrap();
        assert_eq!(Disk::probe(&path).unwrap().format(), BaseFormat::Raw);
    }

    #[test]
    fn paths_become_absolute_and_hold_no_nul() {
        assert!(Disk::raw("x:disk").unwrap().path().is_absolute());
        assert!(Disk::raw("").is_err());
        let name = OsStr::from_bytes(b"a\0b");
        assert_eq!(Disk::raw(name).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
