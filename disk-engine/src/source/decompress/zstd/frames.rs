//! Frames taken from the input whole, decoded by threads, and handed on in order.
//!
//! ```text
//! input ─ walked from header to header ─▶ job │ job │ job │ …   threads + 8 at most
//!                                          │     │     │
//!                                        thread thread …        decoded, checksums verified
//!            in order                      ▼     ▼     ▼
//! caller ◀───────────────────────────────  0  ◀  1  ◀  2
//! ```
//!
//! Where a frame ends, its own blocks tell; a seek table is not asked, so that it cannot lie, and a
//! pipe will do. What threads take: a frame that decodes to at most [`FRAME_MAX`] and that either
//! has a checksum or is no longer than its window. Small ones go together, up to a [`JOB`]. Whatever
//! else there is (larger frames, damaged ones, cut ones, other bytes, and what a thread failed to
//! decode) goes through the one decoder that reads in order, with the bytes taken so far before the
//! rest of the input: so it is accepted, or refused by the same words, as without threads.
//!
//! Memory: the jobs in flight, compressed and decoded. They are threads + 8 at most, and no further
//! one is taken once they add up to [`FLIGHT`]. Caller: `decompress::zstd`.

use std::collections::VecDeque;
use std::mem;
use std::sync::mpsc::Receiver;

use super::header::{self, BLOCK_HEADER, CHECKSUM, Start};
use super::stream::{self, Feed};
use super::workers::{Done, Workers};
use crate::error::{Error, ErrorKind, Result};
use crate::source::input::Input;

/// Most bytes a frame decodes to that a thread takes.
pub(crate) const FRAME_MAX: u64 = 32 << 20;
/// Bytes at which a job is enough: below, handing it over costs as much as decoding it.
pub(crate) const JOB: u64 = 1 << 20;
/// Decoded bytes that may be in flight before another job is taken.
const FLIGHT: u64 = 128 << 20;
/// Jobs that may wait for an earlier one, besides one for each thread. With 2, threads stood idle while
/// the caller waited for the disk to be written.
const AHEAD: usize = 8;

/// The frames of a source, decoded ahead.
pub(super) struct Frames {
    threads: usize,
    job: u64,
    window_max: u64,
    workers: Workers,
    queue: VecDeque<Queued>,
    /// What the jobs in the queue take.
    flight: u64,
    stage: Stage,
    /// Frames found, skippable ones not counted.
    found: u64,
    /// A frame of any kind was passed.
    after: bool,
    /// A job was taken.
    begun: bool,
    /// Memory that was used.
    compressed: Vec<Vec<u8>>,
    decoded: Vec<Vec<u8>>,
}

/// Where the walk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Between two frames.
    Walking,
    /// A frame is being read in order; the walk goes on behind it.
    Open,
    /// There is no more.
    Ended,
}

enum Queued {
    Decoding { done: Receiver<Done>, offset: u64, end: u64, weight: u64 },
    Again(Replay),
}

/// What comes next.
pub(super) enum Next {
    Decoded(Decoded),
    Again(Replay),
}

/// The content of some frames.
pub(super) struct Decoded {
    bytes: Vec<u8>,
    taken: usize,
    /// Where they end in the source.
    pub(super) end: u64,
}

/// Bytes that were taken from the input and are to be read in order, and what comes after them.
pub(super) struct Replay {
    bytes: Vec<u8>,
    taken: usize,
    /// Where they begin in the source.
    offset: u64,
    then: Then,
    /// A frame of any kind came before.
    pub(super) after: bool,
}

enum Then {
    /// Nothing: they are whole frames.
    Stop,
    /// The input, up to the end of the frame.
    GoOn,
    /// The input could not be read on.
    Fail(Option<Error>),
}

/// What the walk met.
enum Walked {
    /// A frame, which decodes to so many bytes at the most.
    Frame(u64),
    Skipped,
    /// Something to be read in order; the first bytes of it were taken.
    Open,
    End,
}

/// Frames taken so far.
#[derive(Default)]
struct Job {
    bytes: Vec<u8>,
    offset: u64,
    room: u64,
    after: bool,
}

