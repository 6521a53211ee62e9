//! Clusters that get a new place, or a place they have and do not use, on the way there.
//!
//! ```text
//! new place   [ head: what was there ][ data … ][ tail: what was there ]
//!             └ cluster or subcluster boundary                         ┘
//! ```
//!
//! Head and tail come from the image itself, compressed and shared clusters included, or from the
//! disk below; where they are zeros and nothing was ever written there, they are not written. Then
//! the entries name the new place, and the old one is let go.
//! Callers: `data`.

use std::io::ErrorKind;
use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, Result};
use crate::geometry::SUBCLUSTERS;
use crate::image::write::WritableImage;
use crate::image::write::space::Room;
use crate::image::write::state::State;
use crate::io::WriteAt;
use crate::l2::{ClusterKind, L2Entry, SubclusterBitmap};

/// Clusters that get a new place, or a place they have and do not use.
pub(super) struct Move {
    /// Guest offset of the first cluster.
    pub(super) guest: u64,
    pub(super) host: HostOffset,
    /// What they were.
    pub(super) old: Vec<L2Entry>,
    /// What was handed out for them, if anything was.
    pub(super) room: Option<Room>,
}

/// Dropped where `below` panics: nobody waits for clusters that nobody moves any more.
pub(super) struct Unwound<'a, S: WriteAt + Sync> {
    pub(super) image: &'a WritableImage<S>,
    pub(super) moving: &'a Move,
}

impl<S: WriteAt + Sync> Drop for Unwound<'_, S> {
    fn drop(&mut self) {
        let panicked = Error::io("copy what surrounds a write", self.moving.guest);
        let panicked = Err(panicked(ErrorKind::Interrupted.into()));
        let _: Result<()> = self.image.end_move(self.moving, panicked, |_| Ok(()));
    }
}

