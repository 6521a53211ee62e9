//! What the header leads to, counted: every structure but the guest's clusters.
//!
//! ```text
//! header, L1 tables, snapshot table, refcount table, encryption header, bitmaps ─▶ clusters, how often
//! refcount blocks, last: nothing else may lie in one
//! ```
//!
//! What several share is read once and counted as often as it is named. Callers: `check`, `repair`.

use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::error::Result;
use crate::feature::IncompatibleFeatures;
use crate::geometry::{ClusterBits, TABLE_ENTRY_BYTES};
use crate::header::Header;
use crate::header::extension::HeaderExtension;
use crate::image::check::bitmaps::{self, Bitmaps};
use crate::image::check::finding::{Finding, Metadata};
use crate::image::check::refcounts::{self, Block, RefcountTable};
use crate::image::check::report::Sink;
use crate::image::check::snapshots::Snapshots;
use crate::image::check::spread::spread;
use crate::image::check::tally::{Cursor, Tally};
use crate::io::{ReadAt, read_table};
use crate::refcount;

/// Entries of a table that are read at once.
pub(super) const PIECE_ENTRIES: u64 = 16 << 10;

/// The image that is checked, as far as its header leads.
#[derive(Debug)]
pub(in crate::image) struct Subject<'a, S> {
    pub(in crate::image) storage: &'a S,
    pub(in crate::image) header: Header,
    pub(in crate::image) file_length: u64,
    pub(in crate::image) table: RefcountTable,
    pub(super) snapshots: Snapshots,
    pub(super) bitmaps: Bitmaps,
    /// Whether the refcount table and its blocks count as used.
    pub(super) with_refcounts: bool,
    /// Whether the snapshot table counts as used.
    pub(super) with_snapshot_table: bool,
    /// Whether entries that break a rule count as what a repair makes of them.
    pub(super) as_mended: bool,
}

