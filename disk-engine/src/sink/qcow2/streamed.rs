//! A qcow2 image on a pipe: its tables first, made from the map of the disk, then what is stored.
//!
//! ```text
//! map, in clusters   ██░░░█░░██        tables ─▶ pipe
//! disk               data, zeros       what lies in the map's clusters ─▶ pipe, in order
//!                                      anything else has to be zeros, or the map was wrong
//! ```
//!
//! Caller: `ops::convert`.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use qcow2_format::create::StreamedImage;

use crate::disk::chain::from_format;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::ExtentSink;
use crate::sink::stream::{later_member, zeros};
use crate::source::content::is_zero;
use crate::source::extent::DiskShape;
use crate::source::input;

/// Bytes that are lent at once.
const WINDOW: usize = 256 << 10;
const GRAIN: usize = 4096;

/// The image being sent.
pub(crate) struct StreamedSink<'a> {
    image: &'a StreamedImage,
    writer: &'a mut dyn Write,
    path: &'a Path,
    memory: Vec<u8>,
    cluster: u64,
    /// The range of the map that comes next, or that is being sent.
    next: usize,
    /// Everything of the disk before this offset has been dealt with.
    at: u64,
    sent: u64,
    begun: bool,
}

impl<'a> StreamedSink<'a> {
    /// `image`, sent to `writer`, which errors call `path`.
    pub(crate) fn new(
        image: &'a StreamedImage,
        writer: &'a mut dyn Write,
        path: &'a Path,
    ) -> Result<Self> {
        Ok(Self {
            cluster: image.header().geometry().cluster_bits.bytes(),
            image,
            writer,
            path,
            memory: input::zeroed(WINDOW)?,
            next: 0,
            at: 0,
            sent: 0,
            begun: false,
        })
    }

    /// The stored range that ends behind where we are, in bytes of the disk.
    fn stored(&mut self) -> Option<Range<u64>> {
        loop {
            let range = self.image.stored().get(self.next)?;
            let bytes = |cluster: u64| cluster.saturating_mul(self.cluster);
            if bytes(range.end) > self.at {
                return Some(bytes(range.start)..bytes(range.end));
            }
            self.next = self.next.saturating_add(1);
        }
    }

    /// Deals with zeros up to `end`.
    fn zeros_until(&mut self, end: u64) -> Result<()> {
        while self.at < end {
            let Some(stored) = self.stored() else {
                self.at = end;
                break;
            };
            let start = self.at.max(stored.start).min(end);
            let stop = stored.end.min(end).max(start);
            zeros(self.writer, stop - start, self.path)?;
            self.sent = self.sent.saturating_add(stop - start);
            self.at = if stop > start { stop } else { end.min(stored.start) };
        }
        Ok(())
    }
}

impl ExtentSink for StreamedSink<'_> {
    fn begin(&mut self, _shape: DiskShape) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Err(later_member());
        }
        let (writer, path) = (&mut *self.writer, self.path);
        let mut sent = 0;
        self.image
            .write_tables(|bytes| {
                sent += bytes.len() as u64;
                writer.write_all(bytes)
            })
            .map_err(|error| from_format(error, path))?;
        self.sent = sent;
        Ok(())
    }

    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]> {
        self.zeros_until(offset)?;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.memory.len());
        Ok(self.memory.get_mut(..most).unwrap_or_default())
    }

    fn filled(&mut self, count: usize) -> Result<()> {
        let memory = std::mem::take(&mut self.memory);
        let mut bytes = memory.get(..count).unwrap_or_default();
        while !bytes.is_empty() {
            let stored = self.stored();
            let (end, is_stored) = match stored {
                Some(stored) if stored.start <= self.at => (stored.end, true),
                Some(stored) => (stored.start, false),
                None => (u64::MAX, false),
            };
            let piece = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let (piece, rest) = bytes.split_at(piece);
            if is_stored {
                self.writer
                    .write_all(piece)
                    .map_err(|error| Error::io("write the disk", self.path, error))?;
                self.sent = self.sent.saturating_add(piece.len() as u64);
            } else if !piece.chunks(GRAIN).all(is_zero) {
                let message = "the disk changed while it was converted";
                return Err(Error::new(ErrorKind::Mismatch, message)
                    .with_offset(self.at)
                    .with_hint("stop whoever writes to it first"));
            }
            self.at = self.at.saturating_add(piece.len() as u64);
            bytes = rest;
        }
        self.memory = memory;
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.zeros_until(offset.saturating_add(length))
    }

    fn finish(&mut self, _size: u64) -> Result<()> {
        // To the end of the last cluster, which may be behind the disk's.
        let end = self.image.stored().last().map_or(0, |range| range.end);
        self.zeros_until(end.saturating_mul(self.cluster))?;
        self.writer.flush().map_err(|error| Error::io("write the disk", self.path, error))
    }

    fn written(&self) -> u64 {
        self.sent
    }
}
