//! zstd, as RFC 8878 has it: one frame or many, skippable ones anywhere.
//!
//! ```text
//! ┌───────┬────────────┬────────┬───────┬──────────────┐
//! │ magic │ descriptor │ window │ block │ … │ checksum │   window: exponent << 3 | mantissa
//! └───────┴────────────┴────────┴───────┴──────────────┘
//!   28b52ffd                 ▲ at most Limits::max_window; libzstd verifies size and checksum
//! 5x2a4d18  length  …         a skippable frame: passed over, whatever its length
//! ```
//!
//! On one thread libzstd decodes straight into the caller's memory; besides that it holds one window.
//! With more, whole frames are decoded ahead, each by a thread. A frame
//! cut anywhere, a byte after the last frame, a lying content size: [`ErrorKind::Corrupt`]. Only a cut
//! exactly between two frames looks whole from here; an archive inside then lacks its end, a bare disk
//! is shorter, and only a stated digest tells.
//!
//! ```text
//! stream    one decoder over bytes in order            frames    whole frames, taken ahead
//! header    where frames and blocks end                workers   the threads that decode them
//! ```
//!
//! [`ErrorKind::Corrupt`]: crate::ErrorKind::Corrupt

pub(crate) mod frames;
pub(crate) mod header;
pub(crate) mod stream;
mod workers;

use crate::error::Result;
use crate::source::decompress::Decoding;
use crate::source::input::Input;
use crate::source::limits::Limits;
use frames::{Decoded, Frames, Next, Replay};
use stream::{Feed, Stream};

/// A zstd decoder over its input.
pub(crate) struct Zstd {
    input: Input,
    stream: Stream,
    /// Frames decoded ahead, if threads do it.
    ahead: Option<Ahead>,
}

struct Ahead {
    frames: Frames,
    current: Option<Next>,
    /// Bytes of the source that what was handed out took.
    position: u64,
}

impl Zstd {
    pub(crate) fn new(input: Input, limits: &Limits, decoding: Decoding) -> Result<Self> {
        let stream = Stream::new(limits)?;
        let ahead = (decoding.threads > 1).then(|| Ahead {
            frames: Frames::new(decoding.threads, decoding.job, 1 << limits.window_log()),
            current: None,
            position: 0,
        });
        Ok(Self { input, stream, ahead })
    }

    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        match &mut self.ahead {
            None => self.stream.read(&mut self.input, out, &mut filled)?,
            Some(ahead) => ahead.read(&mut self.input, &mut self.stream, out, &mut filled)?,
        }
        Ok(filled)
    }

    /// Bytes of the source that it took to decode what was read so far.
    pub(crate) fn position(&self) -> u64 {
        self.ahead.as_ref().map_or_else(|| self.input.position(), |ahead| ahead.position)
    }

    /// Frames that were met, skippable ones not counted.
    pub(crate) fn frames(&self) -> u64 {
        self.ahead.as_ref().map_or_else(|| self.stream.frames(), |ahead| ahead.frames.found())
    }

    /// Threads that decoded.
    pub(crate) fn threads(&self) -> usize {
        self.ahead.as_ref().map_or(1, |ahead| ahead.frames.threads())
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    pub(crate) fn into_input(self) -> Input {
        self.input
    }
}

impl Ahead {
    fn read(
        &mut self,
        input: &mut Input,
        stream: &mut Stream,
        out: &mut [u8],
        filled: &mut usize,
    ) -> Result<()> {
        while let Some(rest) = out.get_mut(*filled..).filter(|rest| !rest.is_empty()) {
            match self.current.take() {
                None => match self.frames.next(input)? {
                    Some(next) => self.current = Some(next),
                    None => {
                        self.position = input.position();
                        return Ok(());
                    }
                },
                Some(Next::Decoded(decoded)) => *filled += self.take(decoded, rest),
                Some(Next::Again(replay)) => self.replay(replay, input, stream, out, filled)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, mut decoded: Decoded, out: &mut [u8]) -> usize {
        let count = decoded.take(out);
        self.position = decoded.end;
        if decoded.is_taken() {
            self.frames.give_back(decoded);
        } else {
            self.current = Some(Next::Decoded(decoded));
        }
        count
    }

    fn replay(
        &mut self,
        mut replay: Replay,
        input: &mut Input,
        stream: &mut Stream,
        out: &mut [u8],
        filled: &mut usize,
    ) -> Result<()> {
        stream.set_after(replay.after);
        let mut feed = replay.feed(input);
        let outcome = stream.read(&mut feed, out, filled);
        self.position = feed.position();
        if outcome.is_ok() && stream.is_between() && replay.is_read() {
            self.frames.resume(&replay);
        } else {
            self.current = Some(Next::Again(replay));
        }
        outcome
    }
}
