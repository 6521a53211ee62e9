//! Every way to hand out a disk of a base, behind one call.
//!
//! ```text
//!            strategy  file            new, it takes        the base afterwards
//! base ─┬─▶  overlay   qcow2           12 KiB               must stay: the overlay reads through it
//!       ├─▶  reflink   as the base's   next to nothing      free to go: storage is shared by block
//!       └─▶  copy      as the base's   the base's data      free to go
//! ```
//!
//! [`Strategy::Auto`] decides so, and in no other way:
//!
//! ```text
//! raw disk wanted, or the base's path too long for a backing file name (over 1023 bytes)?
//!   no  ─▶ overlay
//!   yes ─▶ reflink ── the file system has none, or base and disk lie on two ──▶ copy
//! ```
//!
//! A strategy named is that or an error. What was done is what [`ProvidedDisk::how`] says, not what
//! was asked for. A reflink and a copy are new files of mode 0600 that appear whole or not at all,
//! in the base's format, and need no lease; a qcow2 base's own backing file stays theirs too.
//!
//! Callers: `ops::prepare`, and whoever has a [`BaseImage`].

mod independent;
mod reuse;
pub mod room;
mod source;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow2_format::header::BACKING_NAME_MAX;

use crate::base::{BaseFormat, BaseImage};
use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay;
use crate::sys::pending::{Durability, Existing};

/// How a disk is made of its base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// An overlay where that will do, else a reflink, else a copy; see [`self`].
    #[default]
    Auto,
    /// A thin qcow2 image over the base.
    Overlay,
    /// A file that shares the base's storage, block by block, until it is written to.
    Reflink,
    /// A file with the base's data, holes left as holes. Where the file system copies by sharing
    /// storage, as btrfs and XFS do, it may take no space before it is written to.
    Copy,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Overlay, Self::Reflink, Self::Copy];

    /// The strategy's name, as the command line knows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

/// What a strategy comes to, for one base and one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    Overlay,
    Reflink,
    ReflinkElseCopy,
    Copy,
}

impl BaseImage {
    /// Starts a disk of this base at `path`, by whichever strategy.
    pub fn disk(&self, path: impl Into<PathBuf>) -> DiskBuilder<'_> {
        DiskBuilder {
            base: self,
            path: path.into(),
            strategy: Strategy::Auto,
            raw: false,
            min_size: 0,
            reuse: false,
            relative: false,
            mode: 0o600,
            owner: None,
            existing: Existing::Refuse,
            durability: Durability::None,
            control: Control::new(),
        }
    }
}

/// How a disk is to be made.
#[derive(Clone, Debug)]
#[must_use]
pub struct DiskBuilder<'base> {
    base: &'base BaseImage,
    path: PathBuf,
    strategy: Strategy,
    raw: bool,
    min_size: u64,
    reuse: bool,
    relative: bool,
    mode: u32,
    owner: Option<(Option<u32>, Option<u32>)>,
    existing: Existing,
    durability: Durability,
    control: Control,
}

