//! Refcounts counted anew, for an image whose dirty bit says that they may be wrong.
//!
//! ```text
//! header, refcount structures, snapshot table, bitmaps ─┐
//! L1 tables: active, snapshots' ─▶ L2 tables ─▶ clusters ┴▶ references ─▶ sorted ─▶ refcounts
//! ```
//!
//! Each table is read once, however many name it, and counts as often as it is named. Only counts
//! change: an image whose tables break a rule is not opened for writing. Killed in between, it is
//! dirty still. Callers: `write`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::address::{GuestOffset, HostCluster, HostOffset};
use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::image::active_l1;
use crate::image::write::WritableImage;
use crate::image::write::bitmaps::{self, Table};
use crate::image::write::guard::Kind;
use crate::image::write::space::write_zeros;
use crate::image::write::state::State;
use crate::io::{WriteAt, read_table};
use crate::l1::{L1Entry, L1Place};
use crate::l2::{ClusterKind, SubclusterBitmap};
use crate::snapshot::Snapshot;

/// Host clusters that are referred to, with how often; a cluster may come more than once.
#[derive(Default)]
struct References(Vec<(u64, u64)>);

impl References {
    fn add(&mut self, clusters: Range<u64>, times: u64) -> Result<()> {
        for cluster in clusters {
            if self.0.try_reserve(1).is_err() {
                let error = std::io::ErrorKind::OutOfMemory.into();
                return Err(Error::io("count references", 0)(error));
            }
            self.0.push((cluster, times));
        }
        Ok(())
    }

    /// Each cluster once, in order.
    fn into_counts(mut self) -> Vec<(u64, u64)> {
        self.0.sort_unstable();
        self.0.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
        self.0
    }
}

impl<S: WriteAt + Sync> WritableImage<S> {
    pub(super) fn rebuild_refcounts(&self) -> Result<()> {
        let mut state = self.lock();
        let rebuilt = self.rebuild(&mut state);
        if rebuilt.is_err() {
            // Closing must not clear the dirty bit.
            state.failed = Some("its refcounts are not known");
        }
        rebuilt
    }

    fn rebuild(&self, state: &mut State) -> Result<()> {
        let storage = &self.image.storage;
        let mut counts = self.references(state)?.into_counts();
        let max = state.counts.max();
        for (cluster, count) in &counts {
            let offset = self.image.geometry().cluster_bits.offset_of(HostCluster(*cluster)).0;
            let violation = if *count > max {
                let bits = self.image.geometry().refcount_order.bits();
                Violation::RefcountOverflow { bits }
            } else if *cluster >= state.counts.covered() {
                Violation::UnusedInUse
            } else {
                continue;
            };
            return Err(FieldError { field: "refcount", value: *count, offset, violation }.into());
        }
        // All is known: nothing was changed so far.
        self.begin(state)?;
        let blocks = self.add_missing_blocks(state, &counts)?;
        counts.extend(blocks);
        let mut counts = References(counts).into_counts().into_iter().peekable();
        let (mut cluster, mut used) = (0, None);
        loop {
            // The next cluster that has a count, and the next that should have one.
            if used.is_none_or(|used| used < cluster) {
                used = Some(state.counts.next_in_use(storage, cluster)?);
            }
            let wanted = counts.peek().map_or(u64::MAX, |(cluster, _)| *cluster);
            cluster = used.unwrap_or(u64::MAX).min(wanted);
            if cluster == u64::MAX {
                break;
            }
            let count = counts.next_if(|(other, _)| *other == cluster).map_or(0, |(_, n)| n);
            if state.counts.get(storage, HostCluster(cluster))? != count {
                state.counts.set(storage, HostCluster(cluster), count)?;
                if state.counts.is_crowded() {
                    state.write_counts(storage)?;
                }
            }
            cluster += 1;
        }
        state.next = 0;
        state.write_counts(storage)?;
        state.barrier(storage)?;
        let clean = crate::feature::IncompatibleFeatures::DIRTY;
        let features = state.header.incompatible.with(clean, false);
        state.set_incompatible(storage, features)?;
        state.barrier(storage)
    }

    /// Has a block count each cluster that is referred to; returns the references to new ones.
    fn add_missing_blocks(
        &self,
        state: &mut State,
        counts: &[(u64, u64)],
    ) -> Result<Vec<(u64, u64)>> {
        let mut blocks = Vec::new();
        let storage = &self.image.storage;
        let per_block = self.image.geometry().refcounts_per_block();
        let mut index = 0;
        while let Some((cluster, _)) = counts.get(index) {
            let block = cluster / per_block;
            let behind = counts.partition_point(|(other, _)| *other / per_block <= block);
            if !state.counts.has_block(block) {
                // The first of its clusters that nothing refers to.
                let used = counts.get(index..behind).unwrap_or_default();
                let free = (block * per_block..(block + 1) * per_block)
                    .zip(
                        used.iter()
                            .map(|(cluster, _)| Some(*cluster))
                            .chain(std::iter::repeat(None)),
                    )
                    .find(|(cluster, used)| Some(*cluster) != *used)
                    .map(|(cluster, _)| cluster);
                let Some(free) = free else {
                    let offset =
                        self.image.geometry().cluster_bits.offset_of(HostCluster(*cluster));
                    let (field, value) = ("refcount", 0);
                    let violation = Violation::UnusedInUse;
                    let offset = offset.0;
                    return Err(FieldError { field, value, offset, violation }.into());
                };
                let bytes = self.image.geometry().cluster_bits.bytes();
                let offset = self.image.geometry().cluster_bits.offset_of(HostCluster(free)).0;
                write_zeros(storage, offset, bytes)?;
                state.counts.add_block(storage, HostCluster(free))?;
                state.guard.add(Kind::RefcountBlock, offset, bytes)?;
                state.fresh = state.fresh.max(offset.saturating_add(bytes));
                blocks.push((free, 1));
            }
            index = behind;
        }
        Ok(blocks)
    }

