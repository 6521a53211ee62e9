//! Pieces of a disk read ahead by several threads, for who reads them in order.
//!
//! ```text
//! asked for   │ piece │ piece │ piece │ …         a thread each
//! read()          ◀── in order ──
//! ```
//!
//! A piece ends at a multiple of the largest cluster, so that nothing is decoded twice, and is 256 KiB
//! at the least: small enough to be still near the processor when it is passed on. At most two pieces
//! for each thread, and two more, are in memory. Caller: `source::disk`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::source::disk::salvage::Reading;
use crate::source::input;

/// Bytes of a piece at the least.
const PIECE: u64 = 256 << 10;

/// A piece, in the order of the disk.
struct Piece {
    start: u64,
    length: u64,
    state: State,
}

enum State {
    Wanted,
    /// A thread has it.
    Taken,
    Done(Result<Vec<u8>>),
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// What was asked for and is in no piece yet.
    ranges: VecDeque<Range<u64>>,
    spare: Vec<Vec<u8>>,
    ended: bool,
}

/// The pieces, shared by the threads and the reader.
pub(crate) struct Ahead<'a> {
    reading: &'a Reading<'a>,
    queue: Mutex<Queue>,
    changed: Condvar,
    most: usize,
    /// Where pieces end.
    piece: u64,
}

impl<'a> Ahead<'a> {
    /// `cluster` is the size of the disk's largest cluster, in bytes.
    pub(crate) fn new(reading: &'a Reading<'a>, threads: usize, cluster: u64) -> Self {
        let most = threads.saturating_mul(2).saturating_add(2);
        Self {
            reading,
            queue: Mutex::default(),
            changed: Condvar::new(),
            most,
            piece: PIECE.max(cluster),
        }
    }

    /// Reads pieces until [`Ahead::end`]. Run it on as many threads as there are to be.
    pub(crate) fn run(&self) {
        loop {
            let mut queue = self.lock();
            let (start, length) = loop {
                if queue.ended {
                    return;
                }
                let wanted =
                    queue.pieces.iter_mut().find(|piece| matches!(piece.state, State::Wanted));
                if let Some(piece) = wanted {
                    piece.state = State::Taken;
                    break (piece.start, piece.length);
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            let memory = queue.spare.pop();
            drop(queue);
            let outcome = self.piece(memory, start, length);
            let mut queue = self.lock();
            if let Some(piece) = queue.pieces.iter_mut().find(|piece| piece.start == start) {
                piece.state = State::Done(outcome);
            }
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// No more pieces are wanted: the threads end.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether enough was asked for.
    pub(super) fn is_full(&self) -> bool {
        let queue = self.lock();
        queue.pieces.len() >= self.most || !queue.ranges.is_empty()
    }

    /// Has `range` read, which lies behind all that was asked for before.
    pub(super) fn ask(&self, range: Range<u64>) {
        let mut queue = self.lock();
        queue.ranges.push_back(range);
        self.cut(&mut queue);
        drop(queue);
        self.changed.notify_all();
    }

    /// Fills `bytes` from `offset` on, all of which was asked for.
    pub(super) fn read(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let mut queue = self.lock();
            let piece = loop {
                let first = queue.pieces.front_mut().ok_or_else(unasked)?;
                if matches!(first.state, State::Done(_)) {
                    break first;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            let State::Done(outcome) = &mut piece.state else { return Err(unasked()) };
            let memory = match outcome {
                Ok(memory) => memory,
                Err(_) => {
                    let failed = std::mem::replace(outcome, Ok(Vec::new()));
                    return failed.map(drop);
                }
            };
            let skip = offset.checked_sub(piece.start).ok_or_else(unasked)?;
            let rest = usize::try_from(skip).ok().and_then(|skip| memory.get(skip..));
            let rest = rest.filter(|rest| !rest.is_empty()).ok_or_else(unasked)?;
            let count = rest.len().min(bytes.len());
            let (filled, left) = bytes.split_at_mut(count);
            filled.copy_from_slice(rest.get(..count).unwrap_or_default());
            let is_over = count == rest.len();
            bytes = left;
            offset = offset.saturating_add(count as u64);
            if is_over {
                if let Some(Piece { state: State::Done(Ok(memory)), .. }) = queue.pieces.pop_front()
                {
                    queue.spare.push(memory);
                }
                self.cut(&mut queue);
                drop(queue);
                self.changed.notify_all();
            }
        }
        Ok(())
    }

    /// Makes pieces of what was asked for, as many as there may be.
    fn cut(&self, queue: &mut Queue) {
        while queue.pieces.len() < self.most
            && let Some(range) = queue.ranges.front_mut()
        {
            let start = range.start;
            let end = (start / self.piece).saturating_add(1).saturating_mul(self.piece);
            let end = end.min(range.end);
            range.start = end;
            if end >= range.end {
                queue.ranges.pop_front();
            }
            if end > start {
                let length = end - start;
                queue.pieces.push_back(Piece { start, length, state: State::Wanted });
            }
        }
    }

    fn piece(&self, memory: Option<Vec<u8>>, start: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut memory = match memory {
            Some(memory) => memory,
            None => input::zeroed(length)?,
        };
        memory.resize(length, 0);
        self.reading.read_at(&mut memory, start)?;
        Ok(memory)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unasked() -> Error {
    Error::new(ErrorKind::Io, "a part of the disk was read that nobody had asked for")
}
