//! Ranges that become zeros, with entries rather than with bytes.
//!
//! ```text
//! range       ┊part │ whole clusters (or subclusters)          │part┊
//!              data   version 3: entries say zero                data
//!                     version 2: unallocated where nothing lies below, else data
//! ```
//!
//! What lies below never shows through. Callers: disk-engine's `disk`, `data`, `discard`.

use std::ops::Range;

use crate::address::GuestOffset;
use crate::error::{Error, Result};
use crate::feature::AutoclearFeatures;
use crate::geometry::SUBCLUSTERS;
use crate::header::Version;
use crate::image::write::state::State;
use crate::image::write::table::View;
use crate::image::write::{WritableImage, ZeroMode};
use crate::io::WriteAt;
use crate::l2::{ClusterKind, L2Entry, SubclusterBitmap};

/// What becomes of a cluster's entry.
enum Change {
    /// It reads as zeros already, as it should.
    Nothing,
    /// A new entry that keeps the cluster's place.
    Keep(u64, SubclusterBitmap),
    /// A new entry; the reference of the old one is dropped.
    Drop(u64, SubclusterBitmap),
    /// No entry says it: zeros have to be written.
    Write,
}

/// What becomes of clusters that no entry can make zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    Write,
    Leave,
}

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Makes `length` bytes from `offset` on read as zeros. Parts of clusters may have to be
    /// written, for which `below` reads what the disk below holds, as in
    /// [`WritableImage::write_over`].
    ///
    /// # Errors
    ///
    /// As [`WritableImage::write_over`].
    pub fn write_zeroes_over<E: From<Error>>(
        &self,
        offset: GuestOffset,
        length: u64,
        mode: ZeroMode,
        mut below: impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        self.image.check_range(offset.0, length)?;
        let range = offset.0..offset.0.saturating_add(length);
        let zeroed = self.zero_pieces(range, mode, &mut below);
        // What was done before a failure is followed up as well.
        let after = self.after_change();
        zeroed?;
        Ok(after?)
    }

    /// As [`WritableImage::write_zeroes_over`], in an image that stands alone.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::write_over`].
    pub fn write_zeroes(&self, offset: GuestOffset, length: u64, mode: ZeroMode) -> Result<()> {
        self.write_zeroes_over(offset, length, mode, |part, at| self.nothing_below(part, at))
    }

    pub(super) fn zero_pieces<E: From<Error>>(
        &self,
        range: Range<u64>,
        mode: ZeroMode,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        let geometry = self.image.geometry();
        let size = geometry.subcluster_bytes();
        // Behind the end of the disk there is nothing to keep.
        let end = match range.end >= self.virtual_size() {
            true => self.clusters_end(),
            false => range.end,
        };
        let mut at = range.start;
        while at < range.end {
            let whole = end / size * size;
            if at.is_multiple_of(size) && at < whole {
                at = self.zero_whole(at..whole, mode, Otherwise::Write, below)?;
            } else {
                let stop = (at / size * size).saturating_add(size).min(range.end);
                self.zero_part(at..stop, below)?;
                at = stop;
            }
        }
        Ok(())
    }

    /// Writes zeros over part of a cluster or subcluster, if it does not read as zeros anyway.
    fn zero_part<E: From<Error>>(
        &self,
        range: Range<u64>,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        let geometry = self.image.geometry();
        let first = range.start - geometry.cluster_bits.offset_in_cluster(range.start);
        {
            let mut state = self.lock_for(&(first..first + geometry.cluster_bits.bytes()));
            self.begin(&mut state)?;
            let entry = self.view(first)?.entry(first)?;
            if !self.is_raw_external(&state) && self.reads_as_zeros(&entry, first, &range) {
                return Ok(());
            }
        }
        self.write_zero_bytes(range, below)
    }

    fn write_zero_bytes<E: From<Error>>(
        &self,
        range: Range<u64>,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        // At most a cluster.
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let doing = "write zeros";
        let zeros = crate::io::zeroed(length).map_err(Error::io(doing, range.start))?;
        self.write_pieces(&zeros, range.start, below).map(|_| ())
    }

    /// Makes whole clusters or subclusters zeros, from the start of `range` on; returns how far that
    /// went.
    pub(super) fn zero_whole<E: From<Error>>(
        &self,
        range: Range<u64>,
        mode: ZeroMode,
        otherwise: Otherwise,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<u64, E> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let bytes = cluster_bits.bytes();
        let first = range.start - cluster_bits.offset_in_cluster(range.start);
        let _flight = self.flights.enter();
        let mut state = self.lock_for(&(first..first.saturating_add(bytes)));
        self.begin(&mut state)?;
        let mut view = self.view(first)?;
        let mut end = free_end(&state, first, range.end.min(view.end()));
        if self.is_raw_external(&state) {
            // Whoever reads the data file alone reads the same as the guest.
            drop(state);
            let length = end.min(self.virtual_size()).saturating_sub(range.start);
            let data = self.image.data_storage();
            data.write_zeros_at(range.start, length)
                .map_err(Error::io("write zeros to the data file", range.start))?;
            state = self.lock_for(&(first..first.saturating_add(bytes)));
            // Others may have changed what was seen before.
            view = self.view(first)?;
            end = free_end(&state, first, end.min(view.end()));
        }
        if view.is_hole() && !self.has_below(first) {
            return Ok(end);
        }
        let changed = self.zero_entries(&mut state, &view, range.start..end, mode);
        let changed = state.judge(&self.image.storage, changed);
        self.relieve(&mut state)?;
        drop(state);
        let (next, change) = changed?;
        if !matches!(change, Change::Write) {
            return Ok(next);
        }
        let stop = (next - cluster_bits.offset_in_cluster(next)).saturating_add(bytes).min(end);
        if otherwise == Otherwise::Write {
            let stop = stop.min(self.virtual_size());
            self.write_zero_bytes(next..stop, below)?;
        }
        Ok(stop)
    }

    /// Changes entries from the start of `range` on, until one cannot say what it should; returns
    /// where that is.
    fn zero_entries(
        &self,
        state: &mut State,
        view: &View,
        range: Range<u64>,
        mode: ZeroMode,
    ) -> Result<(u64, Change)> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let mut run = Run { first: range.start, new: Vec::new(), old: Vec::new() };
        let mut at = range.start;
        let mut last = Change::Nothing;
        while at < range.end {
            let guest = at - cluster_bits.offset_in_cluster(at);
            let entry = view.entry(guest)?;
            let next = guest.saturating_add(cluster_bits.bytes()).min(range.end);
            let change = self.zero_entry(state, &entry, guest, &(at..next), mode);
            match change {
                Change::Nothing => {
                    self.change_run(state, &mut run, mode)?;
                    run.first = next;
                }
                Change::Keep(raw, bitmap) => {
                    run.first = run.first.min(guest);
                    run.new.push((raw, bitmap));
                }
                Change::Drop(raw, bitmap) => {
                    self.check_old(state, view, guest, &entry)?;
                    run.first = run.first.min(guest);
                    run.new.push((raw, bitmap));
                    run.old.push(entry);
                }
                Change::Write => {
                    last = Change::Write;
                    break;
                }
            }
            at = next;
        }
        self.change_run(state, &mut run, mode)?;
        Ok((at, last))
    }

    fn change_run(&self, state: &mut State, run: &mut Run, mode: ZeroMode) -> Result<()> {
        if run.new.is_empty() {
            return Ok(());
        }
        self.change_entries(state, run.first, &run.new)?;
        run.new.clear();
        for old in run.old.drain(..) {
            self.unlink_old(state, &old, mode == ZeroMode::Unmap);
        }
        Ok(())
    }

    /// What makes `range`, part of the cluster at `guest`, zeros.
    fn zero_entry(
        &self,
        state: &State,
        entry: &L2Entry,
        guest: u64,
        range: &Range<u64>,
        mode: ZeroMode,
    ) -> Change {
        let none = SubclusterBitmap(0);
        let extended = self.image.geometry().extended_l2;
        let touched = self.subclusters_of(guest, range);
        let all = touched == (0..SUBCLUSTERS) || !extended;
        let reads_zero = self.reads_as_zeros(entry, guest, range);
        let place = match entry.kind {
            ClusterKind::Standard { host } | ClusterKind::Zero { preallocated: Some(host) } => {
                Some(host)
            }
            _ => None,
        };
        let compressed = matches!(entry.kind, ClusterKind::Compressed { .. });
        let frees = mode == ZeroMode::Unmap && place.is_some() && all;
        if reads_zero && !frees {
            return Change::Nothing;
        }
        if state.header.version() == Version::V2 {
            let may_free = mode == ZeroMode::Unmap || compressed;
            return match self.has_below(guest) || !may_free {
                true => Change::Write,
                false => Change::Drop(0, none),
            };
        }
        if !extended {
            let own = entry.copied || self.image.data.is_some();
            return match place {
                Some(host) if mode == ZeroMode::Keep && own => {
                    Change::Keep(L2Entry::zero(Some(host)), none)
                }
                Some(_) => Change::Drop(L2Entry::zero(None), none),
                None if compressed => Change::Drop(L2Entry::zero(None), none),
                None => Change::Keep(L2Entry::zero(None), none),
            };
        }
        if compressed {
            return if all { Change::Drop(0, SubclusterBitmap::ALL_ZERO) } else { Change::Write };
        }
        let bitmap = entry.subclusters.unwrap_or_default().with_zero(touched);
        match place {
            Some(_) if all && (mode == ZeroMode::Unmap || !entry.copied) => {
                Change::Drop(0, SubclusterBitmap::ALL_ZERO)
            }
            Some(host) => {
                // The reference stays what it was.
                let raw = if entry.copied { L2Entry::standard(host) } else { host.0 };
                Change::Keep(raw, bitmap)
            }
            None => Change::Keep(0, bitmap),
        }
    }

    /// Whether the data file has to read like the guest's disk by itself.
    fn is_raw_external(&self, state: &State) -> bool {
        self.image.data.is_some()
            && state.header.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA)
    }
}

/// How far nobody else is giving clusters behind `first` a new place; at most `end`.
fn free_end(state: &State, first: u64, end: u64) -> u64 {
    let behind = state.busy.iter().map(|busy| busy.start).filter(|start| *start > first);
    behind.fold(end, u64::min)
}

/// Entries one behind the other that change.
struct Run {
    first: u64,
    new: Vec<(u64, SubclusterBitmap)>,
    old: Vec<L2Entry>,
}