impl Move {
    pub(super) fn end(&self, cluster_bytes: u64) -> u64 {
        self.guest.saturating_add((self.old.len() as u64).saturating_mul(cluster_bytes))
    }
}

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Which subclusters of the cluster at `guest` have bytes in `range`.
    pub(super) fn subclusters_of(&self, guest: u64, range: &Range<u64>) -> Range<u32> {
        let geometry = self.image.geometry();
        let size = geometry.subcluster_bytes();
        let cluster_end = guest.saturating_add(geometry.cluster_bits.bytes());
        let start = range.start.clamp(guest, cluster_end) - guest;
        let end = range.end.clamp(guest, cluster_end) - guest;
        // At most 32.
        let index = |number: u64| u32::try_from(number).unwrap_or(SUBCLUSTERS);
        index(start / size)..index(end.div_ceil(size))
    }

    /// Writes `data`, which goes to `at`, to the new place, with what surrounds it.
    pub(super) fn write_moving<E: From<Error>>(
        &self,
        moving: &Move,
        data: &[u8],
        at: u64,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        let cluster_bytes = self.image.geometry().cluster_bits.bytes();
        let end = at.saturating_add(data.len() as u64);
        let last = moving.end(cluster_bytes).saturating_sub(cluster_bytes);
        let start = match moving.old.first() {
            Some(old) => self.move_bounds(moving, old, moving.guest, &(at..end)).start,
            None => at,
        };
        let stop = match moving.old.last() {
            Some(old) => self.move_bounds(moving, old, last, &(at..end)).end,
            None => end,
        };
        let head = self.kept(moving, moving.guest, start.min(at)..at);
        let tail = self.kept(moving, last, end..stop.max(end));
        let length = |range: &Range<u64>| range.end - range.start;
        let host = moving.host.0.saturating_add(at - moving.guest).saturating_sub(length(&head));
        let storage = self.image.data_storage();
        let around = length(&head).saturating_add(length(&tail));
        let written = if around == 0 {
            storage.write_all_at(data, host)
        } else if data.len() as u64 <= cluster_bytes {
            // Copying a little costs less than storage that cannot write parts in one call.
            let mut all = self.read_kept(Vec::new(), &head, below)?;
            all.extend_from_slice(data);
            let all = self.read_kept(all, &tail, below)?;
            storage.write_all_at(&all, host)
        } else {
            let head = self.read_kept(Vec::new(), &head, below)?;
            let tail = self.read_kept(Vec::new(), &tail, below)?;
            storage.write_parts_at(&[&head, data, &tail], host)
        };
        Ok(written.map_err(Error::io("write guest data", host))?)
    }

    /// The bytes of the cluster at `guest`, which was `old`, that have to be right at its new place
    /// once `range` is written: whole clusters or subclusters.
    fn move_bounds(
        &self,
        moving: &Move,
        old: &L2Entry,
        guest: u64,
        range: &Range<u64>,
    ) -> Range<u64> {
        let geometry = self.image.geometry();
        let cluster_end = guest.saturating_add(geometry.cluster_bits.bytes());
        let Some(bitmap) = old.subclusters else {
            // Without subclusters, or compressed: all of it.
            return guest..cluster_end;
        };
        let elsewhere = matches!(old.kind, ClusterKind::Standard { .. }) && moving.room.is_some();
        if elsewhere {
            return guest..cluster_end;
        }
        let (start, end) = (range.start.max(guest), range.end.min(cluster_end));
        let size = geometry.subcluster_bytes();
        let touched = self.subclusters_of(guest, range);
        let first = touched.start;
        let last = touched.end.saturating_sub(1);
        // What an allocated subcluster holds besides is there already.
        let start = if bitmap.is_allocated(first) { start } else { start / size * size };
        let end = if bitmap.is_allocated(last) { end } else { end.div_ceil(size) * size };
        start..end
    }

    /// The part of `range`, which lies in the cluster at `guest`, that has to be written to its new
    /// place: nothing if that reads the same already.
    fn kept(&self, moving: &Move, guest: u64, range: Range<u64>) -> Range<u64> {
        let external = self.image.data.is_some();
        // A data file ends where the disk does.
        let disk_end = if external { self.virtual_size() } else { u64::MAX };
        let range = range.start..range.end.min(disk_end).max(range.start);
        let index = (guest - moving.guest) / self.image.geometry().cluster_bits.bytes();
        let old = usize::try_from(index).ok().and_then(|index| moving.old.get(index));
        let zero = old.is_some_and(|old| self.reads_as_zeros(old, guest, &range));
        let fresh = moving.room.is_some_and(|room| room.fresh);
        if zero && fresh { range.start..range.start } else { range }
    }

    /// `bytes`, with what `range` holds so far behind them; past the end of the disk, zeros.
    fn read_kept<E: From<Error>>(
        &self,
        mut bytes: Vec<u8>,
        range: &Range<u64>,
        below: &mut impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let before = bytes.len();
        // At most a cluster.
        bytes.try_reserve(length).map_err(|_| {
            let error = ErrorKind::OutOfMemory.into();
            E::from(Error::io("keep what surrounds a write", range.start)(error))
        })?;
        bytes.resize(before.saturating_add(length), 0);
        let inside = self.virtual_size().saturating_sub(range.start);
        let inside = usize::try_from(inside).unwrap_or(usize::MAX).min(length);
        let place = bytes.get_mut(before..).and_then(|behind| behind.get_mut(..inside));
        if let Some(place) = place.filter(|place| !place.is_empty()) {
            self.image.read_over(place, GuestOffset(range.start), below)?;
        }
        Ok(bytes)
    }

    /// Whether `range`, part of the cluster at `guest` that is `entry`, is known to read as zeros.
    pub(super) fn reads_as_zeros(&self, entry: &L2Entry, guest: u64, range: &Range<u64>) -> bool {
        let size = self.image.geometry().subcluster_bytes();
        self.subclusters_of(guest, range).into_iter().all(|index| {
            match entry.subcluster(index, size) {
                ClusterKind::Zero { .. } => true,
                ClusterKind::Unallocated { .. } => {
                    !self.has_below(range.start.max(guest + u64::from(index) * size))
                }
                _ => false,
            }
        })
    }

    /// Ends what made its clusters busy: `link` if all was written, else nothing has happened.
    pub(super) fn end_move<E: From<Error>>(
        &self,
        moving: &Move,
        written: Result<(), E>,
        link: impl FnOnce(&mut State) -> Result<()>,
    ) -> Result<(), E> {
        let mut state = self.lock();
        let ended = match written {
            Ok(()) => link(&mut state).map_err(E::from),
            Err(error) => Err(error),
        };
        if let (Err(_), Some(room)) = (&ended, moving.room) {
            // The first error is the one that matters.
            let _ = state.give_back(&self.image.storage, room);
        }
        let end = moving.end(self.image.geometry().cluster_bits.bytes());
        state.busy.retain(|busy| *busy != (moving.guest..end));
        self.unlock_settled(state);
        ended
    }

    /// Has the entries name the new place, where `range` was written.
    pub(super) fn link(&self, state: &mut State, moving: &Move, range: &Range<u64>) -> Result<()> {
        let cluster_bytes = self.image.geometry().cluster_bits.bytes();
        let mut new = Vec::new();
        for (index, old) in (0_u64..).zip(&moving.old) {
            let guest = moving.guest + index * cluster_bytes;
            let host = moving.host.0.saturating_add(index * cluster_bytes);
            let bitmap = self.moved_bitmap(moving, old, guest, range);
            new.push((L2Entry::standard(HostOffset(host)), bitmap));
        }
        self.change_entries(state, moving.guest, &new)?;
        if moving.room.is_some() {
            for old in &moving.old {
                self.unlink_old(state, old, false);
            }
        }
        Ok(())
    }

    /// Which subclusters of the cluster at `guest` are what, after `range` was written.
    fn moved_bitmap(
        &self,
        moving: &Move,
        old: &L2Entry,
        guest: u64,
        range: &Range<u64>,
    ) -> SubclusterBitmap {
        let bounds = self.move_bounds(moving, old, guest, range);
        let written = self.subclusters_of(guest, &bounds);
        let before = match old.kind {
            ClusterKind::Compressed { .. } => SubclusterBitmap(0),
            _ => old.subclusters.unwrap_or_default(),
        };
        before.with_allocated(written)
    }
}
