//! Storage that notes what is done to it, and every state a crash could leave it in.
//!
//! ```text
//! Recording ── storage(0) ─ image      one log for all files: their events have one order
//!     │     └─ storage(1) ─ data file
//!     └─ events: write · zero · punch · allocate · set length · flush · replaced
//!
//! Replay at n    killed()       all of the first n events: the page cache survives a kill
//!                cut_short()    and part of event n: a kill can end a long write between pages
//!                power_loss()   per file: all up to its last flush, and of the events since then
//!                               any subset, each torn at sectors of 512 bytes
//! ```
//!
//! A sector that is kept is kept whole, as it was after that event: a page goes to the disk as it is
//! in the cache, so a write of half a sector never arrives without the one before it to the other
//! half. For the same reason subsets in order are enough: to swap two writes of one sector is to lose
//! the second one.
//!
//! Callers: `image_crash`, and what else judges states of a file.

mod replay;

use std::io;
use std::sync::{Arc, Mutex};

use qcow2_format::{ReadAt, WriteAt};

use crate::sparse::Sparse;

pub use replay::Replay;

/// What a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// Something done to a file.
#[derive(Clone, Debug)]
pub enum Action {
    /// Bytes at an offset.
    Write(u64, Arc<[u8]>),
    /// A range made zeros; the file grows.
    Zero(u64, u64),
    /// A range whose space is given back.
    Punch(u64, u64),
    /// Space taken.
    Allocate(u64, u64),
    /// Another length.
    SetLength(u64),
    /// All of it is durable.
    Flush,
    /// A flush that failed: nothing is promised.
    FailedFlush,
    /// Another program has made this of the file, durably.
    Replaced(Sparse),
}

/// Something done to one of the files.
#[derive(Clone, Debug)]
pub struct Event {
    /// Which file.
    pub file: usize,
    /// What.
    pub action: Action,
}

#[derive(Debug)]
struct State {
    files: Vec<Sparse>,
    events: Vec<Event>,
}

/// Files, and what was done to them since.
#[derive(Clone, Debug)]
pub struct Recording {
    initial: Vec<Sparse>,
    state: Arc<Mutex<State>>,
}

impl Recording {
    /// Starts with these files, durable as they are.
    #[must_use]
    pub fn new(initial: Vec<Sparse>) -> Self {
        let state = State { files: initial.clone(), events: Vec::new() };
        Self { initial, state: Arc::new(Mutex::new(state)) }
    }

    /// One of the files as storage.
    #[must_use]
    pub fn storage(&self, file: usize) -> RecordingStorage {
        RecordingStorage { state: Arc::clone(&self.state), file }
    }

    /// How many events there were.
    #[must_use]
    pub fn position(&self) -> usize {
        self.state.lock().unwrap().events.len()
    }

    /// The files as they are now.
    #[must_use]
    pub fn files(&self) -> Vec<Sparse> {
        self.state.lock().unwrap().files.clone()
    }

    /// Notes that another program has changed a file.
    pub fn replace(&self, file: usize, content: Sparse) {
        self.storage(file).note(Action::Replaced(content));
    }

    /// Stops recording, and starts over.
    #[must_use]
    pub fn replay(&self) -> Replay {
        let events = self.state.lock().unwrap().events.clone();
        let files = self.initial.clone();
        let unflushed = vec![Vec::new(); files.len()];
        Replay { events, at: 0, durable: files.clone(), files, unflushed }
    }
}

/// A file whose events are noted.
#[derive(Clone, Debug)]
pub struct RecordingStorage {
    state: Arc<Mutex<State>>,
    file: usize,
}

impl RecordingStorage {
    /// Notes an event, and lets it happen.
    pub fn note(&self, action: Action) {
        let mut state = self.state.lock().unwrap();
        apply(&action, &mut state.files[self.file]);
        state.events.push(Event { file: self.file, action });
    }
}

fn apply(action: &Action, file: &mut Sparse) {
    match action {
        Action::Write(offset, data) => file.write(data, *offset),
        Action::Zero(offset, length) => {
            file.set_length(file.length().max(offset + length));
            file.zero(*offset, *length);
        }
        Action::Punch(offset, length) => file.zero(*offset, *length),
        Action::Allocate(offset, length) => file.set_length(file.length().max(offset + length)),
        Action::SetLength(length) => file.set_length(*length),
        Action::Flush | Action::FailedFlush => {}
        Action::Replaced(content) => *file = content.clone(),
    }
}

impl ReadAt for RecordingStorage {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.state.lock().unwrap().files[self.file].read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().files[self.file].length())
    }
}

impl WriteAt for RecordingStorage {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(Action::Write(offset, data.into()));
        Ok(())
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_all_at(&parts.concat(), offset)
    }

    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.note(Action::Zero(offset, length));
        Ok(())
    }

    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.note(Action::Punch(offset, length));
        Ok(())
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.note(Action::Allocate(offset, length));
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.note(Action::SetLength(length));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.note(Action::Flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