    fn references(&self, state: &State) -> Result<References> {
        let storage = &self.image.storage;
        let cluster_bytes = self.image.geometry().cluster_bits.bytes();
        let mut references = References::default();
        let bytes =
            |start: u64, length: u64| state.clusters_of(&(start..start.saturating_add(length)));
        references.add(0..1, 1)?;
        let (table, length) = state.counts.table_place();
        references.add(bytes(table.0, length), 1)?;
        for block in state.counts.blocks() {
            references.add(bytes(block.0, cluster_bytes), 1)?;
        }
        let file_length = storage.length().map_err(Error::io("read the image's length", 0))?;
        let header = &state.header;
        let (snapshots, end) = Snapshot::read_table_to(storage, header)?;
        let start = header.snapshots_offset().0;
        references.add(bytes(start, end.saturating_sub(start)), 1)?;
        bitmaps::tables(storage, header, |Table { offset, length, clusters }| {
            references.add(bytes(offset, length), 1)?;
            for cluster in clusters {
                references.add(bytes(cluster, cluster_bytes), 1)?;
            }
            Ok(())
        })?;

        // L1 tables by place, as often as they are named; then L2 tables.
        let mut l1_tables: BTreeMap<(u64, u32), (L1Place, u64)> = BTreeMap::new();
        let places =
            std::iter::once(active_l1(header)).chain(snapshots.iter().map(Snapshot::l1_place));
        for place in places {
            references.add(bytes(place.at.0, u64::from(place.entries) * TABLE_ENTRY_BYTES), 1)?;
            l1_tables.entry((place.at.0, place.entries)).or_insert((place, 0)).1 += 1;
        }
        let mut l2_tables: BTreeMap<u64, u64> = BTreeMap::new();
        for (place, times) in l1_tables.into_values() {
            let count = place.entries.into();
            let entries = read_table(storage, place.at.0, count, "read an L1 table")?;
            for (index, raw) in (0_u64..).zip(entries) {
                let at = HostOffset(place.at.0.saturating_add(index * TABLE_ENTRY_BYTES));
                if let Some(table) = L1Entry::decode(raw, at, self.image.geometry())?.l2_table {
                    if table.0 >= file_length {
                        let (field, offset) = ("L1 entry", at.0);
                        let violation = Violation::StartsBeyondFile { file_length };
                        return Err(FieldError { field, value: raw, offset, violation }.into());
                    }
                    let named = l2_tables.entry(table.0).or_default();
                    *named = named.saturating_add(times);
                }
            }
        }
        for (table, times) in l2_tables {
            references.add(bytes(table, cluster_bytes), times)?;
            self.l2_references(state, HostOffset(table), times, &mut references)?;
        }
        Ok(references)
    }

    fn l2_references(
        &self,
        state: &State,
        table: HostOffset,
        times: u64,
        references: &mut References,
    ) -> Result<()> {
        let geometry = self.image.geometry();
        if self.image.data.is_some() {
            return Ok(());
        }
        let words = geometry.cluster_bits.bytes() / 8;
        let words = read_table(&self.image.storage, table.0, words, "read an L2 table")?;
        let rules = self.image.tables.rules();
        let per_entry = if geometry.extended_l2 { 2 } else { 1 };
        for (index, entry) in (0_u64..).zip(words.chunks_exact(per_entry)) {
            let (raw, bitmap) = match entry {
                [raw, bitmap] => (*raw, *bitmap),
                [raw] => (*raw, 0),
                _ => continue,
            };
            if raw == 0 {
                continue;
            }
            let at = HostOffset(table.0.saturating_add(index * geometry.l2_entry_bytes()));
            // Which part of the disk it is does not matter without an external data file.
            let entry = rules.decode(raw, SubclusterBitmap(bitmap), GuestOffset(0), at)?;
            let (start, length) = match entry.kind {
                ClusterKind::Standard { host } | ClusterKind::Zero { preallocated: Some(host) } => {
                    (host.0, geometry.cluster_bits.bytes())
                }
                ClusterKind::Compressed { descriptor } => {
                    (descriptor.host().0, descriptor.length())
                }
                _ => continue,
            };
            let clusters = state.clusters_of(&(start..start.saturating_add(length)));
            references.add(clusters, times)?;
        }
        Ok(())
    }
}