impl DiskBuilder<'_> {
    /// How to make it; [`Strategy::Auto`] unless said otherwise.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Asks for a raw file: no overlay then, and no copy of a qcow2 base.
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// The disk's least size in bytes; grows the base's size and never cuts it. A size that grows
    /// is rounded up to whole sectors of 512 bytes. A copy of a qcow2 base cannot grow.
    ///
    /// A partition table with its backup at the disk's end (GPT) stays where it was, as under a
    /// larger overlay; the guest moves it.
    pub fn min_size(mut self, bytes: u64) -> Self {
        self.min_size = bytes;
        self
    }

    /// Keeps a disk that already stands there, with the guest's state, if it fits.
    ///
    /// An overlay is compared with the base as [`overlay::OverlayBuilder::reuse`] says. A raw disk
    /// is all the guest's, so of it is checked what can be: a regular file, no link, of the user
    /// asked for (else ours), at least as long as asked for, that does not begin as a qcow2 image
    /// where the base does not. Which base it was made from is noted in an extended attribute and
    /// compared where that is still there; not every file system keeps it, nor does `cp`. Its
    /// content is not compared.
    pub fn reuse(mut self, reuse: bool) -> Self {
        self.reuse = reuse;
        self
    }

    /// Names the base relative to an overlay's folder; a reflink or copy names none.
    pub fn relative(mut self, relative: bool) -> Self {
        self.relative = relative;
        self
    }

    /// The file's permission bits, whatever the umask; 0600 unless said otherwise.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Gives the file to another user or group. Needs the privilege, and user ids that exist in
    /// this user namespace.
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// What to do with another file of that name. [`DiskBuilder::reuse`] comes first.
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// How hard to sync; not at all unless said otherwise.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Stops and watches a copy; see [`Event::Copying`](crate::Event::Copying).
    pub fn control(mut self, control: Control) -> Self {
        self.control = control;
        self
    }

    /// Makes the disk, or verifies and keeps the one that stands there.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::AlreadyExists`]: something stands there and neither reuse nor replacement was
    ///   asked for; [`ErrorKind::Mismatch`]: what stands there does not fit, or the base changed
    ///   meanwhile.
    /// - [`ErrorKind::Unsupported`]: [`Strategy::Reflink`] where storage cannot be shared; a copy
    ///   of a qcow2 base that would have to grow, be raw, or part from files it names.
    /// - [`ErrorKind::InvalidInput`]: a raw overlay; a disk in place of its own base; a base whose
    ///   path cannot be a backing file name, with [`Strategy::Overlay`].
    /// - [`ErrorKind::NoSpace`], [`ErrorKind::Cancelled`], and otherwise what the system says.
    ///
    /// Nothing is left of a disk that failed.
    pub fn create(&self) -> Result<ProvidedDisk> {
        match self.means()? {
            Means::Overlay => self.overlay(),
            Means::Reflink => self.independent(Means::Reflink),
            Means::ReflinkElseCopy => self.independent(Means::ReflinkElseCopy),
            Means::Copy => self.independent(Means::Copy),
        }
    }

    /// The format the disk will have.
    ///
    /// # Errors
    ///
    /// What makes no sense to [`DiskBuilder::create`].
    pub fn format(&self) -> Result<BaseFormat> {
        Ok(match self.means()? {
            Means::Overlay => BaseFormat::Qcow2,
            _ => self.base.format(),
        })
    }

    /// What the strategy comes to here.
    pub(crate) fn means(&self) -> Result<Means> {
        let means = match self.strategy {
            Strategy::Auto if !self.raw && self.can_be_named() => Means::Overlay,
            Strategy::Auto => Means::ReflinkElseCopy,
            Strategy::Overlay => Means::Overlay,
            Strategy::Reflink => Means::Reflink,
            Strategy::Copy => Means::Copy,
        };
        if !self.raw {
            return Ok(means);
        }
        if means == Means::Overlay {
            let message = "an overlay is a qcow2 image, and a raw disk is asked for";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(&self.path)
                .with_hint("use strategy reflink, copy or auto"));
        }
        if self.base.format() != BaseFormat::Raw {
            let message = "the base is a qcow2 image, and so are its copies";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_path(self.base.path())
                .with_hint("convert the base to raw first"));
        }
        Ok(means)
    }

    /// Whether an overlay can name the base. A folder that is not there yet is no reason against
    /// it.
    fn can_be_named(&self) -> bool {
        let fits = |name: &Path| name.as_os_str().as_bytes().len() <= BACKING_NAME_MAX;
        if !self.relative {
            return fits(self.base.path());
        }
        overlay::relative_path(self.base.path(), &self.path).map_or(true, |name| fits(&name))
    }

    fn overlay(&self) -> Result<ProvidedDisk> {
        let mut builder = self
            .base
            .overlay(&self.path)
            .min_size(self.min_size)
            .reuse(self.reuse)
            .relative(self.relative)
            .mode(self.mode)
            .existing(self.existing)
            .durability(self.durability);
        if let Some((user, group)) = self.owner {
            builder = builder.owner(user, group);
        }
        let overlay = builder.create()?;
        Ok(ProvidedDisk {
            path: self.path.clone(),
            format: BaseFormat::Qcow2,
            how: Provided::Overlay,
            virtual_size: overlay.virtual_size(),
            reused: overlay.reused(),
        })
    }

    fn independent(&self, means: Means) -> Result<ProvidedDisk> {
        if self.reuse && self.path.symlink_metadata().is_ok() {
            return reuse::verify(self);
        }
        match independent::create(self, means) {
            // Someone else was faster: theirs is as good as ours, if it fits.
            Err(error) if self.reuse && error.kind() == ErrorKind::AlreadyExists => {
                reuse::verify(self)
            }
            outcome => outcome,
        }
    }

    /// The length of a file in the base's format that is a disk of the size asked for.
    fn file_length(&self, base_length: u64) -> Result<u64> {
        if self.min_size <= self.base.virtual_size() {
            return Ok(base_length);
        }
        if self.base.format() != BaseFormat::Raw {
            let message = "a copy of a qcow2 image cannot be made larger";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_field("min-size")
                .with_path(&self.path)
                .with_hint("use strategy overlay"));
        }
        self.min_size.checked_next_multiple_of(512).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "no disk is that large")
                .with_field("min-size")
                .with_path(&self.path)
        })
    }
}

/// What a disk was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provided {
    /// An overlay over the base, new or kept.
    Overlay,
    /// A new file that shares all of the base's storage.
    Reflink,
    /// A new file the base's data was copied to.
    Copy(Copied),
    /// A file of its own that stood there and was kept; how it was made, nobody noted.
    Kept,
}

impl Provided {
    /// The word reports use: a strategy's name, or `kept`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => Strategy::Overlay.as_str(),
            Self::Reflink => Strategy::Reflink.as_str(),
            Self::Copy(_) => Strategy::Copy.as_str(),
            Self::Kept => "kept",
        }
    }
}

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes the kernel copied from file to file, or shared (`copy_file_range`).
    pub offloaded: u64,
    /// Bytes that were read and written.
    pub written: u64,
    /// Whether the new file shares storage with others, as far as its first 128 extents tell;
    /// `None` where the file system does not say.
    pub shared: Option<bool>,
}

/// A disk that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedDisk {
    path: PathBuf,
    format: BaseFormat,
    how: Provided,
    virtual_size: u64,
    reused: bool,
}

impl ProvidedDisk {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's format.
    #[must_use]
    pub fn format(&self) -> BaseFormat {
        self.format
    }

    /// What it was made by.
    #[must_use]
    pub fn how(&self) -> Provided {
        self.how
    }

    /// Size of the disk the guest sees, in bytes. A hypervisor rounds a raw file's length up to
    /// sectors.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Whether it stood there before, with the guest's state.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Whether it needs its base for as long as it lives.
    #[must_use]
    pub fn stands_on_base(&self) -> bool {
        matches!(self.how, Provided::Overlay)
    }
}
