//! gzip, as RFC 1952 has it: one member or many, CRC-32 and length of each verified.
//!
//! ```text
//! 1f 8b 08 flags … │ deflate blocks │ crc32 │ length │ 1f 8b 08 …
//! ```
//!
//! Bytes after the last member are an error, zeros included: nothing in a file we call whole goes
//! unread.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::source::input::{Input, zeroed};
use crate::source::limits::Defect;

/// More than the decoder's state takes, in bytes.
const STATE_MAX: usize = 128 << 10;

/// A gzip decoder over its input.
pub(crate) struct Gzip(MultiGzDecoder<Input>);

impl Gzip {
    pub(crate) fn new(input: Input) -> Result<Self> {
        // zlib-rs 0.6 panics where it gets no memory.
        drop(zeroed(STATE_MAX)?);
        Ok(Self(MultiGzDecoder::new(input)))
    }

    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(filled)
    }

    pub(crate) fn input(&self) -> &Input {
        self.0.get_ref()
    }

    pub(crate) fn into_input(self) -> Input {
        self.0.into_inner()
    }

    fn failure(&self, error: io::Error) -> Error {
        let position = self.input().position();
        let error = match error.downcast::<Error>() {
            // Reading the source failed; that is the whole story.
            Ok(ours) => return ours,
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Defect::corrupt("the source ends inside a gzip member").at(position, None);
        }
        Defect::corrupt(format!("a gzip member is damaged, or followed by other bytes: {error}"))
            .at(position, None)
    }
}
