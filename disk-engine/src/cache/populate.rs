//! Making sure that a base is there: found, waited for, or made.
//!
//! ```text
//! digest or name known    look it up ─▶ lock the key ─▶ look again ─▶ extract ─▶ publish
//! digest not known yet    lock the source's length ─▶ extract and hash in one pass ─▶
//!                         lock the key the digest makes ─▶ look it up ─▶ publish, or drop ours
//! ```
//!
//! The second way is how a file that was never seen costs one pass, and still is extracted once
//! when it is asked for under two names at a time: equal contents have equal lengths, so both callers
//! want the same length lock. Whoever gets it second finds the digest remembered or, if it was
//! asked for under the other name, a base in the cache whose source had this length; then it hashes
//! before it extracts. Whoever extracts a known digest holds the length lock too, but shared: it
//! excludes only those who are still learning theirs.
//!
//! A stream of unknown digest can be known by nobody before it has been read to its end, so nothing
//! is gained by waiting for anyone, and much is lost if its writer never ends: it is extracted
//! without a lock, and dropped if its base turns out to be there.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::key::{CacheKey, Identity, KeyPolicy};
use crate::cache::layout::Layout;
use crate::cache::lease::{self, Lease, Lookup};
use crate::cache::lock::{Acquired, CacheLock, Waiter};
use crate::cache::manifest::{self, Manifest};
use crate::cache::memo::{self, Facts};
use crate::cache::{BaseOptions, CachedBase, Origin, publish, record};
use crate::control::Event;
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::sys::lock::LockMode;
use crate::sys::pending::{self, Durability, Temporary};
use crate::transfer::{self, TransferOptions, TransferReport};

/// How often a remembered digest may turn out wrong before the source is at fault.
const ATTEMPTS: usize = 2;

/// Finds or makes the base `source` stands for.
pub(crate) fn base(layout: &Layout, source: Source, options: &BaseOptions) -> Result<CachedBase> {
    let waiter = Waiter::new(&options.control, options.timeout);
    let request =
        Request { purpose: format!("extracting {}", source.label()), layout, options, waiter };
    match &options.policy {
        KeyPolicy::Content => request.by_content(source),
        KeyPolicy::Stated(digest) => request.by_identity(source, Identity::Digest(*digest)),
        KeyPolicy::Named(name) if name.is_empty() => {
            Err(Error::new(ErrorKind::InvalidInput, "a name of a base is not empty")
                .with_field("key"))
        }
        KeyPolicy::Named(name) => request.by_identity(source, Identity::Name(name.clone())),
    }
}

/// One caller's request, and its patience.
struct Request<'a> {
    layout: &'a Layout,
    options: &'a BaseOptions,
    waiter: Waiter<'a>,
    purpose: String,
}

/// An extracted base that has no name yet.
struct Made {
    file: Temporary,
    report: TransferReport,
    label: String,
    member: Option<String>,
    length: Option<u64>,
}

/// What came of a source that was never seen.
enum Learnt {
    Digest(Sha256Digest),
    Base(CachedBase),
}

