//! Remembered digests: what a file held when it was read to the end, found again by its inode.
//!
//! One file per (device, inode) in `sources/`, a [record] with this body, all of it
//! big-endian:
//!
//! ```text
//! device u64 │ inode u64 │ size u64
//! mtime: seconds i64, nanoseconds i64 │ ctime: seconds i64, nanoseconds i64
//! SHA-256, 32 bytes
//! ```
//!
//! A digest is believed while all of that is unchanged. The change time is what makes it sound: no
//! program can set it, so a file that was replaced or rewritten and got its old size and mtime back
//! is still noticed. One gap is left: a write so soon after the file was read that the clock of the
//! file system has not moved on. So a file that was touched less than [`SETTLED`] before it was
//! read is not remembered at all.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::cache::layout::Layout;
use crate::cache::record::{self, Kind};
use crate::control::{Control, Event};
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::source::input;
use crate::sys::pending::Existing;

pub(crate) const KIND: Kind = Kind { magic: *b"DISKMEMO", version: 1, limit: 4096 };

/// How long a file must have been left alone: more than any file system's clock needs to tick.
const SETTLED: Duration = Duration::from_secs(2);

/// How much is read at a time to be hashed.
const CHUNK: usize = 1 << 20;

/// What tells one state of a file from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    device: u64,
    inode: u64,
    pub(crate) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Facts {
    /// The state of the file at `path`, links followed; `None` if it is not a regular file, and so
    /// has no state anyone could tell.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>> {
        let metadata = fs::metadata(path).map_err(|error| Error::io("look at", path, error))?;
        Ok(metadata.is_file().then(|| Self::from(&metadata)))
    }

    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file had been left alone for long enough at `time`.
    fn settled_at(&self, time: SystemTime) -> bool {
        let Ok(now) = time.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let Some(limit) = now.checked_sub(SETTLED) else { return false };
        let limit = (i64::try_from(limit.as_secs()).unwrap_or(0), i64::from(limit.subsec_nanos()));
        self.modified < limit && self.changed < limit
    }

    fn encode(&self) -> Vec<u8> {
        let words = [self.device, self.inode, self.size].map(u64::to_be_bytes);
        let times = [self.modified.0, self.modified.1, self.changed.0, self.changed.1];
        [words.concat(), times.map(i64::to_be_bytes).concat()].concat()
    }
}

/// The digest of a file in this state, if it is remembered. A damaged memory is none.
pub(crate) fn recall(layout: &Layout, facts: &Facts) -> Option<Sha256Digest> {
    let path = layout.memo(facts.device, facts.inode);
    let bytes = record::read_file(KIND, &path).ok()??;
    parse(&bytes, &facts.encode())
}

/// The digest in a record about the file with these facts, `known` as a record holds them.
pub(crate) fn parse(bytes: &[u8], known: &[u8]) -> Option<Sha256Digest> {
    let mut reader = record::unseal(KIND, bytes).ok()?;
    if reader.take("facts", known.len()).ok()? != known {
        return None;
    }
    let digest = Sha256Digest(reader.array("sha256").ok()?);
    reader.finish().ok()?;
    Some(digest)
}

/// Remembers the digest of a file in this state, read from `started` on. A memory only saves time,
/// so what goes wrong here is not told.
pub(crate) fn remember(layout: &Layout, facts: &Facts, started: SystemTime, digest: Sha256Digest) {
    if !facts.settled_at(started) {
        return;
    }
    let Ok(temporary) = layout.temporary() else { return };
    let bytes = record::seal(KIND, &[facts.encode().as_slice(), &digest.0].concat());
    let written = temporary
        .file()
        .write_all_at(&bytes, 0)
        .and_then(|()| temporary.file().set_permissions(Permissions::from_mode(0o444)));
    if written.is_ok() {
        let _ = temporary.publish(&layout.memo(facts.device, facts.inode), Existing::Replace);
    }
}

/// Forgets what was remembered of the file.
pub(crate) fn forget(layout: &Layout, facts: &Facts) {
    let _ = fs::remove_file(layout.memo(facts.device, facts.inode));
}

/// Reads the file at `path` for its digest.
///
/// # Errors
///
/// The file cannot be read, or the caller cancelled.
pub(crate) fn digest_file(path: &Path, control: &Control) -> Result<Sha256Digest> {
    let failed = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let source_length = file.metadata().ok().map(|metadata| metadata.len());
    let mut hash = Sha256::new();
    let mut buffer = input::zeroed(CHUNK)?;
    let mut source_bytes = 0;
    loop {
        control.check()?;
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hash.update(buffer.get(..read).unwrap_or_default());
        source_bytes += read as u64;
        control.emit(&Event::Progress { source_bytes, source_length, written_bytes: 0 });
    }
    Ok(Sha256Digest(hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Sha256Digest = Sha256Digest([9; 32]);

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3)
    }

    #[test]
    fn a_digest_is_recalled_for_exactly_the_file_it_was_read_from() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let facts = Facts { device: 1, inode: 2, size: 3, modified: (4, 5), changed: (6, 7) };
        assert_eq!(recall(&layout, &facts), None);
        remember(&layout, &facts, later(), DIGEST);
        assert_eq!(recall(&layout, &facts), Some(DIGEST));
        for other in [
            Facts { device: 0, ..facts },
            Facts { inode: 0, ..facts },
            Facts { size: 0, ..facts },
            Facts { modified: (0, 5), ..facts },
            Facts { modified: (4, 0), ..facts },
            Facts { changed: (0, 7), ..facts },
            Facts { changed: (6, 0), ..facts },
        ] {
            assert_eq!(recall(&layout, &other), None, "{other:?}");
        }
        forget(&layout, &facts);
        assert_eq!(recall(&layout, &facts), None);
    }

    #[test]
    fn a_file_touched_just_before_it_was_read_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let path = folder.path().join("source");
        fs::write(&path, b"content").unwrap();
        let facts = Facts::of(&path).unwrap().unwrap();
        for (started, kept) in [
            (SystemTime::UNIX_EPOCH, false),
            (SystemTime::now(), false),
            (SystemTime::now() + Duration::from_secs(1), false),
            (later(), true),
        ] {
            remember(&layout, &facts, started, DIGEST);
            assert_eq!(recall(&layout, &facts).is_some(), kept, "{started:?}");
        }
    }

    #[test]
    fn a_file_replaced_under_its_old_size_and_mtime_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        fs::write(&path, b"content").unwrap();
        let facts = Facts::of(&path).unwrap().unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, b"CONTENT").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let rewritten = Facts::of(&path).unwrap().unwrap();
        assert_eq!(
            (rewritten.size, rewritten.modified, rewritten.inode),
            (facts.size, facts.modified, facts.inode)
        );
        assert_ne!(rewritten, facts);
    }

    #[test]
    fn a_damaged_memory_is_none_and_can_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        let facts = Facts { device: 1, inode: 2, size: 3, modified: (4, 5), changed: (6, 7) };
        let path = layout.memo(1, 2);
        remember(&layout, &facts, later(), DIGEST);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, &damaged).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
            assert_eq!(recall(&layout, &facts), None, "byte {at}");
        }
        remember(&layout, &facts, later(), DIGEST);
        assert_eq!(recall(&layout, &facts), Some(DIGEST));
    }

    #[test]
    fn a_file_is_hashed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        let content = vec![5; CHUNK + 7];
        fs::write(&path, &content).unwrap();
        let expected: [u8; 32] = Sha256::digest(&content).into();
        assert_eq!(digest_file(&path, &Control::new()).unwrap(), Sha256Digest(expected));
    }
}
