//! Whether an overlay that was noted still stands on the base: asked of the overlay itself.
//!
//! ```text
//! at the noted path                                          the base
//! a qcow2 image that names it                    stands      is kept
//! nothing; no qcow2 image; one that names
//!   another base                                 gone        is free
//! cannot be looked at; is missing and was noted
//!   in another mount namespace, or on a file
//!   system that is not mounted there now         unknown     is kept, unless told otherwise
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use qcow2_format::Header;

use super::{Note, log};
use crate::cache::CacheKey;
use crate::cache::layout::Layout;
use crate::cache::lease;
use crate::disk::{chain, policy};
use crate::error::Result;
use crate::overlay::BaseIdentity;
use crate::sys::{file_system, host, open};

/// An overlay that was made over a base of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayUse {
    /// Where it was made: absolute.
    pub path: PathBuf,
    /// When, in seconds since the Unix epoch.
    pub since: u64,
    /// Whether it is still there.
    pub state: OverlayState,
}

/// Whether an overlay still needs its base.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlayState {
    /// It is there and names the base.
    Stands,
    /// Nothing is there that names the base.
    Gone,
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// What a log comes to today.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    pub(crate) overlays: Vec<OverlayUse>,
    /// The notes of those that are not gone.
    pub(crate) notes: Vec<Note>,
    /// Whether any part of the log cannot be read.
    pub(crate) damaged: bool,
}

impl Standing {
    /// The overlays that keep the base.
    pub(crate) fn needing(&self) -> impl Iterator<Item = &OverlayUse> {
        self.overlays.iter().filter(|overlay| overlay.state != OverlayState::Gone)
    }
}

/// Looks at each overlay noted for `key`.
///
/// # Errors
///
/// The log cannot be read.
pub(crate) fn standing(layout: &Layout, key: &CacheKey) -> Result<Standing> {
    let log = log(layout, key)?;
    let mut standing = Standing { damaged: log.damaged, ..Standing::default() };
    for note in log.notes {
        let state = state(&note, layout, key);
        standing.overlays.push(OverlayUse {
            path: note.path.clone(),
            since: note.time,
            state: state.clone(),
        });
        if state != OverlayState::Gone {
            standing.notes.push(note);
        }
    }
    Ok(standing)
}

fn state(note: &Note, layout: &Layout, key: &CacheKey) -> OverlayState {
    let unknown = |error: &io::Error| OverlayState::Unknown(error.to_string());
    let file = match open::existing(&note.path) {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return missing(note);
        }
        // A link, a folder, a socket: no overlay of ours.
        Err(error) if open::is_misplaced(&error) => return OverlayState::Gone,
        Err(error) => return unknown(&error),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return OverlayState::Gone,
        Err(error) => return unknown(&error),
    }
    match begins_as_qcow2(&file) {
        Ok(true) => {}
        Ok(false) => return OverlayState::Gone,
        Err(error) => return unknown(&error),
    }
    match chain::read_header(&file, &note.path) {
        Ok(header) if names(&header, &note.path, layout, key) => OverlayState::Stands,
        Ok(_) => OverlayState::Gone,
        Err(error) => OverlayState::Unknown(error.message().to_owned()),
    }
}

/// Whether nothing being there means that nothing is anywhere.
fn missing(note: &Note) -> OverlayState {
    let boot = match lease::this_boot() {
        Ok(boot) => boot.map_or([0; 16], |boot| boot.0),
        Err(error) => return OverlayState::Unknown(error.to_string()),
    };
    // Numbers of another boot say nothing today.
    if note.boot != boot {
        return OverlayState::Gone;
    }
    let here = host::mount_namespace().unwrap_or(0);
    if note.namespace != here && note.namespace != 0 && here != 0 {
        return OverlayState::Unknown(
            "it was made in another mount namespace and cannot be seen from here".into(),
        );
    }
    let device = file_system::nearest_folder(&note.path)
        .and_then(fs::metadata)
        .map(|metadata| metadata.dev());
    match device {
        Ok(device) if device != note.device => {
            OverlayState::Unknown("the file system it was made on is not mounted there".into())
        }
        Ok(_) => OverlayState::Gone,
        Err(error) => OverlayState::Unknown(error.to_string()),
    }
}

fn begins_as_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(&magic == b"QFI\xfb"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the overlay names the base of `key`: by its path, or by what it remembers if the path
/// leads nowhere, as after a move of the cache.
fn names(header: &Header, overlay: &Path, layout: &Layout, key: &CacheKey) -> bool {
    let Some(name) = header.backing_file() else { return false };
    let Ok(named) = policy::plain_path(overlay, name) else { return false };
    let base = layout.base(key);
    if named == base {
        return true;
    }
    match fs::canonicalize(&named) {
        Ok(resolved) => resolved == base,
        Err(_) => {
            // Where the base itself is missing, only the name can be compared.
            named.file_name() == base.file_name()
                || BaseIdentity::recorded(header)
                    .and_then(|identity| identity.key)
                    .is_some_and(|identity| identity.0 == *key.as_bytes())
        }
    }
}
