//! Recorded storage that fails when told to.
//!
//! ```text
//! FaultStorage ─▶ Faults: call 1, 2, 3, … ── not struck ─▶ RecordingStorage
//!                            │
//!                            └─ struck: an error, nothing done · half done, then an error ·
//!                               fewer bytes or an interruption, which nobody may notice
//!
//! Faults::kill   from now on the handles of this process do nothing: it is dead
//! ```
//!
//! Callers: `program::image`, `image_faults`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use qcow2_format::{ReadAt, WriteAt};

use crate::recording::{Action, RecordingStorage, SECTOR};

/// What happens instead of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, and this error.
    Error(Errno),
    /// Half of it, and this error.
    Half(Errno),
    /// As little as a call may do without failing: for reads only.
    Little,
}

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes are read.
    Read,
    /// The length is asked for.
    Length,
    /// Bytes or zeros are written.
    Write,
    /// Space is given back.
    Punch,
    /// Space is taken.
    Allocate,
    /// The length is set.
    SetLength,
    /// Data is made durable.
    Flush,
}

/// When storage fails.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first call that is struck, counted from 0.
    pub first: usize,
    /// How many are struck from then on.
    pub count: usize,
    /// Only those of this kind, if it is one.
    pub only: Option<Kind>,
    /// What happens to them.
    pub fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    suspended: bool,
    calls: Vec<(Kind, u64)>,
    struck: Vec<Kind>,
    generation: usize,
}

/// What all storages of an image share.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// Storage that fails as `plan` says.
    #[must_use]
    pub fn new(plan: Option<Plan>) -> Self {
        Self(Arc::new(Mutex::new(State { plan, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A handle to a file.
    #[must_use]
    pub fn storage(&self, inner: RecordingStorage) -> FaultStorage {
        FaultStorage { inner, faults: self.clone(), generation: self.state().generation }
    }

    /// Every handle given out so far does nothing any more, as after a SIGKILL.
    pub fn kill(&self) {
        self.state().generation += 1;
    }

    /// Lets calls pass uncounted, or stops that.
    pub fn suspend(&self, suspended: bool) {
        self.state().suspended = suspended;
    }

    /// The calls so far, and where in the file.
    #[must_use]
    pub fn calls(&self) -> Vec<(Kind, u64)> {
        self.state().calls.clone()
    }

    /// The calls so far that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<Kind> {
        let state = self.state();
        let little = state.plan.is_some_and(|plan| plan.fault == Fault::Little);
        if little { Vec::new() } else { state.struck.clone() }
    }
}

/// A file that fails.
#[derive(Clone, Debug)]
pub struct FaultStorage {
    inner: RecordingStorage,
    faults: Faults,
    generation: usize,
}

impl FaultStorage {
    /// Counts a call; what happens instead, if it is struck.
    fn strike(&self, kind: Kind, offset: u64) -> io::Result<Option<Fault>> {
        let mut state = self.faults.state();
        if state.generation != self.generation {
            return Err(io::Error::other("the process is dead"));
        }
        if state.suspended {
            return Ok(None);
        }
        let number = state.calls.len();
        state.calls.push((kind, offset));
        let Some(Plan { first, count, only, fault }) = state.plan else { return Ok(None) };
        let struck = number >= first
            && state.struck.len() < count
            && only.is_none_or(|only| only == kind)
            && (fault != Fault::Little || kind == Kind::Read);
        if struck {
            state.struck.push(kind);
        }
        Ok(struck.then_some(fault))
    }

    /// A call of which half can be done, up to a sector.
    fn halves(
        &self,
        kind: Kind,
        offset: u64,
        length: u64,
        call: impl Fn(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.strike(kind, offset)? {
            None | Some(Fault::Little) => call(length),
            Some(Fault::Error(errno)) => Err(errno.into()),
            Some(Fault::Half(errno)) => {
                let middle = offset + length / 2;
                call((middle - middle % SECTOR).saturating_sub(offset))?;
                Err(errno.into())
            }
        }
    }
}

impl ReadAt for FaultStorage {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.strike(Kind::Read, offset)? {
            None => self.inner.read_at(buffer, offset),
            Some(Fault::Error(errno) | Fault::Half(errno)) => Err(errno.into()),
            // By turns, so that whoever tries again gets on.
            Some(Fault::Little) if self.faults.state().struck.len() % 2 == 1 => {
                Err(Errno::EINTR.into())
            }
            Some(Fault::Little) => {
                let length = buffer.len().div_ceil(2);
                self.inner.read_at(&mut buffer[..length], offset)
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        match self.strike(Kind::Length, 0)? {
            Some(Fault::Error(errno) | Fault::Half(errno)) => Err(errno.into()),
            _ => self.inner.length(),
        }
    }
}

impl WriteAt for FaultStorage {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.halves(Kind::Write, offset, data.len() as u64, |length| {
            self.inner.write_all_at(&data[..length as usize], offset)
        })
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_all_at(&parts.concat(), offset)
    }

    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.halves(Kind::Write, offset, length, |length| self.inner.write_zeros_at(offset, length))
    }

    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.halves(Kind::Punch, offset, length, |length| self.inner.punch_at(offset, length))
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.halves(Kind::Allocate, offset, length, |length| self.inner.allocate_at(offset, length))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        match self.strike(Kind::SetLength, length)? {
            Some(Fault::Error(errno) | Fault::Half(errno)) => Err(errno.into()),
            _ => self.inner.set_length(length),
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self.strike(Kind::Flush, 0)? {
            Some(Fault::Error(errno) | Fault::Half(errno)) => {
                self.inner.note(Action::FailedFlush);
                Err(errno.into())
            }
            _ => self.inner.flush(),
        }
    }
}
