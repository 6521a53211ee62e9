//! Guest data on its way into the file.
//!
//! ```text
//! clusters    │ its own place │ none, shared or compressed │ none │ its own │
//! pieces      │ in place      │ new place, one write       :      │ in place│
//! ```
//!
//! What a new place takes, `moving` knows. Callers: disk-engine's `disk`.

use std::mem;
use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, Result};
use crate::image::write::moving::{Move, Unwound};
use crate::image::write::state::State;
use crate::image::write::{DetectZeroes, Durability, WritableImage, ZeroMode};
use crate::io::{WriteAt, is_zero};
use crate::l2::{ClusterKind, L2Entry};

/// Where the next bytes of a request go.
enum Step {
    /// As many of them, to where the guest's data lies already.
    InPlace {
        host: HostOffset,
        length: u64,
    },
    Move(Move),
}

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Writes `data` at `offset`. What else lies in a cluster that gets a new place and is left to
    /// the disk below is read by `below`, part by part; it may end before this disk does, and what
    /// it lacks is zeros.
    ///
    /// # Errors
    ///
    /// What `below` says; [`Error::Io`] from the storage; [`Error::Corrupt`] where a table breaks a
    /// rule: an entry that would have metadata overwritten marks the image corrupt;
    /// [`RequestError::OutOfRange`](crate::error::RequestError),
    /// [`RequestError::ReadOnly`](crate::error::RequestError) after a failed flush or in a corrupt
    /// image. The part before the failure may be written.
    pub fn write_over<E: From<Error>>(
        &self,
        data: &[u8],
        offset: GuestOffset,
        mut below: impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        self.image.check_range(offset.0, data.len() as u64)?;
        if data.is_empty() {
            self.lock().check_writable()?;
            return Ok(());
        }
        let written = match self.options.detect_zeroes {
            DetectZeroes::Off => match self.write_pieces(data, offset.0, &mut below) {
                // Nothing but data was written, and what waits may go on waiting. Where each call
                // leaves the file right, it may not: the entry that says where the data lies may be
                // one that an earlier call failed to write, or that another thread is about to.
                Ok(false) if self.options.durability == Durability::Flush => return Ok(()),
                written => written.map(|_| ()),
            },
            DetectZeroes::On => self.write_detecting(data, offset.0, ZeroMode::Keep, &mut below),
            DetectZeroes::Unmap => {
                self.write_detecting(data, offset.0, ZeroMode::Unmap, &mut below)
            }
        };
        // What was written before a failure is followed up as well.
        let after = self.after_change();
        written?;
        Ok(after?)
    }

    /// As [`WritableImage::write_over`], to an image that stands alone.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::write_over`].
    pub fn write_at(&self, data: &[u8], offset: GuestOffset) -> Result<()> {
        self.write_over(data, offset, |part, at| self.nothing_below(part, at))
    }

    /// Writes clusters that are all zeros as such, and the others as they are.
    fn write_detecting<E: From<Error>>(
        &self,
        data: &[u8],
        offset: u64,
        mode: ZeroMode,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let in_cluster = |at: u64, rest: &[u8]| {
                let left = cluster_bits.bytes() - cluster_bits.offset_in_cluster(at);
                usize::try_from(left).unwrap_or(usize::MAX).min(rest.len())
            };
            let (mut count, mut zero) = (0, None);
            while count < rest.len() {
                let behind = rest.get(count..).unwrap_or_default();
                let length = in_cluster(at.saturating_add(count as u64), behind);
                let this = is_zero(behind.get(..length).unwrap_or_default());
                if *zero.get_or_insert(this) != this {
                    break;
                }
                count += length;
            }
            let (piece, behind) = rest.split_at(count.max(1).min(rest.len()));
            if zero == Some(true) {
                self.zero_pieces(at..at.saturating_add(piece.len() as u64), mode, below)?;
            } else {
                self.write_pieces(piece, at, below)?;
            }
            at = at.saturating_add(piece.len() as u64);
            rest = behind;
        }
        Ok(())
    }

    /// Says whether anything got a new place.
    pub(super) fn write_pieces<E: From<Error>>(
        &self,
        data: &[u8],
        offset: u64,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<bool, E> {
        let (mut at, mut rest) = (offset, data);
        let mut moved = false;
        while !rest.is_empty() {
            let _flight = self.flights.enter();
            let length = match self.next_step(at, rest.len() as u64)? {
                Step::InPlace { host, length } => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
                    self.image
                        .data_storage()
                        .write_all_at(rest.get(..length).unwrap_or_default(), host.0)
                        .map_err(Error::io("write guest data", host.0))?;
                    length
                }
                Step::Move(moving) => {
                    moved = true;
                    let end = moving.end(self.image.geometry().cluster_bits.bytes());
                    let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
                    let length = length.min(rest.len());
                    let piece = rest.get(..length).unwrap_or_default();
                    let unwound = Unwound { image: self, moving: &moving };
                    let written = self.write_moving(&moving, piece, at, below);
                    mem::forget(unwound);
                    let range = at..at.saturating_add(length as u64);
                    self.end_move(&moving, written, |state| self.link(state, &moving, &range))?;
                    length
                }
            };
            at = at.saturating_add(length as u64);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(moved)
    }

    /// Where the bytes from `at` on go, at most `limit` of them.
    fn next_step(&self, at: u64, limit: u64) -> Result<Step> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let first = at - cluster_bits.offset_in_cluster(at);
        let mut state = self.lock_for(&(first..first.saturating_add(cluster_bits.bytes())));
        self.begin(&mut state)?;
        let step = self.plan(&mut state, at, limit);
        let step = state.judge(&self.image.storage, step)?;
        if let Step::Move(moving) = &step {
            state.busy.push(moving.guest..moving.end(cluster_bits.bytes()));
        }
        Ok(step)
    }

    fn plan(&self, state: &mut State, at: u64, limit: u64) -> Result<Step> {
        let cluster_bytes = self.image.geometry().cluster_bits.bytes();
        let end = at.saturating_add(limit);
        let first = at - self.image.geometry().cluster_bits.offset_in_cluster(at);
        let view = self.view(first)?;
        let entry = view.entry(first)?;
        if let Some(host) = self.own_place(state, &view, first, &entry, &(at..end))? {
            let mut length = cluster_bytes - (at - first);
            let mut next = first.saturating_add(cluster_bytes);
            while at + length < end
                && next < view.end()
                && !state.is_busy(&(next..next + cluster_bytes))
            {
                let entry = view.entry(next)?;
                let place = self.own_place(state, &view, next, &entry, &(next..end))?;
                if place != Some(HostOffset(host.0.saturating_add(next - first))) {
                    break;
                }
                length += cluster_bytes;
                next = next.saturating_add(cluster_bytes);
            }
            let host = HostOffset(host.0.saturating_add(at - first));
            return Ok(Step::InPlace { host, length: length.min(limit) });
        }

        // A run of clusters that need a new place, or of places that lie one behind the other.
        let unused = self.unused_place(state, &view, first, &entry)?;
        let mut old = vec![entry];
        let mut next = first.saturating_add(cluster_bytes);
        while next < end && next < view.end() && !state.is_busy(&(next..next + cluster_bytes)) {
            let entry = view.entry(next)?;
            if self.own_place(state, &view, next, &entry, &(next..end))?.is_some() {
                break;
            }
            let place = self.unused_place(state, &view, next, &entry)?;
            let wanted = unused.map(|host| HostOffset(host.0.saturating_add(next - first)));
            if place != wanted {
                break;
            }
            old.push(entry);
            next = next.saturating_add(cluster_bytes);
        }
        self.own_table(state, first)?;
        let (host, room) = match unused {
            Some(host) => {
                if self.image.data.is_some() {
                    // What was there may still wait to be given back.
                    let end = first.saturating_add(old.len() as u64 * cluster_bytes);
                    state.keep_data(&(first..end));
                }
                (host, None)
            }
            None => {
                for (index, entry) in old.iter().enumerate() {
                    let guest = first + index as u64 * cluster_bytes;
                    self.check_old(state, &view, guest, entry)?;
                }
                let room = state.allocate(&self.image.storage, old.len() as u64)?;
                old.truncate(usize::try_from(room.clusters).unwrap_or(usize::MAX));
                (room.host, Some(room))
            }
        };
        Ok(Step::Move(Move { guest: first, host, old, room }))
    }

    /// Where the cluster at `guest` lies, if the part of `range` in it is written there and nothing
    /// else has to change.
    fn own_place(
        &self,
        state: &mut State,
        view: &super::table::View,
        guest: u64,
        entry: &L2Entry,
        range: &Range<u64>,
    ) -> Result<Option<HostOffset>> {
        let ClusterKind::Standard { host } = entry.kind else { return Ok(None) };
        let external = self.image.data.is_some();
        if !external && !entry.copied {
            return Ok(None);
        }
        if let Some(bitmap) = entry.subclusters {
            let touched = self.subclusters_of(guest, range);
            if !touched.into_iter().all(|index| bitmap.is_allocated(index)) {
                return Ok(None);
            }
        }
        if !external {
            state.check_sole(&self.image.storage, host, None, view.named_by(guest))?;
        }
        Ok(Some(host))
    }

    /// A place that the cluster at `guest` has to itself, though not all of it is in use.
    fn unused_place(
        &self,
        state: &mut State,
        view: &super::table::View,
        guest: u64,
        entry: &L2Entry,
    ) -> Result<Option<HostOffset>> {
        if self.image.data.is_some() {
            return Ok(Some(HostOffset(guest)));
        }
        let host = match entry.kind {
            ClusterKind::Zero { preallocated: Some(host) } => host,
            ClusterKind::Standard { host } if entry.subclusters.is_some() => host,
            _ => return Ok(None),
        };
        if !entry.copied {
            return Ok(None);
        }
        state.check_sole(&self.image.storage, host, None, view.named_by(guest))?;
        Ok(Some(host))
    }
}
