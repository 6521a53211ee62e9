//! Which part of the disk is what.
//!
//! ```text
//! entries  │D 5│D 6│Z  │Z  │   │   │   │C  │C  │D 2│      D data at a host cluster, Z zero,
//! runs     │ data  │ zero  │unallocated│compr. │ d │      C compressed
//! ```
//!
//! Neighbours merge while kind and, where there is one, the host range go on; also across L2 tables.
//! Callers: `read`, disk-engine's `disk`.

use std::iter::FusedIterator;
use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::error::Result;
use crate::image::Image;
use crate::image::tables::{Part, Slice};
use crate::io::ReadAt;
use crate::l2::ClusterKind;

/// Most table entries that one call of [`Image::run_at`] looks at.
const LOOK_MAX: u32 = 4096;

/// What a part of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// The backing file's, or zeros where there is none.
    Unallocated {
        /// Where it will lie, if extended L2 entries have reserved that.
        host: Option<HostOffset>,
    },
    /// Zeros.
    Zero {
        /// Where it will lie, if that is reserved.
        host: Option<HostOffset>,
    },
    /// Stored as it is.
    Data {
        /// Where, in [`Image::data_storage`].
        host: HostOffset,
    },
    /// Stored compressed, cluster by cluster.
    Compressed,
}

impl RunKind {
    fn of(cluster: ClusterKind, skip: u64) -> Self {
        let behind = |host: HostOffset| HostOffset(host.0.saturating_add(skip));
        match cluster {
            ClusterKind::Unallocated { preallocated } => {
                Self::Unallocated { host: preallocated.map(behind) }
            }
            ClusterKind::Zero { preallocated } => Self::Zero { host: preallocated.map(behind) },
            ClusterKind::Standard { host } => Self::Data { host: behind(host) },
            ClusterKind::Compressed { .. } => Self::Compressed,
        }
    }

    /// The kind `length` bytes further on, if nothing changes.
    fn advanced(self, length: u64) -> Self {
        let behind = |host: HostOffset| HostOffset(host.0.saturating_add(length));
        match self {
            Self::Unallocated { host } => Self::Unallocated { host: host.map(behind) },
            Self::Zero { host } => Self::Zero { host: host.map(behind) },
            Self::Data { host } => Self::Data { host: behind(host) },
            Self::Compressed => Self::Compressed,
        }
    }
}

/// A part of the disk that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts on the guest's disk.
    pub start: GuestOffset,
    /// Its length in bytes; at least one.
    pub length: u64,
    /// What it is.
    pub kind: RunKind,
}

impl Run {
    /// Makes `next`, which starts where this run ends, part of it, if it goes on like it.
    fn append(&mut self, next: Self) -> bool {
        let goes_on = self.kind.advanced(self.length) == next.kind;
        if goes_on {
            self.length = self.length.saturating_add(next.length);
        }
        goes_on
    }
}

/// A run in the making.
struct Merger {
    run: Option<Run>,
    /// Entries that may still be looked at.
    left: u32,
}

impl<S: ReadAt> Image<S> {
    /// The run that starts at `offset`, at most `limit` bytes long. A long one may come in pieces: a
    /// call looks at some thousands of table entries, however large the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) from the storage; [`Error::Corrupt`](crate::Error::Corrupt)
    /// if the entry for `offset` breaks a rule; [`RequestError::OutOfRange`](crate::error::RequestError).
    pub fn run_at(&self, offset: GuestOffset, limit: u64) -> Result<Run> {
        self.check_range(offset.0, 1)?;
        let end = offset.0.saturating_add(limit.max(1)).min(self.virtual_size);
        let mut merger = Merger { run: None, left: LOOK_MAX };
        let mut at = offset.0;
        while at < end && merger.left > 0 {
            match self.extend(&mut merger, at, end) {
                Ok(Some(next)) => at = next,
                Ok(None) => break,
                // It is told to whoever asks for what lies there.
                Err(_) if merger.run.is_some() => break,
                Err(error) => return Err(error),
            }
        }
        // The loop has run: the limit is at least one byte, and so is what one part gives.
        let rest = Run {
            start: offset,
            length: end - offset.0,
            kind: RunKind::Unallocated { host: None },
        };
        Ok(merger.run.unwrap_or(rest))
    }