impl Request<'_> {
    fn by_content(mut self, source: Source) -> Result<CachedBase> {
        let Some(path) = source.as_path().map(Path::to_path_buf) else {
            return self.by_reading(source);
        };
        let again = || {
            let again = Source::path(&path).with_limits(*source.limits());
            let again = match source.threads() {
                Some(threads) => again.with_threads(threads),
                None => again,
            };
            match source.member() {
                Some(member) => again.with_member(member),
                None => again,
            }
        };
        let mut attempt = 1;
        loop {
            let Some(facts) = Facts::of(&path)? else { return self.by_reading(source) };
            let digest = match memo::recall(self.layout, &facts) {
                Some(digest) => digest,
                None => match self.learn(again(), &path, &facts)? {
                    Learnt::Digest(digest) => digest,
                    Learnt::Base(base) => return Ok(base),
                },
            };
            match self.known(again(), &Identity::Digest(digest)) {
                Err(error) if error.kind() == ErrorKind::Mismatch && attempt < ATTEMPTS => {
                    memo::forget(self.layout, &facts);
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn by_identity(mut self, source: Source, identity: Identity) -> Result<CachedBase> {
        self.known(source, &identity)
    }

    /// Extracts what only the end of the source can name. Without a lock: see the module's
    /// documentation.
    fn by_reading(&mut self, source: Source) -> Result<CachedBase> {
        let made = self.extract(source, None, self.layout.bases().to_path_buf())?;
        let identity = Identity::Digest(digest_of(&made)?);
        let key = CacheKey::new(&identity, made.member.as_deref());
        self.settle(&key, &identity, |_| Ok(made))
    }

    /// Finds out the digest of a file that was never seen, or extracts it while doing so.
    fn learn(&mut self, source: Source, path: &Path, facts: &Facts) -> Result<Learnt> {
        let layout = self.layout;
        let lock = layout.length_lock(facts.size);
        let recall = || memo::recall(layout, facts);
        let purpose = self.purpose.clone();
        let _lock: CacheLock =
            match self.waiter.acquire(&lock, LockMode::Exclusive, &purpose, || Ok(recall())) {
                Ok(Acquired::Locked(lock)) => lock,
                Ok(Acquired::Done(digest)) => return Ok(Learnt::Digest(digest)),
                // Nothing can be made in a read-only cache, but what is there can be found.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    return self.hash(path, facts).map(Learnt::Digest);
                }
                Err(error) => return Err(error),
            };
        if let Some(digest) = recall() {
            return Ok(Learnt::Digest(digest));
        }
        if self.has_source_of_length(facts.size) {
            self.hash(path, facts).map(Learnt::Digest)
        } else {
            self.by_reading(source).map(Learnt::Base)
        }
    }

    /// Reads a file for its digest, and remembers it.
    fn hash(&self, path: &Path, facts: &Facts) -> Result<Sha256Digest> {
        let started = SystemTime::now();
        let digest = memo::digest_file(path, &self.options.control)?;
        if Facts::of(path)? != Some(*facts) {
            return Err(changed(path));
        }
        // Whoever was killed while it remembered may be followed by no extraction.
        self.layout.sweep();
        memo::remember(self.layout, facts, started, digest);
        Ok(digest)
    }

    /// Whether any base came from a source of this length. What cannot be read did not.
    fn has_source_of_length(&self, length: u64) -> bool {
        let Ok(entries) = std::fs::read_dir(self.layout.bases()) else { return false };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "manifest"))
            .filter_map(|path| record::read_file(manifest::KIND, &path).ok()?)
            .filter_map(|bytes| Manifest::parse(&bytes).ok())
            .any(|manifest| manifest.source_length == Some(length))
    }

    /// Finds or makes a base whose identity is known.
    fn known(&mut self, source: Source, identity: &Identity) -> Result<CachedBase> {
        let key = CacheKey::new(identity, source.member());
        if let Some(lease) = self.find(&key)? {
            return Ok(self.found(*lease));
        }
        let length = match (identity, source.as_path()) {
            (Identity::Digest(_), Some(path)) => Facts::of(path)?.map(|facts| facts.size),
            _ => None,
        };
        let _length = match length {
            Some(length) => {
                let lock = self.layout.length_lock(length);
                match self.wait_for(&lock, LockMode::Shared, &key)? {
                    Acquired::Locked(lock) => Some(lock),
                    Acquired::Done(lease) => return Ok(self.found(*lease)),
                }
            }
            None => None,
        };
        let place = self.layout.base(&key);
        self.settle(&key, identity, |request| request.extract(source, Some(identity), place))
    }

    /// Under the lock of its key, finds the base or publishes what `make` makes.
    fn settle(
        &mut self,
        key: &CacheKey,
        identity: &Identity,
        make: impl FnOnce(&mut Self) -> Result<Made>,
    ) -> Result<CachedBase> {
        let path = self.layout.key_lock(key);
        let lock = match self.lock_or_find(&path, key)? {
            Acquired::Locked(lock) => lock,
            Acquired::Done(lease) => return Ok(self.found(*lease)),
        };
        let made = make(self)?;
        // A cleaner that removed the lock file meanwhile let someone else in: line up again.
        let _lock = if lock.still_names(&path)? {
            lock
        } else {
            drop(lock);
            match self.lock_or_find(&path, key)? {
                Acquired::Locked(lock) => lock,
                Acquired::Done(lease) => return Ok(self.found(*lease)),
            }
        };
        let manifest = Manifest {
            key: *key,
            virtual_size: made.report.virtual_size,
            written_bytes: made.report.written_bytes,
            modified: 0,
            boot: None,
            source_sha256: made.report.source_sha256,
            source_length: made.length.or(Some(made.report.source_bytes)),
            source_label: made.label,
            name: match identity {
                Identity::Digest(_) => None,
                Identity::Name(name) => Some(name.clone()),
            },
            member: made.member,
            inode: 0,
            changed: None,
            root: PathBuf::new(),
            extents: made.report.extents.clone(),
        };
        publish::publish(self.layout, made.file, manifest, self.options.durability)?;
        match lease::look_up(self.layout, key)? {
            Lookup::Found(lease) => {
                Ok(CachedBase::new(*lease, Origin::Extracted(Box::new(made.report))))
            }
            Lookup::Damaged(error) => Err(error),
            Lookup::Absent | Lookup::Contended => {
                Err(Error::new(ErrorKind::Busy, "the new base was taken away at once")
                    .with_path(self.layout.base(key)))
            }
        }
    }

    /// Takes the lock of the key with nothing under the base's name, or finds the base.
    fn lock_or_find(&mut self, path: &Path, key: &CacheKey) -> Result<Acquired<Box<Lease>>> {
        loop {
            let lock = match self.wait_for(path, LockMode::Exclusive, key)? {
                Acquired::Locked(lock) => lock,
                done @ Acquired::Done(_) => return Ok(done),
            };
            match lease::look_up(self.layout, key)? {
                Lookup::Found(lease) => {
                    if suffices(&lease, self.options.durability) {
                        confirm(self.layout, key, self.options.durability)?;
                    } else {
                        publish::harden(self.layout, &lease.manifest)?;
                    }
                    return Ok(Acquired::Done(lease));
                }
                Lookup::Absent => return Ok(Acquired::Locked(lock)),
                Lookup::Damaged(_) => {
                    let _alone = self.layout.alone()?;
                    // It may have been half way to its name.
                    if matches!(lease::inspect(self.layout, key)?, Lookup::Damaged(_)) {
                        publish::clear(&self.layout.base(key))?;
                        return Ok(Acquired::Locked(lock));
                    }
                }
                // Somebody who does not know the order of locks: let go, and try again.
                Lookup::Contended => {
                    drop(lock);
                    self.waiter.breathe(path)?;
                }
            }
        }
    }

    /// Extracts into a temporary, as far as the identity is known verifying or learning the digest.
    /// A file that changes meanwhile fails. `place` is what to tell: where the base will be.
    fn extract(&self, source: Source, identity: Option<&Identity>, place: PathBuf) -> Result<Made> {
        let started = SystemTime::now();
        let path = source.as_path().map(Path::to_path_buf);
        let facts = path.as_deref().map(Facts::of).transpose()?.flatten();
        let (label, member) = (source.label(), source.member().map(ToOwned::to_owned));
        self.layout.sweep();
        let file = self.layout.temporary()?;
        self.options.control.emit(&Event::Extracting { base: place });
        let options = TransferOptions {
            expected_sha256: match identity {
                Some(Identity::Digest(digest)) => Some(*digest),
                _ => None,
            },
            hash_source: !matches!(identity, Some(Identity::Name(_))),
            control: self.options.control.clone(),
        };
        let report = transfer::extract_into(source, file.file(), file.path(), &options)?;
        if let (Some(facts), Some(path)) = (facts, path) {
            if Facts::of(&path)? != Some(facts) {
                return Err(changed(&path));
            }
            if let Some(digest) = report.source_sha256 {
                memo::remember(self.layout, &facts, started, digest);
            }
        }
        Ok(Made { file, report, label, member, length: facts.map(|facts| facts.size) })
    }

    fn wait_for(
        &mut self,
        path: &Path,
        mode: LockMode,
        key: &CacheKey,
    ) -> Result<Acquired<Box<Lease>>> {
        let (layout, durability) = (self.layout, self.options.durability);
        self.waiter
            .acquire(path, mode, &self.purpose, || find(layout, key, durability))
            .map_err(|error| read_only(layout, key, error))
    }

    fn find(&self, key: &CacheKey) -> Result<Option<Box<Lease>>> {
        find(self.layout, key, self.options.durability)
    }

    fn found(&self, lease: Lease) -> CachedBase {
        // Whoever named it is still completing its manifest, or was killed doing so. The change time
        // stays open: only a verification may say that the base is what was named.
        if lease.manifest.changed.is_none() {
            self.layout.sweep();
        }
        let origin = if self.waiter.has_waited() { Origin::Waited } else { Origin::Hit };
        CachedBase::new(lease, origin)
    }
}

