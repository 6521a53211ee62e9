//! Giving a finished base its name, in an order in which every interruption is harmless:
//!
//! 1. the base, in `tmp/`, gets mode 0444 and a modification time of a whole second;
//! 2. its manifest is written, in `tmp/`;
//! 3. if it shall survive a power cut, or nobody could tell that there was one: both are synced;
//! 4. the manifest gets its name: beside no base it means nothing;
//! 5. the base gets its name: from here on it is found;
//! 6. the manifest is written and named once more, with the change time the base has now;
//! 7. if it shall survive a power cut: the folder is synced; if that fails, the base is removed.
//!
//! All of it under the exclusive lock of the key, with nothing under the base's name; steps 4 to 6 alone
//! in the folder as well, where a good base that somebody else named meanwhile is left as it is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::cache::key::CacheKey;
use crate::cache::layout::Layout;
use crate::cache::lease::{self, Lookup};
use crate::cache::manifest::{ChangeTime, Manifest};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::pending::{self, Durability, Existing, Temporary};

/// Publishes `base` as what `manifest` says it is; what tells this very file and its boot is filled
/// in here.
///
/// # Errors
///
/// What the system says. Then nothing is left but, at most, a manifest without a base.
pub(crate) fn publish(
    layout: &Layout,
    base: Temporary,
    mut manifest: Manifest,
    durability: Durability,
) -> Result<()> {
    let path = layout.base(&manifest.key);
    let failed = |doing: &'static str| {
        let path = &path;
        move |error: io::Error| Error::io(doing, path, error)
    };
    let (seconds, time) = whole_second();
    let file = base.file();
    file.set_permissions(read_only()).map_err(failed("set the permissions of the base"))?;
    file.set_modified(time).map_err(failed("set the modification time of the base"))?;
    let metadata = file.metadata().map_err(failed("look at the new base"))?;
    let length = metadata.len();
    if length != manifest.virtual_size {
        let message = format!("{length} bytes were extracted, not {}", manifest.virtual_size);
        return Err(Error::new(ErrorKind::Mismatch, message).with_path(&path));
    }
    let boot = lease::this_boot()?;
    let synced = durability != Durability::None || boot.is_none();
    if synced {
        file.sync_all().map_err(failed("sync the base"))?;
    }
    manifest.modified = seconds;
    manifest.boot = boot.filter(|_| !synced);
    manifest.inode = metadata.ino();
    manifest.changed = None;
    manifest.root = layout.root().to_path_buf();
    let alone = layout.alone()?;
    // A cleaner that removed the key's lock file let someone else in, who was faster: a good base is
    // not replaced under those who have it already.
    if let Lookup::Found(lease) = lease::inspect(layout, &manifest.key)?
        && (!synced || lease.manifest.boot.is_none())
    {
        return match durability {
            Durability::None => Ok(()),
            _ => pending::sync_folder(&path),
        };
    }
    publish_manifest(layout, &manifest)?;
    base.publish(&path, Existing::Replace).map_err(failed("publish the base"))?;
    // Where the folder cannot be locked, another maker's base may stand there by now.
    if let Ok(metadata) = fs::symlink_metadata(&path)
        && metadata.ino() == manifest.inode
    {
        // Without it the manifest is as good, and a verification reads the base once.
        let _ = stamp(layout, &manifest, &metadata);
    }
    drop(alone);
    if durability != Durability::None {
        pending::sync_folder(&path).inspect_err(|_| distrust(layout, &manifest.key))?;
    }
    Ok(())
}

/// Writes down which file the base of `manifest` is now: its inode and change time are those of
/// `metadata`. Under the lock of the key.
///
/// # Errors
///
/// What the system says; then the manifest is as it was.
pub(crate) fn stamp(layout: &Layout, manifest: &Manifest, metadata: &fs::Metadata) -> Result<()> {
    let changed = Some(ChangeTime::of(metadata));
    publish_manifest(layout, &Manifest { inode: metadata.ino(), changed, ..manifest.clone() })
}

/// Makes a base that was not synced survive a power cut after all.
///
/// # Errors
///
/// What the system says. A failed sync is final: the base is removed, to be made anew.
pub(crate) fn harden(layout: &Layout, manifest: &Manifest) -> Result<()> {
    let path = layout.base(&manifest.key);
    let distrust = |_: &Error| distrust(layout, &manifest.key);
    // Whoever was killed while doing this may be followed by no extraction.
    layout.sweep();
    let file = crate::sys::open::existing(&path)
        .map_err(|error| Error::io("open the base", &path, error))?;
    file.sync_all()
        .map_err(|error| Error::io("sync the base", &path, error))
        .inspect_err(distrust)?;
    publish_manifest(layout, &Manifest { boot: None, ..manifest.clone() })?;
    pending::sync_folder(&path).inspect_err(distrust)
}

/// Takes away a base that could not be synced: the system may have dropped what it could not write,
/// and the next sync would not say so. Those who have it open keep it.
fn distrust(layout: &Layout, key: &CacheKey) {
    let _ = clear(&layout.base(key));
    let _ = clear(&layout.manifest(key));
}

/// Removes whatever stands under a name of ours and cannot be trusted.
///
/// # Errors
///
/// What the system says.
pub(crate) fn clear(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove what cannot be trusted", path, error))
        }
        _ => Ok(()),
    }
}

fn publish_manifest(layout: &Layout, manifest: &Manifest) -> Result<()> {
    let path = layout.manifest(&manifest.key);
    let failed = |error| Error::io("write the manifest", &path, error);
    let temporary = layout.temporary()?;
    let file = temporary.file();
    file.write_all_at(&manifest.encode(), 0)
        .and_then(|()| file.set_permissions(read_only()))
        .map_err(failed)?;
    if manifest.boot.is_none() {
        file.sync_all().map_err(failed)?;
    }
    // A rename puts a file in a file's place, not in a folder's.
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        clear(&path)?;
    }
    temporary.publish(&path, Existing::Replace).map_err(failed)
}

fn read_only() -> Permissions {
    Permissions::from_mode(0o444)
}

/// Now, without the fraction that not every file system keeps.
fn whole_second() -> (i64, SystemTime) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(0);
    (seconds, SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()))
}
