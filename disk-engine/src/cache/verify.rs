//! Whether what is in the cache is what was put there.
//!
//! ```text
//!            a hit's checks ─▶ inode, ctime ─▶ every byte ─▶ root
//! quick        all              all            only if inode or ctime is another
//! full         all              all            all
//!
//! intact      nothing is wrong
//! relocated   intact, in a folder it was not made in: overlays name it where it was
//! stale       never synced, and the machine restarted: the next request makes it anew
//! busy        being made or removed at this moment
//! damaged     anything else, confirmed under the lock of its key: quarantined
//! ```
//!
//! An inode or a change time that is not the manifest's is a suspicion, no proof: a cache that was
//! copied or restored has others, and so has a base after a `chmod`. Its bytes decide; if they are
//! intact, the manifest is told the new ones, and the next quick look is quick.
//!
//! A base is read under a lease, so it stays, and nobody waits. What a lookup without the lock of the
//! key calls damaged may be on its way to be replaced, so the damage is looked at again under
//! that lock. Who holds it is making the base or removing it, and is not waited for. Bytes that could
//! not be read are tried once more before they are called damage.

mod content;

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cache::ImageCache;
use crate::cache::key::CacheKey;
use crate::cache::layout::Layout;
use crate::cache::lease::{self, Lease, Lookup};
use crate::cache::lock::{Acquired, CacheLock, Waiter};
use crate::cache::manifest::{ChangeTime, Manifest};
use crate::cache::{list, publish, quarantine, uses};
use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::LockMode;

/// How often a base may be replaced under our hands before it is called busy.
const TRIES: usize = 4;

/// How closely to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyMode {
    /// At what the file system says about each base; at its bytes only where that is suspicious.
    #[default]
    Quick,
    /// At every byte.
    Full,
}

/// What to verify. The default: all bases, quickly.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// How closely to look.
    pub mode: VerifyMode,
    /// The bases to look at; `None`: all.
    pub keys: Option<Vec<CacheKey>>,
    /// How many threads read; `None`: one a core.
    pub threads: Option<NonZeroUsize>,
    /// Only report: nothing in the cache is changed.
    pub keep: bool,
    /// Watches and stops the work.
    pub control: Control,
}

/// What was found.
#[derive(Debug)]
pub struct VerifyReport {
    /// Each base, in the order of keys.
    pub bases: Vec<VerifiedBase>,
    /// Bytes of bases that were read.
    pub bytes_read: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// How many bases are damaged.
    #[must_use]
    pub fn damaged(&self) -> usize {
        self.bases.iter().filter(|base| base.verdict == Verdict::Damaged).count()
    }
}

/// What a base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// What was put there.
    Intact,
    /// Not what was put there.
    Damaged,
    /// Intact, but in another folder than it was made in: overlays name it where it was.
    Relocated,
    /// Never synced, and the machine was restarted since: it may have lost data, and the next request
    /// makes it anew.
    Stale,
    /// Being made or removed at this moment.
    Busy,
}

impl Verdict {
    /// The word for it, as reports print it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Damaged => "damaged",
            Self::Relocated => "relocated",
            Self::Stale => "stale",
            Self::Busy => "busy",
        }
    }
}

/// A base, and what it is.
#[derive(Debug)]
pub struct VerifiedBase {
    /// Its key.
    pub key: CacheKey,
    /// Where it lies, or lay.
    pub path: PathBuf,
    /// Size of the disk in bytes, where a manifest says so.
    pub virtual_size: Option<u64>,
    /// What it is.
    pub verdict: Verdict,
    /// Why it is not simply intact.
    pub reason: Option<Error>,
    /// Where a damaged base is now.
    pub quarantined: Option<PathBuf>,
    /// Why a damaged base, or the manifest of one that was moved, could not be moved, other than that it
    /// is in use.
    pub obstacle: Option<Error>,
    /// Whether someone uses a damaged base, or nobody can tell. It stays under its name, and the next
    /// request replaces it.
    pub in_use: bool,
    /// Overlays that stand on a base that is damaged, stale or relocated, or may.
    pub overlays: Vec<PathBuf>,
    /// Whether every byte of it was read and found right.
    pub verified_fully: bool,
}

impl ImageCache {
    /// Looks at the bases in the cache, and quarantines those that are damaged: the next request
    /// makes them anew. One that is in use stays under its name, but is not served any more. In a
    /// cache that cannot be written to, nothing is moved, and the report says so.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`]: a base that was asked for by its key is not there.
    /// - [`ErrorKind::Cancelled`]: the caller cancelled. What was moved until then stays moved.
    /// - What the system says that is no fault of a base: no descriptors, no memory, no locks.
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let started = Instant::now();
        let keys = match &options.keys {
            Some(keys) => keys.iter().copied().collect::<BTreeSet<_>>(),
            None => list::keys(&self.layout)?.into_iter().collect(),
        };
        let mut verification = Verification { layout: &self.layout, options, bytes_read: 0 };
        let mut bases = Vec::new();
        for key in keys {
            options.control.check()?;
            match verification.base(&key)? {
                Some(base) => bases.push(base),
                None if options.keys.is_some() => {
                    return Err(Error::new(ErrorKind::NotFound, "the cache has no such base")
                        .with_path(self.layout.base(&key)));
                }
                // Removed since the folder was listed.
                None => {}
            }
        }
        let bytes_read = verification.bytes_read;
        Ok(VerifyReport { bases, bytes_read, elapsed: started.elapsed() })
    }
}

