//! An opened disk as a source: its runs in guest order, compressed ones decoded ahead by threads.
//!
//! ```text
//! runs      │ data      │ zeros      │ compressed               │ data │
//! bytes     │ read into │            │ pieces, decoded          │
//!           │ the sink  │            │ ahead by several threads │
//! ```
//!
//! Reading to salvage, whatever cannot be read is told in a list and reads as zeros. A range of the disk
//! is a disk of its own. Callers: `ops::convert`.

mod ahead;
mod salvage;

use std::collections::VecDeque;
use std::ops::Range;

use crate::disk::StoredRun;
use crate::error::Result;
use crate::source::extent::{DiskShape, Extent, ExtentSource};
pub(crate) use ahead::Ahead;
pub(crate) use salvage::Reading;
pub use salvage::{Unreadable, UnreadableParts};

/// Runs that are looked at before their bytes are asked for.
const RUNS_AHEAD: usize = 64;

/// A part of the disk all of one kind.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    length: u64,
    zero: bool,
    compressed: bool,
}

/// A disk, or a range of it, read front to back.
pub(crate) struct DiskSource<'a> {
    reading: &'a Reading<'a>,
    ahead: Option<&'a Ahead<'a>>,
    range: Range<u64>,
    /// Everything before this was read or is zeros: for progress.
    at: u64,
    /// How far runs were looked at.
    looked: u64,
    parts: VecDeque<Part>,
    /// What is read of the data extent named last.
    current: Option<Part>,
    told: bool,
}

impl<'a> DiskSource<'a> {
    /// The bytes in `range` of the disk that is read. Compressed ones come from `ahead`, where there is
    /// one.
    pub(crate) fn new(
        reading: &'a Reading<'a>,
        ahead: Option<&'a Ahead<'a>>,
        range: Range<u64>,
    ) -> Self {
        let looked = range.start;
        Self {
            reading,
            ahead,
            range,
            at: looked,
            looked,
            parts: VecDeque::new(),
            current: None,
            told: false,
        }
    }

    /// Looks at runs ahead, as far as their pieces can be asked for.
    fn look(&mut self) -> Result<()> {
        while self.looked < self.range.end && self.parts.len() < RUNS_AHEAD {
            if !self.parts.is_empty() && self.ahead.is_none_or(Ahead::is_full) {
                break;
            }
            let run = self.reading.run_at(self.looked)?;
            let length = run.length.min(self.range.end - self.looked);
            let part = Part {
                start: self.looked,
                length,
                zero: run.zero,
                compressed: run.compressed && self.ahead.is_some(),
            };
            if let Some(ahead) = self.ahead
                && part.compressed
            {
                ahead.ask(part.start..part.start.saturating_add(part.length));
            }
            self.looked = self.looked.saturating_add(length);
            match self.parts.back_mut() {
                Some(last) if (last.zero, last.compressed) == (part.zero, part.compressed) => {
                    last.length = last.length.saturating_add(length);
                }
                _ => self.parts.push_back(part),
            }
        }
        Ok(())
    }
}

impl ExtentSource for DiskSource<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        if !self.told {
            self.told = true;
            let size = self.range.end.saturating_sub(self.range.start);
            return Ok(Some(Extent::Disk(DiskShape { size: Some(size), data: None })));
        }
        self.look()?;
        let Some(part) = self.parts.pop_front() else { return Ok(None) };
        let offset = part.start.saturating_sub(self.range.start);
        if part.zero {
            self.at = part.start.saturating_add(part.length);
            return Ok(Some(Extent::Zero { offset, length: part.length }));
        }
        self.current = Some(part);
        Ok(Some(Extent::Data { offset, length: Some(part.length) }))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let Some(part) = &mut self.current else { return Ok(0) };
        let count = usize::try_from(part.length).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.get_mut(..count).unwrap_or_default();
        match self.ahead {
            Some(ahead) if part.compressed => ahead.read(bytes, part.start)?,
            _ => self.reading.read_at(bytes, part.start)?,
        }
        part.start = part.start.saturating_add(count as u64);
        part.length = part.length.saturating_sub(count as u64);
        self.at = part.start;
        Ok(count)
    }

    fn stored(&self) -> Result<Option<StoredRun<'_>>> {
        let Some(part) = self.current.filter(|part| !part.compressed && part.length > 0) else {
            return Ok(None);
        };
        let stored = self.reading.stored_at(part.start)?;
        Ok(stored.map(|stored| StoredRun { length: stored.length.min(part.length), ..stored }))
    }

    fn pass(&mut self, count: u64) -> Result<()> {
        if let Some(part) = &mut self.current {
            part.start = part.start.saturating_add(count);
            part.length = part.length.saturating_sub(count);
            self.at = part.start;
        }
        Ok(())
    }

    fn progress(&self) -> (u64, Option<u64>) {
        let length = self.range.end.saturating_sub(self.range.start);
        (self.at.saturating_sub(self.range.start), Some(length))
    }
}
