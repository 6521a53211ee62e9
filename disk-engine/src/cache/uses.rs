//! Who needs a base while no process holds a lease on it: its overlays, noted one by one.
//!
//! `uses/KEY` is a log: a note is added before an overlay gets its name, and whoever wants to remove the
//! base checks each note against the overlay's own header ([`standing`]). The log's modification time
//! is when the base was asked for last.
//!
//! ```text
//!        0          4             8              12
//! 0x00   │ "USE1"   │ length u32  │ CRC-32 of what follows      length of the note, all of it
//! 0x0c   │ time u64, seconds since 1970          │
//! 0x14   │ boot id, 16 bytes                     │             zeros: not known
//! 0x24   │ mount namespace u64                   │             0: not known
//! 0x2c   │ device u64 of the overlay's folder    │
//! 0x34   │ the overlay's path …                  │             absolute, without links but the last
//! ```
//!
//! Integers are big-endian. A note is added in one write under an exclusive lock on the log, and taken
//! back if it does not fit. Whoever adds one holds a lease on the base, so under the exclusive lock of
//! the base nobody does: then the log may be written anew without what is gone. Callers: `lease` opens
//! it, [`BaseImage`](crate::BaseImage) adds to it, `prune` and `list` ask it.

mod standing;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::cache::layout::Layout;
use crate::cache::lease;
use crate::cache::record::Reader;
use crate::cache::{CacheKey, record};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::pending::Existing;
use crate::sys::{host, lock, open};
pub use standing::{OverlayState, OverlayUse};
pub(crate) use standing::{Standing, standing};

const MAGIC: &[u8; 4] = b"USE1";
/// Bytes of a note before its path.
const FIXED: usize = 0x34;
/// No path of Linux is longer.
const PATH_MAX: usize = 4096;
/// The longest log anybody reads: some 400,000 notes.
const LOG_MAX: u64 = 64 << 20;

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Seconds since the Unix epoch.
    pub(crate) time: u64,
    pub(crate) boot: [u8; 16],
    pub(crate) namespace: u64,
    pub(crate) device: u64,
    pub(crate) path: PathBuf,
}

/// All that a log says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// The last note of each path.
    pub(crate) notes: Vec<Note>,
    /// Whether any part of it is no note.
    pub(crate) damaged: bool,
}

/// The log of a leased base, open to add to.
#[derive(Debug)]
pub(crate) struct Uses {
    file: File,
    path: PathBuf,
    owner: u32,
    /// What is in the log already; not read before it is needed.
    known: Mutex<Option<HashSet<PathBuf>>>,
}

impl Uses {
    /// Opens the log of `key`, making it if need be; `None` where the cache is read-only. Marks the
    /// base as asked for now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] if no file of ours stands there; otherwise what the system says.
    pub(crate) fn open(layout: &Layout, key: &CacheKey) -> Result<Option<Self>> {
        let path = layout.uses(key);
        let file = match open::lock_file(&path) {
            Ok(file) => file,
            Err(error) if open::is_misplaced(&error) => {
                return Err(refused(&path).with_source(error));
            }
            Err(error) if ErrorKind::of_io(&error) == ErrorKind::PermissionDenied => {
                return Ok(None);
            }
            Err(error) => return Err(Error::io("open the record of overlays", &path, error)),
        };
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("look at the record of overlays", &path, error))?;
        if !metadata.is_file() || metadata.uid() != host::effective_user() {
            return Err(refused(&path));
        }
        let uses = Self { file, path, owner: std::process::id(), known: Mutex::new(None) };
        uses.touch();
        Ok(Some(uses))
    }

    /// Notes that an overlay at `path` is about to stand on the base, unless that is noted.
    ///
    /// # Errors
    ///
    /// What the system says; the log is then as it was.
    pub(crate) fn add(&self, path: &Path) -> Result<()> {
        let (path, folder) = absolute(path)?;
        let failed = |error| Error::io("note the overlay in", &self.path, error);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let log = parse(&read(&self.file, &self.path)?);
            *known = Some(log.notes.into_iter().map(|note| note.path).collect());
        }
        if known.as_ref().is_some_and(|known| known.contains(&path)) {
            return Ok(());
        }
        let device = fs::metadata(&folder)
            .map_err(|error| Error::io("look at the overlay's folder", &folder, error))?
            .dev();
        let note = Note {
            time: seconds(SystemTime::now()),
            boot: lease::this_boot()?.map_or([0; 16], |boot| boot.0),
            namespace: host::mount_namespace().unwrap_or(0),
            device,
            path,
        };
        let bytes = note.encode();
        lock::hold(&self.file, || {
            let end = self.file.metadata()?.len();
            self.file.write_all_at(&bytes, end).inspect_err(|_| {
                // Half a note is none; without this it would look like damage.
                let _ = self.file.set_len(end);
            })
        })
        .map_err(failed)?;
        if let Some(known) = known.as_mut() {
            known.insert(note.path);
        }
        Ok(())
    }

    /// Marks the base as asked for now. For an order among bases, so that a failure is not told.
    fn touch(&self) {
        let _ = self.file.set_modified(SystemTime::now());
    }
}

