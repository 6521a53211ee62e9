//! The refcount table as it stands in the file, whatever it says.
//!
//! ```text
//! table   │ block at 0x20000 │ none │ unaligned: what it counts is unknown │ …
//! ```
//!
//! Callers: `tally`, `compare`, `walk`, `repair`.

use crate::error::{Error, Result};
use crate::geometry::{Geometry, TABLE_ENTRY_BYTES};
use crate::header::Header;
use crate::image::check::counts::{Counts, PAGE_CLUSTERS};
use crate::io::{ReadAt, read_table, zeroed};
use crate::refcount;

/// The bits of an entry that are reserved.
pub(super) const RESERVED: u64 = 0x1ff;

/// No file is longer.
const FILE_MAX: u64 = 1 << 63;
/// Bytes of a block that are read for one count.
const PIECE_BYTES: u64 = 4096;

/// Where the block lies that counts a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Block {
    /// There is none: the refcount is 0.
    None,
    /// At this offset.
    At(u64),
    /// Not where a block can be read.
    Unknown,
}

#[derive(Debug)]
pub(in crate::image) struct RefcountTable {
    geometry: Geometry,
    entries: Vec<u64>,
}

impl RefcountTable {
    /// Reads the table that the header names, which has at most 8 MiB.
    pub(super) fn read(storage: &impl ReadAt, header: &Header) -> Result<Self> {
        let geometry = header.geometry();
        let bytes = u64::from(header.refcount_table_clusters())
            .saturating_mul(geometry.cluster_bits.bytes())
            .min(crate::geometry::REFCOUNT_TABLE_MAX_BYTES);
        let (at, count) = (header.refcount_table_offset().0, bytes / TABLE_ENTRY_BYTES);
        Ok(Self { geometry, entries: read_table(storage, at, count, "read the refcount table")? })
    }

    /// A table without blocks.
    pub(super) fn empty(header: &Header) -> Self {
        Self { geometry: header.geometry(), entries: Vec::new() }
    }

    /// Whether every entry names a block that can be read, below `clusters`, or none.
    pub(super) fn is_sound(&self, clusters: u64) -> bool {
        let bits = self.geometry.cluster_bits;
        self.entries().all(|(_, entry)| {
            bits.is_aligned(entry) && entry & RESERVED == 0 && entry >> bits.to_u32() < clusters
        })
    }

    /// Clusters that a block counts.
    pub(in crate::image) fn per_block(&self) -> u64 {
        self.geometry.refcounts_per_block()
    }

    /// The entries that are not zero, with their numbers.
    pub(in crate::image) fn entries(&self) -> impl Iterator<Item = (u64, u64)> {
        (0_u64..).zip(&self.entries).map(|(index, entry)| (index, *entry)).filter(|(_, e)| *e != 0)
    }

    /// Where block `index` lies.
    pub(in crate::image) fn block(&self, index: u64) -> Block {
        let entry = usize::try_from(index).ok().and_then(|index| self.entries.get(index));
        match entry.map_or(0, |entry| entry & !RESERVED) {
            0 => Block::None,
            at if self.geometry.cluster_bits.is_aligned(at) && at < FILE_MAX => Block::At(at),
            _ => Block::Unknown,
        }
    }

    /// The next block from `index` on that is named, if there is one.
    pub(super) fn next_block(&self, index: u64) -> Option<u64> {
        let start = usize::try_from(index).ok()?;
        let ahead = self.entries.get(start..)?.iter().position(|entry| entry & !RESERVED != 0)?;
        Some(index.saturating_add(ahead as u64))
    }

    /// Reads the refcounts of the page's clusters; those that are not known are 0.
    pub(super) fn load(&self, storage: &impl ReadAt, page: u64) -> Result<Counts> {
        let doing = "read refcounts";
        let mut counts = Counts::new().map_err(Error::io(doing, 0))?;
        let (per_block, order) = (self.per_block(), self.geometry.refcount_order);
        let first = page.saturating_mul(PAGE_CLUSTERS as u64);
        let end = first.saturating_add(PAGE_CLUSTERS as u64);
        let mut cluster = first;
        while cluster < end {
            let index = cluster / per_block;
            let Some(next) = self.next_block(index) else { break };
            cluster = cluster.max(next.saturating_mul(per_block));
            let stop = next.saturating_add(1).saturating_mul(per_block).min(end);
            if let Block::At(at) = self.block(next)
                && cluster < stop
            {
                // Pages and blocks begin on multiples of 8 clusters, so these are whole bytes.
                let bits = u64::from(order.bits());
                let start = at.saturating_add((cluster % per_block) * bits / 8);
                let count = stop - cluster;
                let length = usize::try_from((count * bits).div_ceil(8)).unwrap_or(usize::MAX);
                let mut bytes = zeroed(length).map_err(Error::io(doing, start))?;
                storage.read_full_at(&mut bytes, start).map_err(Error::io(doing, start))?;
                // At most the clusters of a page.
                let (to, count) = (cluster - first, usize::try_from(count).unwrap_or(usize::MAX));
                counts
                    .load(usize::try_from(to).unwrap_or(usize::MAX), count, order, &bytes)
                    .map_err(Error::io(doing, start))?;
            }
            cluster = stop.max(cluster.saturating_add(1));
        }
        Ok(counts)
    }

    /// The refcount of one cluster; 0 if it is not known. `piece` keeps what was read last.
    pub(super) fn one(
        &self,
        storage: &impl ReadAt,
        cluster: u64,
        piece: &mut Option<(u64, Vec<u8>)>,
    ) -> Result<u64> {
        let Block::At(block) = self.block(cluster / self.per_block()) else { return Ok(0) };
        let order = self.geometry.refcount_order;
        let piece_bytes = PIECE_BYTES.min(self.geometry.cluster_bits.bytes());
        let per_piece = piece_bytes * 8 / u64::from(order.bits());
        let index = cluster % self.per_block();
        let at = block.saturating_add(index / per_piece * piece_bytes);
        let bytes = match piece.take() {
            Some((from, bytes)) if from == at => bytes,
            _ => {
                let length = usize::try_from(piece_bytes).unwrap_or(usize::MAX);
                let failed = || Error::io("read refcounts", at);
                let mut bytes = zeroed(length).map_err(failed())?;
                storage.read_full_at(&mut bytes, at).map_err(failed())?;
                bytes
            }
        };
        // Below the number of counts in a piece.
        let count = refcount::get(order, &bytes, usize::try_from(index % per_piece).unwrap_or(0));
        *piece = Some((at, bytes));
        Ok(count)
    }
}
