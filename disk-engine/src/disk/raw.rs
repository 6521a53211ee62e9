//! A raw image: guest offset is file offset, behind the start of the part that is the disk.
//!
//! ```text
//! disk   █ data █ zeros █ data █      the same bytes at the same places of the file;
//! file   █ data ░ hole  █ data █      a hole is known to be zeros without reading
//! ```
//!
//! Callers: `ops::pack`, opened chains.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::disk::chain;
use crate::disk::content::{ContentRun, DiskContent, StoredRun};
use crate::disk::sectors::SECTOR;
use crate::disk::stated::RawPart;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::image_lock::ImageLock;
use crate::sys::sparse;

/// A raw disk in a regular file or a block device, open for reading.
#[derive(Debug)]
pub struct RawDisk {
    file: ImageFile,
    path: PathBuf,
    /// Where the disk begins in the file.
    start: u64,
    size: u64,
}

impl RawDisk {
    /// The disk at `path`, whatever its bytes look like.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], [`ErrorKind::Unsupported`] if it is neither a regular file nor a
    /// block device; otherwise what the system says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of(chain::open_top(path)?, path)
    }

    /// The disk in `file`; `path` is what messages call it.
    ///
    /// # Errors
    ///
    /// The file's length cannot be told.
    pub fn of(file: File, path: &Path) -> Result<Self> {
        Self::over(ImageFile::new(ImageLock::none(file)), path)
    }

    /// As [`RawDisk::of`], of a file that is locked.
    pub(super) fn over(file: ImageFile, path: &Path) -> Result<Self> {
        let size = chain::length(&file, path)?;
        Ok(Self { file, path: path.to_path_buf(), start: 0, size })
    }

    /// As [`RawDisk::over`], of a part of the file.
    pub(super) fn part_of(file: ImageFile, path: &Path, part: RawPart) -> Result<Self> {
        let length = chain::length(&file, path)?;
        let whole = length.next_multiple_of(SECTOR);
        let end = part.offset.checked_add(part.size.unwrap_or(0)).filter(|end| *end <= whole);
        let wrong = |message: &'static str, field: &'static str| {
            Err(Error::new(ErrorKind::InvalidInput, message).with_path(path).with_field(field))
        };
        if end.is_none() {
            return wrong("the part of the raw image ends behind it", "size");
        }
        if part.size.is_some_and(|size| !size.is_multiple_of(SECTOR)) {
            return wrong("a part of a raw image takes whole sectors", "size");
        }
        let left = length.saturating_sub(part.offset);
        let size = part.size.map_or(left, |size| size.min(left));
        Ok(Self { file, path: path.to_path_buf(), start: part.offset, size })
    }

    /// Where in the file a guest offset lies.
    pub(super) fn host(&self, offset: u64) -> u64 {
        self.start.saturating_add(offset)
    }

    /// The file it lies in.
    pub(super) fn storage(&self) -> &ImageFile {
        &self.file
    }

    /// What messages call it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!("{length} bytes are not in a disk of {} bytes", self.size);
        Err(Error::new(ErrorKind::InvalidInput, message).with_offset(offset).with_path(&self.path))
    }
}

impl DiskContent for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        self.check(offset, 1)?;
        let data = sparse::next_data(self.file.file(), self.host(offset))
            .map_err(|error| Error::io("look for data in the disk", &self.path, error))?;
        let (end, zero) = match data {
            Some(data) if data.start <= self.host(offset) => {
                (data.end.saturating_sub(self.start), false)
            }
            Some(data) => (data.start.saturating_sub(self.start), true),
            None => (self.size, true),
        };
        Ok(ContentRun {
            length: end.min(self.size).saturating_sub(offset).max(1),
            zero,
            compressed: false,
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        let at = self.host(offset);
        self.file
            .file()
            .read_exact_at(bytes, at)
            .map_err(|error| Error::io("read the disk", &self.path, error).with_offset(at))
    }

    fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'_>>> {
        let run = self.run_at(offset)?;
        let file = self.file.file();
        let offset = self.host(offset);
        Ok((!run.zero).then_some(StoredRun { file, offset, length: run.length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_the_disk_and_agree_with_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len((3 << 20) + 512).unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        let disk = RawDisk::open(&path).unwrap();
        let mut at = 0;
        while at < disk.size() {
            let run = disk.run_at(at).unwrap();
            let mut bytes = vec![1; usize::try_from(run.length).unwrap()];
            disk.read_at(&mut bytes, at).unwrap();
            assert_eq!(
                bytes,
                std::fs::read(&path).unwrap()[usize::try_from(at).unwrap()..][..bytes.len()]
            );
            assert!(!run.zero || bytes.iter().all(|byte| *byte == 0), "{at}");
            at += run.length;
        }
        assert_eq!(at, disk.size());
        assert_eq!(disk.run_at(disk.size()).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(disk.read_at(&mut [0; 513], 3 << 20).is_err());
    }
}
