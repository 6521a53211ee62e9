//! New refcount structures beside the old ones, and with them a new snapshot table, L1 table and bitmap
//! directory where they are needed; one write to the header switches to all of it.
//!
//! ```text
//! file  │ everything in use …  │ L1 table │ snapshots │ bitmaps │ blocks … │ refcount table │
//!                                └─────────────── written, then the header ───────────────┘
//!                                bytes 40 … 71: the tables' places and sizes; the bitmaps' extension
//! ```
//!
//! Nothing that is in use is written to, so that a process killed before the last write leaves the
//! image as it was. The old structures are not counted by the new ones. Callers: `repair`.

use std::ops::Range;

use crate::address::HostCluster;
use crate::error::{Error, RequestError, Result};
use crate::geometry::{REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::image::check::bitmaps::Bitmaps;
use crate::image::check::counts::PAGE_CLUSTERS;
use crate::image::check::refcounts::Block;
use crate::image::check::repair::area::Area;
use crate::image::check::repair::bitmaps::NewBitmaps;
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Fixes, Mender, NewSnapshots, Renewal};
use crate::image::check::tally::{Page, Tally};
use crate::io::{WriteAt, zeroed};
use crate::refcount;

/// Where the header has the L1 table's place; the refcount table's and the snapshot table's are
/// behind it.
const FIELDS_OFFSET: usize = 40;

/// Where the new structures go, in clusters.
#[derive(Debug)]
struct Layout {
    /// All of it.
    clusters: Range<u64>,
    /// Where the snapshot table starts, behind the L1 table.
    snapshots_start: u64,
    /// Where the bitmap directory starts, behind the snapshot table.
    bitmaps_start: u64,
    /// Where the blocks start, behind that.
    blocks_start: u64,
    /// Numbers of the blocks, in order; they lie in this order.
    blocks: Vec<u64>,
    table_clusters: u64,
}

