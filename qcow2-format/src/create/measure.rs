//! How long an image's file gets, before there is one: what `qemu-img measure` counts.
//!
//! ```text
//! [ header ][ L2 tables for all of the disk ][ L1 table ][ refcount structures ][ the disk ]
//!  1 cluster, and every table in whole clusters            count all of it, themselves included
//! ```
//!
//! Callers: disk-engine's `ops::measure`; `layout` counts refcount structures with the same sum.

use crate::create::CreateOptions;
use crate::error::Result;
use crate::geometry::{Geometry, TABLE_ENTRY_BYTES};
use crate::header::Version;
use crate::image::Preallocation;

/// What of an image's options its file's length depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Cluster size, refcount width and kind of L2 entries.
    pub geometry: Geometry,
    /// The format's version.
    pub version: Version,
    /// How much space is taken at once.
    pub preallocation: Preallocation,
    /// Whether it stands on a backing file: then nobody knows how much of a disk is there already.
    pub backed: bool,
}

impl Shape {
    /// Bytes of a file that stores every cluster of a disk of `virtual_size` bytes, as qemu-img counts
    /// them: the real file of an image whose tables lie closer together is a little shorter. More
    /// than 64 bits can tell is the most they can.
    #[must_use]
    pub fn fully_allocated_length(&self, virtual_size: u64) -> u64 {
        let geometry = self.geometry;
        let cluster_size = geometry.cluster_bits.bytes();
        let data = virtual_size.div_ceil(cluster_size);
        let l2_tables = data.div_ceil(geometry.l2_entries());
        let l1_clusters = geometry.cluster_bits.clusters(l2_tables * TABLE_ENTRY_BYTES);
        let counted = data + 1 + l2_tables + l1_clusters;
        let structures = RefcountStructures::for_clusters(geometry, counted);
        (counted + structures.blocks + structures.table).saturating_mul(cluster_size)
    }

    /// Whether the L2 tables of a disk of `virtual_size` bytes are more than the largest L1 table names.
    #[must_use]
    pub fn is_too_large(&self, virtual_size: u64) -> bool {
        virtual_size > self.geometry.max_virtual_size()
    }
}

impl CreateOptions {
    /// What of the options the file's length depends on.
    ///
    /// # Errors
    ///
    /// As [`CreateOptions::plan`], sizes aside.
    pub fn shape(&self) -> Result<Shape> {
        Ok(Shape {
            geometry: self.check()?,
            version: self.version,
            preallocation: self.preallocation,
            backed: self.backing.is_some(),
        })
    }
}

/// Refcount blocks that count a number of clusters and themselves, and their table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RefcountStructures {
    /// Blocks, of a cluster each.
    pub(super) blocks: u64,
    /// Clusters of the table.
    pub(super) table: u64,
}

impl RefcountStructures {
    /// The least that count `clusters` clusters.
    pub(super) fn for_clusters(geometry: Geometry, clusters: u64) -> Self {
        let mut found = Self::default();
        loop {
            let counted = clusters + found.table + found.blocks;
            let blocks = counted.div_ceil(geometry.refcounts_per_block());
            let table = blocks.div_ceil(geometry.refcount_table_entries_per_cluster());
            let next = Self { blocks, table };
            if next == found {
                return found;
            }
            found = next;
        }
    }
}
