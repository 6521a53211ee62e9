//! Which part of a disk comes from where, in the words of `qemu-img map`.
//!
//! ```text
//! guest    0                 1 MiB       3 MiB              8 MiB
//!          │ depth 0, data   │ depth 1   │ depth 1, hole    │      start, length
//!          │ offset 0x50000  │ zero      │ nothing present  │      present, zero, data, offset
//! ```
//!
//! `depth` counts from the top image. Nothing allocated anywhere is said of the last image that could
//! have had it. Callers: `layers`.

use std::iter::FusedIterator;
use std::ops::Range;

use qcow2_format::image::RunKind;

use crate::disk::layers::Layers;
use crate::error::Result;

/// A part of a disk that comes from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskRun {
    /// Where it starts on the guest's disk, in bytes.
    pub start: u64,
    /// Its length in bytes; at least one.
    pub length: u64,
    /// Which image it comes from: 0 is the top.
    pub depth: usize,
    /// Whether that image has it allocated, be it as zeros.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it is stored, as it is or compressed. What is stored in a hole of a file is `zero`
    /// as well, where holes are looked for.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// Where it lies in the image's file, or in its external data file; `None` if nowhere or
    /// compressed.
    pub offset: Option<u64>,
}

impl DiskRun {
    pub(super) fn new(start: u64, length: u64, depth: usize, kind: RunKind) -> Self {
        let (present, zero, data, compressed, host) = match kind {
            RunKind::Unallocated { host } => (false, true, false, false, host),
            RunKind::Zero { host } => (true, true, false, false, host),
            RunKind::Data { host } => (true, false, true, false, Some(host)),
            RunKind::Compressed => (true, false, true, true, None),
        };
        let offset = host.map(qcow2_format::HostOffset::to_u64);
        Self { start, length, depth, present, zero, data, compressed, offset }
    }

    /// Makes `next`, which starts where this run ends, part of it, if it goes on like it.
    fn append(&mut self, next: &Self) -> bool {
        let there = |run: &Self| (run.depth, run.present, run.zero, run.data, run.compressed);
        let offset = self.offset.map(|offset| offset.saturating_add(self.length));
        let goes_on = there(self) == there(next) && offset == next.offset;
        if goes_on {
            self.length = self.length.saturating_add(next.length);
        }
        goes_on
    }
}

/// How far each image of a chain is known to leave everything to the next one.
#[derive(Clone, Debug, Default)]
pub(super) struct Cleared(Vec<u64>);

impl Cleared {
    pub(super) fn until(&self, depth: usize) -> u64 {
        self.0.get(depth).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, depth: usize, end: u64) {
        if self.0.len() <= depth {
            self.0.resize(depth + 1, 0);
        }
        if let Some(until) = self.0.get_mut(depth) {
            *until = end;
        }
    }
}

/// The runs of a range of a disk, in order, each as long as it is. Ends after an error.
#[derive(Debug)]
pub struct DiskRuns<'a> {
    layers: &'a Layers,
    range: Range<u64>,
    cleared: Cleared,
    /// Looked at, and not part of the run before.
    ahead: Option<Result<DiskRun>>,
}

impl<'a> DiskRuns<'a> {
    pub(super) fn new(layers: &'a Layers, range: Range<u64>) -> Self {
        Self { layers, range, cleared: Cleared::default(), ahead: None }
    }

    /// The next piece of a run: what one look at the tables gives.
    pub(super) fn piece(&mut self) -> Option<Result<DiskRun>> {
        if let Some(piece) = self.ahead.take() {
            return Some(piece);
        }
        if self.range.start >= self.range.end {
            return None;
        }
        let limit = self.range.end - self.range.start;
        let piece = self.layers.piece_at(self.range.start, limit, &mut self.cleared);
        match &piece {
            Ok(run) => self.range.start = self.range.start.saturating_add(run.length),
            Err(_) => self.range.start = self.range.end,
        }
        Some(piece)
    }
}

impl Iterator for DiskRuns<'_> {
    type Item = Result<DiskRun>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.piece()? {
            Ok(run) => run,
            Err(error) => return Some(Err(error)),
        };
        while let Some(piece) = self.piece() {
            match piece {
                Ok(next) if run.append(&next) => {}
                other => {
                    self.ahead = Some(other);
                    break;
                }
            }
        }
        Some(Ok(run))
    }
}

impl FusedIterator for DiskRuns<'_> {}