/// The base of `key`, if it is there and as durable as it should be.
fn find(layout: &Layout, key: &CacheKey, durability: Durability) -> Result<Option<Box<Lease>>> {
    Ok(match lease::look_up(layout, key)? {
        Lookup::Found(lease) if suffices(&lease, durability) => {
            confirm(layout, key, durability)?;
            Some(lease)
        }
        _ => None,
    })
}

/// Whoever published a durable base may have been killed before its name was durable too.
fn confirm(layout: &Layout, key: &CacheKey, durability: Durability) -> Result<()> {
    match durability {
        Durability::None => Ok(()),
        _ => pending::sync_folder(&layout.base(key)),
    }
}

/// In a cache nobody may write to, a base that is there and cannot be used is the reason for all
/// that follows.
fn read_only(layout: &Layout, key: &CacheKey, error: Error) -> Error {
    if error.kind() != ErrorKind::PermissionDenied {
        return error;
    }
    match lease::look_up(layout, key) {
        Ok(Lookup::Damaged(reason)) => {
            let message = "the base is to be made anew, and the cache cannot be written to";
            Error::new(ErrorKind::PermissionDenied, message)
                .with_path(layout.base(key))
                .with_hint("a base that was made durable is good in every boot and sandbox")
                .with_source(reason)
        }
        _ => error,
    }
}

fn suffices(lease: &Lease, durability: Durability) -> bool {
    durability == Durability::None || lease.manifest.boot.is_none()
}

fn digest_of(made: &Made) -> Result<Sha256Digest> {
    made.report.source_sha256.ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "the source was extracted without its digest")
    })
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Mismatch, "the source changed while it was read")
        .with_path(path)
        .with_hint("try again once it is complete")
}
