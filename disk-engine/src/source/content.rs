//! The decompressed content of a source, read in order, with a place for every complaint.
//!
//! ```text
//! Decoder ──▶ first 512 bytes, kept to tell a tar from a disk ──▶ blocks · data · skipped bytes
//! ```
//!
//! Callers: `source::bare`, `source::tar`.

use crate::control::Control;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::source::decompress::{Decoder, Decoding};
use crate::source::input::{self, Input};
use crate::source::limits::{Defect, Limits};
use crate::source::probe::Compression;

/// The unit tar counts in.
pub(crate) const BLOCK: usize = 512;
/// A tar block.
pub(crate) type Block = [u8; BLOCK];

/// How much is skipped at once.
const SKIP: usize = 64 << 10;

/// Zeros are looked for in pieces of this, the block of every common file system.
const GRAIN: usize = 4096;

static ZEROS: [u8; GRAIN] = [0; GRAIN];

/// What a source holds once decompressed.
pub(crate) struct Content {
    decoder: Decoder,
    head: Block,
    head_length: usize,
    position: u64,
    /// Of the bytes before the position, those that count as expanded.
    expanded: u64,
    limits: Limits,
    scratch: Vec<u8>,
    control: Control,
}

impl Content {
    pub(crate) fn new(
        input: Input,
        limits: &Limits,
        decoding: Decoding,
        control: Control,
    ) -> Result<Self> {
        Self::of(Decoder::new(input, limits, decoding)?, limits, control)
    }

    /// What `decoder` gives, which is at its start.
    pub(crate) fn of(mut decoder: Decoder, limits: &Limits, control: Control) -> Result<Self> {
        let mut head = [0; BLOCK];
        let head_length = decoder.read(&mut head)?;
        if head_length == 0 {
            let position = decoder.position();
            return Err(Defect::corrupt("the source is empty once decompressed").at(position, None));
        }
        Ok(Self {
            decoder,
            head,
            head_length,
            position: 0,
            expanded: 0,
            limits: *limits,
            scratch: Vec::new(),
            control,
        })
    }

    /// The first bytes; fewer than a block only if there are no more.
    pub(crate) fn head(&self) -> &[u8] {
        self.head.get(..self.head_length).unwrap_or_default()
    }

