//! The file an image lies in: the format library's storage, with what Linux can do for it.
//!
//! ```text
//! write_parts_at   pwritev       header, data and tail of a cluster in one call
//! write_zeros_at   PUNCH_HOLE    ─ cannot? ─▶ zeros are written
//! zero_in_place    ZERO_RANGE    ─ cannot? ─▶ zeros are written     the space stays taken
//! punch_at         PUNCH_HOLE    ─ cannot? ─▶ nothing
//! allocate_at      fallocate     ─ cannot? ─▶ zeros are written
//! flush            fdatasync     ─ fails?  ─▶ nothing more is written, ever
//! ```
//!
//! What a file system cannot do is asked of it once. A file only ever grows behind a writer's back:
//! zeros past the end are a last byte written, not a length set, which could cut off what another
//! thread has appended meanwhile.
//!
//! **A failed flush is final.** Linux drops the pages it could not write and reports that once; the
//! next `fdatasync` would succeed over lost data. So the first failure is kept, and every later
//! flush and change of this file is refused with it. Flushes of several threads are put
//! together: who waits for a running one shares the next.
//!
//! Callers: `disk`.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwritev;
use qcow2_format::{ReadAt, WriteAt};

use crate::sys::fresh::Fresh;
use crate::sys::image_lock::ImageLock;

/// Slices that one call takes: Linux's `UIO_MAXIOV`.
const SLICES_MAX: usize = 1024;

/// Fewer zeros are written: a hole takes a block at least.
const HOLE_MIN: u64 = 4096;

/// What is written where the file system cannot make zeros itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// An image's file, with the lock it is held by.
#[derive(Debug)]
pub struct ImageFile {
    lock: ImageLock,
    cannot_punch: AtomicBool,
    cannot_zero: AtomicBool,
    cannot_allocate: AtomicBool,
    /// Flushes asked for so far.
    asked: AtomicU64,
    /// How many of them are done. Held while one runs.
    done: Mutex<u64>,
    /// What the flush that failed said; 0 while none has.
    lost: AtomicI32,
    /// Bytes in multiples of which the file has to hold what is read of it; 0 if it need not.
    whole: AtomicU64,
    /// How much of it is there, if it is a device that stands for a new file.
    fresh: Option<Fresh>,
}

/// Why bytes are missing that a file was to hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "the file ends at {length}, before what it was to hold: it was cut, or names what never was in it"
)]
pub struct EndsEarly {
    /// Its length in bytes.
    length: u64,
}

/// Why nothing more is written to a file.
#[derive(Debug, thiserror::Error)]
#[error("an earlier flush failed, and what was written before it may be lost")]
pub struct FlushFailed {
    /// What that flush said.
    source: io::Error,
}

impl ImageFile {
    /// The image in a file that is locked as far as it is to be.
    #[must_use]
    pub fn new(lock: ImageLock) -> Self {
        Self {
            lock,
            cannot_punch: AtomicBool::new(false),
            cannot_zero: AtomicBool::new(false),
            cannot_allocate: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            done: Mutex::new(0),
            lost: AtomicI32::new(0),
            whole: AtomicU64::new(0),
            fresh: None,
        }
    }

    /// The file of a new image: empty, also if it is a block device with something on it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new_image(lock: ImageLock) -> io::Result<Self> {
        let file = Self::new(lock);
        let fresh = match file.is_device()? {
            true => Some(Fresh::new(ReadAt::length(file.file())?)),
            false => None,
        };
        Ok(Self { fresh, ..file })
    }

    /// From now on it is an error to read of a cluster of `size` bytes that begins past the end of the
    /// file. The last one may be there in part: the rest of it is zeros, as for QEMU.
    pub fn fail_past_end(&self, size: u64) {
        self.whole.store(size, Ordering::Relaxed);
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        self.lock.file()
    }

    /// The lock it is held by.
    #[must_use]
    pub fn lock(&self) -> &ImageLock {
        &self.lock
    }

    /// As [`WriteAt::write_zeros_at`], but the space is taken afterwards.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn zero_in_place(&self, offset: u64, length: u64) -> io::Result<()> {
        self.intact()?;
        self.reach(offset, length)?;
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if length >= HOLE_MIN && self.space(&self.cannot_zero, flags, offset, length)? {
            return Ok(());
        }
        self.written_zeros(offset, length)
    }

    /// Fails once a flush has.
    fn intact(&self) -> io::Result<()> {
        match self.lost.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => {
                let source = io::Error::from_raw_os_error(errno);
                Err(io::Error::new(source.kind(), FlushFailed { source }))
            }
        }
    }

    /// Fails if bytes before `end` are missing that have to be there.
    fn check_end(&self, end: u64) -> io::Result<()> {
        let whole = self.whole.load(Ordering::Relaxed);
        if whole == 0 {
            return Ok(());
        }
        let length = self.length()?;
        if length.checked_next_multiple_of(whole).is_none_or(|last| end <= last) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::UnexpectedEof, EndsEarly { length }))
    }

    /// `fallocate`; `false` if this file cannot do that, which `cannot` then remembers.
    fn space(
        &self,
        cannot: &AtomicBool,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> io::Result<bool> {
        if cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (offset, length) = (position(offset)?, position(length)?);
        loop {
            return match fallocate(self.file(), flags, offset, length) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => {
                    cannot.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                // A block device wants whole blocks, and may get them another time.
                Err(Errno::EINVAL) if self.is_device()? => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Makes room for `length` bytes at `offset`: in a file there always is.
    fn reach(&self, offset: u64, length: u64) -> io::Result<()> {
        let Some(fresh) = &self.fresh else { return Ok(()) };
        let end = offset.checked_add(length).ok_or(Errno::ENOSPC)?;
        fresh.reach(offset, end, |at, length| self.zeros(at, length))
    }

    /// Zeros of a range that is there.
    fn zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        if length < HOLE_MIN || !self.punched(offset, length)? {
            return self.written_zeros(offset, length);
        }
        Ok(())
    }

    fn punched(&self, offset: u64, length: u64) -> io::Result<bool> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.space(&self.cannot_punch, flags, offset, length)
    }

    fn written_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        let (mut at, mut left) = (offset, length);
        while left > 0 {
            let count = left.min(ZEROS.len() as u64);
            // At most the length of `ZEROS`.
            let zeros = usize::try_from(count).ok().and_then(|count| ZEROS.get(..count));
            FileExt::write_all_at(self.file(), zeros.unwrap_or_default(), at)?;
            at = at.saturating_add(count);
            left -= count;
        }
        Ok(())
    }

    fn is_device(&self) -> io::Result<bool> {
        Ok(self.file().metadata()?.file_type().is_block_device())
    }
}

