//! The range a command works on, as its words say it.
//!
//! ```text
//! off len            read, write, discard
//! off len [len..]    readv, writev: the lengths add up
//! ```
//!
//! Callers: `read`, `write`.

use crate::cli::io::number;
use crate::cli::io::outcome::{Failure, Outcome};
use crate::cli::io::target::{SECTOR, Target};
use crate::error::{Error, ErrorKind};

/// The largest transfer: the most whole sectors that a C `int` counts the bytes of.
pub(super) const LENGTH_MAX: u64 = (1 << 31) - SECTOR;

/// A range of a disk, which need not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Range {
    /// The range two words say; `limit` bounds its length, and `besides` is what lifts the bound.
    pub(super) fn of(operands: &[&str], limit: u64, besides: &str) -> Outcome<Self> {
        let &[offset, length] = operands else { return Err(Failure::Usage { complaint: None }) };
        let range = Self { offset: number::size(offset)?, length: number::size(length)? };
        if range.length > limit {
            let sentence = format!("length cannot exceed {LENGTH_MAX}{besides}, given {length}");
            return Err(Failure::Said(sentence));
        }
        Ok(range)
    }

    /// The range an offset and some lengths say.
    pub(super) fn of_lengths(operands: &[&str]) -> Outcome<Self> {
        let Some((offset, lengths)) = operands.split_first().filter(|(_, rest)| !rest.is_empty())
        else {
            return Err(Failure::Usage { complaint: None });
        };
        let mut range = Self { offset: number::size(offset)?, length: 0 };
        for text in lengths {
            let length = number::size(text)?;
            if length > LENGTH_MAX {
                let sentence = format!("Argument '{text}' exceeds maximum size {LENGTH_MAX}");
                return Err(Failure::Said(sentence));
            }
            // Both are at most the limit.
            range.length += length;
            if range.length > LENGTH_MAX {
                return Err(Failure::Said(format!(
                    "The total number of bytes exceed the maximum size {LENGTH_MAX}"
                )));
            }
        }
        Ok(range)
    }

    /// Refuses a range that does not consist of whole sectors.
    pub(super) fn whole_sectors(self) -> Outcome {
        for (value, name) in [(self.offset, "offset"), (self.length, "count")] {
            if value % SECTOR != 0 {
                let sentence = format!("{value} is not a sector-aligned value for '{name}'");
                return Err(Failure::Said(sentence));
            }
        }
        Ok(())
    }

    /// Refuses a range that `disk` does not have.
    pub(super) fn on(self, disk: &dyn Target, doing: &'static str) -> Outcome {
        match self.offset.checked_add(self.length) {
            Some(end) if end <= disk.size() => Ok(()),
            _ => Err(Failure::OutOfRange { doing }),
        }
    }

    /// Its part of `bytes`.
    pub(super) fn of_bytes(self, bytes: &[u8]) -> &[u8] {
        let start = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }

    /// Memory for its bytes, each of them `byte`.
    pub(super) fn buffer(self, byte: u8, doing: &'static str) -> Outcome<Vec<u8>> {
        let too_much = || {
            let message = "memory for so many bytes is not to be had";
            Failure::Storage { doing, error: Error::new(ErrorKind::Limit, message) }
        };
        let length = usize::try_from(self.length).map_err(|_| too_much())?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(length).map_err(|_| too_much())?;
        buffer.resize(length, byte);
        Ok(buffer)
    }
}