impl Drop for Uses {
    /// What counts is when the last use ended.
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            self.touch();
        }
    }
}

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let path = self.path.as_os_str().as_bytes();
        let words = [self.namespace.to_be_bytes(), self.device.to_be_bytes()].concat();
        let body = [&self.time.to_be_bytes()[..], &self.boot, &words, path].concat();
        // A path is bounded by what the system resolved.
        let length = u32::try_from(FIXED.saturating_add(path.len())).unwrap_or(u32::MAX);
        let crc = crc32fast::hash(&body).to_be_bytes();
        [&MAGIC[..], &length.to_be_bytes(), &crc, &body].concat()
    }

    /// The note `bytes` begin with, and its length.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut reader = Reader::new(bytes);
        if reader.take("magic", 4).ok()? != MAGIC {
            return None;
        }
        let length = usize::try_from(reader.u32("length").ok()?).ok()?;
        let crc = reader.u32("crc32").ok()?;
        let body = bytes.get(12..length)?;
        if !(FIXED..=FIXED + PATH_MAX).contains(&length) || crc32fast::hash(body) != crc {
            return None;
        }
        let mut reader = Reader::new(body);
        let note = Self {
            time: reader.u64("time").ok()?,
            boot: reader.array("boot id").ok()?,
            namespace: reader.u64("mount namespace").ok()?,
            device: reader.u64("device").ok()?,
            path: PathBuf::from(OsStr::from_bytes(body.get(FIXED - 12..)?)),
        };
        note.path.is_absolute().then_some((note, length))
    }
}

/// What the log of `key` says; nothing where there is none.
///
/// # Errors
///
/// No file of ours stands there, or it cannot be read.
pub(crate) fn log(layout: &Layout, key: &CacheKey) -> Result<Log> {
    let path = layout.uses(key);
    let file = match open::existing(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Log::default()),
        Err(error) if record::untrusted(&error) => return Err(refused(&path).with_source(error)),
        Err(error) => return Err(Error::io("open the record of overlays", &path, error)),
    };
    Ok(parse(&read(&file, &path)?))
}

/// When the base of `key` was asked for last; `None` if nobody noted it.
///
/// # Errors
///
/// What the system says. To take that for "never" would make the base the first one to go.
pub(crate) fn last_use(layout: &Layout, key: &CacheKey) -> Result<Option<SystemTime>> {
    let path = layout.uses(key);
    match fs::symlink_metadata(&path).and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at the record of overlays", &path, error)),
    }
}

/// Writes the log of `key` anew with these notes alone, and keeps its modification time. Nobody may
/// hold a lease on the base.
///
/// # Errors
///
/// What the system says; the log is then as it was.
pub(crate) fn rewrite(layout: &Layout, key: &CacheKey, notes: &[&Note]) -> Result<()> {
    let path = layout.uses(key);
    let failed = |error| Error::io("write the record of overlays", &path, error);
    let last = last_use(layout, key)?;
    let temporary = layout.temporary()?;
    let bytes: Vec<u8> = notes.iter().flat_map(|note| note.encode()).collect();
    temporary.file().write_all_at(&bytes, 0).map_err(failed)?;
    if let Some(last) = last {
        temporary.file().set_modified(last).map_err(failed)?;
    }
    temporary.publish(&path, Existing::Replace).map_err(failed)
}

