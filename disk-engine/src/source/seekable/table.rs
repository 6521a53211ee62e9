//! The seek table at the end of a source: what it claims, checked as far as it can be without decoding.
//!
//! ```text
//! │ frame 0 │ frame 1 │ … │ skippable frame: entries, footer │
//! 0         └ ends of both kinds, summed up ┘                length of the source
//! ```
//!
//! Refused unless its frames and itself account for every byte of the source, and unless each frame
//! is one that may be held in memory. Whether the frames are what it says is seen when they are decoded.
//! Memory: 24 bytes per frame, of which the table itself takes 8 or 12. Caller: `seekable::frames`.

use qcow2_format::io::ReadAt;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::archive::seekable::{
    CHECKSUM_FLAG, ENTRY, FOOTER, FRAMES_MAX, SEEKABLE_MAGIC, SKIPPABLE_MAGIC,
};
use crate::source::content::at_most;
use crate::source::decompress::zstd::header::little;
use crate::source::limits::Defect;

/// Most frames of a table that is taken: 256 GiB in frames of 64 KiB, 16 TiB in frames of 4 MiB.
pub(crate) const FRAMES_HELD_MAX: u64 = 1 << 22;
/// Entries read at once.
const AT_ONCE: usize = 4096;
/// Bytes of a skippable frame's header.
const SKIPPABLE_HEADER: u64 = 8;

/// A frame, by where it begins. The one after it begins where it ends.
#[derive(Clone, Copy, Debug)]
struct Entry {
    compressed: u64,
    content: u64,
    sum: u32,
}

/// A frame as the table describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Where it lies in the source.
    pub(crate) offset: u64,
    /// Its bytes there.
    pub(crate) length: u64,
    /// Where its content lies in the whole content.
    pub(crate) start: u64,
    /// Bytes of its content.
    pub(crate) size: u64,
    /// The low 32 bits of its content's XXH64, if the table has them.
    pub(crate) sum: Option<u32>,
}

/// A table that adds up.
#[derive(Debug)]
pub(crate) struct Table {
    /// One more than there are frames.
    entries: Vec<Entry>,
    has_sums: bool,
}

