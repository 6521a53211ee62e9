//! One decoder over bytes in order: whatever the frames are, and however large.
//!
//! ```text
//! Feed ── fill ──▶ libzstd, which holds one window ──▶ the caller's memory
//!   the input, or bytes that were taken from it already
//! ```
//!
//! All that is ever said about what is wrong with a frame is said here, so that it is said alike
//! whether threads decode or not. Caller: `decompress::zstd`.

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::header::{self, Start};
use crate::error::{Error, ErrorKind, Result};
use crate::source::input::Input;
use crate::source::limits::{Defect, Limits};

/// Where compressed bytes come from.
pub(super) trait Feed {
    /// The bytes at hand; empty where they end. `between` says that no frame is open.
    fn fill(&mut self, between: bool) -> Result<&[u8]>;

    /// Marks the first `count` bytes at hand as seen.
    fn consume(&mut self, count: usize);

    /// Bytes of the source seen so far.
    fn position(&self) -> u64;
}

impl Feed for Input {
    fn fill(&mut self, _: bool) -> Result<&[u8]> {
        Input::fill(self)
    }

    fn consume(&mut self, count: usize) {
        Input::consume(self, count);
    }

    fn position(&self) -> u64 {
        Input::position(self)
    }
}

/// libzstd's streaming decoder.
pub(super) struct Stream {
    context: DCtx<'static>,
    window_max: u64,
    /// No frame has begun that is not complete.
    between: bool,
    /// Frames that begin with this one were seen, skippable ones not counted.
    frames: u64,
    /// A frame of any kind was complete before this one.
    after: bool,
}

impl Stream {
    pub(super) fn new(limits: &Limits) -> Result<Self> {
        let mut context = DCtx::try_create()
            .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd decoder"))?;
        context.set_parameter(DParameter::WindowLogMax(limits.window_log())).map_err(|code| {
            let name = zstd_safe::get_error_name(code);
            Error::new(ErrorKind::InvalidInput, format!("zstd refuses the window limit: {name}"))
        })?;
        let window_max = 1 << limits.window_log();
        Ok(Self { context, window_max, between: true, frames: 0, after: false })
    }

    /// Whether every frame that has begun is complete.
    pub(super) fn is_between(&self) -> bool {
        self.between
    }

    /// How many frames began, skippable ones not counted.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether frames came before what is read next that this decoder did not see.
    pub(super) fn set_after(&mut self, after: bool) {
        self.after |= after;
    }

    /// Fills `out` from `*filled` on; leaves room only where the feed ends between two frames.
    pub(super) fn read(
        &mut self,
        feed: &mut impl Feed,
        out: &mut [u8],
        filled: &mut usize,
    ) -> Result<()> {
        while *filled < out.len() {
            let position = feed.position();
            let bytes = feed.fill(self.between)?;
            let at_end = bytes.is_empty();
            if self.between {
                if at_end {
                    return Ok(());
                }
                self.begin(bytes, position)?;
            }
            let mut from = InBuffer::around(bytes);
            let mut to = OutBuffer::around_pos(&mut *out, *filled);
            let outcome = self.context.decompress_stream(&mut to, &mut from);
            let (produced, consumed) = (to.pos() - *filled, from.pos());
            *filled += produced;
            feed.consume(consumed);
            let hint =
                outcome.map_err(|code| defect(code, self.after).at(feed.position(), None))?;
            if at_end && produced == 0 {
                return Err(cut().at(feed.position(), None));
            }
            self.between = hint == 0;
            self.after |= hint == 0;
        }
        Ok(())
    }

    /// A frame begins. libzstd holds no window, and so refuses none, when it finds a whole frame and
    /// room for all of it; which that is, would depend on how the bytes arrive.
    fn begin(&mut self, bytes: &[u8], position: u64) -> Result<()> {
        // The first byte tells a frame from a skippable one, and libzstd refuses all else.
        self.frames += u64::from(bytes.first() == Some(&0x28));
        match header::parse(bytes) {
            Start::Frame(frame) if frame.window > self.window_max => {
                Err(too_large(Some(frame.window)).at(position, None))
            }
            _ => Ok(()),
        }
    }
}

/// What libzstd's error `code` means to us; `after` says that frames came before. Its codes are stable
/// numbers, returned negated.
pub(crate) fn defect(code: usize, after: bool) -> Defect {
    match 0_usize.wrapping_sub(code) {
        10 if after => Defect::corrupt("bytes that are not zstd follow the last zstd frame"),
        12 => Defect::unsupported("the source has frames of zstd older than version 1.0"),
        14 => Defect::unsupported("a zstd frame uses a reserved feature"),
        16 => too_large(None),
        22 => Defect::corrupt("a zstd frame does not match its checksum"),
        32 => Defect::unsupported("a zstd frame needs a dictionary"),
        64 => Defect::new(ErrorKind::Limit, "no memory for the zstd window"),
        _ => {
            let name = zstd_safe::get_error_name(code);
            Defect::corrupt(format!("a zstd frame is damaged: {name}"))
        }
    }
}

/// The source ends where a frame does not.
pub(super) fn cut() -> Defect {
    Defect::corrupt("the source ends inside a zstd frame")
}

/// A frame wants to remember more than it may.
pub(crate) fn too_large(window: Option<u64>) -> Defect {
    let needs = match window {
        Some(window) => format!("a window of {} MiB", window.div_ceil(1 << 20)),
        None => "a larger window".into(),
    };
    Defect::limit(format!("a zstd frame needs {needs}"), "max_window (--long)")
}
