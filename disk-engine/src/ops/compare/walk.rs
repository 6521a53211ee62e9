//! Both disks side by side, from their start: what is left to be read, and the first trouble found.
//!
//! ```text
//! next_piece ─▶ both zeros, or in one place: passed over ─▶ a piece ─▶ a thread reads and compares
//! report     ◀── the trouble that comes first on the disk is kept, and no more pieces are given out
//! ```
//!
//! Pieces are given out in order, so whatever comes before a trouble has been given out already.
//! Callers: `compare`.

use crate::control::{Control, Event};
use crate::ops::compare::side::{Part, Parts, Side};
use crate::ops::compare::{CompareError, CompareOptions, Difference, PIECE, Step, Which};

/// Bytes passed between two looks at whether the caller wants to stop.
const CHECK_EVERY: u64 = 64 << 20;

/// A part of both disks that has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    /// At most [`PIECE`] bytes.
    pub(super) length: usize,
    /// Whether the first disk is read; else it is zeros there.
    pub(super) first: bool,
    /// Whether the second is.
    pub(super) second: bool,
}

/// Why the comparison ends before the disks do.
#[derive(Debug)]
pub(super) enum Trouble {
    Different(Difference),
    Failed(CompareError),
}

pub(super) struct Walk<'a> {
    first: Track<'a>,
    second: Track<'a>,
    at: u64,
    end: u64,
    checked: u64,
    control: Control,
    trouble: Option<(u64, Trouble)>,
}

/// One disk of the two.
struct Track<'a> {
    which: Which,
    size: u64,
    parts: Parts<'a>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        first: &'a Side,
        second: &'a Side,
        options: &CompareOptions,
    ) -> Result<Self, CompareError> {
        let track = |which, side: &'a Side| match side.parts() {
            Ok(parts) => Ok(Track { which, size: side.size(), parts }),
            Err(error) => Err(CompareError { step: Step::Map, which, offset: 0, error }),
        };
        Ok(Self {
            first: track(Which::First, first)?,
            second: track(Which::Second, second)?,
            at: 0,
            end: first.size().max(second.size()),
            checked: 0,
            control: options.control.clone(),
            trouble: None,
        })
    }

    /// The next piece that has to be read; `None` if there is none, or trouble.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        while self.at < self.end && self.trouble.is_none() {
            match self.step() {
                Ok(None) => {}
                Ok(Some(piece)) => return Some(piece),
                Err(trouble) => self.report(self.at, trouble),
            }
        }
        None
    }

    /// Passes over what needs not be read, or gives out a piece.
    fn step(&mut self) -> Result<Option<Piece>, Trouble> {
        let offset = self.at;
        if offset >= self.checked {
            self.checked = offset.saturating_add(CHECK_EVERY);
            self.control.check().map_err(|error| {
                Trouble::Failed(CompareError {
                    step: Step::Read,
                    which: Which::First,
                    offset,
                    error,
                })
            })?;
            self.control.emit(&Event::Comparing { compared_bytes: offset, total_bytes: self.end });
        }
        let first = self.first.at(offset)?;
        let second = self.second.at(offset)?;
        let length = [&first, &second].into_iter().flatten().map(|part| part.length).min();
        let length = length.unwrap_or(1).min(self.end - offset);
        if let (Some(Part { status: Some(one), .. }), Some(Part { status: Some(other), .. })) =
            (first, second)
            && !one.is_like(other)
        {
            return Err(Trouble::Different(Difference::Status { offset }));
        }
        let needed = |part: Option<Part>| part.is_some_and(|part| !part.zero);
        let place = |part: Option<Part>| part.and_then(|part| part.place);
        let shared = place(first).is_some() && place(first) == place(second);
        if shared || !needed(first) && !needed(second) {
            self.at = offset.saturating_add(length);
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(PIECE);
        self.at = offset.saturating_add(length as u64);
        Ok(Some(Piece { offset, length, first: needed(first), second: needed(second) }))
    }

    /// Keeps the trouble found at `offset`, unless there is one before it.
    pub(super) fn report(&mut self, offset: u64, trouble: Trouble) {
        if self.trouble.as_ref().is_none_or(|(kept, _)| offset < *kept) {
            self.trouble = Some((offset, trouble));
        }
    }

    /// The first trouble, if there was any.
    pub(super) fn trouble(self) -> Option<Trouble> {
        self.trouble.map(|(_, trouble)| trouble)
    }
}

impl Track<'_> {
    /// What starts at `offset`; `None` past the end of the disk.
    fn at(&mut self, offset: u64) -> Result<Option<Part>, Trouble> {
        if offset >= self.size {
            return Ok(None);
        }
        self.parts.at(offset).map(Some).map_err(|error| {
            Trouble::Failed(CompareError { step: Step::Map, which: self.which, offset, error })
        })
    }
}
