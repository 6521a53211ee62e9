//! A program run against a target, with the model beside it; and the model at any event.
//!
//! ```text
//! call ─▶ target ── ok ──▶ model: begun, applied, settled if the call settles
//!    │           └─ err ─▶ model: begun; what is read decides which sectors are new
//!    └─ events before, events after ─▶ Step ─▶ Timeline::advance(n)
//! ```
//!
//! Callers: `program`'s callers.

use std::error::Error;
use std::ops::Range;

use super::{Call, Program, Settles, Shape};
use crate::model::{Change, Foreign, Model, SECTOR, stamp};
use crate::recording;

/// Why a call failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What a program is run against.
pub trait Target {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// What the target says.
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Failure>;

    /// Lets a call happen that makes this change, to the snapshot `name`. `false` where QEMU does
    /// not make a snapshot, because a refcount would overflow.
    ///
    /// # Errors
    ///
    /// What the target says.
    fn call(&mut self, call: &Call, change: Option<&Change>, name: &str) -> Result<bool, Failure>;

    /// How many events there were.
    fn position(&self) -> usize {
        0
    }
}

/// A call, and what came of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The call.
    pub call: Call,
    /// What may be seen from its first event on.
    pub begun: Option<Change>,
    /// What is read from its last event on.
    pub done: Option<Change>,
    /// Its events.
    pub events: Range<usize>,
    /// What it made durable.
    pub settles: Settles,
    /// Why it failed.
    pub failed: Option<String>,
}

/// A snapshot that was made.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: Vec<u8>,
    /// The events between which it exists.
    pub events: Range<usize>,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct History {
    /// The disk before.
    pub initial: Vec<u8>,
    /// The calls.
    pub steps: Vec<Step>,
    /// The snapshots.
    pub kept: Vec<Kept>,
    /// The disk at the end.
    pub model: Model,
}

impl History {
    /// The number of events before the first call that failed, or that found what a killed process
    /// had left.
    #[must_use]
    pub fn smooth(&self) -> usize {
        let rough = |step: &&Step| step.failed.is_some() || step.call == Call::Kill;
        self.steps.iter().find(rough).map_or(usize::MAX, |step| step.events.start)
    }
}

/// Runs a program; calls that fail are noted if `tolerant`, and end it otherwise.
///
/// # Errors
///
/// A call fails, or what is read is not what was written.
pub fn run(program: &Program, target: &mut impl Target, tolerant: bool) -> Result<History, String> {
    let shape = &program.shape;
    let initial = shape.content();
    let mut history = History {
        model: Model::new(initial.clone()),
        initial,
        steps: Vec::new(),
        kept: Vec::new(),
    };
    for (number, call) in program.calls() {
        step(shape, target, &mut history, number, &call, tolerant)
            .map_err(|error| format!("call {number}, {call}: {error}"))?;
    }
    Ok(history)
}

fn step(
    shape: &Shape,
    target: &mut impl Target,
    history: &mut History,
    number: u32,
    call: &Call,
    tolerant: bool,
) -> Result<(), String> {
    let begun = change(shape, number, call);
    let start = target.position();
    let name = match call {
        Call::Forget => {
            let alive = |kept: &&mut Kept| kept.events.end == usize::MAX;
            let Some(kept) = history.kept.iter_mut().find(alive) else { return Ok(()) };
            kept.events.end = start;
            kept.name.clone()
        }
        _ => format!("s{number}"),
    };
    let (refused, failed) = match target.call(call, begun.as_ref(), &name) {
        Ok(happened) => (!happened, None),
        Err(error) => (true, Some(error.to_string())),
    };
    if let Some(error) = failed.as_ref().filter(|_| !tolerant) {
        return Err(error.clone());
    }
    if let Some(change) = &begun {
        history.model.begin(change);
    }
    // What a failed call left, and what a discard may leave, is what is read.
    let uncertain =
        failed.is_some() || matches!(call, Call::Discard { .. }) && shape.may_keep_discarded();
    let mut done = begun.clone();
    // Whoever was killed, or could not close, leaves what was flushed, and may leave the rest.
    let ends = matches!(call, Call::Close | Call::Drop | Call::Snapshot | Call::Forget);
    if *call == Call::Kill || tolerant && ends && (failed.is_some() || *call == Call::Drop) {
        done = Some(survivors(target, &history.model)?);
    } else if uncertain && let Some(change) = &begun {
        done = Some(adopt(target, &history.model, change)?);
    }
    if let Some(change) = &done {
        history.model.apply(change);
    }
    let settles = if failed.is_none() { shape.settles(call) } else { Settles::Nothing };
    settle(&mut history.model, settles, begun.as_ref());
    let events = start..target.position();
    if *call == Call::Snapshot && !refused {
        let content = history.model.now().to_vec();
        history.kept.push(Kept { name, content, events: events.end..usize::MAX });
    }
    history.steps.push(Step { call: *call, begun: begun.clone(), done, events, settles, failed });
    look(target, &history.model, begun.as_ref(), tolerant)
}

fn settle(model: &mut Model, settles: Settles, change: Option<&Change>) {
    match (settles, change) {
        (Settles::All, _) => model.settle(),
        (Settles::Change, Some(change)) => model.settle_change(change),
        _ => {}
    }
}

