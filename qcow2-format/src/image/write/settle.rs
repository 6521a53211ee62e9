//! What waits in memory goes to the file, in the order that keeps the image whole.
//!
//! ```text
//! 1  guest data                  written when it came
//!    refcounts, new L2 tables    nothing in the file refers to what they count and hold
//!    ── barrier ──
//! 2  refcount table entries      for new refcount blocks, with a barrier behind them
//! 3  L2 entries, L1 entries      expose what 1 has made
//!    ── barrier ──
//! 4  what 3 has unlinked         refcounts down, holes punched
//! ```
//!
//! Barriers are syncs where durability is asked for, else nothing: a killed process leaves what the
//! page cache has, in the order of the writes. A process killed between any two steps leaves
//! clusters that are counted and not referred to, and nothing worse. Callers: the other parts of
//! `write`.

use crate::address::HostOffset;
use crate::error::{Error, Result};
use crate::image::write::WritableImage;
use crate::image::write::guard::Kind;
use crate::image::write::state::{Place, State, Unlinked};
use crate::io::WriteAt;

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Writes everything that waits, but for refcounts that may wait until the end.
    pub(super) fn settle(&self, state: &mut State) -> Result<()> {
        let storage = &self.image.storage;
        self.write_slices(state, |state, table| state.new_tables.contains(&table))?;
        if !state.lazy {
            state.write_counts(storage)?;
        }
        if !self.image.tables.changed().is_empty() || !state.changed_l1.is_empty() {
            self.barrier(state)?;
            self.write_slices(state, |_, _| true)?;
            self.write_l1(state)?;
        }
        self.barrier(state)?;
        self.release(state)?;
        if !state.lazy {
            state.write_counts(storage)?;
        }
        Ok(())
    }

    /// Writes what waits if there is as much of it as may be, so that memory stays bounded.
    pub(super) fn relieve(&self, state: &mut State) -> Result<()> {
        let crowded = self.image.tables.changed().len() >= self.changed_max
            || state.counts.is_crowded()
            || state.unlinked.len() >= UNLINKED_MAX;
        if !crowded {
            return Ok(());
        }
        self.settle(state)?;
        if state.lazy && state.counts.is_crowded() {
            state.write_counts(&self.image.storage)?;
        }
        Ok(())
    }

    /// A barrier for image and data file.
    pub(super) fn barrier(&self, state: &mut State) -> Result<()> {
        if let Some(data) = &self.image.data {
            state.barrier(data)?;
        }
        state.barrier(&self.image.storage)
    }

    /// Nothing in memory refers to `place` any more.
    pub(super) fn unlink(&self, state: &mut State, place: Place, punch: bool) {
        let epoch = self.flights.now();
        if let (Place::Clusters(next), Some(last)) = (&place, state.unlinked.last_mut())
            && let Place::Clusters(before) = &mut last.place
            && last.epoch == epoch
            && last.punch == punch
            && before.end == next.start
        {
            before.end = next.end;
            return;
        }
        state.unlinked.push(Unlinked { epoch, place, punch });
    }

    fn write_slices(&self, state: &mut State, wanted: impl Fn(&State, u64) -> bool) -> Result<()> {
        let table_mask = self.image.geometry().cluster_bits.bytes() - 1;
        let waiting: Vec<u64> = self.image.tables.changed().keys().copied().collect();
        for at in waiting {
            if !wanted(state, at & !table_mask) {
                continue;
            }
            let Some(slice) = self.image.tables.changed().get(&at).cloned() else { continue };
            let words = slice.words.get(slice.range.clone()).unwrap_or_default();
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let offset = at.saturating_add(slice.range.start as u64 * 8);
            let checked = state.guard.check(
                offset,
                bytes.len() as u64,
                Some(Kind::L2Table),
                ("L2 table", at & !table_mask, offset),
            );
            state.judge(&self.image.storage, checked)?;
            self.image
                .storage
                .write_all_at(&bytes, offset)
                .map_err(Error::io("write an L2 table", offset))?;
            self.image.tables.changed().remove(&at);
        }
        Ok(())
    }

    fn write_l1(&self, state: &mut State) -> Result<()> {
        let l1 = self.image.tables.l1();
        while let Some(index) = state.changed_l1.first().copied() {
            let HostOffset(at) = l1.entry_offset(index);
            let raw = l1.raw(index);
            let own = Some(Kind::L1Table);
            let checked = state.guard.check(at, 8, own, ("L1 table entry", raw, at));
            state.judge(&self.image.storage, checked)?;
            self.image
                .storage
                .write_all_at(&raw.to_be_bytes(), at)
                .map_err(Error::io("write the L1 table", at))?;
            state.changed_l1.remove(&index);
        }
        state.new_tables.clear();
        Ok(())
    }

    /// Drops the references that the file no longer has, where nobody under way may use them.
    fn release(&self, state: &mut State) -> Result<()> {
        let mut waiting = std::mem::take(&mut state.unlinked).into_iter();
        for unlinked in waiting.by_ref() {
            if !self.flights.landed(unlinked.epoch) {
                state.unlinked.push(unlinked);
                continue;
            }
            match unlinked.place {
                Place::Data(range) => {
                    // Space that cannot be given back is not lost.
                    let data = self.image.data_storage();
                    let _ = data.punch_at(range.start, range.end.saturating_sub(range.start));
                }
                Place::Clusters(ref range) => {
                    if let Err((at, error)) = self.release_clusters(state, &unlinked) {
                        let place = Place::Clusters(at..range.end);
                        state.unlinked.push(Unlinked { place, ..unlinked });
                        state.unlinked.extend(waiting);
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// The error comes with the first cluster that is not released.
    fn release_clusters(&self, state: &mut State, unlinked: &Unlinked) -> Result<(), (u64, Error)> {
        let Place::Clusters(range) = &unlinked.place else { return Ok(()) };
        let storage = &self.image.storage;
        let cluster_bytes = self.image.geometry().cluster_bits.bytes();
        let mut hole = range.start..range.start;
        let punch = |hole: &std::ops::Range<u64>| {
            if unlinked.punch && !hole.is_empty() {
                let offset = hole.start.saturating_mul(cluster_bytes);
                let length = (hole.end - hole.start).saturating_mul(cluster_bytes);
                // Space that cannot be given back is not lost.
                let _ = storage.punch_at(offset, length);
            }
        };
        for cluster in range.clone() {
            let freed = match state.drop_reference(storage, cluster) {
                Ok(freed) => freed,
                Err(error) => {
                    punch(&hole);
                    return Err((cluster, error));
                }
            };
            if freed && hole.end == cluster {
                hole.end = cluster + 1;
            } else {
                punch(&hole);
                hole = cluster..cluster + u64::from(freed);
            }
        }
        punch(&hole);
        Ok(())
    }
}

/// As many places may wait to be released.
const UNLINKED_MAX: usize = 4096;
