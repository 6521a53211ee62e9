//! Making room: bases nobody needs, and what killed processes left.
//!
//! ```text
//! what                              goes                                    is judged by
//! temporary in tmp/                 if its lock is free                     the lock, never its age
//! manifest, notes without a base    if the key's lock is free and no overlay stands
//! lock file without a base          if its lock is free
//! file in quarantine/               if it is too old, or room is wanted; before any base
//! base that would not be served     if nobody needs it
//! base                              if nobody needs it, and it is too old, or room is wanted:
//!                                   the one not asked for the longest first
//! ```
//!
//! A base is needed while a process holds a lease on it, a QEMU has it open, or an overlay stands on it
//! ([`uses`](super::uses)). A base goes in this order, so that a kill at any point leaves what the next
//! prune takes:
//!
//! 1. the key's lock, without waiting: who makes the base is in nobody's way;
//! 2. the exclusive lock on the base: from here on nobody leases it, or notes an overlay;
//! 3. no QEMU, no overlay;
//! 4. the base loses its name, then its manifest and its notes.
//!
//! Whoever asks for the base meanwhile finds it, or waits for the key's lock and makes it anew. A dry
//! run takes the same steps up to the third.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::layout::Layout;
use super::list::{self, BaseState, Glance};
use super::lock::{Acquired, CacheLock, Waiter};
use super::users::{self, Leases, Users};
use super::uses::{self, OverlayUse, Standing};
use super::{CacheKey, ImageCache};
use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::LockMode;
use crate::sys::{pending, space};

/// What is to go. The default: only what serves nobody.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Remove bases that were not asked for in this time.
    pub max_age: Option<Duration>,
    /// Remove bases until all that are left take no more storage than this, in bytes.
    pub max_size: Option<u64>,
    /// Remove bases until the file system has this many bytes left.
    pub keep_free: Option<u64>,
    /// Let no overlay keep a base of which nobody can tell whether it is still there.
    pub forget_unknown: bool,
    /// Change nothing, and say what would be done.
    pub dry_run: bool,
    /// Stops the work.
    pub control: Control,
}

/// What went, or would go in a dry run, and what stayed.
#[derive(Clone, Debug, Default)]
pub struct PruneReport {
    /// The bases that went.
    pub removed: Vec<RemovedBase>,
    /// The bases that stayed although something spoke against them, and all others: see
    /// [`KeptBase::because`].
    pub kept: Vec<KeptBase>,
    /// What no base needs any more.
    pub debris: Debris,
    /// Bytes of storage all bases took before.
    pub allocated_before: u64,
    /// Bytes left on the file system afterwards; estimated in a dry run.
    pub available: u64,
    /// Whether the goals of size and free space are met.
    pub goals_met: bool,
    /// Whether nothing was changed.
    pub dry_run: bool,
}

/// A base that went.
#[derive(Clone, Debug)]
pub struct RemovedBase {
    /// Its key.
    pub key: String,
    /// Where it lay.
    pub path: PathBuf,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes of storage it took; shared storage counts.
    pub allocated: u64,
    /// What it was extracted from.
    pub source: Option<String>,
    /// When it was asked for last, in seconds since the Unix epoch.
    pub last_used: i64,
}

/// A base that stayed.
#[derive(Clone, Debug)]
pub struct KeptBase {
    /// Its key.
    pub key: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes of storage it takes.
    pub allocated: u64,
    /// Why it stays.
    pub because: KeptBecause,
}

/// Why a base stays.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptBecause {
    /// Nothing spoke against it.
    Wanted,
    /// Somebody makes, replaces or removes it at this moment.
    Changing,
    /// A process holds a lease.
    Leased,
    /// A QEMU has it open.
    OpenInQemu,
    /// Nobody can tell whether a process uses it: it cannot be opened, or not be locked.
    Unknown,
    /// These overlays stand on it, or may.
    Overlays(Vec<OverlayUse>),
    /// Part of its record of overlays cannot be read.
    RecordDamaged,
}

/// Files that serve nobody, which went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debris {
    /// Left in `tmp/` by killed processes.
    pub temporaries: usize,
    /// Manifests and records of overlays without a base, lock files without a use.
    pub orphans: usize,
    /// In quarantine: damaged bases, with what was known of them.
    pub quarantined: usize,
    /// Bytes of storage all of them took.
    pub bytes: u64,
}

impl ImageCache {
    /// Removes what `options` name and nobody needs. Others may use the cache meanwhile.
    ///
    /// # Errors
    ///
    /// What the system says of the cache's folders, or of a file that cannot be looked at or removed;
    /// what went before that is gone. [`ErrorKind::Cancelled`].
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        Prune { layout: &self.layout, options, report: PruneReport::default() }.run()
    }
}

struct Prune<'a> {
    layout: &'a Layout,
    options: &'a PruneOptions,
    report: PruneReport,
}

/// A base nobody needs, and the locks that keep it so.
struct Free {
    _key: CacheLock,
    _users: Users,
}

