//! The images of an opened chain as one disk: what is read and written through them.
//!
//! ```text
//! offset ─▶ [0] vm.qcow2 ──unallocated──▶ [1] layer.qcow2 ──unallocated──▶ [2] base.img
//!               data, zeros                   data, zeros                      data
//!                                             past its end: zeros              past its end: zeros
//! ```
//!
//! Only the top is ever written to; what it copies on a write comes from below. Callers: `opened`,
//! `writable`, `map`.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use qcow2_format::Header;
use qcow2_format::feature::IncompatibleFeatures;
use qcow2_format::image::{RunKind, ZeroMode};

use crate::base::BaseFormat;
use crate::disk::content::{ContentRun, StoredRun};
use crate::disk::layer::Layer;
use crate::disk::map::{Cleared, DiskRun, DiskRuns};
use crate::error::{Error, ErrorKind, Result};

/// Pieces that one call of [`Layers::content_at`] puts together.
const PIECES_MAX: usize = 64;

/// An image of an opened disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskImage<'a> {
    /// Where it lies, as its overlay or the caller names it.
    pub path: &'a Path,
    /// Where its external data file lies, if it has one.
    pub data_file: Option<&'a Path>,
    /// Its format.
    pub format: BaseFormat,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Its header, if it is qcow2.
    pub header: Option<Cow<'a, Header>>,
    /// Whether its refcounts may be wrong. What is read is right all the same.
    pub dirty: bool,
    /// Whether it is marked corrupt: what is read may be anything.
    pub corrupt: bool,
}

impl<'a> DiskImage<'a> {
    fn of(layer: &'a Layer) -> Self {
        let header = layer.header();
        let marked = |feature| {
            header.as_ref().is_some_and(|header| header.incompatible_features().contains(feature))
        };
        Self {
            path: layer.path(),
            data_file: layer.data_path(),
            format: layer.format(),
            size: layer.size(),
            dirty: marked(IncompatibleFeatures::DIRTY),
            corrupt: marked(IncompatibleFeatures::CORRUPT),
            header,
        }
    }
}

/// A chain of opened images.
#[derive(Debug)]
pub(super) struct Layers {
    top: Layer,
    /// What the top stands on, the nearest first.
    below: Vec<Layer>,
    size: u64,
}

impl Layers {
    pub(super) fn new(top: Layer, below: Vec<Layer>) -> Self {
        Self { size: top.size(), top, below }
    }

    /// Has the holes of preallocated images' files count as zeros.
    pub(super) fn look_for_holes(&mut self) -> Result<()> {
        std::iter::once(&mut self.top).chain(&mut self.below).try_for_each(Layer::look_for_holes)
    }

    /// Has clusters past the end of a file be errors.
    pub(super) fn fail_past_end(&self) {
        std::iter::once(&self.top).chain(&self.below).for_each(Layer::fail_past_end);
    }