impl ReadAt for ImageFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.fresh.as_ref().map(|fresh| fresh.length().saturating_sub(offset));
        let left = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let count = left.min(buffer.len());
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        let count = FileExt::read_at(self.file(), buffer, offset)?;
        if count < buffer.len() {
            self.check_end(offset.saturating_add(buffer.len() as u64))?;
        }
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        match &self.fresh {
            Some(fresh) => Ok(fresh.length()),
            None => ReadAt::length(self.file()),
        }
    }
}

impl WriteAt for ImageFile {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.intact()?;
        self.reach(offset, data.len() as u64)?;
        FileExt::write_all_at(self.file(), data, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if let [part] = parts {
            return WriteAt::write_all_at(self, part, offset);
        }
        self.intact()?;
        let length = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.len() as u64));
        self.reach(offset, length)?;
        write_slices(parts, offset, |slices, at| pwritev(self.file(), slices, position(at)?))
    }

    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.intact()?;
        self.reach(offset, length)?;
        if length < HOLE_MIN || !self.punched(offset, length)? {
            return self.written_zeros(offset, length);
        }
        // `punched` took both as signed numbers.
        let end = offset.saturating_add(length);
        if self.fresh.is_none() && end > self.length()? {
            FileExt::write_all_at(self.file(), &[0], end - 1)?;
        }
        Ok(())
    }

    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.intact()?;
        if length > 0 {
            self.punched(offset, length)?;
        }
        Ok(())
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.intact()?;
        if length == 0 {
            return Ok(());
        }
        if self.fresh.is_some() {
            // A device has all its space; what is new is zeros.
            let end = offset.checked_add(length).ok_or(Errno::ENOSPC)?;
            return self.reach(end, 0);
        }
        if self.space(&self.cannot_allocate, FallocateFlags::empty(), offset, length)? {
            return Ok(());
        }
        self.written_zeros(offset, length)
    }

    /// A block device's length stays as it is; it can be asked for no more than that.
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.intact()?;
        if let Some(fresh) = &self.fresh {
            fresh.cut(length);
            return self.reach(length, 0);
        }
        if !self.is_device()? {
            return self.file().set_len(length);
        }
        if length > self.length()? { Err(Errno::ENOSPC.into()) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        let number = self.asked.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        self.intact()?;
        if *done >= number {
            return Ok(());
        }
        // Whoever has asked by now has written before that.
        let asked = self.asked.load(Ordering::Acquire);
        if let Err(error) = self.file().sync_data() {
            let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
            self.lost.store(errno, Ordering::Release);
            return Err(error);
        }
        *done = asked;
        Ok(())
    }
}

/// Writes `parts` from `offset` on by calls that may stop anywhere.
fn write_slices(
    parts: &[&[u8]],
    offset: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> Result<usize, Errno>,
) -> io::Result<()> {
    let mut slices: Vec<_> =
        parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let (mut slices, mut at) = (slices.as_mut_slice(), offset);
    while !slices.is_empty() {
        match write(slices.get(..SLICES_MAX).unwrap_or(slices), at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                IoSlice::advance_slices(&mut slices, count);
                // A slice's length fits in 64 bits.
                at = at.saturating_add(count as u64);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn position(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EFBIG)
}

#[cfg(test)]
mod tests;
