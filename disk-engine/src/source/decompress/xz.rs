//! xz: one stream or many, padding between them, every integrity check verified.
//!
//! ```text
//! fd 37 7a 58 5a 00 flags │ blocks, each with its check │ index │ footer "YZ" │ zero padding …
//! ```
//!
//! A dictionary larger than `Limits::max_window` is refused, and so is a check liblzma cannot
//! compute: it would go unverified.

use liblzma::stream::{
    Action, CONCATENATED, Error as LzmaError, Status, Stream, TELL_UNSUPPORTED_CHECK,
};

use crate::error::{Error, ErrorKind, Result};
use crate::source::input::Input;
use crate::source::limits::{Defect, Limits};

/// What liblzma needs besides the dictionary.
const OVERHEAD: u64 = 1 << 20;

/// An xz decoder over its input.
pub(crate) struct Xz {
    stream: Stream,
    input: Input,
    done: bool,
}

impl Xz {
    pub(crate) fn new(input: Input, limits: &Limits) -> Result<Self> {
        let memory = limits.max_window.saturating_add(OVERHEAD);
        let stream = Stream::new_stream_decoder(memory, CONCATENATED | TELL_UNSUPPORTED_CHECK)
            .map_err(|error| {
                Error::new(ErrorKind::Limit, "no memory for an xz decoder").with_source(error)
            })?;
        Ok(Self { stream, input, done: false })
    }

    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while !self.done
            && let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty())
        {
            let bytes = self.input.fill()?;
            let at_end = bytes.is_empty();
            // Only `Finish` tells liblzma that no further stream follows.
            let action = if at_end { Action::Finish } else { Action::Run };
            let before = (self.stream.total_in(), self.stream.total_out());
            let outcome = self.stream.process(bytes, rest, action);
            let (consumed, produced) =
                (self.stream.total_in() - before.0, self.stream.total_out() - before.1);
            // Both are lengths within the slices above.
            filled += usize::try_from(produced).unwrap_or(0);
            self.input.consume(usize::try_from(consumed).unwrap_or(0));
            match outcome.map_err(|error| self.failure(&error))? {
                Status::StreamEnd => self.done = true,
                Status::MemNeeded if at_end => {
                    let position = self.input.position();
                    return Err(
                        Defect::corrupt("the source ends inside an xz stream").at(position, None)
                    );
                }
                Status::Ok | Status::GetCheck | Status::MemNeeded => {}
            }
        }
        Ok(filled)
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    pub(crate) fn into_input(self) -> Input {
        self.input
    }

    fn failure(&self, error: &LzmaError) -> Error {
        let defect = match error {
            LzmaError::MemLimit => {
                Defect::limit("an xz stream needs a larger dictionary", "max_window (--long)")
            }
            LzmaError::Mem => Defect::new(ErrorKind::Limit, "no memory for the xz dictionary"),
            LzmaError::Options => {
                Defect::unsupported("an xz stream uses an unknown filter or option")
            }
            LzmaError::UnsupportedCheck | LzmaError::NoCheck => {
                Defect::unsupported("an xz stream has an integrity check that cannot be verified")
            }
            LzmaError::Format => Defect::corrupt("bytes that are not xz follow the last xz stream"),
            LzmaError::Data | LzmaError::Program => Defect::corrupt("an xz stream is damaged"),
        };
        defect.at(self.input.position(), None)
    }
}
