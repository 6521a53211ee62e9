//! L2 tables that are changed: found, made their L1 entry's own, and their entries replaced.
//!
//! ```text
//! L1 entry     COPIED: its own     else: shared with a snapshot      none
//! own_table    as it is            copied, the old one released      a new one of zeros
//! ```
//!
//! Callers: `data`, `zero`, `discard`, `compress`.

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, Result};
use crate::image::tables::{Part, Slice};
use crate::image::write::WritableImage;
use crate::image::write::guard::Kind;
use crate::image::write::space::{Room, write_zeros};
use crate::image::write::state::{Place, State};
use crate::io::{WriteAt, zeroed};
use crate::l2::{ClusterKind, L2Entry, SubclusterBitmap};

/// The entries of a part of the guest's disk.
pub(super) struct View {
    part: Part,
    extended_l2: bool,
}

impl View {
    /// Whether there is no table.
    pub(super) fn is_hole(&self) -> bool {
        matches!(self.part, Part::Hole { .. })
    }

    /// Where the guest bytes end whose entries these are.
    pub(super) fn end(&self) -> u64 {
        match &self.part {
            Part::Hole { end } | Part::Slice { end, .. } => *end,
        }
    }

    /// The entry of the cluster at `guest`.
    pub(super) fn entry(&self, guest: u64) -> Result<L2Entry> {
        match &self.part {
            Part::Slice { slice, .. } => slice.entry(guest),
            Part::Hole { .. } => Ok(L2Entry {
                kind: ClusterKind::Unallocated { preallocated: None },
                subclusters: self.extended_l2.then_some(SubclusterBitmap(0)),
                copied: false,
            }),
        }
    }

    /// The entry of the cluster at `guest` as errors name it: field, value, place.
    pub(super) fn named_by(&self, guest: u64) -> (&'static str, u64, u64) {
        match &self.part {
            Part::Slice { slice, .. } => ("L2 entry", slice.raw(guest), slice.offset_of(guest).0),
            Part::Hole { .. } => ("L2 entry", 0, 0),
        }
    }
}

impl<S: WriteAt + Sync> WritableImage<S> {
    /// The entries from `guest` on.
    pub(super) fn view(&self, guest: u64) -> Result<View> {
        let part = self.image.tables.part(&self.image.storage, guest)?;
        Ok(View { part, extended_l2: self.image.geometry().extended_l2 })
    }

    /// Makes sure that `guest` has an L2 table to itself.
    pub(super) fn own_table(&self, state: &mut State, guest: u64) -> Result<HostOffset> {
        let storage = &self.image.storage;
        let l1 = self.image.tables.l1();
        let index = self.image.geometry().l1_index(GuestOffset(guest));
        let entry = l1.entry(index)?;
        let named_by = ("L1 entry", l1.raw(index), l1.entry_offset(index).0);
        let own = Some(Kind::L2Table);
        match entry.l2_table {
            Some(table) if entry.copied => {
                state.check_sole(storage, table, own, named_by)?;
                return Ok(table);
            }
            Some(table) => {
                let end = table.0.saturating_add(self.image.geometry().cluster_bits.bytes());
                state.check_used(storage, table.0..end, own, named_by)?;
            }
            None => {}
        }
        let room = state.allocate(storage, 1)?;
        if let Err(error) = self.fill_table(state, room, entry.l2_table) {
            // The first error is the one that matters.
            let _ = state.give_back(storage, room);
            return Err(error);
        }
        self.image.tables.forget(room.host);
        l1.set(index, room.host);
        state.changed_l1.insert(index);
        state.new_tables.insert(room.host.0);
        if let Some(old) = entry.l2_table {
            let bytes = self.image.geometry().cluster_bits.bytes();
            state.guard.remove(Kind::L2Table, old.0, bytes);
            let clusters = state.clusters_of(&(old.0..old.0.saturating_add(bytes)));
            self.unlink(state, Place::Clusters(clusters), false);
        }
        Ok(room.host)
    }

    /// Writes the new table: as `old` is, or zeros.
    fn fill_table(&self, state: &mut State, room: Room, old: Option<HostOffset>) -> Result<()> {
        let storage = &self.image.storage;
        let bytes = self.image.geometry().cluster_bits.bytes();
        let at = room.host.0;
        match old {
            None => write_zeros(storage, at, bytes)?,
            Some(old) => {
                let length = usize::try_from(bytes).unwrap_or(usize::MAX);
                let mut table = zeroed(length).map_err(Error::io("copy an L2 table", old.0))?;
                storage
                    .read_full_at(&mut table, old.0)
                    .map_err(Error::io("copy an L2 table", old.0))?;
                storage.write_all_at(&table, at).map_err(Error::io("copy an L2 table", at))?;
            }
        }
        state.guard.add(Kind::L2Table, at, bytes)
    }

    /// Replaces the entries from the cluster at `guest` on, which lie in one table.
    pub(super) fn change_entries(
        &self,
        state: &mut State,
        guest: u64,
        entries: &[(u64, SubclusterBitmap)],
    ) -> Result<()> {
        let geometry = self.image.geometry();
        let bytes = geometry.cluster_bits.bytes();
        let table = self.own_table(state, guest)?;
        // All that can fail comes before the first change.
        let mut slices: Vec<(Slice, u64, Vec<u64>)> = Vec::new();
        for (index, (raw, bitmap)) in (0_u64..).zip(entries) {
            let guest = guest.saturating_add(index * bytes);
            if slices.last().is_none_or(|(slice, ..)| guest >= slice.end()) {
                let slice = self.image.tables.slice(&self.image.storage, table, guest)?;
                slices.push((slice, guest, Vec::new()));
            }
            if let Some((_, _, words)) = slices.last_mut() {
                words.push(*raw);
                if geometry.extended_l2 {
                    words.push(bitmap.0);
                }
            }
        }
        for (slice, guest, words) in slices {
            self.image.tables.change(&slice, slice.word_index(guest), &words);
        }
        Ok(())
    }

    /// That the reference which `entry`, of the cluster at `guest`, has may be dropped.
    pub(super) fn check_old(
        &self,
        state: &mut State,
        view: &View,
        guest: u64,
        entry: &L2Entry,
    ) -> Result<()> {
        let Some((range, _)) = self.place_of(entry) else { return Ok(()) };
        let named_by = view.named_by(guest);
        match self.image.data {
            Some(_) => Ok(()),
            None => state.check_used(&self.image.storage, range, None, named_by),
        }
    }

    /// Drops the reference that `entry` has.
    pub(super) fn unlink_old(&self, state: &mut State, entry: &L2Entry, punch: bool) {
        let Some((range, compressed)) = self.place_of(entry) else { return };
        if self.image.data.is_some() {
            if punch {
                let end = range.end.min(self.virtual_size());
                self.unlink(state, Place::Data(range.start..end.max(range.start)), true);
            }
            return;
        }
        let clusters = state.clusters_of(&range);
        self.unlink(state, Place::Clusters(clusters), punch && !compressed);
    }

    /// The bytes of the file that `entry` refers to, and whether they are a payload.
    fn place_of(&self, entry: &L2Entry) -> Option<(std::ops::Range<u64>, bool)> {
        let bytes = self.image.geometry().cluster_bits.bytes();
        match entry.kind {
            ClusterKind::Standard { host } | ClusterKind::Zero { preallocated: Some(host) } => {
                Some((host.0..host.0.saturating_add(bytes), false))
            }
            ClusterKind::Compressed { descriptor } => {
                let start = descriptor.host().0;
                Some((start..start.saturating_add(descriptor.length()), true))
            }
            _ => None,
        }
    }
}
