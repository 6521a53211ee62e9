//! What an image that is written keeps under its lock: header, refcounts, what waits.
//!
//! ```text
//! header      as it is in the file
//! counts      refcounts, changed ones waiting
//! guard       where metadata lies
//! busy        guest clusters that somebody is giving a new place
//! unlinked    places that nothing in memory names any more, and the file perhaps still does
//! ```
//!
//! The lock is held while tables are looked up and changed, never while guest data is read or
//! written. Callers: the other parts of `write`.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use crate::address::{HostCluster, HostOffset};
use crate::error::{Error, FieldError, RequestError, Result, Violation};
use crate::feature::{CompatibleFeatures, IncompatibleFeatures};
use crate::header::{Header, Version};
use crate::image::write::counts::Counts;
use crate::image::write::guard::{Guard, Kind};
use crate::io::WriteAt;

/// Where `incompatible_features` and `autoclear_features` lie in the header.
const INCOMPATIBLE_OFFSET: u64 = 72;
const AUTOCLEAR_OFFSET: u64 = 88;

#[derive(Debug)]
pub(super) struct State {
    pub(super) header: Header,
    pub(super) counts: Counts,
    pub(super) guard: Guard,
    /// No cluster before this one is free.
    pub(super) next: u64,
    /// Nothing was ever written from this host offset on: it reads as zeros.
    pub(super) fresh: u64,
    /// Where the next compressed cluster may be put, behind another one.
    pub(super) payload_end: Option<u64>,
    /// Guest offsets of clusters that somebody is giving a new place.
    pub(super) busy: Vec<Range<u64>>,
    /// How many threads wait for one of those.
    pub(super) waiting: usize,
    pub(super) unlinked: Vec<Unlinked>,
    /// L2 tables that no L1 entry in the file names yet.
    pub(super) new_tables: BTreeSet<u64>,
    /// L1 entries that differ from the file.
    pub(super) changed_l1: BTreeSet<u64>,
    /// Whether the marks are set that go before the first write.
    pub(super) begun: bool,
    /// Whether refcounts wait until the image is closed.
    pub(super) lazy: bool,
    /// Whether writes that depend on each other have a barrier between them.
    pub(super) barriers: bool,
    /// What keeps the image from being written.
    pub(super) failed: Option<&'static str>,
    /// What the flush said that failed.
    flush_failed: Option<FlushFailure>,
}

/// An error of the storage, as often as it is asked for.
#[derive(Clone, Copy, Debug)]
struct FlushFailure {
    errno: Option<i32>,
    kind: io::ErrorKind,
}

impl FlushFailure {
    fn of(error: &io::Error) -> Self {
        Self { errno: error.raw_os_error(), kind: error.kind() }
    }

    fn again(self) -> Error {
        let source = self.errno.map_or(self.kind.into(), io::Error::from_raw_os_error);
        Error::io("write, as an earlier flush failed and what was written before may be lost", 0)(
            source,
        )
    }
}

/// A place that nothing in memory names any more.
#[derive(Debug)]
pub(super) struct Unlinked {
    /// Requests that were under way in this epoch may still use it.
    pub(super) epoch: u64,
    pub(super) place: Place,
    /// Whether its space is given back to the storage.
    pub(super) punch: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Host clusters.
    Clusters(Range<u64>),
    /// Bytes of the external data file.
    Data(Range<u64>),
}

impl State {
    pub(super) fn new(header: Header, counts: Counts, guard: Guard, file_length: u64) -> Self {
        let cluster_bits = header.geometry().cluster_bits;
        let lazy = header.version() == Version::V3
            && header.compatible_features().contains(CompatibleFeatures::LAZY_REFCOUNTS);
        Self {
            header,
            counts,
            guard,
            next: 0,
            fresh: cluster_bits.clusters(file_length).saturating_mul(cluster_bits.bytes()),
            payload_end: None,
            busy: Vec::new(),
            waiting: 0,
            unlinked: Vec::new(),
            new_tables: BTreeSet::new(),
            changed_l1: BTreeSet::new(),
            begun: false,
            lazy,
            barriers: false,
            failed: None,
            flush_failed: None,
        }
    }

    /// Bytes of the data file are in use again: their space is not given back.
    pub(super) fn keep_data(&mut self, used: &Range<u64>) {
        for unlinked in std::mem::take(&mut self.unlinked) {
            let Place::Data(range) = &unlinked.place else {
                self.unlinked.push(unlinked);
                continue;
            };
            let before = range.start..range.end.min(used.start);
            let after = range.start.max(used.end)..range.end;
            for left in [before, after].into_iter().filter(|left| !left.is_empty()) {
                self.unlinked.push(Unlinked { place: Place::Data(left), ..unlinked });
            }
        }
    }

    /// That the image may be written.
    pub(super) fn check_writable(&self) -> Result<()> {
        match (self.flush_failed, self.failed) {
            (None, None) => Ok(()),
            (Some(failure), _) => Err(failure.again()),
            (None, Some(why)) => Err(RequestError::ReadOnly { why }.into()),
        }
    }

