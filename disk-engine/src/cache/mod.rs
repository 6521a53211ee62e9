//! A folder of bases that many processes share: each is extracted once, and used by all.
//!
//! ```no_run
//! use disk_engine::cache::ImageCache;
//! use disk_engine::source::Source;
//!
//! let base = ImageCache::open("/var/tmp/bases")?.base(Source::path("disk-img.tar.zst"))?;
//! println!("{} is there, complete, and stays while `base` lives", base.path().display());
//! # Ok::<(), disk_engine::Error>(())
//! ```
//!
//! # The folder
//!
//! ```text
//! CACHE/                   0700, ours; refused if anyone else may write to it
//! ├── CACHEDIR.TAG         tells backups to leave it out; written into an empty folder only
//! └── v1/                  this layout; a later one is a folder of its own beside it
//!     ├── bases/
//!     │   ├── KEY.img      a base: raw, sparse, 0444; complete or absent
//!     │   └── KEY.manifest what it is and how to tell it is intact; without a base it means nothing
//!     ├── locks/
//!     │   ├── KEY.lock     held by who makes that base; says who
//!     │   ├── length-N.lock  held by who extracts a source of N bytes
//!     │   └── probe.lock   held for a moment by who opens the cache, to see that locks exclude
//!     ├── quarantine/      damaged bases a verification found, each with the reason; made when needed
//!     ├── sources/         remembered digests, one small file per source file
//!     ├── uses/
//!     │   └── KEY          overlays that were made over the base; when it was asked for last
//!     └── tmp/             what is being made, under random names, locked while it is
//! ```
//!
//! `KEY` is 64 hexadecimal digits; [`KeyPolicy`] says what of. All records are big-endian
//! and carry a version and a CRC-32.
//!
//! Folders are made 0700, and refused only for a permission to write: who runs QEMU as another user
//! may let it pass (`chmod o+x`) down to `bases/`.
//!
//! # Locks
//!
//! Three kinds, all advisory (`flock`), all released by the kernel when their process ends:
//!
//! - A **lease** is a shared lock on a base file. Whoever uses a base holds one, in a
//!   [`BaseImage`]. Leases never wait for each other, and nothing else is locked to find a base
//!   that is there: eight starting VMs are not queued.
//! - A **key lock** is held, exclusively, by whoever makes the base of that key. Others who want
//!   the base wait for either: the lock, or the base.
//! - A **length lock** is held by whoever extracts a file of that length: shared if the file's
//!   digest is known, exclusively if it is being learnt. Two files of equal content have
//!   equal lengths, so the same content is not extracted twice under two names.
//!
//! Giving a base its name, or taking it away as damaged, takes the folder `bases/` itself for a moment,
//! too: a cleaner may remove lock files, and with them what keeps two makers of one key apart.
//!
//! Someone who needs several takes the length lock first, then the key lock, then the lease. Who
//! removes a base takes the key lock, then tries for the exclusive lock on the base file: it
//! gets it only if no lease is held. A request may wait for the first two, with a timeout, a cancel
//! token, and an event that says for whom; it never waits for a lease.
//!
//! # Who needs a base
//!
//! A base stays while a lease is held, while a QEMU has it open (QEMU locks byte ranges of what it
//! opens), and while an overlay stands on it. Overlays made through a [`BaseImage`] of the cache, by
//! whichever call, are noted before they get their name, so that they keep their base when no process
//! runs. A note is checked against the overlay's own header, and forgotten once nothing that names the
//! base is there. An overlay that moved keeps its base no more until it is reused or rebased at its new
//! place; one made by other programs was never noted. [`ImageCache::prune`] goes by this and by nothing
//! else: neither age nor size takes away what is needed.
//!
//! # Forked children
//!
//! A forked child holds nothing: it neither keeps its parent's locks when the parent releases them
//! nor releases them by dropping its copies. One thing the kernel does not give: if the parent is
//! killed while a child that never called `exec` lives on, the locks live on with it.
//!
//! Locks are advisory, so they bind programs that take them. On NFS they are emulated and work
//! between machines, unless it is mounted with `local_lock` or `nolock`: that is refused, unless
//! [`CacheOptions`] accept it. A file system that has no locks, or grants the same one twice, is
//! refused as the cache is opened.
//!
//! # What holds when things go wrong
//!
//! - A process killed anywhere leaves at most a file in `tmp/` whose lock is free, and a manifest without a
//!   base. The file goes with the next extraction or prune, with a hit on the base its maker had
//!   just named, or when a verification is done that was cut short. A file's age decides nothing.
//! - A base or manifest that is truncated, damaged, writable, foreign or a planted link is made
//!   anew, never served. Bytes changed inside a base behind the back of its modification time are
//!   for [`ImageCache::verify`] to find, which quarantines what is damaged.
//! - A base is not synced with [`Durability::None`], the default, so after a crash of the machine
//!   it might have lost data: its manifest names the boot it was made in, and in another one it is
//!   made anew. Where the boot cannot be told (no `/proc`), bases are always synced.
//! - A failed extraction leaves nothing and lets the next one waiting try for itself.
//!
//! # Other versions
//!
//! The layout (`v1`), the encoding of keys, and each kind of record carry a version of their own. A
//! program with a later layout works in its own folder and leaves this one alone; one that only
//! knows this layout never looks outside of it. Within `v1` none of the above changes meaning; names
//! not listed above are left alone.