impl Frames {
    pub(super) fn new(threads: usize, job: u64, window_max: u64) -> Self {
        Self {
            threads,
            job,
            window_max,
            workers: Workers::new(threads),
            queue: VecDeque::new(),
            flight: 0,
            stage: Stage::Walking,
            found: 0,
            after: false,
            begun: false,
            compressed: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Frames found so far, skippable ones not counted.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Threads that decoded.
    pub(super) fn threads(&self) -> usize {
        self.workers.count().max(1)
    }

    /// What follows in order; `None` where the source ends.
    pub(super) fn next(&mut self, input: &mut Input) -> Result<Option<Next>> {
        while self.stage == Stage::Walking && self.has_room() {
            self.walk(input);
        }
        let (done, offset, end, weight) = match self.queue.pop_front() {
            None => return Ok(None),
            Some(Queued::Again(replay)) => return Ok(Some(Next::Again(replay))),
            Some(Queued::Decoding { done, offset, end, weight }) => (done, offset, end, weight),
        };
        let done =
            done.recv().map_err(|_| Error::new(ErrorKind::Io, "a decoding thread stopped"))?;
        self.flight = self.flight.saturating_sub(weight);
        Ok(Some(match done.decoded {
            Some(bytes) => {
                keep(&mut self.compressed, done.frames, self.threads);
                Next::Decoded(Decoded { bytes, taken: 0, end })
            }
            // Whatever it was, the decoder in order meets it too.
            None => Next::Again(Replay {
                bytes: done.frames,
                taken: 0,
                offset,
                then: Then::Stop,
                after: self.after,
            }),
        }))
    }

    /// Takes memory back.
    pub(super) fn give_back(&mut self, decoded: Decoded) {
        keep(&mut self.decoded, decoded.bytes, self.threads);
    }

    /// What was to be read in order was read; where it led into the input, that is between two frames
    /// again.
    pub(super) fn resume(&mut self, replay: &Replay) {
        if matches!(replay.then, Then::GoOn) {
            self.stage = Stage::Walking;
        }
    }

    fn has_room(&self) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < self.threads.saturating_add(AHEAD) && self.flight < FLIGHT)
    }

    /// Takes the next job from the input, or finds that there is none.
    fn walk(&mut self, input: &mut Input) {
        let bytes = self.compressed.pop().unwrap_or_default();
        let mut job = Job { bytes, offset: input.position(), room: 0, after: self.after };
        job.bytes.clear();
        let rest = loop {
            let start = job.bytes.len();
            let outcome = walk_frame(input, &mut job.bytes, self.window_max);
            let then = match outcome {
                Ok(Walked::Frame(room)) => {
                    self.found += 1;
                    self.after = true;
                    job.room = job.room.saturating_add(room);
                    if job.weight() >= self.job {
                        break None;
                    }
                    continue;
                }
                Ok(Walked::Skipped) => {
                    self.after = true;
                    if start > 0 {
                        break None;
                    }
                    job.offset = input.position();
                    continue;
                }
                Ok(Walked::End) => {
                    self.stage = Stage::Ended;
                    break None;
                }
                Ok(Walked::Open) => {
                    self.stage = Stage::Open;
                    self.found += u64::from(job.bytes.get(start) == Some(&0x28));
                    Then::GoOn
                }
                Err(error) => {
                    self.stage = Stage::Ended;
                    Then::Fail(Some(error))
                }
            };
            let offset = job.offset.saturating_add(start as u64);
            let bytes = job.bytes.split_off(start);
            break Some(Replay { bytes, taken: 0, offset, then, after: self.after });
        };
        self.hand_over(job);
        self.queue.extend(rest.map(Queued::Again));
    }

    fn hand_over(&mut self, job: Job) {
        if job.bytes.is_empty() {
            return;
        }
        let (offset, weight) = (job.offset, job.weight());
        let end = offset.saturating_add(job.bytes.len() as u64);
        // The first job may be the only one, and then threads would be started for nothing: it is the
        // caller's own.
        let decoding = if mem::replace(&mut self.begun, true) {
            let into = self.decoded.pop().unwrap_or_default();
            let room = usize::try_from(job.room).unwrap_or(usize::MAX);
            self.workers.decode(job.bytes, room, into)
        } else {
            Err(job.bytes)
        };
        self.queue.push_back(match decoding {
            Ok(done) => {
                self.flight = self.flight.saturating_add(weight);
                Queued::Decoding { done, offset, end, weight }
            }
            Err(bytes) => Queued::Again(Replay {
                bytes,
                taken: 0,
                offset,
                then: Then::Stop,
                after: job.after,
            }),
        });
    }
}

impl Job {
    fn weight(&self) -> u64 {
        self.room.max(self.bytes.len() as u64)
    }
}

impl Decoded {
    /// Moves as much into `out` as it has room for.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let count = crate::source::input::copy_start(out, rest);
        self.taken += count;
        count
    }

    /// Whether all of it was taken.
    pub(super) fn is_taken(&self) -> bool {
        self.taken >= self.bytes.len()
    }
}

impl Replay {
    /// These bytes and the input behind them.
    pub(super) fn feed<'a>(&'a mut self, input: &'a mut Input) -> Again<'a> {
        Again { replay: self, input }
    }

