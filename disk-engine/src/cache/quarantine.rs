//! A damaged base out of the way, but not lost: a person may want to know what happened to it.
//!
//! ```text
//! quarantine/KEY.16 hex digits.img        the base, or whatever stood under its name
//!            KEY.16 hex digits.manifest   what it should have been
//!            KEY.16 hex digits.reason     why it is here, one line of text
//! ```
//!
//! All of it under the lock of the key. The base goes first, then its manifest: kill between them
//! leaves a manifest without a base, which means nothing. A base that someone uses stays under its
//! name, since its overlays name it; only its manifest goes, so nobody is served it again, and the next
//! request replaces it.
//!
//! Nothing here is ever read again by this crate. Callers: `cache::verify`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cache::key::CacheKey;
use crate::cache::layout::Layout;
use crate::cache::users::{self, Leases, Users};
use crate::error::{Error, Result};
use crate::sys::random;

/// What became of a damaged base.
#[derive(Debug, Default)]
pub(crate) struct Quarantined {
    /// Where the base is now; `None`: it stays under its name, being in use or gone.
    pub(crate) base: Option<PathBuf>,
    /// Whether someone uses it, or nobody can tell.
    pub(crate) in_use: bool,
    /// Why its manifest stays under its name, where the base does not.
    pub(crate) obstacle: Option<Error>,
}

/// Moves the base of `key` and its manifest away. Under the lock of the key, without a lease of one's
/// own.
///
/// # Errors
///
/// What the system says, or [`ErrorKind::Refused`](crate::ErrorKind::Refused) if the folder cannot be
/// trusted. A base that was not moved is then as it was.
pub(crate) fn quarantine(layout: &Layout, key: &CacheKey, reason: &Error) -> Result<Quarantined> {
    let folder = layout.quarantine()?;
    let word = random::hex64().map_err(|error| Error::io("name a file in", &folder, error))?;
    let place = |kind: &str| folder.join(format!("{key}.{word}.{kind}"));
    let base = layout.base(key);
    let held = users::of(&base)?;
    let in_use = may_be_used(&held);
    let moved = !in_use && give_way(&base, &place("img"))?;
    drop(held);
    let obstacle = match give_way(&layout.manifest(key), &place("manifest")) {
        // Without its base it means nothing, but in that base's place it would be believed.
        Err(error) if !moved => return Err(error),
        Err(error) => Some(error),
        Ok(false) if !moved => return Ok(Quarantined { in_use, ..Quarantined::default() }),
        Ok(_) => None,
    };
    explain(&place("reason"), reason);
    Ok(Quarantined { base: moved.then(|| place("img")), in_use, obstacle })
}

/// Whether someone uses the base of `key`, or nobody can tell.
///
/// # Errors
///
/// What the system says.
pub(crate) fn is_in_use(layout: &Layout, key: &CacheKey) -> Result<bool> {
    users::of(&layout.base(key)).map(|users| may_be_used(&users))
}

fn may_be_used(users: &Users) -> bool {
    users.qemu != Some(false) || !matches!(users.leases, Leases::None { .. })
}

/// Renames what stands there; `false` if nothing does.
fn give_way(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("move to quarantine", from, error)),
    }
}

/// Writes down why. Information for a person, so a full disk does not matter.
fn explain(path: &Path, reason: &Error) {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if let Ok(mut file) = file {
        let _ = file.write_all(format!("{reason}\n").as_bytes());
    }
}