    /// Size of the disk in bytes: the top's.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn images(&self) -> impl ExactSizeIterator<Item = DiskImage<'_>> {
        let count = self.below.len().saturating_add(1);
        (0..count).map(|depth| DiskImage::of(self.layer(depth).unwrap_or(&self.top)))
    }

    /// The file that each image stores its clusters in, top first.
    pub(super) fn data_files(&self) -> impl Iterator<Item = Option<&File>> {
        std::iter::once(&self.top).chain(&self.below).map(Layer::data_file)
    }

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the range is not on the disk.
    pub(super) fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!("{length} bytes are not in a disk of {} bytes", self.size);
        Err(Error::new(ErrorKind::InvalidInput, message)
            .with_offset(offset)
            .with_path(self.top.path()))
    }

    pub(super) fn map(&self, range: Range<u64>) -> Result<DiskRuns<'_>> {
        self.check(range.start, range.end.saturating_sub(range.start))?;
        Ok(DiskRuns::new(self, range))
    }

    /// What starts at `offset`, as far as one look at the tables tells.
    pub(super) fn piece_at(
        &self,
        offset: u64,
        limit: u64,
        cleared: &mut Cleared,
    ) -> Result<DiskRun> {
        self.check(offset, 1)?;
        let mut limit = limit.min(self.size - offset).max(1);
        let unallocated = RunKind::Unallocated { host: None };
        let mut depth = 0;
        while let Some(layer) = self.layer(depth) {
            // Nothing below has it: it lies past the end of what is below.
            let below = self.layer(depth + 1).map_or(0, Layer::size);
            let left = cleared.until(depth).saturating_sub(offset);
            let (length, kind, hole) = if left > 0 {
                (left.min(limit), unallocated, false)
            } else {
                let (run, hole) = layer.hole(layer.run_at(offset, limit)?)?;
                (run.length.min(limit), run.kind, hole)
            };
            let RunKind::Unallocated { .. } = kind else {
                let run = DiskRun::new(offset, length, depth, kind);
                return Ok(DiskRun { zero: run.zero || hole, ..run });
            };
            if below <= offset {
                return Ok(DiskRun::new(offset, length, depth, kind));
            }
            if left == 0 {
                cleared.set(depth, offset.saturating_add(length).min(below));
            }
            limit = length.min(below - offset);
            depth += 1;
        }
        // The last layer has nothing below, so the loop has returned.
        Ok(DiskRun::new(offset, limit, self.below.len(), unallocated))
    }

    pub(super) fn content_at(&self, offset: u64) -> Result<ContentRun> {
        self.check(offset, 1)?;
        let mut pieces = DiskRuns::new(self, offset..self.size);
        let mut run = ContentRun { length: 0, zero: false, compressed: false };
        for index in 0..PIECES_MAX {
            match pieces.piece() {
                Some(Ok(piece)) if index == 0 => {
                    run = ContentRun {
                        length: piece.length,
                        zero: piece.zero,
                        compressed: piece.compressed,
                    };
                }
                Some(Ok(piece)) if (piece.zero, piece.compressed) == (run.zero, run.compressed) => {
                    run.length = run.length.saturating_add(piece.length);
                }
                Some(Err(error)) if index == 0 => return Err(error),
                // Whoever asks for what lies there hears of it.
                _ => break,
            }
        }
        Ok(run)
    }

    pub(super) fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'_>>> {
        self.check(offset, 1)?;
        let mut pieces = DiskRuns::new(self, offset..self.size);
        let Some(run) = pieces.next().transpose()? else { return Ok(None) };
        let file = self.layer(run.depth).and_then(Layer::data_file);
        Ok(match (run.data && !run.compressed, run.offset, file) {
            (true, Some(at), Some(file)) => {
                Some(StoredRun { file, offset: at, length: run.length })
            }
            _ => None,
        })
    }

    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.read_from(0, bytes, offset)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.top.write_over(bytes, offset, |part, at| self.read_from(1, part, at))
    }

    pub(super) fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.top.write_compressed(bytes, offset)
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.check(offset, length)?;
        self.top.write_zeroes_over(offset, length, mode, |part, at| self.read_from(1, part, at))
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        self.top.discard(offset, length)
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.top.flush()
    }

    /// Flushes the top and leaves nothing to do.
    pub(super) fn close(self) -> Result<()> {
        self.top.close()
    }

    pub(super) fn layer(&self, depth: usize) -> Option<&Layer> {
        match depth.checked_sub(1) {
            None => Some(&self.top),
            Some(index) => self.below.get(index),
        }
    }

    fn read_from(&self, depth: usize, bytes: &mut [u8], offset: u64) -> Result<()> {
        let size = self.layer(depth).map_or(0, Layer::size).saturating_sub(offset);
        let inside = usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len());
        let (inside, beyond) = bytes.split_at_mut(inside);
        beyond.fill(0);
        match self.layer(depth) {
            Some(layer) if !inside.is_empty() => {
                layer.read_over(inside, offset, |part, at| self.read_from(depth + 1, part, at))
            }
            _ => Ok(()),
        }
    }
}
