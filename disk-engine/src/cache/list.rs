//! What is in a cache: each base, who needs it, and what it takes.
//!
//! ```text
//! bases/KEY.img ─▶ state: would a request be served by it?
//!               ─▶ in use: a lease (flock), a running QEMU (its byte-range locks)
//! uses/KEY      ─▶ overlays that stand on it; when it was asked for last
//! ```
//!
//! Nothing is changed and nobody waits; for a lease is looked by trying the exclusive lock for a moment.
//! Callers: the command line, `prune`.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::layout::Layout;
use super::lease::{self, Lookup};
use super::{CacheKey, ImageCache, uses};
use crate::cache::manifest::Manifest;
use crate::cache::users::{self, Leases};
use crate::cache::uses::{OverlayUse, Standing};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::space;

/// Everything in a cache.
#[derive(Clone, Debug)]
pub struct CacheListing {
    /// The bases, the one asked for last first.
    pub bases: Vec<ListedBase>,
    /// Files in `tmp/`: what is being made, and what killed processes left.
    pub temporaries: usize,
    /// Bytes of storage they take.
    pub temporary_bytes: u64,
    /// Files of damaged bases in `quarantine/`.
    pub quarantined: usize,
    /// Bytes of storage they take.
    pub quarantined_bytes: u64,
    /// Bytes an unprivileged writer has left on the cache's file system.
    pub available: u64,
}

/// One base.
#[derive(Clone, Debug)]
pub struct ListedBase {
    /// Its key, 64 hexadecimal digits.
    pub key: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Whether a request would be served by it.
    pub state: BaseState,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes of storage it takes.
    pub allocated: u64,
    /// What it was extracted from, as its maker called it.
    pub source: Option<String>,
    /// The name somebody vouched for, where that was the policy.
    pub name: Option<String>,
    /// Whether it survives a crash of the machine.
    pub durable: bool,
    /// When it was made, in seconds since the Unix epoch.
    pub made: i64,
    /// When it was asked for last, or its last lease ended, in seconds since the Unix epoch.
    pub last_used: i64,
    /// Whether a process holds a lease.
    pub leased: bool,
    /// Whether a QEMU has it open; `None` where nobody can tell.
    pub open_in_qemu: Option<bool>,
    /// The overlays that were made over it.
    pub overlays: Vec<OverlayUse>,
}

/// Whether a request would be served by a base.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BaseState {
    /// As far as metadata tells.
    Good,
    /// Not trusted, for this reason; the next request makes it anew.
    Damaged(String),
    /// Being made, replaced or removed at this moment.
    Changing,
}

impl ImageCache {
    /// Looks at everything in the cache.
    ///
    /// # Errors
    ///
    /// What the system says of the cache's folders.
    pub fn list(&self) -> Result<CacheListing> {
        let layout = &self.layout;
        let mut bases = keys(layout)?
            .into_iter()
            .filter_map(|key| look(layout, key).transpose())
            .collect::<Result<Vec<_>>>()?;
        bases.sort_by(|one, other| (other.last_used, &one.key).cmp(&(one.last_used, &other.key)));
        let temporaries = files(layout.tmp())?;
        let quarantined = quarantined(layout)?;
        Ok(CacheListing {
            bases,
            temporaries: temporaries.len(),
            temporary_bytes: temporaries.iter().map(|(_, found)| space::allocated(found)).sum(),
            quarantined: quarantined.len(),
            quarantined_bytes: quarantined.iter().map(|(_, found)| space::allocated(found)).sum(),
            available: available(layout)?,
        })
    }
}

impl CacheListing {
    /// Bytes of storage all bases take together.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.bases.iter().map(|base| base.allocated).sum()
    }
}

/// The keys of all bases.
pub(super) fn keys(layout: &Layout) -> Result<Vec<CacheKey>> {
    let mut keys: Vec<_> = names(layout.bases())?
        .into_iter()
        .filter_map(|path| CacheKey::of_file(path.file_name()?, "img"))
        .collect();
    keys.sort_by_key(|key| *key.as_bytes());
    Ok(keys)
}