impl<S: ReadAt> Subject<'_, S> {
    pub(super) fn cluster_bits(&self) -> ClusterBits {
        self.header.geometry.cluster_bits
    }

    /// Clusters of the file, the last one perhaps in part.
    pub(super) fn clusters(&self) -> u64 {
        self.cluster_bits().clusters(self.file_length)
    }

    /// Whether the guest's clusters lie in another file.
    pub(super) fn has_data_file(&self) -> bool {
        self.header.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
    }

    /// The clusters that `length` bytes from `offset` on lie in; `None` if they reach past the end of
    /// the file by a cluster or more: the last cluster may be cut.
    pub(super) fn within(&self, offset: u64, length: u64) -> Option<Range<u64>> {
        if length == 0 {
            return Some(0..0);
        }
        let bits = self.cluster_bits();
        let end = offset.checked_add(length)?;
        if end >= self.file_length.saturating_add(bits.bytes()) {
            return None;
        }
        Some(offset >> bits.to_u32()..bits.clusters(end))
    }

    /// Structures of which there is one, with offset and length in bytes.
    fn roots(&self) -> Vec<(Metadata, u64, u64)> {
        let header = &self.header;
        let cluster_bytes = self.cluster_bits().bytes();
        let l1_bytes = u64::from(header.l1_size) * TABLE_ENTRY_BYTES;
        let mut roots = vec![
            (Metadata::Header, 0, cluster_bytes),
            (Metadata::L1Table, header.l1_table_offset.0, l1_bytes),
        ];
        if self.with_snapshot_table {
            let length = self.snapshots.length;
            roots.push((Metadata::SnapshotTable, header.snapshots_offset.0, length));
        }
        if self.with_refcounts {
            let bytes = u64::from(header.refcount_table_clusters).saturating_mul(cluster_bytes);
            roots.push((Metadata::RefcountTable, header.refcount_table_offset.0, bytes));
        }
        for extension in &header.extensions {
            if let HeaderExtension::EncryptionHeader(crypto) = extension {
                roots.push((Metadata::EncryptionHeader, crypto.offset, crypto.length));
            }
        }
        if let Some(directory) = &self.bitmaps.directory {
            let length = directory.end.saturating_sub(directory.start);
            roots.push((Metadata::BitmapDirectory, directory.start, length));
        }
        roots
    }

    /// Where the active L1 table lies, in bytes.
    pub(super) fn active_l1(&self) -> Range<u64> {
        let start = self.header.l1_table_offset.0;
        start..start.saturating_add(u64::from(self.header.l1_size) * TABLE_ENTRY_BYTES)
    }

    /// Where the snapshots' L1 tables lie, in bytes.
    pub(super) fn snapshot_l1s(&self) -> impl Iterator<Item = Range<u64>> {
        self.snapshots.tables.iter().map(|table| {
            let length = u64::from(table.entries) * TABLE_ENTRY_BYTES;
            table.at.0..table.at.0.saturating_add(length)
        })
    }

    /// Counts all structures but L2 tables, the guest's clusters and refcount blocks.
    pub(super) fn count_roots(&self, tally: &Tally<'_, S>, sink: &mut Sink<'_>) -> Result<()> {
        let mut cursor = Cursor::default();
        for (_, offset, length) in self.roots() {
            match self.within(offset, length) {
                Some(clusters) => tally.add(&mut cursor, clusters, 1)?,
                None => sink.tell_first(beyond(offset, length, None), 1),
            }
        }
        for ranges in [self.snapshot_l1s().collect(), self.bitmaps.tables.clone()] {
            let mut inside = Vec::new();
            for range in ranges {
                let length = range.end.saturating_sub(range.start);
                match self.within(range.start, length) {
                    Some(clusters) => inside.push(clusters),
                    None => sink.tell_first(beyond(range.start, length, None), 1),
                }
            }
            for part in spread(inside) {
                tally.add(&mut cursor, part.range, part.times)?;
            }
        }
        self.count_bitmaps(tally, sink)
    }

    fn count_bitmaps(&self, tally: &Tally<'_, S>, sink: &mut Sink<'_>) -> Result<()> {
        let mut cursor = Cursor::default();
        for part in spread(self.bitmaps.tables.clone()) {
            self.each_bitmap_entry(part.range, |clusters| {
                match clusters {
                    Ok(clusters) => tally.add(&mut cursor, clusters, part.times)?,
                    Err(finding) => sink.tell_first(finding, part.times),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Shows `each` the clusters that the entries in `range` of a bitmap's table name, or what is wrong.
    pub(super) fn each_bitmap_entry(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Result<Range<u64>, Finding>) -> Result<()>,
    ) -> Result<()> {
        let length = self.cluster_bits().bytes();
        self.each_entry(range, "read a bitmap table", |_, entry| {
            match bitmaps::cluster(entry, &self.header) {
                Ok(None) => Ok(()),
                Ok(Some(offset)) => {
                    each(self.within(offset, length).ok_or_else(|| beyond(offset, length, None)))
                }
                Err(()) => each(Err(Finding::BitmapTableEntry { entry })),
            }
        })
    }

    /// Shows `each` the entries of a table that are not zero, with where they lie. Those past the end
    /// of the file are.
    pub(super) fn each_entry(
        &self,
        range: Range<u64>,
        doing: &'static str,
        mut each: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        let end = range.end.min(self.file_length);
        while at < end {
            let count = (end - at).div_ceil(TABLE_ENTRY_BYTES).min(PIECE_ENTRIES);
            let entries = read_table(self.storage, at, count, doing)?;
            for (index, entry) in (0_u64..).zip(entries) {
                if entry != 0 {
                    each(at.saturating_add(index * TABLE_ENTRY_BYTES), entry)?;
                }
            }
            at = at.saturating_add(count * TABLE_ENTRY_BYTES);
        }
        Ok(())
    }

    /// Counts the refcount blocks, after everything else.
    pub(super) fn count_blocks(&self, tally: &Tally<'_, S>, sink: &mut Sink<'_>) -> Result<()> {
        if !self.with_refcounts {
            return Ok(());
        }
        let bits = self.cluster_bits();
        let max = refcount::max(self.header.geometry.refcount_order);
        let mut cursor = Cursor::default();
        let mut blocks = Vec::new();
        for (index, entry) in self.table.entries() {
            if entry & refcounts::RESERVED != 0 {
                sink.tell_first(Finding::RefcountTableReserved { index }, 1);
                continue;
            }
            if !bits.is_aligned(entry) {
                sink.tell_first(Finding::RefcountBlockUnaligned { index }, 1);
                continue;
            }
            let cluster = entry >> bits.to_u32();
            if cluster >= self.clusters().max(tally.behind()) {
                sink.tell_first(Finding::RefcountBlockOutside { index }, 1);
                continue;
            }
            tally.add(&mut cursor, cluster..cluster.saturating_add(1), 1)?;
            blocks.push((cluster, index));
        }
        blocks.sort_unstable();
        for same in blocks.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((cluster, _)) = same.first() else { continue };
            tally.visit(&mut cursor, *cluster..cluster.saturating_add(1), |page, range, _| {
                let others = page.used.get(range.start).saturating_sub(same.len() as u64);
                // Each as if it came last so far.
                for (before, (_, index)) in (0..).zip(same) {
                    let references = others.saturating_add(before).saturating_add(1);
                    sink.shared_block |= references != 1;
                    let references = references.min(max);
                    if references != 1 {
                        let index = *index;
                        sink.tell(Finding::RefcountBlockShared { index, references }, 1);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Where metadata lies, L2 tables left out: clusters in order, no two ranges over each other. What
    /// lies over other metadata is told.
    pub(super) fn landmarks(&self, sink: &mut Sink<'_>) -> Landmarks {
        let bits = self.cluster_bits();
        let mut ranges: Vec<(Range<u64>, Metadata)> = Vec::new();
        let mut add = |metadata, offset: u64, length| {
            if let Some(clusters) = self.within(offset, length).filter(|range| !range.is_empty()) {
                ranges.push((clusters, metadata));
            }
        };
        for (metadata, offset, length) in self.roots() {
            add(metadata, offset, length);
        }
        for (metadata, tables) in [
            (Metadata::SnapshotL1Table, self.snapshot_l1s().collect()),
            (Metadata::BitmapTable, self.bitmaps.tables.clone()),
        ] {
            for part in spread(tables) {
                add(metadata, part.range.start, part.range.end - part.range.start);
            }
        }
        if self.with_refcounts {
            for (index, _) in self.table.entries() {
                if let Block::At(at) = self.table.block(index) {
                    add(Metadata::RefcountBlock, at, bits.bytes());
                }
            }
        }
        ranges.sort_unstable_by_key(|(range, metadata)| (range.start, *metadata));
        let mut end = 0;
        for (range, metadata) in &mut ranges {
            // Parts of one table that others share lie side by side.
            let shared =
                *metadata == Metadata::SnapshotL1Table || *metadata == Metadata::BitmapTable;
            if range.start < end && !shared {
                let (cluster, metadata) = (range.start, *metadata);
                sink.tell_first(Finding::Overlap { cluster, metadata, guest: None }, 1);
            }
            range.start = range.start.max(end).min(range.end);
            end = end.max(range.end);
        }
        ranges.retain(|(range, _)| !range.is_empty());
        Landmarks(ranges)
    }
}

/// Where metadata lies.
#[derive(Debug)]
pub(super) struct Landmarks(Vec<(Range<u64>, Metadata)>);

impl Landmarks {
    /// The first of `clusters` that holds metadata, and which.
    pub(super) fn find(&self, clusters: &Range<u64>) -> Option<(u64, Metadata)> {
        let index = self.0.partition_point(|(range, _)| range.end <= clusters.start);
        let (range, metadata) = self.0.get(index)?;
        (range.start < clusters.end).then_some((range.start.max(clusters.start), *metadata))
    }
}

pub(super) fn beyond(offset: u64, length: u64, guest: Option<GuestOffset>) -> Finding {
    Finding::BeyondFile { offset: HostOffset(offset), length, guest }
}
