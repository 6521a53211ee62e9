//! The L1 table and the one L2 table that is being filled.
//!
//! Callers: `create::fill`.

use std::mem;

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::io::zeroed;
use crate::l1;
use crate::l2::SubclusterBitmap;

#[derive(Debug)]
pub(super) struct GuestTables {
    geometry: Geometry,
    l1: Vec<u64>,
    /// Which L1 entry the L2 table is for, once it maps anything.
    index: Option<u64>,
    l2: Vec<u8>,
}

impl GuestTables {
    pub(super) fn new(geometry: Geometry) -> Result<Self> {
        let bytes = usize::try_from(geometry.cluster_bits.bytes()).unwrap_or(usize::MAX);
        let l2 = zeroed(bytes).map_err(Error::io("take memory for a table", 0))?;
        Ok(Self { geometry, l1: Vec::new(), index: None, l2 })
    }

    /// Whether an entry for `guest` goes into the L2 table as it is, without ending another one.
    pub(super) fn holds(&self, guest: GuestOffset) -> bool {
        self.index.is_none_or(|index| index == self.geometry.l1_index(guest))
    }

    /// Sets the entry of the cluster at `guest`, which the table holds.
    pub(super) fn set(&mut self, guest: GuestOffset, entry: u64, bitmap: SubclusterBitmap) {
        self.index = Some(self.geometry.l1_index(guest));
        let width = self.geometry.l2_entry_bytes();
        let at = self.geometry.l2_index(guest).saturating_mul(width);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let place = self.l2.get_mut(at..).unwrap_or_default();
        if let Some((first, rest)) = place.split_first_chunk_mut::<8>() {
            *first = entry.to_be_bytes();
            if self.geometry.extended_l2
                && let Some(second) = rest.first_chunk_mut::<8>()
            {
                *second = bitmap.0.to_be_bytes();
            }
        }
    }

    /// The L2 table, if it maps anything, and the index of its L1 entry.
    pub(super) fn take(&mut self) -> Option<(u64, Vec<u8>)> {
        self.index.take().map(|index| (index, mem::take(&mut self.l2)))
    }

    /// The table that was taken lies at `at`; its memory is for the next one.
    pub(super) fn link(&mut self, index: u64, at: HostOffset, mut memory: Vec<u8>) {
        // At most the 2^22 entries of the largest L1 table: no disk has more.
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index >= self.l1.len() {
            self.l1.resize(index.saturating_add(1), 0);
        }
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = l1::COPIED | at.to_u64();
        }
        memory.fill(0);
        self.l2 = memory;
    }

    /// The L1 table, with `entries` entries.
    pub(super) fn l1_bytes(&self, entries: u32) -> Vec<u8> {
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let all = self.l1.iter().copied().chain(std::iter::repeat(0)).take(entries);
        all.flat_map(u64::to_be_bytes).collect()
    }
}
