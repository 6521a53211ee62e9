//! Refcounts of an image that only grows: a block is done once the clusters it counts are.
//!
//! Callers: `create::fill`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::address::HostOffset;
use crate::error::{Error, RequestError, Result};
use crate::geometry::{Geometry, REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::io::zeroed;
use crate::refcount;

#[derive(Debug)]
pub(super) struct Counting {
    geometry: Geometry,
    /// The blocks that may still change, by their index in the table.
    open: BTreeMap<u64, Vec<u8>>,
    /// Where the others lie.
    table: Vec<HostOffset>,
}

impl Counting {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, open: BTreeMap::new(), table: Vec::new() }
    }

    /// Counts one reference more to each of `clusters` clusters from `first` on.
    pub(super) fn add(&mut self, first: u64, clusters: u64) -> Result<()> {
        let per_block = self.geometry.refcounts_per_block();
        let order = self.geometry.refcount_order;
        let end = first.saturating_add(clusters);
        let mut at = first;
        while at < end {
            let index = at / per_block;
            let block_end = index.saturating_add(1).saturating_mul(per_block).min(end);
            let block = self.block(index)?;
            for cluster in at..block_end {
                let entry = usize::try_from(cluster % per_block).unwrap_or(usize::MAX);
                let count = refcount::get(order, block, entry);
                refcount::set(order, block, entry, count.saturating_add(1));
            }
            at = block_end;
        }
        Ok(())
    }

    /// Whether `cluster`, which is still open, can have one reference more.
    pub(super) fn may_add(&self, cluster: u64) -> bool {
        let per_block = self.geometry.refcounts_per_block();
        let order = self.geometry.refcount_order;
        let entry = usize::try_from(cluster % per_block).unwrap_or(usize::MAX);
        self.open
            .get(&(cluster / per_block))
            .is_some_and(|block| refcount::get(order, block, entry) < refcount::max(order))
    }

    /// The first open block, and its index, if all it counts lies below `decided`.
    pub(super) fn take_below(&mut self, decided: u64) -> Option<(u64, Vec<u8>)> {
        let per_block = self.geometry.refcounts_per_block();
        let (index, _) = self.open.first_key_value()?;
        let end = index.saturating_add(1).saturating_mul(per_block);
        if end <= decided { self.open.pop_first() } else { None }
    }

    /// The block with `index`, the next one, lies at `place`.
    pub(super) fn set_place(&mut self, index: u64, place: HostOffset) -> Result<()> {
        let bytes = index.saturating_add(1).saturating_mul(TABLE_ENTRY_BYTES);
        if bytes > REFCOUNT_TABLE_MAX_BYTES {
            return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
        }
        self.table.push(place);
        Ok(())
    }

    /// How many blocks have a place.
    pub(super) fn placed(&self) -> u64 {
        self.table.len() as u64
    }

    /// The refcount table, to the end of its last cluster.
    pub(super) fn table_bytes(&self) -> Vec<u8> {
        self.table.iter().flat_map(|place| place.to_u64().to_be_bytes()).collect()
    }

    fn block(&mut self, index: u64) -> Result<&mut Vec<u8>> {
        let bytes = usize::try_from(self.geometry.cluster_bits.bytes()).unwrap_or(usize::MAX);
        Ok(match self.open.entry(index) {
            Entry::Occupied(block) => block.into_mut(),
            Entry::Vacant(place) => {
                let failed = Error::io("take memory for refcounts", 0);
                place.insert(zeroed(bytes).map_err(failed)?)
            }
        })
    }
}
