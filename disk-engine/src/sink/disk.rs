//! A disk that is there already, written to in place: its image keeps its shape.
//!
//! ```text
//! data    zeros in it ─▶ write_zeroes     the rest ─▶ write, or compressed, whole clusters
//! zeros   ─▶ write_zeroes, or nothing if the disk is known to be all zeros
//! ```
//!
//! Callers: `ops::convert`.

use qcow2_format::image::ZeroMode;

use crate::disk::{DiskContent, WritableDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::{ExtentSink, lend_zeros};
use crate::source::content::is_zero;
use crate::source::extent::DiskShape;
use crate::source::input;

/// Bytes that are written at once at most: a cluster or many.
const WINDOW: u64 = 2 << 20;
const GRAIN: usize = 4096;

/// How a disk is written to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskRules {
    /// Whether all of it reads as zeros.
    pub(crate) is_zero: bool,
    /// Whether data is stored compressed.
    pub(crate) compress: bool,
    /// Fewer zeros in a row are data, and 0 makes all of them data; in bytes.
    pub(crate) sparse: usize,
    /// Bytes that are compressed as one: a cluster.
    pub(crate) cluster: u64,
    /// Where the disk's part begins that is written.
    pub(crate) start: u64,
}

/// A disk written to.
pub(crate) struct DiskSink<'a> {
    disk: &'a WritableDisk,
    rules: DiskRules,
    memory: Vec<u8>,
    /// Where what is in memory lies.
    at: u64,
    filled: usize,
    written: u64,
    begun: bool,
}

impl<'a> DiskSink<'a> {
    pub(crate) fn new(disk: &'a WritableDisk, rules: DiskRules) -> Result<Self> {
        let memory = input::zeroed(usize::try_from(WINDOW).unwrap_or(usize::MAX))?;
        Ok(Self { disk, rules, memory, at: 0, filled: 0, written: 0, begun: false })
    }

    fn flush(&mut self) -> Result<()> {
        let filled = std::mem::take(&mut self.filled);
        let at = self.rules.start.saturating_add(self.at);
        let bytes = self.memory.get(..filled).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        let sparse = self.rules.sparse;
        let mut start = 0;
        while start < bytes.len() {
            let place = at.saturating_add(start as u64);
            let (zero, whole, end) = if self.rules.compress {
                self.cluster(bytes, start, place)
            } else {
                let (zero, end) = stretch(bytes, start, sparse);
                (zero, false, end)
            };
            let piece = bytes.get(start..end).unwrap_or_default();
            if !zero {
                if whole {
                    self.disk.write_compressed(piece, place)?;
                } else {
                    self.disk.write_at(piece, place)?;
                }
                self.written = self.written.saturating_add(piece.len() as u64);
            } else if !self.rules.is_zero {
                self.disk.write_zeroes(place, piece.len() as u64, ZeroMode::Unmap)?;
            }
            start = end;
        }
        Ok(())
    }
}

impl DiskSink<'_> {
    /// The part of `bytes` from `start` on, at `place`, that is in one cluster: whether it is zeros,
    /// whether it is the whole cluster, and where it ends.
    fn cluster(&self, bytes: &[u8], start: usize, place: u64) -> (bool, bool, usize) {
        let size = self.rules.cluster.max(1);
        let left = usize::try_from(size - place % size).unwrap_or(usize::MAX);
        let end = start.saturating_add(left).min(bytes.len());
        let zero = self.rules.sparse > 0
            && bytes.get(start..end).unwrap_or_default().chunks(GRAIN).all(is_zero);
        let stop = place.saturating_add((end - start) as u64);
        let whole =
            place.is_multiple_of(size) && (stop.is_multiple_of(size) || stop == self.disk.size());
        (zero, whole, end)
    }
}

/// The stretch from `start` on that is all data or all zeros, and where it ends.
fn stretch(bytes: &[u8], start: usize, sparse: usize) -> (bool, usize) {
    let zeros_from = |at: usize| {
        let rest = bytes.get(at..).unwrap_or_default();
        rest.chunks(GRAIN).take_while(|block| is_zero(block)).map(<[u8]>::len).sum::<usize>()
    };
    if sparse == 0 {
        return (false, bytes.len());
    }
    let zeros = zeros_from(start);
    if zeros >= sparse || (zeros > 0 && start + zeros == bytes.len()) {
        return (true, start + zeros);
    }
    let mut end = start;
    while end < bytes.len() {
        let zeros = zeros_from(end);
        if zeros >= sparse.min(bytes.len() - end) && zeros > 0 {
            break;
        }
        end = (end + zeros.max(GRAIN)).min(bytes.len());
    }
    (false, end)
}

impl ExtentSink for DiskSink<'_> {
    fn begin(&mut self, shape: DiskShape) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) && (self.written > 0 || self.filled > 0) {
            let message = "the archive's disk turned out to be a later member, and the target was \
                           already written to";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("name the member"));
        }
        let room = self.disk.size().saturating_sub(self.rules.start);
        if shape.size.is_some_and(|size| size > room) {
            return Err(too_small(room));
        }
        Ok(())
    }

    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]> {
        let end = self.at.saturating_add(self.filled as u64);
        // Windows end at their own multiples, so that they hold whole clusters.
        let here = offset == end && !offset.is_multiple_of(WINDOW);
        if self.filled > 0 && !here {
            self.flush()?;
        }
        if self.filled == 0 {
            self.at = offset;
        }
        let left = WINDOW - offset % WINDOW;
        let length = usize::try_from(left.min(most)).unwrap_or(usize::MAX);
        let end = self.filled.saturating_add(length).min(self.memory.len());
        Ok(self.memory.get_mut(self.filled..end).unwrap_or_default())
    }

    fn filled(&mut self, count: usize) -> Result<()> {
        self.filled = self.filled.saturating_add(count);
        let end = self.at.saturating_add(self.filled as u64);
        let room = self.disk.size().saturating_sub(self.rules.start);
        if end > room { Err(too_small(room)) } else { Ok(()) }
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.rules.sparse == 0 {
            return lend_zeros(self, offset, length);
        }
        let (mut offset, mut length) = (offset, length);
        if self.rules.compress {
            // What lies in a cluster with data is compressed with it.
            let size = self.rules.cluster.max(1);
            let into = (self.rules.start.saturating_add(offset)) % size;
            let head = if into == 0 { 0 } else { (size - into).min(length) };
            lend_zeros(self, offset, head)?;
            (offset, length) = (offset.saturating_add(head), length - head);
        }
        let tail = if self.rules.compress { length % self.rules.cluster.max(1) } else { 0 };
        let middle = length - tail;
        if middle > 0 {
            self.flush()?;
            if !self.rules.is_zero {
                let at = self.rules.start.saturating_add(offset);
                self.disk.write_zeroes(at, middle, ZeroMode::Unmap)?;
            }
        }
        lend_zeros(self, offset.saturating_add(middle), tail)
    }

    fn finish(&mut self, _size: u64) -> Result<()> {
        self.flush()
    }

    fn written(&self) -> u64 {
        self.written
    }
}

fn too_small(room: u64) -> Error {
    let message = format!("the source's disk does not fit into the target's {room} bytes");
    Error::new(ErrorKind::InvalidInput, message)
}
