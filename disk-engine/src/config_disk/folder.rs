//! A folder of this machine, read for a config disk.
//!
//! ```text
//! folder ─▶ names, sorted ─▶ folder: deeper     file: read     anything else: refused by name
//! ```
//!
//! Links are refused, not followed: where they lead is a matter of this machine, and a guest has
//! another. Caller: `config_disk`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::config_disk::tree::limit;
use crate::config_disk::{ConfigDiskLimits, Entry};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::open;

/// Adds all that is in the folder at `path` to `entries`.
pub(super) fn read(path: &Path, limits: &ConfigDiskLimits, entries: &mut Vec<Entry>) -> Result<()> {
    let held = entries.iter().filter_map(|entry| entry.content.as_ref());
    let bytes = held.fold(0_u64, |sum, content| sum.saturating_add(content.len() as u64));
    let mut reading = Reading { limits, entries, bytes };
    reading.folder(path, "", 0)
}

struct Reading<'a> {
    limits: &'a ConfigDiskLimits,
    entries: &'a mut Vec<Entry>,
    /// Bytes of all files so far.
    bytes: u64,
}

impl Reading<'_> {
    fn folder(&mut self, path: &Path, inside: &str, depth: usize) -> Result<()> {
        if depth > self.limits.max_depth {
            let what = format!("folders more than {} deep", self.limits.max_depth);
            return Err(limit(what).with_path(path));
        }
        let failed = |error| Error::io("read the folder", path, error);
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let name = entry.file_name().into_string().map_err(|_| {
                Error::new(ErrorKind::Unsupported, "the name is not UTF-8").with_path(&path)
            })?;
            if self.entries.len() >= self.limits.max_entries {
                let what = format!("more than {} files and folders", self.limits.max_entries);
                return Err(limit(what).with_path(&path));
            }
            let inside = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            let kind = entry.file_type().map_err(|error| Error::io("look at", &path, error))?;
            if kind.is_dir() {
                self.entries.push(Entry { path: inside.clone(), content: None });
                self.folder(&path, &inside, depth + 1)?;
            } else if kind.is_file() {
                let content = self.file(&path)?;
                self.entries.push(Entry { path: inside, content: Some(content) });
            } else {
                return Err(refused(&path, kind));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<Vec<u8>> {
        let file = open::existing(path).map_err(|error| Error::io("open", path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
        if !metadata.is_file() {
            // It was one a moment ago.
            return Err(refused(path, metadata.file_type()));
        }
        let room = self.limits.max_bytes.saturating_sub(self.bytes);
        let too_many =
            || limit(format!("more than {} bytes of files", self.limits.max_bytes)).with_path(path);
        if metadata.len() > room {
            return Err(too_many());
        }
        let mut content = Vec::new();
        usize::try_from(metadata.len())
            .ok()
            .and_then(|length| content.try_reserve_exact(length).ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Limit, "no memory for the file").with_path(path)
            })?;
        // A file that grows meanwhile, or one below /proc, is longer than it said.
        file.take(room.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|error| Error::io("read", path, error))?;
        if content.len() as u64 > room {
            return Err(too_many());
        }
        self.bytes = self.bytes.saturating_add(content.len() as u64);
        Ok(content)
    }
}

fn refused(path: &Path, kind: fs::FileType) -> Error {
    let what = if kind.is_symlink() {
        "a symbolic link, which is not followed"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_dir() {
        "a folder where there was a file"
    } else {
        "a device"
    };
    Error::new(
        ErrorKind::Refused,
        format!("a config disk holds files and folders, and this is {what}"),
    )
    .with_path(path)
}
