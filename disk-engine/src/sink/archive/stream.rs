//! The uncompressed archive as a stream whose every range can be made alone.
//!
//! ```text
//! 0                head              head + stored                                    length
//! ├─ headers, map ─┼─ run │ run │ … ─┼─ zeros: to 512, two blocks, to a record of 10,240 ─┤
//!                    │
//!                    └─▶ the disk, a chunk at a time, compared with its sum of the first pass
//! ```
//!
//! What is stored is what the map saw: blocks it took for zeros are not read again, all others have
//! to add up to the same sum, or the disk has changed. Memory: one chunk per reader. Callers: `whole`
//! and `frames`.

use std::ops::Range;

use super::header::{self, TAR_BLOCK};
use super::map::{CHUNK, CHUNK_BYTES, DiskMap, data_in, no_memory};
use crate::disk::DiskContent;
use crate::error::{Error, ErrorKind, Result};

/// Archives are filled up to a multiple of this, as GNU tar does by default.
const RECORD: u64 = 20 * TAR_BLOCK;

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// An archive whose every byte has its place.
pub(crate) struct ArchiveStream<'a> {
    disk: &'a dyn DiskContent,
    map: &'a DiskMap,
    head: Vec<u8>,
    length: u64,
}

impl<'a> ArchiveStream<'a> {
    /// The archive of `disk`, which `map` describes, as member `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is no memory for the headers.
    pub(crate) fn new(
        disk: &'a dyn DiskContent,
        map: &'a DiskMap,
        name: &str,
        mtime: u64,
    ) -> Result<Self> {
        let head = header::encode(name, mtime, map)?;
        // A disk ends below 2^63 and the headers are a few MiB.
        let data = (head.len() as u64 + map.stored).next_multiple_of(TAR_BLOCK);
        let length = (data + 2 * TAR_BLOCK).next_multiple_of(RECORD);
        Ok(Self { disk, map, head, length })
    }

    /// How long it is, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// A reader of `range`, which lies inside.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is no memory for a chunk.
    pub(crate) fn reader(&'a self, range: Range<u64>) -> Result<Reader<'a>> {
        let mut chunk = Vec::new();
        chunk.try_reserve_exact(CHUNK_BYTES).map_err(|_| no_memory())?;
        chunk.resize(CHUNK_BYTES, 0);
        Ok(Reader { stream: self, at: range.start, end: range.end, chunk, loaded: None })
    }
}

/// A range of the archive, piece by piece.
pub(crate) struct Reader<'a> {
    stream: &'a ArchiveStream<'a>,
    at: u64,
    end: u64,
    chunk: Vec<u8>,
    loaded: Option<u64>,
}

impl Reader<'_> {
    /// Goes on with another range, in the same memory.
    pub(crate) fn restart(&mut self, range: Range<u64>) {
        (self.at, self.end) = (range.start, range.end);
    }

    /// How many bytes of the disk's data lie before what is read next.
    pub(crate) fn data_before(&self) -> u64 {
        let head = self.stream.head.len() as u64;
        self.at.saturating_sub(head).min(self.stream.map.stored)
    }

    /// The next bytes; `None` at the end of the range.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Mismatch`] if the disk has changed; what reading it fails with.
    pub(crate) fn next_piece(&mut self) -> Result<Option<&[u8]>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let (at, left) = (self.at, self.end - self.at);
        let head = self.stream.head.len() as u64;
        let from_head = at < head;
        let (start, end) = if from_head {
            (at, head.min(self.end))
        } else if let Some((start, end)) = self.find(at - head)? {
            (start, end.min(start.saturating_add(left)))
        } else {
            self.at += left.min(CHUNK);
            return Ok(ZEROS.get(..index(left.min(CHUNK))));
        };
        self.at += end - start;
        let from = if from_head { &self.stream.head } else { &self.chunk };
        Ok(from.get(index(start)..index(end)))
    }

    /// Where byte `at` of the stored data lies in the chunk, which is loaded, and where that run ends.
    fn find(&mut self, at: u64) -> Result<Option<(u64, u64)>> {
        if at >= self.stream.map.stored {
            return Ok(None);
        }
        let Some(run) = self.stream.map.run_of(at) else { return Ok(None) };
        let offset = run.offset + (at - run.stored);
        let start = offset / CHUNK * CHUNK;
        self.load(offset / CHUNK)?;
        Ok(Some((offset - start, (run.offset + run.length - start).min(CHUNK))))
    }

    /// Reads a chunk as the map saw it.
    fn load(&mut self, number: u64) -> Result<()> {
        if self.loaded == Some(number) {
            return Ok(());
        }
        self.loaded = None;
        let start = number * CHUNK;
        let length = (self.stream.map.size - start).min(CHUNK);
        let bytes = self.chunk.get_mut(..index(length)).unwrap_or_default();
        bytes.fill(0);
        if let Some(seen) = self.stream.map.chunk(number) {
            for data in data_in(seen.blocks) {
                let range = index(data.start)..index(data.end.min(length));
                let place = bytes.get_mut(range).unwrap_or_default();
                self.stream.disk.read_at(place, start + data.start)?;
            }
            if crc32fast::hash(bytes) != seen.crc32 {
                return Err(changed().with_offset(start));
            }
        }
        self.loaded = Some(number);
        Ok(())
    }
}

/// The disk was written to between or during the passes.
pub(crate) fn changed() -> Error {
    Error::new(ErrorKind::Mismatch, "the disk changed while it was packed")
        .with_hint("stop whoever writes to it first")
}

/// An offset within a chunk or the headers, which are in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
