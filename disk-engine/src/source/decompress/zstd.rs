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
//! libzstd decodes straight into the caller's memory; besides that it holds one window. A frame
//! cut anywhere, a byte after the last frame, a lying content size: [`ErrorKind::Corrupt`]. Only a cut
//! exactly between two frames looks whole from here; an archive inside then lacks its end, a bare disk
//! is shorter, and only a stated digest tells.
//!
//! [`ErrorKind::Corrupt`]: crate::ErrorKind::Corrupt

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use crate::error::{Error, ErrorKind, Result};
use crate::source::input::Input;
use crate::source::limits::{Defect, Limits};

/// A zstd decoder over its input.
pub(crate) struct Zstd {
    context: DCtx<'static>,
    input: Input,
    /// No frame has begun that is not complete.
    between_frames: bool,
    frames: u64,
    /// What the current frame's header says it needs, if it says so in plain.
    window: Option<u64>,
}

impl Zstd {
    pub(crate) fn new(input: Input, limits: &Limits) -> Result<Self> {
        let mut context = DCtx::try_create()
            .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd decoder"))?;
        context.set_parameter(DParameter::WindowLogMax(limits.window_log())).map_err(|code| {
            let name = zstd_safe::get_error_name(code);
            Error::new(ErrorKind::InvalidInput, format!("zstd refuses the window limit: {name}"))
        })?;
        Ok(Self { context, input, between_frames: true, frames: 0, window: None })
    }

    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let bytes = self.input.fill()?;
            let at_end = bytes.is_empty();
            if self.between_frames {
                if at_end {
                    return Ok(filled);
                }
                self.window = window_of(bytes);
            }
            let mut from = InBuffer::around(bytes);
            let mut to = OutBuffer::around_pos(&mut *out, filled);
            let outcome = self.context.decompress_stream(&mut to, &mut from);
            let (produced, consumed) = (to.pos() - filled, from.pos());
            filled += produced;
            self.input.consume(consumed);
            let hint = outcome.map_err(|code| self.failure(code))?;
            if at_end && produced == 0 {
                return Err(self.corrupt("the source ends inside a zstd frame"));
            }
            self.between_frames = hint == 0;
            self.frames += u64::from(hint == 0);
        }
        Ok(filled)
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    pub(crate) fn into_input(self) -> Input {
        self.input
    }

    /// What libzstd's error `code` means to us. Its codes are stable numbers, returned negated.
    fn failure(&self, code: usize) -> Error {
        let position = self.input.position();
        match 0_usize.wrapping_sub(code) {
            10 if self.frames > 0 => {
                self.corrupt("bytes that are not zstd follow the last zstd frame")
            }
            12 => Defect::unsupported("the source has frames of zstd older than version 1.0")
                .at(position, None),
            14 => Defect::unsupported("a zstd frame uses a reserved feature").at(position, None),
            16 => {
                let needs = match self.window {
                    Some(window) => format!("a window of {} MiB", window.div_ceil(1 << 20)),
                    None => "a larger window".into(),
                };
                Defect::limit(format!("a zstd frame needs {needs}"), "max_window (--long)")
                    .at(position, None)
            }
            22 => self.corrupt("a zstd frame does not match its checksum"),
            32 => Defect::unsupported("a zstd frame needs a dictionary").at(position, None),
            64 => {
                Error::new(ErrorKind::Limit, "no memory for the zstd window").with_offset(position)
            }
            _ => {
                let name = zstd_safe::get_error_name(code);
                self.corrupt(format!("a zstd frame is damaged: {name}"))
            }
        }
    }

    fn corrupt(&self, message: impl Into<String>) -> Error {
        Defect::corrupt(message).at(self.input.position(), None)
    }
}

/// The window a frame header asks for, if the header is whole and not of a single segment.
fn window_of(header: &[u8]) -> Option<u64> {
    match header {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] if descriptor & 0x20 == 0 => {
            let base = 1_u64 << (10 + (window >> 3));
            Some(base + base / 8 * u64::from(window & 7))
        }
        _ => None,
    }
}
