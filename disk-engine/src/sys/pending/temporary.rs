//! A temporary: a file under a random name, locked while in use.
//!
//! ```text
//! .NAME.0123456789abcdef.partial     the name says for whom, the lock says whether anyone is alive
//! ```
//!
//! Dropped, it is unlinked; killed, its lock is free and the next one to come removes it. A
//! temporary's age says nothing. Callers: `pending`, `cache::layout`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Existing, FileMode, link_unnamed, split};
use crate::error::{Error, Result};
use crate::sys::lock::{FileLock, LockMode};
use crate::sys::{open, random};

/// A file under a random name: locked while in use, unlinked when dropped.
#[derive(Debug)]
pub(crate) struct Temporary {
    lock: FileLock,
    path: PathBuf,
    owner: u32,
    keep: bool,
}

impl Temporary {
    /// Starts a temporary file in `folder`; `name` makes its name from sixteen random digits.
    ///
    /// # Errors
    ///
    /// What the system says; nothing is left of it.
    pub(crate) fn create_in(
        folder: &Path,
        mode: FileMode,
        name: impl Fn(&str) -> OsString,
    ) -> Result<Self> {
        loop {
            let word = random::hex64()
                .map_err(|error| Error::io("draw a random name for a file in", folder, error))?;
            let path = folder.join(name(&word));
            let file = match OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(mode.at_creation())
                .open(&path)
            {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create a temporary file", &path, error)),
            };
            let locked =
                FileLock::try_acquire_patiently(file, LockMode::Exclusive).map_err(|error| {
                    let _ = fs::remove_file(&path);
                    Error::io("lock the temporary file", &path, error)
                })?;
            // A sweeper may see the file before its lock and take it: then it is gone, try again.
            let Ok(lock) = locked else { continue };
            match lock.still_names(&path) {
                Ok(true) => {
                    return Ok(Self { lock, path, owner: std::process::id(), keep: false });
                }
                Ok(false) => {}
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    return Err(Error::io("look at the temporary file", &path, error));
                }
            }
        }
    }

    /// Gives a file without a name one in `folder`, locked; `name` makes it from sixteen random digits.
    ///
    /// # Errors
    ///
    /// What the system says; the file has no name then.
    pub(super) fn of_unnamed(
        file: File,
        folder: &Path,
        name: impl Fn(&str) -> OsString,
    ) -> io::Result<Self> {
        // Nobody else has it yet.
        let lock = FileLock::acquire(file)?;
        loop {
            let path = folder.join(name(&random::hex64()?));
            match link_unnamed(lock.file(), &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => {
                    outcome?;
                    return Ok(Self { lock, path, owner: std::process::id(), keep: false });
                }
            }
        }
    }

    /// The file to write to, open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        self.lock.file()
    }

    /// Where it lies until it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name, in the same file system, and releases its lock.
    ///
    /// # Errors
    ///
    /// What the system says; nothing is left of the file then.
    pub(crate) fn publish(mut self, destination: &Path, existing: Existing) -> io::Result<()> {
        match existing {
            Existing::Replace | Existing::Overwrite => {
                fs::rename(&self.path, destination)?;
                self.keep = true;
            }
            // A link never replaces; the temporary name goes with `self`.
            Existing::Refuse => match fs::hard_link(&self.path, destination) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    // No hard links on this file system (FAT): look, then rename.
                    if fs::symlink_metadata(destination).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    fs::rename(&self.path, destination)?;
                    self.keep = true;
                }
                outcome => outcome?,
            },
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A forked child owns neither the name nor the lock.
        if !self.keep && self.owner == std::process::id() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what killed processes left of files meant for `destination`: temporaries of its folder
/// that carry its name and whose lock is free. Returns how many there were.
///
/// # Errors
///
/// The folder cannot be read. A temporary that cannot be opened or removed is left alone.
pub fn sweep(destination: &Path) -> Result<usize> {
    let (folder, name) = split(destination)?;
    let entries =
        fs::read_dir(folder).map_err(|error| Error::io("look for left-overs in", folder, error))?;
    let mut removed = 0;
    for entry in entries.flatten() {
        if is_temporary_of(name, &entry.file_name()) && remove_if_abandoned(&entry.path()) {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes one temporary if it is a regular file nobody holds the lock of.
pub(crate) fn remove_if_abandoned(path: &Path) -> bool {
    // Its lock is held until it is gone.
    abandoned(path).ok().flatten().is_some_and(|_lock| fs::remove_file(path).is_ok())
}

/// The lock of a temporary, if it is a regular file of ours nobody holds the lock of.
///
/// # Errors
///
/// What says nothing about the file: no descriptors, failing storage, no locks.
pub(crate) fn abandoned(path: &Path) -> io::Result<Option<FileLock>> {
    let file = match open::temporary(path) {
        Ok(file) => file,
        Err(error)
            if open::is_misplaced(&error)
                || [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied]
                    .contains(&error.kind()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let Ok(lock) = FileLock::try_acquire(file, LockMode::Exclusive)? else { return Ok(None) };
    Ok(lock.still_names(path)?.then_some(lock))
}

/// Longest part of a destination's name that goes into a temporary's: 255 bytes are all a name
/// may have, and 26 are ours.
const STEM_MAX: usize = 200;

fn stem(name: &OsStr) -> &[u8] {
    let bytes = name.as_bytes();
    bytes.get(..STEM_MAX).unwrap_or(bytes)
}

pub(super) fn temporary_name(name: &OsStr, word: &str) -> OsString {
    OsString::from_vec([b".", stem(name), b".", word.as_bytes(), b".partial"].concat())
}

fn is_temporary_of(name: &OsStr, candidate: &OsStr) -> bool {
    candidate
        .as_bytes()
        .strip_prefix(b".")
        .and_then(|rest| rest.strip_prefix(stem(name)))
        .and_then(|rest| rest.strip_prefix(b"."))
        .and_then(|rest| rest.strip_suffix(b".partial"))
        .is_some_and(|word| word.len() == 16 && word.iter().all(u8::is_ascii_hexdigit))
}
