//! Finding a base, and holding it: the hit path, and all of it.
//!
//! A lease is a shared lock on the base file itself. Any number of processes hold one at a time and
//! none waits for another; no lock file is touched. Who wants to remove a base needs the exclusive
//! lock, so a leased base stays, and a lease dies with its process.
//!
//! What is found is served only if all of this holds; otherwise it is made anew:
//!
//! ```text
//! base       a regular file, ours, without a permission to write, still under its name once locked
//! manifest   a regular file, ours, intact, of this key
//! both       the same size and modification time, and synced or made in this boot
//! ```

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::base::BaseImage;
use crate::cache::key::CacheKey;
use crate::cache::layout::Layout;
use crate::cache::manifest::{self, Manifest};
use crate::cache::record;
use crate::cache::uses::Uses;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::host::{self, BootId};
use crate::sys::lock::{FileLock, LockMode};
use crate::sys::{lock, open, space};

/// How often a base may lose its name under our hands before we wait instead.
const TRIES: usize = 8;

/// The objection to a base that may have lost data.
const STALE: &str = "the base was never synced, and the machine was restarted since";
/// The objection to a base that was not synced where the boot cannot be told.
const BOOTLESS: &str = "the base was never synced, and nobody tells which boot this is";

/// What stands under a key.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// A base that can be used, and is ours to use until the lease is dropped.
    Found(Box<Lease>),
    /// Nothing.
    Absent,
    /// Something that is being removed or published at this moment.
    Contended,
    /// Something that cannot be trusted, and why.
    Damaged(Error),
}

/// A base that stays while this lives.
#[derive(Debug)]
pub(crate) struct Lease {
    lock: FileLock,
    path: PathBuf,
    pub(crate) manifest: Manifest,
    /// Where overlays are noted; `None` in a read-only cache.
    uses: Option<Uses>,
    /// Bytes of storage the base takes.
    pub(crate) allocated: u64,
}

impl Lease {
    /// The base, open for reading and locked.
    pub(crate) fn file(&self) -> &File {
        self.lock.file()
    }

    /// Whether the leased file is still the one under its name.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn still_named(&self) -> Result<bool> {
        self.lock
            .still_names(&self.path)
            .map_err(|error| Error::io("look at the base", &self.path, error))
    }

    /// The base as callers know it.
    pub(crate) fn into_image(self) -> BaseImage {
        let Self { lock, path, manifest, uses, .. } = self;
        BaseImage::leased(path, manifest.virtual_size, manifest.key.to_string(), lock, uses)
    }
}

/// The boot we are in, asked until it is known. `None` where nobody says.
///
/// # Errors
///
/// It could not be asked. That is no reason to distrust a base.
pub(crate) fn this_boot() -> Result<Option<BootId>> {
    static BOOT: OnceLock<Option<BootId>> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot);
    }
    let boot =
        host::boot().map_err(|error| Error::io("look up the boot in", host::BOOT_PATH, error))?;
    Ok(*BOOT.get_or_init(|| boot))
}

/// Looks for the base of `key` and leases it, to be used: see [`Uses::open`].
///
/// # Errors
///
/// As [`inspect`]; something else stands where the base's record of overlays belongs.
pub(crate) fn look_up(layout: &Layout, key: &CacheKey) -> Result<Lookup> {
    let mut found = inspect(layout, key)?;
    if let Lookup::Found(lease) = &mut found {
        lease.uses = Uses::open(layout, key)?;
    }
    Ok(found)
}

/// The manifest of `key`, whatever the base is like; `None` if there is none that is intact.
///
/// # Errors
///
/// As [`inspect`].
pub(crate) fn manifest(layout: &Layout, key: &CacheKey) -> Result<Option<Manifest>> {
    match record::read_file(manifest::KIND, &layout.manifest(key)) {
        Ok(bytes) => Ok(bytes.and_then(|bytes| Manifest::parse(&bytes).ok())),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks for the base of `key` and leases it, to be looked at: it does not count as asked for.
///
/// # Errors
///
/// Only what says nothing about the base: no descriptors, no memory, no locks, failing storage.
pub(crate) fn inspect(layout: &Layout, key: &CacheKey) -> Result<Lookup> {
    let path = layout.base(key);
    for _ in 0..TRIES {
        let file = match open::existing(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lookup::Absent),
            Err(error) if record::untrusted(&error) => {
                return Ok(Lookup::Damaged(
                    damaged("no readable file stands there").with_path(&path).with_source(error),
                ));
            }
            Err(error) => return Err(Error::io("open the base", &path, error)),
        };
        let metadata =
            file.metadata().map_err(|error| Error::io("look at the base", &path, error))?;
        if let Err(objection) = check_file(&metadata) {
            return Ok(Lookup::Damaged(objection.with_path(&path)));
        }
        let lock = match FileLock::try_acquire_patiently(file, LockMode::Shared) {
            Ok(Ok(lock)) => lock,
            Ok(Err(_)) => return Ok(Lookup::Contended),
            Err(error) if lock::is_unsupported(&error) => {
                return Err(super::lock::unsupported(&path, error));
            }
            Err(error) => return Err(Error::io("lock the base", &path, error)),
        };
        if !lock.still_names(&path).map_err(|error| Error::io("look at the base", &path, error))? {
            continue;
        }
        return Ok(match read_manifest(layout, key, &metadata) {
            Ok(manifest) => Lookup::Found(Box::new(Lease {
                uses: None,
                lock,
                path,
                manifest,
                allocated: space::allocated(&metadata),
            })),
            Err(error) if error.kind() == ErrorKind::Corrupt => Lookup::Damaged(error),
            Err(error) => return Err(error),
        });
    }
    Ok(Lookup::Contended)
}

/// What the file alone says.
fn check_file(metadata: &Metadata) -> Result<()> {
    if !metadata.is_file() {
        return Err(damaged("no regular file stands there"));
    }
    if metadata.uid() != host::effective_user() {
        return Err(damaged("the file belongs to another user"));
    }
    if metadata.permissions().mode() & 0o222 != 0 {
        return Err(damaged("the file can be written to"));
    }
    Ok(())
}

/// What the manifest says about this very file.
fn read_manifest(layout: &Layout, key: &CacheKey, base: &Metadata) -> Result<Manifest> {
    let path = layout.manifest(key);
    let wrong = |message| damaged(message).with_path(&path);
    let bytes = record::read_file(manifest::KIND, &path)?
        .ok_or_else(|| wrong("the base has no manifest"))?;
    let manifest = Manifest::parse(&bytes).map_err(|error| error.or_path(&path))?;
    if manifest.key != *key {
        return Err(wrong("the manifest is that of another base"));
    }
    if manifest.virtual_size != base.len() {
        return Err(wrong("the base has another size than its manifest says"));
    }
    if (manifest.modified, 0) != (base.mtime(), base.mtime_nsec()) {
        return Err(wrong("the base was modified after it was made"));
    }
    if manifest.boot.is_some() {
        match this_boot()? {
            boot if boot == manifest.boot => {}
            Some(_) => return Err(wrong(STALE)),
            None => return Err(wrong(BOOTLESS)),
        }
    }
    Ok(manifest)
}

/// Whether a base is damaged for nothing but a restart of the machine: all else was looked at before.
pub(crate) fn is_stale(error: &Error) -> bool {
    [STALE, BOOTLESS].contains(&error.message())
}

fn damaged(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}
