//! Storage: what an image lies in. Positional, through `&self`, so that many can read at once.
//!
//! The library knows no paths, locks or processes: it reads and writes through these two traits,
//! which [`std::fs::File`] and [`Memory`] implement, and a test's faulty or recording storage.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::{PoisonError, RwLock};

use byteorder::{BigEndian, ByteOrder};
use zerocopy::IntoBytes;

use crate::error::{Error, Result};

/// Storage that can be read at any offset.
pub trait ReadAt {
    /// Reads up to `buffer.len()` bytes at `offset`; 0 at or past the end.
    ///
    /// # Errors
    ///
    /// What the storage says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The length in bytes.
    ///
    /// # Errors
    ///
    /// What the storage says.
    fn length(&self) -> io::Result<u64>;

    /// Reads until `buffer` is full or the storage ends; returns how many bytes there were.
    ///
    /// # Errors
    ///
    /// What the storage says; interruptions are retried.
    fn read_full_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..)
            && !rest.is_empty()
        {
            // `filled` is at most a buffer's length, which fits in u64.
            match self.read_at(rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl<S: ReadAt + ?Sized> ReadAt for &S {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }
}

/// Storage that can be written at any offset.
pub trait WriteAt: ReadAt {
    /// Writes all of `data` at `offset`, growing the storage if it ends before.
    ///
    /// # Errors
    ///
    /// What the storage says; part of `data` may have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Writes `parts` one behind the other from `offset` on, in one call where the storage can.
    ///
    /// # Errors
    ///
    /// As [`WriteAt::write_all_at`].
    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_all_at(part, at)?;
            // A slice's length fits in 64 bits; a sum that does not is an offset nobody can write.
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Makes `length` bytes from `offset` on read as zeros, growing the storage if it ends before.
    /// The space may be given back.
    ///
    /// # Errors
    ///
    /// As [`WriteAt::write_all_at`].
    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_all_zeros_at(offset, length)
    }

    /// Gives back the space of `length` bytes from `offset` on, which nobody reads any more. What
    /// was there may stay, or read as zeros. Storage that cannot do it does nothing.
    ///
    /// # Errors
    ///
    /// What the storage says.
    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }

    /// Takes the space for `length` bytes from `offset` on, all past the end of what was written:
    /// later writes there do not fail for want of it. They read as zeros.
    ///
    /// # Errors
    ///
    /// What the storage says.
    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeros_at(offset, length)
    }

    /// As [`WriteAt::write_zeros_at`], but what is zero is written, and takes its space.
    ///
    /// # Errors
    ///
    /// As [`WriteAt::write_all_at`].
    fn write_all_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        let (mut at, mut left) = (offset, length);
        while left > 0 {
            let count = left.min(ZEROS.len() as u64);
            let zeros = usize::try_from(count).ok().and_then(|count| ZEROS.get(..count));
            self.write_all_at(zeros.unwrap_or_default(), at)?;
            at = at.saturating_add(count);
            left -= count;
        }
        Ok(())
    }

    /// Cuts or extends the storage; what is added reads as zeros and takes no space.
    ///
    /// # Errors
    ///
    /// What the storage says.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Returns once everything written so far survives a power cut.
    ///
    /// # Errors
    ///
    /// What the storage says. A failed flush is final: the data may be lost.
    fn flush(&self) -> io::Result<()>;
}

/// What is written where storage cannot make zeros itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl<S: WriteAt + ?Sized> WriteAt for &S {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_all_at(data, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        (**self).write_parts_at(parts, offset)
    }

    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        (**self).write_zeros_at(offset, length)
    }

    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        (**self).punch_at(offset, length)
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        (**self).allocate_at(offset, length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        (**self).set_length(length)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    /// Of a block device, too: its end is sought, which moves the file's own cursor.
    fn length(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.file_type().is_block_device() {
            let mut device = self;
            return device.seek(SeekFrom::End(0));
        }
        Ok(metadata.len())
    }
}

impl WriteAt for File {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, data, offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        // A slice's length fits in 64 bits.
        Ok(self.len() as u64)
    }
}

/// Storage in memory.
#[derive(Debug, Default)]
pub struct Memory(RwLock<Vec<u8>>);

impl Memory {
    /// Storage that holds `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// What the storage holds.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `count` big-endian numbers from `offset` on; what lies past the end of the storage is zero, as
/// QEMU has it. The caller bounds `count`.
pub(crate) fn read_table(
    storage: &(impl ReadAt + ?Sized),
    offset: u64,
    count: u64,
    doing: &'static str,
) -> Result<Vec<u64>> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut table = zeroed(count).map_err(Error::io(doing, offset))?;
    storage.read_full_at(table.as_mut_bytes(), offset).map_err(Error::io(doing, offset))?;
    BigEndian::from_slice_u64(&mut table);
    Ok(table)
}

/// A vector of zeros, or an error where there is no memory for it.
pub(crate) fn zeroed<T: Clone + Default>(length: usize) -> io::Result<Vec<T>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(length).map_err(|_| ErrorKind::OutOfMemory)?;
    vector.resize(length, T::default());
    Ok(vector)
}

/// Whether `bytes` are all zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

fn too_large() -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, "more than memory can hold")
}

impl ReadAt for Memory {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_slice().read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_slice().length()
    }
}

impl WriteAt for Memory {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| too_large())?;
        let end = start.checked_add(data.len()).ok_or_else(too_large)?;
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < end {
            let more = end - bytes.len();
            bytes.try_reserve(more).map_err(|_| too_large())?;
            bytes.resize(end, 0);
        }
        if let Some(place) = bytes.get_mut(start..end) {
            place.copy_from_slice(data);
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let more = length.saturating_sub(bytes.len());
        bytes.try_reserve(more).map_err(|_| too_large())?;
        bytes.resize(length, 0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