impl Table {
    /// Reads the table at the end of `source`, which is `length` bytes long; no frame in it may decode
    /// to more than `frame_max` bytes.
    pub(crate) fn read(source: &dyn ReadAt, length: u64, frame_max: u64) -> Result<Self> {
        let none = || {
            Error::new(ErrorKind::Unsupported, "the source has no zstd seek table at its end")
                .with_hint("extract it, or pack it with --frames")
        };
        let footer_at = length.checked_sub(FOOTER as u64).ok_or_else(none)?;
        let mut footer = [0; FOOTER];
        read_exact(source, &mut footer, footer_at)?;
        let [count @ .., descriptor, _, _, _, _] = footer;
        if footer.last_chunk::<4>().map(|magic| little(magic)) != Some(SEEKABLE_MAGIC.into()) {
            return Err(none());
        }
        let count = little(&count);
        if descriptor & 0x7c != 0 {
            let message = format!("the seek table's descriptor is {descriptor:#x}");
            return Err(Defect::unsupported(message).at(footer_at, None));
        }
        let has_sums = descriptor & CHECKSUM_FLAG != 0;
        let width = if has_sums { ENTRY } else { ENTRY - 4 };
        let body = count * width as u64 + FOOTER as u64;
        let table_at = length.checked_sub(body).and_then(|at| at.checked_sub(SKIPPABLE_HEADER));
        let table_at = table_at.filter(|_| count <= FRAMES_MAX).ok_or_else(|| {
            let message =
                format!("the seek table claims {count} frames, more than the source holds");
            Defect::corrupt(message).at(footer_at, None)
        })?;
        let mut header = [0; 8];
        read_exact(source, &mut header, table_at)?;
        let (magic, size) = header.split_at(4);
        if little(magic) != u64::from(SKIPPABLE_MAGIC) || little(size) != body {
            let message = "the seek table does not begin where its end says";
            return Err(Defect::corrupt(message).at(table_at, None));
        }
        if count > FRAMES_HELD_MAX {
            let message = format!("the seek table has {count} frames, more than {FRAMES_HELD_MAX}");
            let error = Error::new(ErrorKind::Limit, message).with_offset(table_at);
            return Err(error.with_hint("extract it, or pack it in larger frames"));
        }
        let entries = read_entries(source, table_at + SKIPPABLE_HEADER, count, width, frame_max)?;
        let covered = entries.last().map_or(0, |last| last.compressed);
        if covered != table_at {
            let message = format!(
                "the seek table accounts for {covered:#x} bytes of frames, and there are {table_at:#x}"
            );
            return Err(Defect::corrupt(message).at(table_at, None));
        }
        Ok(Self { entries, has_sums })
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    /// Bytes of all content.
    pub(crate) fn size(&self) -> u64 {
        self.entries.last().map_or(0, |last| last.content)
    }

    /// The frame of that number.
    pub(crate) fn frame(&self, number: usize) -> Option<Frame> {
        let (this, next) = (self.entries.get(number)?, self.entries.get(number + 1)?);
        Some(Frame {
            offset: this.compressed,
            length: next.compressed - this.compressed,
            start: this.content,
            size: next.content - this.content,
            sum: self.has_sums.then_some(this.sum),
        })
    }

    /// The number of the frame that holds byte `at` of the content, which is below its size.
    pub(crate) fn find(&self, at: u64) -> usize {
        self.entries.partition_point(|entry| entry.content <= at).saturating_sub(1)
    }
}

fn read_entries(
    source: &dyn ReadAt,
    mut at: u64,
    count: u64,
    width: usize,
    frame_max: u64,
) -> Result<Vec<Entry>> {
    let no_memory = || Error::new(ErrorKind::Limit, "no memory for the seek table");
    let mut entries = Vec::new();
    let (mut compressed, mut content) = (0_u64, 0_u64);
    let mut memory = crate::source::input::zeroed(width * at_most(count, AT_ONCE))?;
    let mut left = count;
    while left > 0 {
        let now = at_most(left, AT_ONCE);
        let bytes = memory.get_mut(..now * width).unwrap_or_default();
        read_exact(source, bytes, at)?;
        entries.try_reserve(now + 1).map_err(|_| no_memory())?;
        for entry in bytes.chunks_exact(width) {
            let (length, rest) = entry.split_at(4);
            let (size, sum) = rest.split_at(4);
            let (length, size) = (little(length), little(size));
            // Frames of nothing are skippable ones, which may be long.
            if size > frame_max || (size > 0 && length > 2 * frame_max) {
                let message =
                    format!("a frame of {length} bytes, {size} decoded, is more than {frame_max}");
                let limit = Defect::limit(message, "frame_max");
                return Err(limit.at(compressed, None));
            }
            if length == 0 {
                let message = "the seek table has a frame of no bytes";
                return Err(Defect::corrupt(message).at(compressed, None));
            }
            // It has 32 bits, as its field.
            let sum = u32::try_from(little(sum)).unwrap_or(0);
            entries.push(Entry { compressed, content, sum });
            // Sums of some millions of 32-bit numbers.
            compressed += length;
            content += size;
        }
        at += (now * width) as u64;
        left -= now as u64;
    }
    entries.try_reserve(1).map_err(|_| no_memory())?;
    entries.push(Entry { compressed, content, sum: 0 });
    Ok(entries)
}

/// Reads all of `bytes` at `offset`.
pub(crate) fn read_exact(source: &dyn ReadAt, bytes: &mut [u8], offset: u64) -> Result<()> {
    let count = source.read_full_at(bytes, offset).map_err(|error| {
        Error::new(ErrorKind::of_io(&error), "read the source")
            .with_offset(offset)
            .with_source(error)
    })?;
    if count < bytes.len() {
        let message = "the source shrank while it was read";
        return Err(Defect::corrupt(message).at(offset.saturating_add(count as u64), None));
    }
    Ok(())
}
