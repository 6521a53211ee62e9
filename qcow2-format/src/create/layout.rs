//! Where the tables of a new image lie: exactly where qemu-img puts them.
//!
//! ```text
//! cluster   0        1                2                3 …
//!           [ header ][ refcount table ][ refcount block ][ L1 table … ]
//! ```
//!
//! That is the whole story while one refcount block can count all these clusters, which is
//! so unless a long L1 table meets small clusters. Beyond that, qemu-img's result is the outcome of
//! its allocator meeting the L1 table: more refcount blocks behind the L1 table, and, once the
//! refcount table's one cluster is full, a new table behind those (the old one is freed). We
//! replay that allocator, so that an image of ours ends at the same byte as one of theirs.
//!
//! Callers: `create`.

use crate::address::{HostCluster, HostOffset};
use crate::create::measure::RefcountStructures;
use crate::geometry::{Geometry, TABLE_ENTRY_BYTES};

/// Places of a new image's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the L1 table starts; 0 if it has no entries.
    pub l1_table_offset: HostOffset,
    /// Number of L1 entries.
    pub l1_size: u64,
    /// Where the refcount table starts.
    pub refcount_table_offset: HostOffset,
    /// Clusters the refcount table takes.
    pub refcount_table_clusters: u64,
    /// The refcount table's entries up to the last one in use: offsets of refcount blocks, 0 for
    /// none.
    pub refcount_blocks: Vec<HostOffset>,
    /// For each host cluster up to the last one in use, whether it is in use.
    pub used: Vec<bool>,
    /// Length of the file in bytes.
    pub file_length: u64,
}

/// Clusters 0 to 2: header, refcount table, refcount block.
const FIXED_CLUSTERS: u64 = 3;

impl Layout {
    /// Lays out an image with an L1 table of `l1_size` entries.
    pub(crate) fn reserve(geometry: Geometry, l1_size: u64) -> Self {
        let l1_clusters = geometry.cluster_bits.clusters(l1_size * TABLE_ENTRY_BYTES);
        let mut allocator = Allocator::new(geometry);
        let l1 = if l1_clusters > 0 { allocator.allocate(l1_clusters) } else { 0 };
        allocator.into_layout(l1, l1_size)
    }
}

/// qemu-img's cluster allocator on a new image, as far as creation exercises it: every count is
/// 0 or 1, and clusters are taken first-fit from `free_cluster` on.
struct Allocator {
    geometry: Geometry,
    used: Vec<bool>,
    /// Cluster numbers of the refcount blocks, by table index.
    blocks: Vec<Option<u64>>,
    /// Entries the refcount table has room for.
    table_entries: u64,
    table: u64,
    free_cluster: u64,
}

/// A table or a block was added: clusters the caller had in mind may be taken now.
struct Again;