/// What one look at a base said.
enum Finding {
    Intact { lease: Box<Lease>, metadata: Metadata, suspicious: bool, read: bool },
    Stale(Error),
    Damaged(Damage),
    Busy,
    Absent,
}

/// A damage, before it is confirmed.
struct Damage {
    reason: Error,
    /// The lease under which the bytes were read, where that is what told.
    lease: Option<Box<Lease>>,
}

impl Damage {
    /// Whether bytes could not be read, rather than being others.
    fn is_failure(&self) -> bool {
        self.lease.is_some() && self.reason.kind() != ErrorKind::Corrupt
    }
}

/// What a look under the lock of the key said.
enum Confirmed {
    Yes,
    Replaced,
}

struct Verification<'a> {
    layout: &'a Layout,
    options: &'a VerifyOptions,
    bytes_read: u64,
}

impl Verification<'_> {
    /// Looks at the base of `key`; `None` if there is none.
    fn base(&mut self, key: &CacheKey) -> Result<Option<VerifiedBase>> {
        let mut failed = false;
        for _ in 0..TRIES {
            match self.look(key)? {
                Finding::Intact { lease, metadata, suspicious, read } => {
                    if suspicious && !self.options.keep {
                        self.stamp(&lease, &metadata);
                    }
                    return Ok(Some(self.intact(key, &lease.manifest, read)));
                }
                Finding::Stale(reason) => {
                    let size = self.virtual_size(key);
                    return Ok(Some(self.report(key, Verdict::Stale, Some(reason), size)));
                }
                // A medium that fails may do so once, and the base under its overlays be sound.
                Finding::Damaged(damage) if !failed && damage.is_failure() => failed = true,
                Finding::Damaged(damage) => {
                    if let Some(base) = self.damaged(key, damage)? {
                        return Ok(Some(base));
                    }
                }
                Finding::Busy => break,
                Finding::Absent => {
                    return Ok(match self.lock(key) {
                        Err(error) if error.kind() == ErrorKind::Busy => {
                            Some(self.report(key, Verdict::Busy, Some(error), None))
                        }
                        _ => None,
                    });
                }
            }
        }
        let reason = Error::new(ErrorKind::Busy, "the base is being made or removed")
            .with_path(self.layout.base(key));
        Ok(Some(self.report(key, Verdict::Busy, Some(reason), self.virtual_size(key))))
    }

    /// One look, without the lock of the key.
    fn look(&mut self, key: &CacheKey) -> Result<Finding> {
        let lease = match lease::inspect(self.layout, key)? {
            Lookup::Found(lease) => lease,
            Lookup::Absent => return Ok(Finding::Absent),
            Lookup::Contended => return Ok(Finding::Busy),
            Lookup::Damaged(reason) if lease::is_stale(&reason) => {
                return Ok(Finding::Stale(reason));
            }
            Lookup::Damaged(reason) => {
                return Ok(Finding::Damaged(Damage { reason, lease: None }));
            }
        };
        let path = self.layout.base(key);
        // From before the bytes are read: a change after that makes it suspicious again.
        let metadata =
            lease.file().metadata().map_err(|error| Error::io("look at the base", &path, error))?;
        let suspicious = lease.manifest.inode != metadata.ino()
            || lease.manifest.changed != Some(ChangeTime::of(&metadata));
        let read = suspicious || self.options.mode == VerifyMode::Full;
        if read {
            let reading = content::read(&lease, &path, self.threads(), &self.options.control)?;
            self.bytes_read = self.bytes_read.saturating_add(reading.bytes);
            if let Some(reason) = reading.objection {
                let reason = reason.or_path(&path);
                return Ok(Finding::Damaged(Damage { reason, lease: Some(lease) }));
            }
        }
        Ok(Finding::Intact { lease, metadata, suspicious, read })
    }

    /// Confirms a damage and moves the base away; `None` if it was replaced meanwhile.
    fn damaged(&self, key: &CacheKey, damage: Damage) -> Result<Option<VerifiedBase>> {
        let virtual_size = self.virtual_size(key);
        let report = |verdict, reason| self.report(key, verdict, Some(reason), virtual_size);
        let (lock, mut obstacle) = match self.lock(key) {
            Ok(lock) => (Some(lock), None),
            Err(error) if error.kind() == ErrorKind::Busy => {
                return Ok(Some(report(Verdict::Busy, error)));
            }
            // A cache that cannot be written to, or in which nothing more fits: it can be reported.
            Err(error) => (None, Some(error)),
        };
        if matches!(self.confirm(key, &damage)?, Confirmed::Replaced) {
            return Ok(None);
        }
        let Damage { reason, lease } = damage;
        // Our own lease would make it look used.
        drop(lease);
        let outcome = match lock {
            Some(_) if !self.options.keep => quarantine::quarantine(self.layout, key, &reason),
            _ => quarantine::is_in_use(self.layout, key)
                .map(|in_use| quarantine::Quarantined { in_use, ..Default::default() }),
        };
        drop(lock);
        let outcome = outcome.unwrap_or_else(|error| {
            obstacle.get_or_insert(error);
            quarantine::Quarantined { in_use: true, ..Default::default() }
        });
        Ok(Some(VerifiedBase {
            quarantined: outcome.base,
            in_use: outcome.in_use,
            obstacle: obstacle.or(outcome.obstacle).filter(|_| !self.options.keep),
            ..report(Verdict::Damaged, reason)
        }))
    }

    /// Whether the base that was found damaged is still the one there.
    fn confirm(&self, key: &CacheKey, damage: &Damage) -> Result<Confirmed> {
        let same = match &damage.lease {
            Some(lease) => {
                lease.still_named()?
                    && lease::manifest(self.layout, key)?.is_some_and(|now| now == lease.manifest)
            }
            None => match lease::inspect(self.layout, key)? {
                Lookup::Damaged(reason) => !lease::is_stale(&reason),
                _ => false,
            },
        };
        Ok(if same { Confirmed::Yes } else { Confirmed::Replaced })
    }

    /// Tells the manifest which file the intact base is now. If that fails, or the base was
    /// replaced, the next look finds it suspicious once more.
    fn stamp(&self, lease: &Lease, metadata: &Metadata) {
        let key = &lease.manifest.key;
        let Ok(_lock) = self.lock(key) else { return };
        // Hardened meanwhile, it has another manifest: that one is kept.
        if lease.still_named().unwrap_or(false)
            && self.manifest(key).as_ref() == Some(&lease.manifest)
        {
            // Whoever was killed while doing this may be followed by no extraction.
            self.layout.sweep();
            let _ = publish::stamp(self.layout, &lease.manifest, metadata);
        }
    }

    /// Tries for the lock of the key.
    fn lock(&self, key: &CacheKey) -> Result<CacheLock> {
        let control = Control::new();
        let path = self.layout.key_lock(key);
        let never = || Ok(None::<CacheLock>);
        match Waiter::new(&control, Some(Duration::ZERO)).acquire(
            &path,
            LockMode::Exclusive,
            "verifying a base",
            never,
        )? {
            Acquired::Locked(lock) | Acquired::Done(lock) => Ok(lock),
        }
    }

    fn intact(&self, key: &CacheKey, manifest: &Manifest, read: bool) -> VerifiedBase {
        let (verdict, reason) = if manifest.root == self.layout.root() {
            (Verdict::Intact, None)
        } else {
            let message = format!("the base was made in the cache {:?}", manifest.root);
            let reason = Error::new(ErrorKind::Mismatch, message)
                .with_path(self.layout.base(key))
                .with_hint("overlays made there name it below that folder: `disk-engine rebase`");
            (Verdict::Relocated, Some(reason))
        };
        VerifiedBase {
            verified_fully: read,
            ..self.report(key, verdict, reason, Some(manifest.virtual_size))
        }
    }

    fn report(
        &self,
        key: &CacheKey,
        verdict: Verdict,
        reason: Option<Error>,
        virtual_size: Option<u64>,
    ) -> VerifiedBase {
        VerifiedBase {
            key: *key,
            path: self.layout.base(key),
            virtual_size,
            verdict,
            reason,
            quarantined: None,
            obstacle: None,
            in_use: false,
            overlays: overlays(self.layout, key, verdict),
            verified_fully: false,
        }
    }

    fn virtual_size(&self, key: &CacheKey) -> Option<u64> {
        self.manifest(key).map(|manifest| manifest.virtual_size)
    }

    /// The manifest under the key's name, if it is intact and this key's.
    fn manifest(&self, key: &CacheKey) -> Option<Manifest> {
        let manifest = lease::manifest(self.layout, key).ok().flatten();
        manifest.filter(|manifest| manifest.key == *key)
    }

    fn threads(&self) -> NonZeroUsize {
        self.options
            .threads
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }
}

/// The overlays to name: those that stand on a base that is not what it was where it was, or may.
fn overlays(layout: &Layout, key: &CacheKey, verdict: Verdict) -> Vec<PathBuf> {
    if !matches!(verdict, Verdict::Damaged | Verdict::Relocated | Verdict::Stale) {
        return Vec::new();
    }
    // A record that cannot be read names none; `prune` says so and keeps the base.
    let standing = uses::standing(layout, key).unwrap_or_default();
    standing.needing().map(|overlay| overlay.path.clone()).collect()
}
