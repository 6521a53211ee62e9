//! What was recorded, event by event, and the states a crash may leave at each.
//!
//! ```text
//! durable ──────────── each file at its last flush
//!    + unflushed[i] … a choice of these, torn ──▶ power_loss()
//!    + all of them ─────────────────────────────▶ killed()
//! ```
//!
//! Callers: [`Recording::replay`](super::Recording::replay).

use super::{Action, Event, SECTOR, apply};
use crate::random::Random;
use crate::sparse::Sparse;

/// The same events again, one by one.
#[derive(Clone, Debug)]
pub struct Replay {
    pub(super) events: Vec<Event>,
    pub(super) at: usize,
    pub(super) files: Vec<Sparse>,
    /// Each file at its last flush.
    pub(super) durable: Vec<Sparse>,
    /// What was done to each since, in whole sectors.
    pub(super) unflushed: Vec<Vec<Action>>,
}

/// Which unflushed events survive.
#[derive(Clone, Copy, Debug)]
enum Survivors {
    None,
    All,
    Half,
    AllBut(usize),
    Only(usize),
    First(usize),
}

impl Replay {
    /// All events.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many events have happened.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Lets the next event happen; `false` after the last one.
    pub fn advance(&mut self) -> bool {
        let Some(Event { file, action }) = self.events.get(self.at) else { return false };
        let (now, unflushed) = (&mut self.files[*file], &mut self.unflushed[*file]);
        apply(action, now);
        match action {
            Action::Flush | Action::Replaced(_) => {
                self.durable[*file] = now.clone();
                unflushed.clear();
            }
            Action::FailedFlush => {}
            Action::Write(offset, data) => {
                whole_sectors(now, *offset, offset + data.len() as u64, unflushed);
            }
            Action::Zero(offset, length) | Action::Punch(offset, length) => {
                let end = offset + length;
                let first = offset.next_multiple_of(SECTOR);
                let last = if end >= now.length() { end } else { end - end % SECTOR };
                if first >= last {
                    whole_sectors(now, *offset, end, unflushed);
                } else {
                    whole_sectors(now, *offset, first, unflushed);
                    unflushed.push(match action {
                        Action::Zero(..) => Action::Zero(first, last - first),
                        _ => Action::Punch(first, last - first),
                    });
                    whole_sectors(now, last, end, unflushed);
                }
            }
            other => unflushed.push(other.clone()),
        }
        self.at += 1;
        true
    }

    /// How many events a power cut may lose.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.unflushed.iter().map(Vec::len).sum()
    }

    /// The files as a kill leaves them now.
    #[must_use]
    pub fn killed(&self) -> &[Sparse] {
        &self.files
    }

    /// The files as a kill in the middle of the next event leaves them, if it has a middle.
    #[must_use]
    pub fn cut_short(&self, random: &mut Random) -> Option<Vec<Sparse>> {
        let Event { file, action } = self.events.get(self.at)?;
        // Pages start where the file's do, so the first part may be short.
        let mut done = |offset: u64, length: u64| {
            let sectors = (offset % SECTOR + length).div_ceil(SECTOR);
            (sectors > 1).then(|| (1 + random.word() % (sectors - 1)) * SECTOR - offset % SECTOR)
        };
        let part = match action {
            Action::Write(offset, data) => {
                let length = done(*offset, data.len() as u64)?;
                Action::Write(*offset, data[..length as usize].into())
            }
            Action::Zero(offset, length) => Action::Zero(*offset, done(*offset, *length)?),
            Action::Punch(offset, length) => Action::Punch(*offset, done(*offset, *length)?),
            _ => return None,
        };
        let mut files = self.files.clone();
        apply(&part, &mut files[*file]);
        Some(files)
    }

    /// The files as a power cut now may leave them.
    #[must_use]
    pub fn power_loss(&self, random: &mut Random) -> Vec<Sparse> {
        let mut files = self.durable.clone();
        for (file, unflushed) in files.iter_mut().zip(&self.unflushed) {
            let count = unflushed.len();
            let survivors = match random.below(8) {
                0 => Survivors::None,
                1 => Survivors::All,
                2 | 3 => Survivors::AllBut(random.below(count)),
                4 => Survivors::Only(random.below(count)),
                5 => Survivors::First(random.below(count)),
                _ => Survivors::Half,
            };
            let torn = random.once_in(2);
            for (number, action) in unflushed.iter().enumerate() {
                let survives = match survivors {
                    Survivors::None => false,
                    Survivors::All => true,
                    Survivors::Half => random.once_in(2),
                    Survivors::AllBut(lost) => number != lost,
                    Survivors::Only(one) => number == one,
                    Survivors::First(end) => number < end,
                };
                if survives && torn {
                    tear(action, file, random);
                } else if survives {
                    apply(action, file);
                }
            }
        }
        files
    }

    /// The files as a power cut leaves them that keeps the unflushed events whose bits are set, whole.
    #[must_use]
    pub fn power_loss_keeping(&self, mask: u64) -> Vec<Sparse> {
        let mut files = self.durable.clone();
        let mut mask = mask;
        for (file, unflushed) in files.iter_mut().zip(&self.unflushed) {
            for action in unflushed {
                if mask & 1 == 1 {
                    apply(action, file);
                }
                mask >>= 1;
            }
        }
        files
    }
}

/// Notes the sectors of a range as they are now.
fn whole_sectors(now: &Sparse, start: u64, end: u64, unflushed: &mut Vec<Action>) {
    let first = start - start % SECTOR;
    let last = end.next_multiple_of(SECTOR).min(now.length());
    if start < end && first < last {
        unflushed.push(Action::Write(first, now.bytes(first, (last - first) as usize).into()));
    }
}

/// Lets some sectors of an event survive.
fn tear(action: &Action, file: &mut Sparse, random: &mut Random) {
    let (offset, length) = match action {
        Action::Write(offset, data) => (*offset, data.len() as u64),
        Action::Zero(offset, length) | Action::Punch(offset, length) => (*offset, *length),
        _ => return apply(action, file),
    };
    let end = offset + length;
    let sectors = end.div_ceil(SECTOR) - offset / SECTOR;
    let (kind, chosen) = (random.below(4), random.word() % sectors.max(1));
    for number in 0..sectors {
        let survives = match kind {
            0 => number < chosen,
            1 => number >= chosen,
            2 => number != chosen,
            _ => random.once_in(2),
        };
        if !survives {
            continue;
        }
        let first = offset / SECTOR + number;
        let (start, stop) = ((first * SECTOR).max(offset), ((first + 1) * SECTOR).min(end));
        match action {
            Action::Write(_, data) => {
                file.write(&data[(start - offset) as usize..(stop - offset) as usize], start);
            }
            Action::Zero(..) => apply(&Action::Zero(start, stop - start), file),
            _ => apply(&Action::Punch(start, stop - start), file),
        }
    }
    // A file's length is written by itself: it may be there and the bytes not.
    if !matches!(action, Action::Punch(..)) && random.once_in(2) {
        file.set_length(file.length().max(end));
    }
}
