//! Raw disks for direct I/O: padded with zeros to whole units of 4096 bytes.
//!
//! ```text
//! a raw disk    [ content                        5000 ]
//! padded        [ content                        5000 │ zeros  8192 ]
//!
//! with a GPT    [ … │ partitions … │ backup header ]◀ the last sector, and it has to stay that
//! ```
//!
//! QEMU opens no raw disk for writing past the page cache (`cache=none`) unless its length is a
//! multiple of what the file system wants, 4096 at most. A longer disk has its GPT's backup header
//! in the wrong place, which tools complain about and firmware may not boot from, so a GPT is
//! refused: `EFI PART` at the start of the second sector or of the last whole one, of 512 or of 4096
//! bytes. The last one alone is all that is left of a table whose first copy was damaged.
//!
//! Callers: `ops::extract`, and whoever attaches a raw disk of any length.

use std::fs::File;
use std::path::Path;

use qcow2_format::ReadAt;

use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_lock;
use crate::sys::pending::Durability;

/// The largest unit of direct I/O there is on Linux, in bytes.
pub const DIRECT_UNIT: u64 = 4096;

/// How to pad.
#[derive(Clone, Copy, Debug)]
pub struct PadOptions {
    /// How hard to sync.
    pub durability: Durability,
}

impl Default for PadOptions {
    fn default() -> Self {
        Self { durability: Durability::None }
    }
}

/// What padding changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PadReport {
    /// Length before, in bytes.
    pub before: u64,
    /// Length now: the next multiple of [`DIRECT_UNIT`].
    pub after: u64,
}

/// Pads the raw disk at `path`, in place. One that is even already stays as it is, GPT or not.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if the disk has a GPT; [`ErrorKind::Busy`] if a QEMU has it open;
/// [`ErrorKind::InvalidInput`] if it is no regular file; otherwise what the system says. The disk
/// is then as it was.
pub fn pad_for_direct_io(path: impl AsRef<Path>, options: &PadOptions) -> Result<PadReport> {
    let path = path.as_ref();
    let file = chain::open_image(path, File::options().read(true).write(true))?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if !metadata.is_file() {
        let message = "only a regular file can be padded";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
    }
    if metadata.len().is_multiple_of(DIRECT_UNIT) {
        return Ok(PadReport { before: metadata.len(), after: metadata.len() });
    }
    let free = image_lock::lock_for_writing(&file)
        .map_err(|error| Error::io("lock the disk", path, error))?;
    if !free {
        return Err(Error::new(ErrorKind::Busy, "another program has the disk open")
            .with_path(path)
            .with_hint("stop its VM first"));
    }
    let report = pad_file(&file, path)?;
    if options.durability != Durability::None {
        file.sync_all().map_err(|error| Error::io("sync", path, error))?;
    }
    Ok(report)
}

/// As [`pad_for_direct_io`], for a file only the caller knows.
pub(crate) fn pad_file(file: &File, path: &Path) -> Result<PadReport> {
    let before = chain::length(file, path)?;
    let after = before.checked_next_multiple_of(DIRECT_UNIT).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "no disk is that large").with_path(path)
    })?;
    if after != before {
        if let Some(offset) = gpt_header(file, path, before)? {
            let message = "the disk has a GPT, whose backup header must stay last";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_path(path)
                .with_field("GPT header")
                .with_offset(offset)
                .with_hint(
                    "partition a disk of whole units of 4096 bytes, or use cache mode writeback",
                ));
        }
        file.set_len(after).map_err(|error| Error::io("pad", path, error))?;
    }
    Ok(PadReport { before, after })
}

/// Where a disk of `length` bytes has a GPT's header, the first one or the backup.
fn gpt_header(file: &File, path: &Path, length: u64) -> Result<Option<u64>> {
    for sector in [512, 4096] {
        let last = (length / sector).saturating_sub(1).saturating_mul(sector);
        for offset in [sector, last] {
            let mut signature = [0; 8];
            let count = file
                .read_full_at(&mut signature, offset)
                .map_err(|error| Error::io("look for a GPT in", path, error).with_offset(offset))?;
            if count == signature.len() && signature == *b"EFI PART" {
                return Ok(Some(offset));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_disk_is_padded_with_zeros_to_the_next_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for (before, after) in [(0, 0), (1, 4096), (4096, 4096), (4097, 8192), (520, 4096)] {
            fs::write(&path, vec![7; before]).unwrap();
            let report = pad_for_direct_io(&path, &PadOptions::default()).unwrap();
            assert_eq!((report.before, report.after), (before as u64, after as u64));
            let mut expected = vec![7; before];
            expected.resize(after, 0);
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
    }

    #[test]
    fn a_gpt_is_left_alone_unless_nothing_has_to_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for sector in [512, 4096] {
            let mut disk = vec![0; 9000];
            disk[sector..sector + 8].copy_from_slice(b"EFI PART");
            fs::write(&path, &disk).unwrap();
            let error = pad_for_direct_io(&path, &PadOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.offset(), Some(sector as u64));
            assert_eq!(fs::read(&path).unwrap(), disk);
            disk.resize(12288, 0);
            fs::write(&path, &disk).unwrap();
            pad_for_direct_io(&path, &PadOptions::default()).unwrap();
        }
    }

    #[test]
    fn a_backup_header_alone_is_a_gpt_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for (length, last) in [(9216, 8704), (9300, 8704), (20_992, 16_384), (20_992, 20_480)] {
            let mut disk = vec![0; length];
            disk[last..last + 8].copy_from_slice(b"EFI PART");
            fs::write(&path, &disk).unwrap();
            let error = pad_for_direct_io(&path, &PadOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.offset(), Some(last as u64));
            assert_eq!(fs::read(&path).unwrap(), disk);
        }
    }

    #[test]
    fn a_disk_in_use_and_what_is_no_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [7; 100]).unwrap();
        let running = File::options().read(true).write(true).open(&path).unwrap();
        assert!(image_lock::lock_for_writing(&running).unwrap());
        let pad = |path: &Path| pad_for_direct_io(path, &PadOptions::default()).unwrap_err().kind();
        assert_eq!(pad(&path), ErrorKind::Busy);
        assert_eq!(pad(folder.path()), ErrorKind::InvalidInput);
        assert_eq!(pad(&folder.path().join("absent")), ErrorKind::NotFound);
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
    }
}