    /// The runs of `range`, in order, each as long as it is. Ends after an error.
    ///
    /// # Errors
    ///
    /// [`RequestError::OutOfRange`](crate::error::RequestError) if the range is not on the disk.
    pub fn map(&self, range: Range<u64>) -> Result<Runs<'_, S>> {
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        Ok(Runs { image: self, range, ahead: None })
    }

    /// Goes on with the part of the tables that maps `at`. Returns where the next part starts, or
    /// nothing if the run ended.
    fn extend(&self, merger: &mut Merger, at: u64, end: u64) -> Result<Option<u64>> {
        match self.tables.part(&self.storage, at)? {
            Part::Hole { end: hole } => {
                merger.left = merger.left.saturating_sub(1);
                let end = end.min(hole);
                let goes_on = merger.add(at, end, RunKind::Unallocated { host: None });
                Ok(goes_on.then_some(end))
            }
            Part::Slice { slice, end: covered } => {
                let end = end.min(covered);
                let mut at = at;
                while at < end && merger.left > 0 {
                    merger.left -= 1;
                    match self.extend_by_entry(merger, &slice, at, end)? {
                        Some(next) => at = next,
                        None => return Ok(None),
                    }
                }
                Ok(Some(at))
            }
        }
    }

    fn extend_by_entry(
        &self,
        merger: &mut Merger,
        slice: &Slice,
        at: u64,
        end: u64,
    ) -> Result<Option<u64>> {
        let geometry = self.geometry();
        let entry = slice.entry(at)?;
        let size = if entry.subclusters.is_some() {
            geometry.subcluster_bytes()
        } else {
            geometry.cluster_bits.bytes()
        };
        let cluster_end = (at | (geometry.cluster_bits.bytes() - 1)).saturating_add(1);
        let (mut at, end) = (at, end.min(cluster_end));
        while at < end {
            let index = geometry.subcluster_index(GuestOffset(at));
            let kind = RunKind::of(entry.subcluster(index, size), at % size);
            let next = (at | (size - 1)).saturating_add(1).min(end);
            if !merger.add(at, next, kind) {
                return Ok(None);
            }
            at = next;
        }
        Ok(Some(at))
    }
}

impl Merger {
    fn add(&mut self, start: u64, end: u64, kind: RunKind) -> bool {
        let next = Run { start: GuestOffset(start), length: end.saturating_sub(start), kind };
        match &mut self.run {
            Some(run) => run.append(next),
            None => {
                self.run = Some(next);
                true
            }
        }
    }
}

/// The runs of a range of the disk.
#[derive(Debug)]
pub struct Runs<'a, S> {
    image: &'a Image<S>,
    range: Range<u64>,
    /// Looked at, and not part of the run before.
    ahead: Option<Run>,
}

impl<S: ReadAt> Runs<'_, S> {
    fn piece(&mut self) -> Option<Result<Run>> {
        if self.range.start >= self.range.end {
            return None;
        }
        let start = GuestOffset(self.range.start);
        let piece = self.image.run_at(start, self.range.end - self.range.start);
        match &piece {
            Ok(run) => self.range.start = self.range.start.saturating_add(run.length),
            Err(_) => self.range.start = self.range.end,
        }
        Some(piece)
    }
}

impl<S: ReadAt> Iterator for Runs<'_, S> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.ahead.take() {
            Some(run) => run,
            None => match self.piece()? {
                Ok(run) => run,
                Err(error) => return Some(Err(error)),
            },
        };
        loop {
            let before = self.range.start;
            match self.piece() {
                None => return Some(Ok(run)),
                Some(Ok(next)) if run.append(next) => {}
                Some(Ok(next)) => {
                    self.ahead = Some(next);
                    return Some(Ok(run));
                }
                Some(Err(_)) => {
                    // The next call meets the error again, after this run.
                    self.range.start = before;
                    return Some(Ok(run));
                }
            }
        }
    }
}

impl<S: ReadAt> FusedIterator for Runs<'_, S> {}