    /// Whether all was read, given that no frame is open.
    pub(super) fn is_read(&self) -> bool {
        self.taken >= self.bytes.len() && !matches!(self.then, Then::Fail(_))
    }
}

/// A replay being read.
pub(super) struct Again<'a> {
    replay: &'a mut Replay,
    input: &'a mut Input,
}

impl Feed for Again<'_> {
    fn fill(&mut self, between: bool) -> Result<&[u8]> {
        if self.replay.taken < self.replay.bytes.len() {
            return Ok(self.replay.bytes.get(self.replay.taken..).unwrap_or_default());
        }
        match &mut self.replay.then {
            Then::Fail(error) => Err(error
                .take()
                .unwrap_or_else(|| Error::new(ErrorKind::Io, "the source could not be read"))),
            Then::GoOn if !between => self.input.fill(),
            Then::GoOn | Then::Stop => Ok(&[]),
        }
    }

    fn consume(&mut self, count: usize) {
        if self.replay.taken < self.replay.bytes.len() {
            self.replay.taken = self.replay.taken.saturating_add(count);
        } else {
            self.input.consume(count);
        }
    }

    fn position(&self) -> u64 {
        if self.replay.taken >= self.replay.bytes.len() && !matches!(self.replay.then, Then::Stop) {
            return self.input.position();
        }
        self.replay.offset.saturating_add(self.replay.taken as u64)
    }
}

/// Takes the next frame, if it is one for a thread, to the end of `bytes`.
fn walk_frame(input: &mut Input, bytes: &mut Vec<u8>, window_max: u64) -> Result<Walked> {
    let start = bytes.len();
    let frame = loop {
        match header::parse(bytes.get(start..).unwrap_or_default()) {
            Start::Frame(frame) => break frame,
            Start::Other => return Ok(Walked::Open),
            Start::Short(length) => {
                if !take(input, bytes, start.saturating_add(length))? {
                    return Ok(if bytes.len() == start { Walked::End } else { Walked::Open });
                }
            }
            Start::Skippable(length) => {
                bytes.truncate(start);
                return skip(input, length).map(|()| Walked::Skipped);
            }
        }
    };
    let claim = frame.content.unwrap_or(0);
    if frame.window > window_max || frame.dictionary || claim > FRAME_MAX {
        return Ok(Walked::Open);
    }
    let (mut end, mut room) = (start.saturating_add(frame.length), 0);
    loop {
        let at = end;
        end = end.saturating_add(BLOCK_HEADER);
        if !take(input, bytes, end)? {
            return Ok(Walked::Open);
        }
        let block = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        let Some(block) = block.and_then(|bytes| frame.block(*bytes)) else {
            return Ok(Walked::Open);
        };
        end = end.saturating_add(block.stored);
        room += block.room;
        // Blocks that hold nothing could go on for ever.
        let is_large = room > FRAME_MAX || (end - start) as u64 > 2 * FRAME_MAX;
        if is_large || !take(input, bytes, end)? {
            return Ok(Walked::Open);
        }
        if block.last {
            break;
        }
    }
    if frame.checksum && !take(input, bytes, end.saturating_add(CHECKSUM))? {
        return Ok(Walked::Open);
    }
    let room = frame.content.map_or(room, |content| content.min(room));
    // libzstd, given all memory at once, does not mind a reach beyond the window.
    if !frame.checksum && room > frame.window {
        return Ok(Walked::Open);
    }
    Ok(Walked::Frame(room))
}

/// Makes `bytes` as long as `length`, unless the input ends before.
fn take(input: &mut Input, bytes: &mut Vec<u8>, length: usize) -> Result<bool> {
    while bytes.len() < length {
        let missing = length - bytes.len();
        let at_hand = input.fill()?;
        let count = at_hand.len().min(missing);
        if count == 0 {
            return Ok(false);
        }
        bytes
            .try_reserve(count)
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory for a zstd frame"))?;
        bytes.extend_from_slice(at_hand.split_at(count).0);
        input.consume(count);
    }
    Ok(true)
}

/// Passes over the content of a skippable frame.
fn skip(input: &mut Input, mut length: u64) -> Result<()> {
    while length > 0 {
        let at_hand = input.fill()?.len();
        if at_hand == 0 {
            return Err(stream::cut().at(input.position(), None));
        }
        let count = crate::source::content::at_most(length, at_hand);
        input.consume(count);
        length -= count as u64;
    }
    Ok(())
}

/// Keeps memory for the next job, unless one that is this large comes seldom.
fn keep(spare: &mut Vec<Vec<u8>>, memory: Vec<u8>, threads: usize) {
    let share = FLIGHT / (threads.saturating_add(AHEAD) as u64);
    if memory.capacity() as u64 <= share {
        spare.push(memory);
    }
}