/// What one look at a base and its manifest says, without asking who needs it.
#[derive(Debug)]
pub(super) struct Glance {
    pub(super) path: PathBuf,
    pub(super) state: BaseState,
    pub(super) manifest: Option<Manifest>,
    pub(super) virtual_size: u64,
    pub(super) allocated: u64,
    pub(super) made: i64,
    pub(super) last_used: i64,
}

/// Looks at one base; `None` if it is not there any more.
pub(super) fn glance(layout: &Layout, key: CacheKey) -> Result<Option<Glance>> {
    let path = layout.base(&key);
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("look at the base", &path, error)),
    };
    // What fails here says nothing about the base. A lease of ours ends with it.
    let (state, manifest) = match lease::inspect(layout, &key)? {
        Lookup::Absent => return Ok(None),
        Lookup::Found(lease) => (BaseState::Good, Some(lease.manifest.clone())),
        Lookup::Contended => (BaseState::Changing, lease::manifest(layout, &key)?),
        Lookup::Damaged(error) => {
            (BaseState::Damaged(describe(&error)), lease::manifest(layout, &key)?)
        }
    };
    Ok(Some(Glance {
        state,
        manifest,
        virtual_size: metadata.len(),
        allocated: space::allocated(&metadata),
        made: metadata.mtime(),
        last_used: uses::last_use(layout, &key)?.map_or(metadata.mtime(), seconds),
        path,
    }))
}

/// Looks at one base and at who needs it.
fn look(layout: &Layout, key: CacheKey) -> Result<Option<ListedBase>> {
    let Some(glance) = glance(layout, key)? else { return Ok(None) };
    let Standing { overlays, .. } = uses::standing(layout, &key)?;
    let users = users::of(&glance.path)?;
    let manifest = glance.manifest.as_ref();
    Ok(Some(ListedBase {
        key: key.to_string(),
        state: glance.state,
        virtual_size: glance.virtual_size,
        allocated: glance.allocated,
        source: manifest.map(|manifest| manifest.source_label.clone()),
        name: manifest.and_then(|manifest| manifest.name.clone()),
        durable: manifest.is_some_and(|manifest| manifest.boot.is_none()),
        made: glance.made,
        last_used: glance.last_used,
        leased: matches!(users.leases, Leases::Some),
        open_in_qemu: users.qemu,
        overlays,
        path: glance.path,
    }))
}

/// Everything in a folder of the cache.
pub(super) fn files(folder: &std::path::Path) -> Result<Vec<(PathBuf, Metadata)>> {
    let look = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(metadata) => Some(Ok((path, metadata))),
        // Gone since the folder was listed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(Error::io("look at", &path, error))),
    };
    names(folder)?.into_iter().filter_map(look).collect()
}

/// Everything in quarantine, which nobody may have needed yet.
pub(super) fn quarantined(layout: &Layout) -> Result<Vec<(PathBuf, Metadata)>> {
    let folder = layout.quarantine_folder();
    match folder.try_exists() {
        Ok(true) => files(&folder),
        Ok(false) => Ok(Vec::new()),
        Err(error) => Err(Error::io("look at", &folder, error)),
    }
}

fn names(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("list the cache's folder", folder, error);
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

/// Bytes left on the cache's file system.
pub(super) fn available(layout: &Layout) -> Result<u64> {
    fs::File::open(layout.bases())
        .and_then(|folder| space::available(&folder))
        .map_err(|error| Error::io("look for free space in", layout.bases(), error))
}

/// Seconds since the Unix epoch.
pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn describe(error: &Error) -> String {
    let mut text = error.message().to_owned();
    if error.kind() != ErrorKind::Corrupt
        && let Some(cause) = std::error::Error::source(error)
    {
        text = format!("{text}: {cause}");
    }
    text
}
