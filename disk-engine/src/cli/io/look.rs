//! `length`, `alloc`, `map`: what the disk is, without its bytes.
//!
//! Allocated is what the image on top holds itself, be it as zeros; what stands below does not
//! count.

use crate::cli::io::number::{self, shown};
use crate::cli::io::outcome::{Failure, Outcome};
use crate::cli::io::session::Session;
use crate::cli::io::target::{SECTOR, Target};

pub(super) fn length(session: &mut Session<'_>, _: &str, _: &[&str]) -> Outcome {
    let size = session.target()?.size();
    session.say(shown(size));
    Ok(())
}

pub(super) fn alloc(session: &mut Session<'_>, _: &str, words: &[&str]) -> Outcome {
    let mut words = words.iter();
    let offset = words.next().map_or(Ok(0), |word| number::size(word))?;
    let count = words.next().map_or(Ok(SECTOR), |word| number::size(word))?;
    let target = session.target()?;
    let end = offset.saturating_add(count).min(target.size()).max(offset);
    let mut allocated = 0;
    for piece in Pieces::new(target, offset, end) {
        let piece = piece?;
        if piece.allocated {
            allocated += piece.length;
        }
    }
    session.say(format_args!(
        "{allocated}/{} bytes allocated at offset {}",
        end - offset,
        shown(offset)
    ));
    Ok(())
}

pub(super) fn map(session: &mut Session<'_>, _: &str, _: &[&str]) -> Outcome {
    let mut at = 0;
    loop {
        let target = session.target()?;
        // Line by line: how many there are is the image's to say.
        let Some(piece) = Pieces::new(target, at, target.size()).next().transpose()? else {
            return Ok(());
        };
        let what = if piece.allocated { "    allocated" } else { "not allocated" };
        session.say(format_args!(
            "{} ({:#x}) bytes {what} at offset {} ({at:#x})",
            shown(piece.length),
            piece.length,
            shown(at)
        ));
        at = at.saturating_add(piece.length);
    }
}

/// A part of the disk that is allocated, or not, as long as it is.
struct Piece {
    allocated: bool,
    length: u64,
}

struct Pieces<'a> {
    target: &'a dyn Target,
    at: u64,
    end: u64,
}

impl<'a> Pieces<'a> {
    fn new(target: &'a dyn Target, at: u64, end: u64) -> Self {
        Self { target, at, end }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Outcome<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at;
        let mut first = None;
        while self.at < self.end {
            match self.target.allocated(self.at, self.end - self.at) {
                Err(error) => {
                    self.at = self.end;
                    return Some(Err(Failure::Reported(error)));
                }
                Ok((allocated, _)) if *first.get_or_insert(allocated) != allocated => break,
                Ok((_, length)) => self.at = self.at.saturating_add(length),
            }
        }
        let allocated = first?;
        Some(Ok(Piece { allocated, length: self.at - start }))
    }
}