impl Prune<'_> {
    fn run(mut self) -> Result<PruneReport> {
        self.report.dry_run = self.options.dry_run;
        self.sweep_temporaries()?;
        let mut bases = Vec::new();
        for key in list::keys(self.layout)? {
            self.options.control.check()?;
            if let Some(base) = list::glance(self.layout, key)? {
                bases.push((key, base));
            }
        }
        bases.sort_by_key(|(key, base)| (base.last_used, *key.as_bytes()));
        let taken: u64 = bases.iter().map(|(_, base)| base.allocated).sum();
        self.report.allocated_before = taken;
        let now = list::seconds(SystemTime::now());
        let kept = self.sweep_quarantine(now, taken)?;
        let mut left = taken.saturating_add(kept);
        let mut available = list::available(self.layout)?;
        if self.options.dry_run {
            available = available.saturating_add(self.report.debris.bytes);
        }
        for (key, base) in bases {
            self.options.control.check()?;
            let because = if self.is_unwanted(&base, now, left, available) {
                match self.remove(&key, &base)? {
                    None => {
                        left = left.saturating_sub(base.allocated);
                        available = if self.options.dry_run {
                            available.saturating_add(base.allocated)
                        } else {
                            list::available(self.layout)?
                        };
                        continue;
                    }
                    Some(because) => because,
                }
            } else {
                KeptBecause::Wanted
            };
            let Glance { path, allocated, .. } = base;
            let key = key.to_string();
            self.report.kept.push(KeptBase { key, path, allocated, because });
        }
        self.sweep_orphans()?;
        self.report.available = available;
        self.report.goals_met = self.options.max_size.is_none_or(|most| left <= most)
            && self.options.keep_free.is_none_or(|least| available >= least);
        Ok(self.report)
    }

    /// Whether anything speaks against a base, with `left` bytes taken by all of them.
    fn is_unwanted(&self, base: &Glance, now: i64, left: u64, available: u64) -> bool {
        matches!(base.state, BaseState::Damaged(_))
            || self.is_old(base.last_used, now)
            || self.is_room_wanted(left, available)
    }

    fn is_old(&self, used: i64, now: i64) -> bool {
        // A clock that was set back makes nothing old.
        let age = u64::try_from(now.saturating_sub(used)).unwrap_or(0);
        self.options.max_age.is_some_and(|most| age >= most.as_secs())
    }

    fn is_room_wanted(&self, taken: u64, available: u64) -> bool {
        self.options.max_size.is_some_and(|most| taken > most)
            || self.options.keep_free.is_some_and(|least| available < least)
    }

    /// Removes one base that is still there, or says who needs it.
    fn remove(&mut self, key: &CacheKey, base: &Glance) -> Result<Option<KeptBecause>> {
        let _free = match self.free(key)? {
            Ok(free) => free,
            Err(because) => return Ok(Some(because)),
        };
        // Another prune was faster: it has counted it.
        if !self.is_there(key)? {
            return Ok(None);
        }
        // Used, or made anew, since it was listed.
        if uses::last_use(self.layout, key)?
            .map(list::seconds)
            .is_some_and(|now| now > base.last_used)
        {
            return Ok(Some(KeptBecause::Wanted));
        }
        if !self.options.dry_run {
            remove(&base.path)?;
            remove(&self.layout.manifest(key))?;
            remove(&self.layout.uses(key))?;
        }
        self.report.removed.push(RemovedBase {
            key: key.to_string(),
            path: base.path.clone(),
            virtual_size: base.virtual_size,
            allocated: base.allocated,
            source: base.manifest.as_ref().map(|manifest| manifest.source_label.clone()),
            last_used: base.last_used,
        });
        Ok(None)
    }

    /// Locks everybody out of the base of `key`, unless somebody needs it. Forgets overlays that are
    /// gone.
    fn free(&self, key: &CacheKey) -> Result<Result<Free, KeptBecause>> {
        let Some(_key) = self.try_lock(&self.layout.key_lock(key))? else {
            return Ok(Err(KeptBecause::Changing));
        };
        let users = users::of(&self.layout.base(key))?;
        match users.leases {
            Leases::Some => return Ok(Err(KeptBecause::Leased)),
            Leases::Unknown => return Ok(Err(KeptBecause::Unknown)),
            Leases::None { .. } => {}
        }
        // Where ranges cannot be locked, QEMU locks none.
        if users.qemu == Some(true) {
            return Ok(Err(KeptBecause::OpenInQemu));
        }
        let standing = match uses::standing(self.layout, key) {
            // Where a record of ours stood, something else may have been put: which overlays need the
            // base, nobody can tell any more.
            Err(error) if error.kind() == ErrorKind::Refused => {
                Standing { damaged: true, ..Standing::default() }
            }
            outcome => outcome?,
        };
        let needing: Vec<_> = standing
            .needing()
            .filter(|overlay| {
                !(self.options.forget_unknown
                    && matches!(overlay.state, uses::OverlayState::Unknown(_)))
            })
            .cloned()
            .collect();
        if !needing.is_empty() {
            // Nobody can add a note now: the moment to forget those that are gone.
            if matches!(users.leases, Leases::None { _lock: Some(_) })
                && !self.options.dry_run
                && !standing.damaged
                && standing.notes.len() < standing.overlays.len()
            {
                let notes: Vec<_> = standing.notes.iter().collect();
                // They are forgotten another time, then.
                let _ = uses::rewrite(self.layout, key, &notes);
            }
            return Ok(Err(KeptBecause::Overlays(needing)));
        }
        if standing.damaged && !self.options.forget_unknown {
            return Ok(Err(KeptBecause::RecordDamaged));
        }
        Ok(Ok(Free { _key, _users: users }))
    }

    fn sweep_temporaries(&mut self) -> Result<()> {
        for (path, metadata) in list::files(self.layout.tmp())? {
            let failed = |error| Error::io("look whether somebody makes", &path, error);
            // Its lock is held until it is gone.
            let Some(_lock) = pending::abandoned(&path).map_err(failed)? else { continue };
            if !self.options.dry_run {
                remove(&path)?;
            }
            self.report.debris.temporaries += 1;
            self.report.debris.bytes += space::allocated(&metadata);
        }
        Ok(())
    }

    /// Removes damaged bases nobody has looked at for too long, or all while room is wanted, with `taken`
    /// bytes taken by the others. Returns the bytes of those that stay.
    fn sweep_quarantine(&mut self, now: i64, taken: u64) -> Result<u64> {
        let mut files = list::quarantined(self.layout)?;
        if files.is_empty() {
            return Ok(0);
        }
        files.sort_by_key(|(path, metadata)| (metadata.ctime(), path.clone()));
        let mut left: u64 = files.iter().map(|(_, metadata)| space::allocated(metadata)).sum();
        let mut available = list::available(self.layout)?;
        for (path, metadata) in files {
            // When it was moved here, a file's change time says.
            if self.is_old(metadata.ctime(), now)
                || self.is_room_wanted(taken.saturating_add(left), available)
            {
                let bytes = space::allocated(&metadata);
                left = left.saturating_sub(bytes);
                self.report.debris.quarantined += 1;
                self.report.debris.bytes += bytes;
                if self.options.dry_run {
                    available = available.saturating_add(bytes);
                } else {
                    remove(&path)?;
                    available = list::available(self.layout)?;
                }
            }
        }
        Ok(left)
    }

    /// Removes what belongs to bases that are not there.
    fn sweep_orphans(&mut self) -> Result<()> {
        let mut keys = Vec::new();
        for (path, _) in list::files(self.layout.bases())? {
            keys.extend(path.file_name().and_then(|name| CacheKey::of_file(name, "manifest")));
        }
        for (path, _) in list::files(self.layout.uses_folder())? {
            let name = path.file_name().and_then(|name| name.to_str());
            keys.extend(name.and_then(|name| name.parse::<CacheKey>().ok()));
        }
        keys.sort_by_key(|key| *key.as_bytes());
        keys.dedup();
        for key in keys {
            self.options.control.check()?;
            if self.is_there(&key)? {
                continue;
            }
            let Ok(_free) = self.free(&key)? else { continue };
            // Somebody may have made it between the look and the lock.
            if self.is_there(&key)? {
                continue;
            }
            for path in [self.layout.manifest(&key), self.layout.uses(&key)] {
                self.sweep(&path)?;
            }
        }
        for (path, _) in list::files(self.layout.locks())? {
            let name = path.file_name();
            let key = name.and_then(|name| CacheKey::of_file(name, "lock"));
            let is_ours = key.is_some()
                || name.and_then(|name| name.to_str()).is_some_and(|name| {
                    let length =
                        name.strip_prefix("length-").and_then(|rest| rest.strip_suffix(".lock"));
                    length.is_some_and(|length| length.parse::<u64>().is_ok())
                });
            if !is_ours || key.map_or(Ok(false), |key| self.is_there(&key))? {
                continue;
            }
            // Held while it goes: who waits for it sees that it lost its name, and takes the next one.
            match self.try_lock(&path) {
                Ok(Some(_lock)) => self.sweep(&path)?,
                Ok(None) => {}
                // No lock file of ours: left alone.
                Err(error) if error.kind() == ErrorKind::Refused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sweep(&mut self, path: &Path) -> Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("look at", path, error)),
        };
        if !self.options.dry_run {
            remove(path)?;
        }
        self.report.debris.orphans += 1;
        self.report.debris.bytes += space::allocated(&metadata);
        Ok(())
    }

    fn is_there(&self, key: &CacheKey) -> Result<bool> {
        let path = self.layout.base(key);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("look at the base", &path, error)),
        }
    }

    /// The lock, if nobody holds it.
    fn try_lock(&self, path: &Path) -> Result<Option<CacheLock>> {
        let mut waiter = Waiter::new(&self.options.control, Some(Duration::ZERO));
        match waiter.acquire::<()>(path, LockMode::Exclusive, "pruning", || Ok(None)) {
            Ok(Acquired::Locked(lock)) => Ok(Some(lock)),
            Ok(Acquired::Done(())) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Removes a name, whatever stands there.
fn remove(path: &Path) -> Result<()> {
    super::publish::clear(path)
}