/// All notes of a log. What is no note is passed over and told.
pub(crate) fn parse(bytes: &[u8]) -> Log {
    let mut log = Log::default();
    let mut places = std::collections::HashMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = match Note::parse(rest) {
            Some((note, length)) => {
                match places.get(&note.path).and_then(|&at: &usize| log.notes.get_mut(at)) {
                    Some(earlier) => *earlier = note,
                    None => {
                        places.insert(note.path.clone(), log.notes.len());
                        log.notes.push(note);
                    }
                }
                length
            }
            None => {
                log.damaged = true;
                // Where the next one may begin.
                rest.windows(MAGIC.len())
                    .skip(1)
                    .position(|word| word == MAGIC)
                    .map_or(rest.len(), |at| at + 1)
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    log
}

fn read(file: &File, path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read the record of overlays", path, error);
    let length = file.metadata().map_err(failed)?.len();
    if length > LOG_MAX {
        let message = format!("the record of overlays is longer than {LOG_MAX} bytes");
        return Err(Error::new(ErrorKind::Limit, message).with_path(path));
    }
    let no_memory = || Error::new(ErrorKind::Limit, "no memory for the record of overlays");
    let length = usize::try_from(length).map_err(|_| no_memory())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| no_memory())?;
    bytes.resize(length, 0);
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, filled as u64) {
            // Cut meanwhile: by who writes it, taking a note back.
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The path with its folder resolved, and the folder.
fn absolute(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "the path names no file").with_path(path)
    })?;
    let folder = folder
        .canonicalize()
        .map_err(|error| Error::io("resolve the overlay's folder", folder, error))?;
    Ok((folder.join(name), folder))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn refused(path: &Path) -> Error {
    Error::new(ErrorKind::Refused, "no record of ours stands where one belongs").with_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(path: &str, time: u64) -> Note {
        Note { time, boot: [3; 16], namespace: 4, device: 5, path: path.into() }
    }

    #[test]
    fn a_note_lies_as_drawn() {
        let bytes = note("/vm/0", 7).encode();
        assert_eq!(&bytes[..8], b"USE1\0\0\0\x39");
        assert_eq!(&bytes[0x0c..0x14], 7_u64.to_be_bytes());
        assert_eq!(&bytes[0x14..0x24], [3; 16]);
        assert_eq!(&bytes[0x24..0x2c], 4_u64.to_be_bytes());
        assert_eq!(&bytes[0x2c..0x34], 5_u64.to_be_bytes());
        assert_eq!(&bytes[0x34..], b"/vm/0");
    }

    #[test]
    fn the_last_note_of_a_path_counts_and_damage_costs_one_note() {
        let notes = [note("/a", 1), note("/b", 2), note("/a", 3), note("/c", 4)];
        let whole: Vec<u8> = notes.iter().flat_map(Note::encode).collect();
        let log = parse(&whole);
        assert_eq!(
            log,
            Log {
                notes: [3, 2, 4]
                    .iter()
                    .zip(["/a", "/b", "/c"])
                    .map(|(time, path)| note(path, *time))
                    .collect(),
                damaged: false
            }
        );
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let damaged = parse(&bytes);
            assert!(damaged.damaged, "byte {at}");
            assert!(damaged.notes.len() >= 2, "byte {at}: {damaged:?}");
            let cut = parse(&whole[..at]);
            assert!(cut.notes.len() < 3 || at > 3 * (FIXED + 2), "cut at {at}");
        }
    }

    #[test]
    fn no_claim_allocates_or_panics() {
        let mut bytes = note("/a", 1).encode();
        bytes[4..8].fill(0xff);
        assert_eq!(parse(&bytes), Log { notes: vec![], damaged: true });
        assert_eq!(parse(b"USE1USE1USE1").notes, []);
    }
}