    /// Fills `out`. Fewer bytes mean that the source has ended and was verified to its last byte.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let count = self.fill(out)?;
        self.count(count as u64)?;
        Ok(count)
    }

    /// As [`Content::read`], for bytes of the disk: the zeros among them become holes.
    pub(crate) fn read_disk(&mut self, out: &mut [u8]) -> Result<usize> {
        let count = self.fill(out)?;
        let filled = out.get(..count).unwrap_or_default();
        let stored: usize =
            filled.chunks(GRAIN).filter(|block| !is_zero(block)).map(<[u8]>::len).sum();
        self.count(stored as u64)?;
        Ok(count)
    }

    fn count(&mut self, more: u64) -> Result<()> {
        self.expanded = self.expanded.saturating_add(more);
        let source = self.decoder.position();
        if self.compression() != Compression::None && self.limits.is_bomb(self.expanded, source) {
            let most = self.limits.max_expansion;
            let message = format!(
                "{source} bytes of the source give {} bytes, more than {most} to one past the first GiB",
                self.expanded
            );
            return Err(self.fault(Defect::limit(message, "max_expansion (--max-expansion)")));
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<usize> {
        self.control.check()?;
        let mut count = 0;
        if self.position < self.head_length as u64 {
            let taken = usize::try_from(self.position).unwrap_or(usize::MAX);
            count = input::copy_start(out, self.head().get(taken..).unwrap_or_default());
        }
        if let Some(rest) = out.get_mut(count..).filter(|rest| !rest.is_empty()) {
            count += self.decoder.read(rest)?;
        }
        self.position += count as u64;
        Ok(count)
    }

    /// The next block; `None` where the content ends before it.
    pub(crate) fn block(&mut self, what: &str) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        match self.read(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(self.truncated(what)),
        }
    }

    /// The next block, which must be there.
    pub(crate) fn expect_block(&mut self, what: &str) -> Result<Block> {
        self.block(what)?.ok_or_else(|| self.truncated(what))
    }

    /// Passes over `count` bytes, which must be there.
    pub(crate) fn skip(&mut self, mut count: u64, what: &str) -> Result<()> {
        let kept = (self.head_length as u64).saturating_sub(self.position).min(count);
        if let Some(jumped) = self.decoder.jump(count - kept) {
            self.position = self.position.saturating_add(kept).saturating_add(jumped);
            return if kept + jumped == count { Ok(()) } else { Err(self.truncated(what)) };
        }
        while count > 0 {
            let read = self.through_scratch(at_most(count, SKIP))?.len();
            if read == 0 {
                return Err(self.truncated(what));
            }
            count -= read as u64;
        }
        Ok(())
    }

    /// Reads to the end; all that is left must be zeros, and no more than `most` of them.
    pub(crate) fn expect_zeros(&mut self, most: u64) -> Result<()> {
        let start = self.position;
        loop {
            let bytes = self.through_scratch(SKIP)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let zero = bytes.iter().fold(0, |all, byte| all | byte) == 0;
            if !zero || self.position - start > most {
                return Err(
                    self.fault(Defect::corrupt("trailing data follows the end of the archive"))
                );
            }
        }
    }

    /// How far the content was read, in decompressed bytes.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the source it took so far, and how many there are if that is known: for progress.
    pub(crate) fn progress(&self) -> (u64, Option<u64>) {
        (self.decoder.position(), self.decoder.length())
    }

    /// zstd frames that were met, and threads that decoded.
    pub(crate) fn shares(&self) -> (u64, usize) {
        self.decoder.shares()
    }

    /// How many bytes the source has, and their digest if it was asked for. Call at the end.
    pub(crate) fn finish(self) -> Result<(u64, Option<Sha256Digest>)> {
        self.decoder.finish()
    }

    pub(crate) fn compression(&self) -> Compression {
        self.decoder.compression()
    }

    /// Adds the place to a defect.
    pub(crate) fn fault(&self, defect: Defect) -> Error {
        let archive = (self.compression() != Compression::None).then_some(self.position);
        // Without compression the probe has read ahead; the content's position is the true one.
        let source = if archive.is_some() { self.decoder.position() } else { self.position };
        defect.at(source, archive)
    }

    pub(crate) fn truncated(&self, what: &str) -> Error {
        self.fault(Defect::corrupt(format!("the source ends inside {what}")))
    }

    fn through_scratch(&mut self, count: usize) -> Result<&[u8]> {
        let mut scratch = std::mem::take(&mut self.scratch);
        if scratch.is_empty() {
            scratch = input::zeroed(SKIP)?;
        }
        let outcome = match scratch.get_mut(..count) {
            Some(room) => self.read(room),
            None => Ok(0),
        };
        self.scratch = scratch;
        Ok(self.scratch.get(..outcome?).unwrap_or_default())
    }
}

/// Reads a stretch of metadata byte by byte, out of whole blocks.
pub(crate) struct Bytes<'a> {
    content: &'a mut Content,
    what: &'a str,
    block: Block,
    at: usize,
    left: u64,
}

impl<'a> Bytes<'a> {
    /// The next `length` bytes, called `what` in messages. Their last block's padding goes along.
    pub(crate) fn new(content: &'a mut Content, length: u64, what: &'a str) -> Self {
        Self { content, what, block: [0; BLOCK], at: BLOCK, left: length }
    }

    /// The next byte, if one is left.
    pub(crate) fn next(&mut self) -> Result<Option<u8>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.at == BLOCK {
            self.block = self.content.expect_block(self.what)?;
            self.at = 0;
        }
        let byte = self.block.get(self.at).copied();
        self.at += 1;
        self.left -= 1;
        Ok(byte)
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Adds the place to a defect.
    pub(crate) fn fault(&self, defect: Defect) -> Error {
        self.content.fault(defect)
    }
}

/// Whether a block of at most 4096 bytes holds nothing: one `memcmp`, which ends at the first byte
/// that differs.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    ZEROS.get(..block.len()).is_some_and(|zeros| zeros == block)
}

/// `count` as a length in memory, no more than `most`.
pub(crate) fn at_most(count: u64, most: usize) -> usize {
    usize::try_from(count).map_or(most, |count| count.min(most))
}