impl Allocator {
    fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            used: vec![true; 3],
            blocks: vec![Some(2)],
            table_entries: geometry.refcount_table_entries_per_cluster(),
            table: 1,
            free_cluster: FIXED_CLUSTERS,
        }
    }

    /// Takes `count` clusters in a row and returns the first.
    fn allocate(&mut self, count: u64) -> u64 {
        loop {
            let first = self.find_free(count);
            let mut taken = 0;
            while taken < count && self.take(first + taken).is_ok() {
                taken += 1;
            }
            if taken == count {
                return first;
            }
            (first..first + taken).for_each(|cluster| self.release(cluster));
        }
    }

    /// Finds `count` clusters in a row with count 0. Does not take them.
    fn find_free(&mut self, count: u64) -> u64 {
        let mut found = 0;
        while found < count {
            found = if self.is_used(self.free_cluster) { 0 } else { found + 1 };
            self.free_cluster += 1;
        }
        self.free_cluster - count
    }

    fn is_used(&self, cluster: u64) -> bool {
        index(cluster).and_then(|cluster| self.used.get(cluster)).copied().unwrap_or(false)
    }

    fn set_used(&mut self, cluster: u64, used: bool) {
        let Some(cluster) = index(cluster) else { return };
        if cluster >= self.used.len() {
            self.used.resize(cluster + 1, false);
        }
        if let Some(place) = self.used.get_mut(cluster) {
            *place = used;
        }
    }

    fn block_of(&self, cluster: u64) -> u64 {
        cluster / self.geometry.refcounts_per_block()
    }

    fn has_block(&self, block: u64) -> bool {
        index(block).and_then(|block| self.blocks.get(block)).is_some_and(Option::is_some)
    }

    fn set_block(&mut self, block: u64, cluster: u64) {
        let Some(block) = index(block) else { return };
        if block >= self.blocks.len() {
            self.blocks.resize(block + 1, None);
        }
        if let Some(place) = self.blocks.get_mut(block) {
            *place = Some(cluster);
        }
    }

    /// Counts a cluster as used, unless a refcount block has to be made for that first.
    fn take(&mut self, cluster: u64) -> Result<(), Again> {
        if !self.has_block(self.block_of(cluster)) {
            self.add_block(cluster)?;
        }
        self.set_used(cluster, true);
        Ok(())
    }

    fn release(&mut self, cluster: u64) {
        self.set_used(cluster, false);
        self.free_cluster = self.free_cluster.min(cluster);
    }

    /// Makes the refcount block that counts `cluster`; the caller has to start over.
    fn add_block(&mut self, cluster: u64) -> Result<(), Again> {
        let block = self.block_of(cluster);
        let place = self.find_free(1);
        let counts_itself = self.block_of(place) == block;
        if !counts_itself {
            self.take(place)?;
        }
        if block < self.table_entries {
            self.set_block(block, place);
        } else {
            self.grow_table(cluster, block, place);
        }
        if counts_itself {
            self.set_used(place, true);
        }
        Err(Again)
    }

    /// Makes a larger refcount table behind everything else, with the blocks that count it.
    fn grow_table(&mut self, cluster: u64, block: u64, place: u64) {
        let per_block = self.geometry.refcounts_per_block();
        let start = cluster.max(place).saturating_add(1).next_multiple_of(per_block);
        let total = self.generous_block_count(start);
        let per_cluster = self.geometry.refcount_table_entries_per_cluster();
        let entries = (total + total.div_ceil(2)).next_multiple_of(per_cluster);

        self.set_block(block, place);
        let mut next = start;
        for index in start / per_block..total {
            if !self.has_block(index) {
                self.set_block(index, next);
                next += 1;
            }
        }
        let old = self.table..self.table + self.table_entries / per_cluster;
        self.table = next;
        self.table_entries = entries;
        (start..next + entries / per_cluster).for_each(|cluster| self.set_used(cluster, true));
        old.for_each(|cluster| self.release(cluster));
    }

    /// Refcount blocks that count `clusters` clusters, a table for them, and half a table more.
    fn generous_block_count(&self, clusters: u64) -> u64 {
        let least = RefcountStructures::for_clusters(self.geometry, clusters);
        let generous = clusters + least.table.div_ceil(2);
        RefcountStructures::for_clusters(self.geometry, generous).blocks
    }

    fn into_layout(mut self, l1: u64, l1_size: u64) -> Layout {
        let bits = self.geometry.cluster_bits;
        let offset = |cluster| bits.offset_of(HostCluster(cluster));
        let last_used = self.used.iter().rposition(|used| *used).map_or(0, |last| last + 1);
        self.used.truncate(last_used);
        let l1_table_offset = offset(l1);
        let l1_end = l1_table_offset.to_u64() + l1_size * TABLE_ENTRY_BYTES;
        let clusters = self.used.len() as u64;
        // The L1 table is written to its last entry, every other structure to its cluster's end.
        let file_length = if bits.clusters(l1_end) == clusters && l1_size > 0 {
            l1_end
        } else {
            clusters * bits.bytes()
        };
        Layout {
            l1_table_offset,
            l1_size,
            refcount_table_offset: offset(self.table),
            refcount_table_clusters: self.table_entries
                / self.geometry.refcount_table_entries_per_cluster(),
            refcount_blocks: self
                .blocks
                .into_iter()
                .map(|block| block.map_or(HostOffset(0), offset))
                .collect(),
            used: self.used,
            file_length,
        }
    }
}

/// A cluster number as an index. Creation never reaches numbers that memory cannot hold.
fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}
