//! A leased base in memory, a window at a time: how checksums reach its bytes without a copy.
//!
//! ```text
//! base    ├──── 16 MiB ────┼──── 16 MiB ────┼─── …      one window mapped at a time, by each thread,
//! window       └ populate ─┴─▶ bytes                    so that little address space suffices
//! ```
//!
//! Bytes of a mapping that cannot be read are a signal, not an error. So every range is populated
//! before it is touched (`MADV_POPULATE_READ`, Linux 5.14): a bad medium or a file that was cut makes
//! that call fail. Whenever it fails, or nothing can be mapped at all, the range is read into a buffer
//! instead, which says what is wrong with an errno. Left is the medium that fails between the two for a
//! page that was reclaimed meanwhile.
//!
//! Callers: `cache::verify`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::{Advice, Mmap, MmapOptions};

use crate::cache::lease::Lease;
use crate::error::{Error, ErrorKind, Result};

/// Longest window, in bytes.
pub(crate) const WINDOW: u64 = 16 << 20;

/// What is populated, or read, at a time.
const STEP: u64 = 1 << 20;

/// A base that can be looked at in memory. The lease keeps it while borrowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappedBase<'lock> {
    file: &'lock File,
}

impl<'lock> MappedBase<'lock> {
    /// Nothing is mapped yet.
    pub(crate) fn new(lease: &'lock Lease) -> Self {
        Self { file: lease.file() }
    }

    /// Maps `range` of the base: at most [`WINDOW`] bytes of it.
    pub(crate) fn window(&self, range: Range<u64>) -> Window<'lock> {
        let length = range.end.saturating_sub(range.start).min(WINDOW);
        Window { file: self.file, start: range.start, map: map(self.file, range.start, length) }
    }
}

/// Maps a part of the base; `None` where that is not possible, and reading it has to do.
#[expect(unsafe_code, reason = "a mapping of a file has no safe form")]
fn map(file: &File, start: u64, length: u64) -> Option<Mmap> {
    let length = usize::try_from(length).ok().filter(|&length| length > 0)?;
    // SAFETY: the mapping is private and read-only, and its file is a leased base: of mode 0444, owned
    // by us, in a folder only we can write to, removed but never written to by whoever takes the
    // cache's locks. Its bytes are only summed and compared: whatever they are is a valid `u8`. Reading
    // past the end of a file that was cut all the same is what `Window::each` guards against.
    unsafe { MmapOptions::new().offset(start).len(length).map(file) }.ok()
}

/// A part of a base, in memory as far as that is possible.
#[derive(Debug)]
pub(crate) struct Window<'lock> {
    file: &'lock File,
    start: u64,
    map: Option<Mmap>,
}

impl Window<'_> {
    /// Hands the bytes of `range`, which counts from the base's first byte, to `sink` piece by piece.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the base ends before the range; what reading says. Both with the
    /// offset.
    pub(crate) fn each(&self, range: Range<u64>, mut sink: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start.saturating_add(STEP));
            if let Some(bytes) = self.populated(start..end) {
                sink(bytes);
            } else {
                sink(self.read(start..end, &mut buffer)?);
            }
            start = end;
        }
        Ok(())
    }

    /// The mapped bytes of `range`, all of them in memory.
    fn populated(&self, range: Range<u64>) -> Option<&[u8]> {
        let map = self.map.as_ref()?;
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        let bytes = map.get(from..to)?;
        map.advise_range(Advice::PopulateRead, from, bytes.len()).ok()?;
        Some(bytes)
    }

    fn read<'a>(&self, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        buffer.clear();
        buffer
            .try_reserve_exact(length)
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory to read the base"))?;
        buffer.resize(length, 0);
        self.file.read_exact_at(buffer, range.start).map_err(|error| {
            let error = if error.kind() == io::ErrorKind::UnexpectedEof {
                Error::new(ErrorKind::Corrupt, "the base ends early")
            } else {
                Error::new(ErrorKind::of_io(&error), "read the base").with_source(error)
            };
            error.with_offset(range.start)
        })?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..251_u8).cycle().take(3_000_000).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (file, bytes)
    }

    fn collect(window: &Window<'_>, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        window.each(range, |piece| bytes.extend(piece))?;
        Ok(bytes)
    }

    #[test]
    fn a_window_gives_the_bytes_of_the_file_mapped_or_read() {
        let (file, bytes) = sample();
        for part in [0..3_000_000, 8192..8193, 4096..2_097_153, 4096..4096] {
            let range = part.start as u64..part.end as u64;
            let mapped = MappedBase { file: &file }.window(range.start..range.end);
            assert_eq!(mapped.map.is_some(), !range.is_empty());
            let read = Window { map: None, ..mapped };
            let expected = &bytes[part];
            assert_eq!(collect(&read, range.clone()).unwrap(), expected, "{range:?}");
            let mapped = MappedBase { file: &file }.window(range.start..range.end);
            assert_eq!(collect(&mapped, range.clone()).unwrap(), expected, "{range:?}");
        }
    }

    #[test]
    fn a_file_that_was_cut_is_an_error_and_no_signal() {
        let (file, _) = sample();
        let window = MappedBase { file: &file }.window(0..3_000_000);
        file.set_len(1 << 20).unwrap();
        let error = collect(&window, 0..3_000_000).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(1 << 20)));
        assert!(collect(&window, 0..1 << 20).is_ok());
    }
}
