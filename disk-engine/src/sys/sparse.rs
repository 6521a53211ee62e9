//! Where a file has data and where it has holes: `SEEK_DATA` and `SEEK_HOLE`.
//!
//! ```text
//! file   ████░░░░░░░░██████░░░░
//!        └0..4┘      └12..18┘        a hole reads as zeros; data may be zeros all the same
//! ```
//!
//! A file system that knows no holes says that all is data. Callers: `disk::raw`, `ops`, `cache`.

use std::fs::File;
use std::io;
use std::ops::Range;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use qcow2_format::ReadAt;

/// The first range of data at or after `offset`, in bytes; `None` if only holes follow. It moves the
/// file's cursor, so nobody may rely on that.
///
/// # Errors
///
/// What the system says. A file system that does not answer the question has one range of data,
/// to the end of the file.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, offset, whence).map(i64::cast_unsigned)
    };
    let start = match seek(offset, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
            // A block device has no holes, and its metadata no length.
            let end = ReadAt::length(file)?;
            return Ok((offset < end).then_some(offset..end));
        }
        Err(error) => return Err(error.into()),
    };
    let end = match seek(start, Whence::SeekHole) {
        Ok(end) => end,
        // The file was cut between the two questions.
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn data_and_holes_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        let data = next_data(&file, 0).unwrap().unwrap();
        // A file system may take larger blocks for data, never smaller ones.
        assert!(data.start <= 4 << 20 && data.end >= (4 << 20) + 4096, "{data:?}");
        assert_eq!(next_data(&file, (4 << 20) + 100).unwrap().unwrap().start, (4 << 20) + 100);
        assert_eq!(next_data(&file, data.end).unwrap(), None);
        assert_eq!(next_data(&file, 9 << 20).unwrap(), None);
    }
}