/// A block that is put together from pages.
struct Building {
    number: u64,
    bytes: Vec<u8>,
}

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// Writes new structures and switches to them.
    pub(super) fn rebuild(&mut self, new: &Renewal, fixes: &mut Fixes<'_>) -> Result<()> {
        let bits = self.subject.cluster_bits();
        let per_block = self.subject.table.per_block();
        let mut used = Vec::new();
        let mut end = self.old_end();
        self.subject.with_refcounts = false;
        if let Some(snapshots) = &new.snapshots {
            self.subject.with_snapshot_table = false;
            self.subject.snapshots.tables.clone_from(&snapshots.tables);
        }
        if let Some(bitmaps) = &new.bitmaps {
            // What is let go of stays as it is until the switch.
            end = end.max(self.subject.clusters());
            self.subject.bitmaps = Bitmaps { tables: bitmaps.tables.clone(), ..Bitmaps::default() };
        }
        self.each_used_page(|tally, index, page| {
            end = end.max(tally.behind());
            let first = index.saturating_mul(PAGE_CLUSTERS as u64);
            for place in (0..PAGE_CLUSTERS).filter(|place| page.used.get(*place) != 0) {
                let block = first.saturating_add(place as u64) / per_block;
                if used.last() != Some(&block) {
                    used.push(block);
                }
            }
            Ok(())
        })?;
        let layout = self.layout(used, end, new)?;
        let (cluster, clusters) =
            (layout.clusters.start, layout.clusters.end - layout.clusters.start);
        if new.l1_bytes > 0 {
            fixes.tell(&Fix::L1Table);
            let (at, length) =
                (bits.offset_of(HostCluster(cluster)).0, bits.clusters(new.l1_bytes));
            let failed = Error::io("write an L1 table", at);
            let length = length.saturating_mul(bits.bytes());
            self.subject.storage.write_zeros_at(at, length).map_err(failed)?;
        }
        if let Some(NewSnapshots { bytes, kept, .. }) = &new.snapshots {
            fixes.tell(&Fix::SnapshotTable { kept: *kept });
            let at = bits.offset_of(HostCluster(layout.snapshots_start)).0;
            let failed = Error::io("write the snapshot table", at);
            self.subject.storage.write_all_at(bytes, at).map_err(failed)?;
        }
        if let Some(bitmaps) = &new.bitmaps {
            fixes.tell(&Fix::BitmapDirectory { kept: bitmaps.count() });
            let bytes = bitmaps.read(self.subject.storage)?;
            let at = bits.offset_of(HostCluster(layout.bitmaps_start)).0;
            let failed = Error::io("write the bitmap directory", at);
            self.subject.storage.write_all_at(&bytes, at).map_err(failed)?;
        }
        fixes.tell(&Fix::Rebuilt { cluster, clusters });
        self.write_blocks(&layout)?;
        self.write_table(&layout)?;
        self.barrier()?;
        self.switch(&layout, new)?;
        self.barrier()
    }

    /// Behind the old structures, and everything else that the table of this image names.
    fn old_end(&self) -> u64 {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        let header = &subject.header;
        let table = header
            .refcount_table_offset
            .0
            .saturating_add(u64::from(header.refcount_table_clusters).saturating_mul(bits.bytes()));
        let blocks =
            subject.table.entries().filter_map(|(index, _)| match subject.table.block(index) {
                Block::At(at) => Some(at.saturating_add(bits.bytes())),
                _ => None,
            });
        let snapshots = header.snapshots_offset.0.saturating_add(subject.snapshots.length);
        // What lies past the end of the file is not in use.
        blocks
            .chain([table, snapshots])
            .map(|end| bits.clusters(end))
            .filter(|end| *end <= subject.clusters())
            .max()
            .unwrap_or_default()
    }

    /// Shows `each` the pages that hold references, pass by pass, in order.
    fn each_used_page(
        &self,
        mut each: impl FnMut(&Tally<'_, S>, u64, &Page) -> Result<()>,
    ) -> Result<()> {
        self.each_pass(|tally, _| {
            self.subject.each_page(tally, |index, page| each(tally, index, page))
        })
    }

    fn layout(&self, used: Vec<u64>, end: u64, new: &Renewal) -> Result<Layout> {
        let bits = self.subject.cluster_bits();
        let table = new.snapshots.as_ref().map_or(0, |snapshots| snapshots.bytes.len() as u64);
        let l1_clusters = bits.clusters(new.l1_bytes);
        let bitmaps = new.bitmaps.as_ref().map_or(0, NewBitmaps::length);
        let before_bitmaps = l1_clusters.saturating_add(bits.clusters(table));
        let tables = before_bitmaps.saturating_add(bits.clusters(bitmaps));
        let per_block = self.subject.table.per_block();
        let (mut total, mut blocks, mut table_clusters) = (tables, used, 0_u64);
        loop {
            // The clusters from `end` on are counted, too.
            let last = end.saturating_add(total).saturating_sub(1) / per_block;
            for block in end / per_block..=last {
                if blocks.last().is_none_or(|last| *last < block) {
                    blocks.push(block);
                }
            }
            let bytes =
                blocks.last().map_or(0, |last| (last + 1).saturating_mul(TABLE_ENTRY_BYTES));
            let max = REFCOUNT_TABLE_MAX_BYTES;
            if bytes > max {
                return Err(RequestError::Full { max }.into());
            }
            table_clusters = table_clusters.max(bits.clusters(bytes));
            let needed = tables + blocks.len() as u64 + table_clusters;
            if needed == total {
                return Ok(Layout {
                    clusters: end..end.saturating_add(total),
                    snapshots_start: end.saturating_add(l1_clusters),
                    bitmaps_start: end.saturating_add(before_bitmaps),
                    blocks_start: end.saturating_add(tables),
                    blocks,
                    table_clusters,
                });
            }
            total = needed;
        }
    }

    fn write_blocks(&self, layout: &Layout) -> Result<()> {
        let order = self.subject.header.geometry.refcount_order;
        let per_block = self.subject.table.per_block();
        let mut left = layout.blocks.iter().copied();
        let mut building: Option<Building> = None;
        let mut set = |block: u64, cluster: u64, count: u64| -> Result<()> {
            while building.as_ref().is_none_or(|building| building.number != block) {
                self.write_block(layout, building.take())?;
                let Some(number) = left.next() else { return Ok(()) };
                let length = usize::try_from(self.subject.cluster_bits().bytes());
                let bytes = zeroed(length.unwrap_or(usize::MAX));
                let bytes = bytes.map_err(Error::io("write refcounts", 0))?;
                building = Some(Building { number, bytes });
            }
            if let Some(Building { bytes, .. }) = &mut building {
                let index = usize::try_from(cluster % per_block).unwrap_or(usize::MAX);
                refcount::set(order, bytes, index, count);
            }
            Ok(())
        };
        self.each_used_page(|_, index, page| {
            let first = index.saturating_mul(PAGE_CLUSTERS as u64);
            for place in 0..PAGE_CLUSTERS {
                let count = self.subject.counted(page.used.get(place));
                if count != 0 {
                    let cluster = first.saturating_add(place as u64);
                    set(cluster / per_block, cluster, count)?;
                }
            }
            Ok(())
        })?;
        for cluster in layout.clusters.clone() {
            set(cluster / per_block, cluster, 1)?;
        }
        self.write_block(layout, building)
    }

    fn write_block(&self, layout: &Layout, building: Option<Building>) -> Result<()> {
        let Some(Building { number, bytes }) = building else { return Ok(()) };
        let index = layout.blocks.partition_point(|block| *block < number) as u64;
        let cluster = HostCluster(layout.blocks_start.saturating_add(index));
        let at = self.subject.cluster_bits().offset_of(cluster).0;
        let failed = Error::io("write refcounts", at);
        self.subject.storage.write_all_at(&bytes, at).map_err(failed)
    }

    fn write_table(&self, layout: &Layout) -> Result<()> {
        let bits = self.subject.cluster_bits();
        let start = layout.clusters.end.saturating_sub(layout.table_clusters);
        let at = bits.offset_of(HostCluster(start)).0;
        let length = layout.table_clusters.saturating_mul(bits.bytes());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let failed = || Error::io("write the refcount table", at);
        let mut bytes = zeroed(length).map_err(failed())?;
        for (index, block) in (0..).zip(&layout.blocks) {
            let cluster = HostCluster(layout.blocks_start.saturating_add(index));
            let entry = usize::try_from(block * TABLE_ENTRY_BYTES).unwrap_or(usize::MAX);
            if let Some(place) = bytes.get_mut(entry..).and_then(<[u8]>::first_chunk_mut) {
                *place = bits.offset_of(cluster).0.to_be_bytes();
            }
        }
        self.subject.storage.write_all_at(&bytes, at).map_err(failed())
    }

    /// The one write that makes the new structures those of the image.
    fn switch(&mut self, layout: &Layout, new: &Renewal) -> Result<()> {
        let bits = self.subject.cluster_bits();
        let header = &mut self.subject.header;
        let start = layout.clusters.end.saturating_sub(layout.table_clusters);
        header.refcount_table_offset = bits.offset_of(HostCluster(start));
        header.refcount_table_clusters = u32::try_from(layout.table_clusters).unwrap_or(u32::MAX);
        if new.l1_bytes > 0 {
            header.l1_table_offset = bits.offset_of(HostCluster(layout.clusters.start));
        }
        if let Some(snapshots) = &new.snapshots {
            header.nb_snapshots = snapshots.kept;
            header.snapshots_offset = match snapshots.kept {
                0 => crate::HostOffset(0),
                _ => bits.offset_of(HostCluster(layout.snapshots_start)),
            };
        }
        let mut fields = Vec::with_capacity(32);
        fields.extend(header.l1_table_offset.0.to_be_bytes());
        fields.extend(header.refcount_table_offset.0.to_be_bytes());
        fields.extend(header.refcount_table_clusters.to_be_bytes());
        fields.extend(header.nb_snapshots.to_be_bytes());
        fields.extend(header.snapshots_offset.0.to_be_bytes());
        let mut area = Area::read(self.subject.storage, header)?;
        area.set(FIELDS_OFFSET, &fields);
        if let Some((bitmaps, at)) = new.bitmaps.as_ref().zip(area.bitmaps()) {
            let start = bits.offset_of(HostCluster(layout.bitmaps_start)).0;
            let mut extension = Vec::with_capacity(24);
            extension.extend(bitmaps.count().to_be_bytes());
            extension.extend([0; 4]);
            extension.extend(bitmaps.length().to_be_bytes());
            extension.extend(start.to_be_bytes());
            area.set(at, &extension);
        }
        area.write(self.subject.storage)
    }
}