pub(crate) mod holder;
mod key;
mod layout;
mod lease;
mod list;
mod lock;
mod locking;
pub(crate) mod manifest;
mod mapped;
pub(crate) mod memo;
mod populate;
mod prune;
mod publish;
mod quarantine;
pub(crate) mod record;
mod users;
pub(crate) mod uses;
pub mod verify;

use std::path::Path;
use std::time::Duration;

pub use key::{CacheKey, KeyPolicy};
pub use list::{BaseState, CacheListing, ListedBase};
pub use prune::{Debris, KeptBase, KeptBecause, PruneOptions, PruneReport, RemovedBase};
pub use uses::{OverlayState, OverlayUse};
pub use verify::{Verdict, VerifiedBase, VerifyMode, VerifyOptions, VerifyReport};

use crate::base::BaseImage;
use crate::control::Control;
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::sys::pending::Durability;
use crate::transfer::TransferReport;
use layout::Layout;
use lease::{Lease, Lookup};

/// A folder of shared bases. Opening one is cheap; threads may share it or open their own.
#[derive(Debug)]
pub struct ImageCache {
    layout: Layout,
}

/// How a cache is opened. The default: only where locks bind everyone who can reach it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheOptions {
    /// Accept a network file system whose locks do not reach other machines: the caller vouches that
    /// no other machine uses the cache.
    pub accept_local_locks: bool,
}

/// How a base is wanted. The default: by content, waiting for as long as it takes.
#[derive(Clone, Debug)]
pub struct BaseOptions {
    /// What makes two requests ask for the same base.
    pub policy: KeyPolicy,
    /// How long to wait for others, in all; `None`: as long as it takes. One's own extraction does
    /// not count.
    pub timeout: Option<Duration>,
    /// Whether a new base must survive a power cut.
    pub durability: Durability,
    /// Watches and stops the work.
    pub control: Control,
}

impl Default for BaseOptions {
    fn default() -> Self {
        Self {
            policy: KeyPolicy::default(),
            timeout: None,
            durability: Durability::None,
            control: Control::default(),
        }
    }
}

/// A base, and how it came.
#[derive(Debug)]
pub struct CachedBase {
    /// The base. The cache keeps it while this lives.
    pub image: BaseImage,
    /// How it came.
    pub origin: Origin,
    /// SHA-256 of the source, compressed as it was; unknown for a base under a name.
    pub source_sha256: Option<Sha256Digest>,
    /// Bytes of storage the base takes, holes not counted.
    pub allocated: u64,
}