/// What a call writes.
fn change(shape: &Shape, number: u32, call: &Call) -> Option<Change> {
    let zeros = |offset, length: u64| Change::new(offset, vec![0; length as usize]);
    match *call {
        Call::Write { offset, length, fill } | Call::Compress { offset, length, fill } => {
            Some(Change::new(offset, stamp(number, offset, length, fill)))
        }
        Call::Zero { offset, length, .. } => Some(zeros(offset, length)),
        Call::Discard { offset, length } => {
            shape.discarded(offset, length).map(|(offset, length)| zeros(offset, length))
        }
        _ => None,
    }
}

/// What is read where a change may have happened, if each sector is old or new.
fn adopt(target: &mut impl Target, model: &Model, change: &Change) -> Result<Change, String> {
    let (start, found) = read_around(target, model, change)?;
    let mut new = Model::new(model.now().to_vec());
    new.begin(change);
    new.judge(&found, start).map_err(|foreign| foreign.to_string())?;
    Ok(Change::new(start, found))
}

/// What is read of a disk whose writer has ended without a flush.
fn survivors(target: &mut impl Target, model: &Model) -> Result<Change, String> {
    let mut found = vec![0xa5; model.now().len()];
    target.read(&mut found, 0).map_err(|error| format!("then reading: {error}"))?;
    model.judge(&found, 0).map_err(|foreign| format!("after its end: {foreign}"))?;
    Ok(Change::new(0, found))
}

/// The whole sectors a change touches.
fn read_around(
    target: &mut impl Target,
    model: &Model,
    change: &Change,
) -> Result<(u64, Vec<u8>), String> {
    let sector = SECTOR as u64;
    let start = change.offset - change.offset % sector;
    let end = change.end().next_multiple_of(sector).min(model.now().len() as u64);
    let mut found = vec![0xa5; (end - start) as usize];
    target.read(&mut found, start).map_err(|error| format!("then reading: {error}"))?;
    Ok((start, found))
}

/// Reads what a call touched and what lies around it, or everything after one that touched nothing.
fn look(
    target: &mut impl Target,
    model: &Model,
    change: Option<&Change>,
    tolerant: bool,
) -> Result<(), String> {
    let size = model.now().len() as u64;
    let around = 8 * SECTOR as u64;
    let (start, end) = match change {
        None => (0, size),
        Some(change) => {
            let start = change.offset.saturating_sub(around) / around * around;
            (start, (change.end() + around).next_multiple_of(around).min(size))
        }
    };
    let mut found = vec![0xa5; (end - start) as usize];
    match target.read(&mut found, start) {
        Err(_) if tolerant => return Ok(()),
        result => result.map_err(|error| format!("then reading: {error}"))?,
    }
    model.compare(&found, start).map_err(|foreign| format!("then: {foreign}"))
}

/// The model as events go by.
#[derive(Clone, Debug)]
pub struct Timeline<'a> {
    steps: &'a [Step],
    model: Model,
    begun: bool,
}

impl<'a> Timeline<'a> {
    /// Before the first event.
    #[must_use]
    pub fn new(history: &'a History) -> Self {
        let model = Model::new(history.initial.clone());
        Self { steps: &history.steps, model, begun: false }
    }

    /// The model after `events` events, not fewer than before.
    pub fn advance(&mut self, events: usize) -> &Model {
        while let Some((step, rest)) = self.steps.split_first() {
            if step.events.start > events {
                break;
            }
            if !self.begun
                && let Some(change) = &step.begun
            {
                self.model.begin(change);
            }
            self.begun = true;
            if step.events.end > events {
                break;
            }
            if let Some(change) = &step.done {
                self.model.apply(change);
            }
            settle(&mut self.model, step.settles, step.begun.as_ref());
            (self.steps, self.begun) = (rest, false);
        }
        &self.model
    }
}

/// A target that cannot go wrong: one flat file.
#[derive(Debug)]
pub struct FlatTarget {
    /// Its storage.
    pub recording: recording::Recording,
}

impl FlatTarget {
    /// A file that holds the disk's content.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let content = crate::sparse::Sparse::new(&shape.content());
        Self { recording: recording::Recording::new(vec![content]) }
    }

    /// Whether the file, as a crash left it, holds what it may.
    ///
    /// # Errors
    ///
    /// The first sector that does not.
    pub fn judge(file: &crate::sparse::Sparse, model: &Model) -> Result<(), Foreign> {
        model.judge(&file.bytes(0, model.now().len()), 0)
    }
}

impl Target for FlatTarget {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        use qcow2_format::ReadAt;
        self.recording.storage(0).read_full_at(buffer, offset)?;
        Ok(())
    }

    fn call(&mut self, call: &Call, change: Option<&Change>, _: &str) -> Result<bool, Failure> {
        use qcow2_format::WriteAt;
        let storage = self.recording.storage(0);
        match (call, change) {
            (Call::Discard { .. }, Some(change)) => {
                storage.punch_at(change.offset, change.data.len() as u64)?;
            }
            (Call::Zero { offset, length, .. }, _) => storage.write_zeros_at(*offset, *length)?,
            (_, Some(change)) => storage.write_all_at(&change.data, change.offset)?,
            (Call::Discard { .. }, None) => {}
            _ => storage.flush()?,
        }
        Ok(true)
    }

    fn position(&self) -> usize {
        self.recording.position()
    }
}

#[cfg(test)]
mod tests;
