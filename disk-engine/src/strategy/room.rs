//! Room for disks, asked for before the first one is made.
//!
//! ```text
//!            a new disk takes                      and later
//! overlay    64 KiB                                what its guest writes: the caller's estimate,
//! reflink    64 KiB and a 1024th of the data       `reserve` bytes a disk
//! copy       the data, a 512th of it and 64 KiB
//! ```
//!
//! Compared with what an unprivileged writer has left, `statvfs`'s `f_bavail`. That is an estimate
//! on btrfs, and knows no quotas: Linux has no call that tells a user's quota on every file system,
//! so a quota shows as an error of the write that meets it (`EDQUOT`, a no-space error as well).
//! What passes here can still run full; what fails here has written nothing. Caller:
//! `ops::prepare`.

use std::fs::File;
use std::io;
use std::path::Path;

use super::source::BaseFile;
use super::{DiskBuilder, Means, independent};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{file_system, space};

/// What every new disk takes at least, in bytes: a header, tables, a name in a folder.
pub const LEAST: u64 = 64 << 10;

impl DiskBuilder<'_> {
    /// Bytes of storage the disk is expected to take when it is new. Where the strategy is to share
    /// if the file system can, it is asked.
    ///
    /// # Errors
    ///
    /// What makes no sense to [`DiskBuilder::create`]; the base cannot be read; no file can be made
    /// where the disk is to be.
    pub fn space_needed(&self) -> Result<u64> {
        let means = self.means()?;
        if means == Means::Overlay {
            return Ok(LEAST);
        }
        let base = BaseFile::open(self.base)?;
        let data = base.data().try_fold(0_u64, |sum, range| {
            let range = range?;
            Ok::<_, Error>(sum.saturating_add(range.end.saturating_sub(range.start)))
        })?;
        let shares = match means {
            Means::Overlay | Means::Reflink => true,
            Means::ReflinkElseCopy => independent::can_share(&base, &nearest(&self.path)?)?,
            Means::Copy => false,
        };
        let bytes = if shares { data / 1024 } else { data.saturating_add(data / 512) };
        Ok(bytes.saturating_add(LEAST))
    }
}

/// Bytes an unprivileged writer has left where `path` is or will be.
///
/// # Errors
///
/// What the system says.
pub fn available(path: &Path) -> Result<u64> {
    let folder = nearest(path)?;
    File::open(&folder)
        .and_then(|folder| space::available(&folder))
        .map_err(|error| Error::io("look for free space in", folder, error))
}

/// Refuses disks that take `needed` bytes below `folder` if fewer are left. `disks` says how many,
/// for the message.
///
/// # Errors
///
/// [`ErrorKind::NoSpace`] with both numbers; otherwise what the system says.
pub fn check(folder: &Path, needed: u64, disks: usize) -> Result<()> {
    let available = available(folder)?;
    if needed <= available {
        return Ok(());
    }
    let message = format!("{disks} disks need {needed} bytes and {available} are available");
    Err(Error::new(ErrorKind::NoSpace, message)
        .with_path(folder)
        .with_hint("free some space, choose another folder, a smaller reserve or another strategy")
        .with_source(io::Error::from(io::ErrorKind::StorageFull)))
}

/// The highest level of storage in use while disks are made in order, above what is in use now.
/// Each is new, or replaces one whose storage is freed once the new one stands, or is kept.
///
/// `reserve` is what each disk is expected to grow to beyond its start; a kept disk has grown
/// already.
#[must_use]
pub fn peak(disks: impl IntoIterator<Item = Need>, reserve: u64) -> u64 {
    let (mut level, mut peak, mut growth) = (0_u64, 0_u64, 0_u64);
    for disk in disks {
        match disk {
            Need::Kept { grown } => {
                growth = growth.saturating_add(reserve.saturating_sub(grown));
            }
            Need::New { bytes, frees } => {
                level = level.saturating_add(bytes);
                peak = peak.max(level);
                level = level.saturating_sub(frees);
                growth = growth.saturating_add(reserve);
            }
        }
    }
    peak.max(level.saturating_add(growth))
}

/// What one disk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It stands there and stays.
    Kept {
        /// Bytes it has grown by already.
        grown: u64,
    },
    /// It is to be made.
    New {
        /// Bytes of storage it takes when it is new.
        bytes: u64,
        /// Bytes that are freed once it stands: those of the disk it replaces.
        frees: u64,
    },
}

fn nearest(path: &Path) -> Result<std::path::PathBuf> {
    file_system::nearest_folder(path).map_err(|error| Error::io("look for", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_counts_what_stands_at_the_same_time() {
        let new = |bytes, frees| Need::New { bytes, frees };
        let kept = |grown| Need::Kept { grown };
        for (disks, reserve, expected) in [
            (vec![], 9, 0),
            (vec![new(10, 0), new(10, 0)], 0, 20),
            (vec![new(10, 0), new(10, 0)], 5, 30),
            // Replaced in turn: only one of them twice at a time.
            (vec![new(10, 10), new(10, 10)], 0, 10),
            (vec![new(10, 100), new(10, 0)], 0, 10),
            (vec![kept(3), kept(50)], 10, 7),
            (vec![kept(3), new(10, 0)], 10, 27),
            (vec![new(u64::MAX, 0), new(u64::MAX, 0)], u64::MAX, u64::MAX),
        ] {
            assert_eq!(peak(disks.clone(), reserve), expected, "{disks:?} {reserve}");
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("not/there/yet");
        check(&there, 0, 1).unwrap();
        let error = check(&there, u64::MAX, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.message().contains(&u64::MAX.to_string()), "{error}");
        assert_eq!(fs_names(folder.path()), 0);
    }

    fn fs_names(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }
}