/// How a base came.
#[derive(Clone, Debug)]
pub enum Origin {
    /// It was there. So it is said, too, of a stream that was read and turned out to be there.
    Hit,
    /// Someone else was making it, and we waited.
    Waited,
    /// We made it.
    Extracted(Box<TransferReport>),
}

impl ImageCache {
    /// Opens the cache in `folder`, making it (mode 0700) if it is not there. A cache that is
    /// complete may be read-only: what is in it can be found.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if a folder of it belongs to someone else,
    /// may be written to by others, or is a symbolic link;
    /// [`ErrorKind::Unsupported`] if its file system has no locks, or
    /// keeps them from other machines; otherwise what the system says.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, &CacheOptions::default())
    }

    /// As [`ImageCache::open`], with options.
    ///
    /// # Errors
    ///
    /// As [`ImageCache::open`].
    pub fn open_with(folder: impl AsRef<Path>, options: &CacheOptions) -> Result<Self> {
        let layout = Layout::open(folder.as_ref())?;
        locking::check(&layout, options)?;
        Ok(Self { layout })
    }

    /// Opens the cache in `folder` if there is one, and makes none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is none; otherwise as
    /// [`ImageCache::open`].
    pub fn existing(folder: impl AsRef<Path>) -> Result<Self> {
        let layout = Layout::existing(folder.as_ref())?;
        locking::check(&layout, &CacheOptions::default())?;
        Ok(Self { layout })
    }

    /// The cache's folder: absolute, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.layout.root()
    }

    /// The base that `source` holds, by content: extracted now, if nobody has done it before.
    ///
    /// # Errors
    ///
    /// As [`ImageCache::base_with`].
    pub fn base(&self, source: impl Into<Source>) -> Result<BaseImage> {
        self.base_with(source, &BaseOptions::default()).map(|base| base.image)
    }

    /// The base that `source` holds, as `options` want it, and how it came.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Busy`]: someone else is making it, for longer than
    ///   the timeout; the message says who.
    /// - [`ErrorKind::Cancelled`]: the caller cancelled.
    /// - [`ErrorKind::Mismatch`]: the source has another digest than
    ///   was stated, or changed while it was read.
    /// - [`ErrorKind::Unsupported`]: the cache's file system cannot
    ///   lock, or the source is of a kind this crate does not handle.
    /// - [`ErrorKind::Refused`]: something else stands where a lock file
    ///   belongs.
    /// - What extracting the source says: corrupt, not found, no space.
    ///
    /// Whichever it is, the cache is as it was before.
    pub fn base_with(
        &self,
        source: impl Into<Source>,
        options: &BaseOptions,
    ) -> Result<CachedBase> {
        populate::base(&self.layout, source.into(), options)
    }
}

/// Leases the base at `path`, which is absolute and without links, if it is one of a cache of ours.
///
/// # Errors
///
/// [`ErrorKind::Busy`] if it is being removed or replaced at this moment;
/// otherwise what the system says.
pub(crate) fn lease_of(path: &Path) -> Result<Option<BaseImage>> {
    let Some((root, key)) = Layout::of_base(path) else { return Ok(None) };
    // What only looks like a cache, or is not ours, is a folder with files in it.
    let Ok(layout) = Layout::existing(root) else { return Ok(None) };
    match lease::look_up(&layout, &key)? {
        Lookup::Found(lease) => Ok(Some(lease.into_image())),
        Lookup::Absent | Lookup::Damaged(_) => Ok(None),
        Lookup::Contended => {
            let message = "the base is being removed or replaced";
            Err(Error::new(ErrorKind::Busy, message).with_path(path))
        }
    }
}

impl CachedBase {
    fn new(lease: Lease, origin: Origin) -> Self {
        Self {
            source_sha256: lease.manifest.source_sha256,
            allocated: lease.allocated,
            image: lease.into_image(),
            origin,
        }
    }
}

impl Origin {
    /// The word for it, as reports print it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Waited => "waited",
            Self::Extracted(_) => "extracted",
        }
    }
}

#[cfg(test)]
mod tests;