    /// Has everything written so far survive a power cut, where that is asked for. A failure is
    /// final: what was written may be lost, whatever a second attempt says.
    pub(super) fn barrier(&mut self, storage: &impl WriteAt) -> Result<()> {
        if !self.barriers {
            return Ok(());
        }
        storage.flush().map_err(|error| {
            self.flush_failed = Some(FlushFailure::of(&error));
            Error::io("flush the image", 0)(error)
        })
    }

    /// If `result` says that the image is corrupt, marks it so: nothing is written any more.
    pub(super) fn judge<T>(&mut self, storage: &impl WriteAt, result: Result<T>) -> Result<T> {
        let overlap = |error: &Error| {
            matches!(error, Error::Corrupt(FieldError { violation: Violation::Overlap { .. }, .. }))
        };
        if result.as_ref().is_err_and(overlap) && self.check_writable().is_ok() {
            self.failed = Some("it was found to be corrupt");
            let incompatible = self.header.incompatible;
            // Whoever meets a failing storage here has the error that matters already.
            let _ = self
                .set_incompatible(storage, incompatible.with(IncompatibleFeatures::CORRUPT, true));
        }
        result
    }

    pub(super) fn set_incompatible(
        &mut self,
        storage: &impl WriteAt,
        features: IncompatibleFeatures,
    ) -> Result<()> {
        if self.header.version() == Version::V2 || self.header.incompatible == features {
            return Ok(());
        }
        let at = INCOMPATIBLE_OFFSET;
        storage
            .write_all_at(&features.0.to_be_bytes(), at)
            .map_err(Error::io("write the header", at))?;
        self.header.incompatible = features;
        Ok(())
    }

    /// Clears the autoclear bits that the specification does not name, or that vouch for nothing.
    pub(super) fn clear_unknown_autoclear(&mut self, storage: &impl WriteAt) -> Result<()> {
        let known = self.header.upheld_autoclear();
        if self.header.version() == Version::V2 || self.header.autoclear == known {
            return Ok(());
        }
        let at = AUTOCLEAR_OFFSET;
        storage
            .write_all_at(&known.0.to_be_bytes(), at)
            .map_err(Error::io("write the header", at))?;
        self.header.autoclear = known;
        Ok(())
    }

    /// Sets the dirty bit before refcounts in memory first differ from those in the file.
    pub(super) fn before_counts_change(&mut self, storage: &impl WriteAt) -> Result<()> {
        let dirty = IncompatibleFeatures::DIRTY;
        if !self.lazy || self.header.incompatible.contains(dirty) {
            return Ok(());
        }
        self.set_incompatible(storage, self.header.incompatible.with(dirty, true))?;
        self.barrier(storage)
    }

    /// Whether anybody is giving a new place to part of `range`.
    pub(super) fn is_busy(&self, range: &Range<u64>) -> bool {
        self.busy.iter().any(|busy| busy.start < range.end && range.start < busy.end)
    }

    /// The bytes of the host cluster at `host`, which `named_by` names, are counted once and hold
    /// no metadata.
    pub(super) fn check_sole(
        &mut self,
        storage: &impl WriteAt,
        host: HostOffset,
        own: Option<Kind>,
        named_by: (&'static str, u64, u64),
    ) -> Result<()> {
        let cluster_bits = self.header.geometry().cluster_bits;
        self.guard.check(host.0, cluster_bits.bytes(), own, named_by)?;
        let refcount = self.counts.get(storage, HostCluster(host.0 >> cluster_bits.to_u32()))?;
        if refcount == 1 {
            return Ok(());
        }
        let (field, value, offset) = named_by;
        let violation = match refcount {
            0 => Violation::UnusedInUse,
            _ => Violation::NotTheOnlyReference { refcount },
        };
        Err(FieldError { field, value, offset, violation }.into())
    }

    /// The host clusters of `range`, in bytes, which `named_by` names, are in use and hold no
    /// metadata: a reference to them may be dropped.
    pub(super) fn check_used(
        &mut self,
        storage: &impl WriteAt,
        range: Range<u64>,
        own: Option<Kind>,
        named_by: (&'static str, u64, u64),
    ) -> Result<()> {
        self.guard.check(range.start, range.end.saturating_sub(range.start), own, named_by)?;
        for cluster in self.clusters_of(&range) {
            if self.counts.get(storage, HostCluster(cluster))? == 0 {
                let (field, value, offset) = named_by;
                let violation = Violation::UnusedInUse;
                return Err(FieldError { field, value, offset, violation }.into());
            }
        }
        Ok(())
    }

    /// The host clusters that bytes of `range` lie in.
    pub(super) fn clusters_of(&self, range: &Range<u64>) -> Range<u64> {
        let cluster_bits = self.header.geometry().cluster_bits;
        range.start >> cluster_bits.to_u32()..cluster_bits.clusters(range.end)
    }
}
