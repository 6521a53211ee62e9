//! The content of a source with a seek table, from anywhere: a frame decoded when it is asked for.
//!
//! ```text
//! read(at, length) ─▶ which frames ─▶ among the last ones? ─▶ else read, decoded, verified, kept
//! ```
//!
//! A frame is taken when it is one frame, all of it, as long as the table says once it is decoded, and
//! when its content has the sum that ends it or stands in the table. The lock is held over neither
//! reading nor decoding: two threads that want the same frame may both decode it. Callers:
//! `source::seekable`, and `decompress` for the headers of the archive inside.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use qcow2_format::io::ReadAt;
use zstd::zstd_safe::{self, DCtx};

use super::table::{self, Frame, Table};
use super::xxh64::xxh64;
use crate::error::{Error, ErrorKind, Result};
use crate::source::decompress::zstd::header::{self, Start, little};
use crate::source::decompress::zstd::stream;
use crate::source::input;
use crate::source::limits::{Defect, Limits};

/// A source, its table, and the frames decoded last.
pub(crate) struct FrameStore {
    source: Box<dyn ReadAt + Send + Sync>,
    length: u64,
    table: Table,
    window_max: u64,
    cache: Mutex<Cache>,
}

struct Cache {
    /// The one used last is at the end.
    frames: VecDeque<(usize, Arc<Vec<u8>>)>,
    bytes: u64,
    most: u64,
}

impl FrameStore {
    /// The frames of `source`, none of which may decode to more than `frame_max` bytes; up to
    /// `cache_bytes` of them are kept decoded, and at least one.
    pub(crate) fn open(
        source: Box<dyn ReadAt + Send + Sync>,
        limits: &Limits,
        frame_max: u64,
        cache_bytes: u64,
    ) -> Result<Self> {
        let length = source.length().map_err(|error| {
            Error::new(ErrorKind::of_io(&error), "tell the length of the source").with_source(error)
        })?;
        let table = Table::read(&*source, length, frame_max)?;
        let cache = Cache { frames: VecDeque::new(), bytes: 0, most: cache_bytes };
        let window_max = 1 << limits.window_log();
        let store = Self { source, length, table, window_max, cache: Mutex::new(cache) };
        store.check_empty_frames()?;
        Ok(store)
    }

    /// Bytes of all content.
    pub(crate) fn size(&self) -> u64 {
        self.table.size()
    }

    /// Bytes of the source.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> usize {
        self.table.count()
    }

    /// Where in the source the frame ends that holds the byte before `at`.
    pub(crate) fn position(&self, at: u64) -> u64 {
        let frame = at.checked_sub(1).and_then(|last| self.table.frame(self.table.find(last)));
        frame.map_or(0, |frame| frame.offset + frame.length)
    }

    /// Fills `bytes` from `at` on; what is not there is left out. Returns how many there were.
    pub(crate) fn read(&self, bytes: &mut [u8], mut at: u64) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty())
            && at < self.size()
        {
            let number = self.table.find(at);
            let frame = self.table.frame(number).ok_or_else(none)?;
            let content = self.content(number, &frame)?;
            let from = usize::try_from(at - frame.start).ok().and_then(|from| content.get(from..));
            let count = input::copy_start(rest, from.unwrap_or_default());
            if count == 0 {
                return Err(none());
            }
            filled += count;
            at += count as u64;
        }
        Ok(filled)
    }

    fn content(&self, number: usize, frame: &Frame) -> Result<Arc<Vec<u8>>> {
        if let Some(content) = self.cache().find(number) {
            return Ok(content);
        }
        let content = Arc::new(self.decode(frame)?);
        self.cache().keep(number, &content);
        Ok(content)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(&self, frame: &Frame) -> Result<Vec<u8>> {
        let corrupt = |message: String| Defect::corrupt(message).at(frame.offset, None);
        let length = usize::try_from(frame.length).map_err(|_| no_memory())?;
        let mut bytes = input::zeroed(length)?;
        table::read_exact(&*self.source, &mut bytes, frame.offset)?;
        let header = match header::parse(&bytes) {
            Start::Frame(header) => header,
            _ => return Err(corrupt("the seek table points at something that is no frame".into())),
        };
        if header.window > self.window_max {
            return Err(stream::too_large(Some(header.window)).at(frame.offset, None));
        }
        let failed = |code| stream::defect(code, false).at(frame.offset, None);
        let whole = zstd_safe::find_frame_compressed_size(&bytes).map_err(failed)?;
        if whole != length {
            return Err(corrupt(format!(
                "the seek table has a frame of {length} bytes where one of {whole} bytes lies"
            )));
        }
        let mut content = Vec::new();
        let size = usize::try_from(frame.size).map_err(|_| no_memory())?;
        content.try_reserve_exact(size).map_err(|_| no_memory())?;
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        let count = context.decompress(&mut content, &bytes).map_err(failed)?;
        if count != size {
            return Err(corrupt(format!(
                "the seek table has a frame that decodes to {size} bytes, and it decodes to {count}"
            )));
        }
        // libzstd has verified a sum at the frame's end.
        let own = bytes.last_chunk::<4>().filter(|_| header.checksum).map(|sum| little(sum));
        if let Some(sum) = frame.sum
            && u64::from(sum) != own.unwrap_or_else(|| xxh64(&content) & 0xffff_ffff)
        {
            return Err(corrupt("a zstd frame does not match its sum in the seek table".into()));
        }
        Ok(content)
    }

    /// Frames that the table says hold nothing must do so: no content is passed over in silence.
    fn check_empty_frames(&self) -> Result<()> {
        let frames = (0..self.count()).filter_map(|number| self.table.frame(number));
        for frame in frames.filter(|frame| frame.size == 0) {
            let mut start = [0; 8];
            let length = usize::try_from(frame.length).unwrap_or(usize::MAX).min(start.len());
            let start = start.get_mut(..length).unwrap_or_default();
            table::read_exact(&*self.source, start, frame.offset)?;
            match header::parse(start) {
                Start::Skippable(length) if length + 8 == frame.length => {}
                _ if frame.length > EMPTY_MAX => {
                    let message = "the seek table has a long frame that holds nothing";
                    return Err(Defect::corrupt(message).at(frame.offset, None));
                }
                _ => drop(self.decode(&frame)?),
            }
        }
        Ok(())
    }
}

/// Most bytes of a frame without content: header, some empty blocks, checksum.
const EMPTY_MAX: u64 = 4096;

impl Cache {
    fn find(&mut self, number: usize) -> Option<Arc<Vec<u8>>> {
        let at = self.frames.iter().rposition(|(kept, _)| *kept == number)?;
        let found = self.frames.remove(at)?;
        let content = Arc::clone(&found.1);
        self.frames.push_back(found);
        Some(content)
    }

    fn keep(&mut self, number: usize, content: &Arc<Vec<u8>>) {
        if self.frames.iter().any(|(kept, _)| *kept == number) {
            return;
        }
        self.bytes += content.len() as u64;
        self.frames.push_back((number, Arc::clone(content)));
        while self.bytes > self.most
            && self.frames.len() > 1
            && let Some((_, oldest)) = self.frames.pop_front()
        {
            self.bytes -= oldest.len() as u64;
        }
    }
}

fn none() -> Error {
    Error::new(ErrorKind::Corrupt, "the seek table has no frame for what it says is there")
}

fn no_memory() -> Error {
    Error::new(ErrorKind::Limit, "no memory for a zstd frame")
}
