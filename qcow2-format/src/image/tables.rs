//! The tables that map the guest's disk: the L1 table in memory, L2 tables in cached slices.
//!
//! ```text
//! L2 table  [ slice ][ slice ][ slice ] …     4 KiB each by default: 32 MiB of 64 KiB clusters
//! ```
//!
//! Callers: `map`, `payload`'s readers.

use std::sync::Arc;

use crate::address::{GuestOffset, HostOffset};
use crate::error::Result;
use crate::image::cache::Cache;
use crate::image::options::ReadOptions;
use crate::io::{ReadAt, read_table};
use crate::l1::L1Table;
use crate::l2::{L2Entry, L2Rules, SubclusterBitmap};

#[derive(Debug)]
pub(super) struct Tables {
    l1: L1Table,
    rules: L2Rules,
    /// Slices by where they lie.
    slices: Cache<u64, Arc<[u64]>>,
    slice_bytes: u64,
}

/// Part of an L2 table, or of the guest's disk where there is none.
pub(super) enum Part {
    /// Everything up to `end` is unallocated.
    Hole { end: u64 },
    /// The entries in `slice` map up to `end`.
    Slice { slice: Slice, end: u64 },
}

pub(super) struct Slice {
    words: Arc<[u64]>,
    /// Where it lies in the file.
    at: HostOffset,
    /// What its first entry maps.
    guest: u64,
    rules: L2Rules,
}

impl Tables {
    pub(super) fn new(l1: L1Table, rules: L2Rules, options: &ReadOptions) -> Self {
        let table = rules.geometry.cluster_bits.bytes();
        let wanted = options.l2_slice.clamp(512, 64 << 10);
        let slice_bytes = (1_u64 << wanted.ilog2()).min(table);
        let capacity = usize::try_from(options.l2_cache / slice_bytes).unwrap_or(usize::MAX);
        Self { l1, rules, slices: Cache::new(capacity.max(2)), slice_bytes }
    }

    /// The part of the tables that maps `offset`.
    pub(super) fn part(&self, storage: &impl ReadAt, offset: u64) -> Result<Part> {
        let geometry = self.rules.geometry;
        let Some(table) = self.l1.l2_table(GuestOffset(offset))? else {
            let span = geometry.l1_entry_span();
            let end = (offset / span).saturating_add(1).saturating_mul(span);
            return Ok(Part::Hole { end });
        };
        let per_slice = self.slice_bytes / geometry.l2_entry_bytes();
        let number = geometry.l2_index(GuestOffset(offset)) / per_slice;
        // A table offset of 56 bits and less than a table.
        let at = HostOffset(table.0.saturating_add(number * self.slice_bytes));
        let words = match self.slices.get(at.0) {
            Some(words) => words,
            None => {
                let count = self.slice_bytes / 8;
                let words: Arc<[u64]> =
                    read_table(storage, at.0, count, "read an L2 table")?.into();
                self.slices.put(at.0, Arc::clone(&words));
                words
            }
        };
        let span = per_slice * geometry.cluster_bits.bytes();
        let guest = offset / span * span;
        let slice = Slice { words, at, guest, rules: self.rules };
        Ok(Part::Slice { slice, end: guest.saturating_add(span) })
    }
}

impl Slice {
    /// The entry that maps `offset`, which the slice covers.
    pub(super) fn entry(&self, offset: u64) -> Result<L2Entry> {
        let geometry = self.rules.geometry;
        let cluster_bits = geometry.cluster_bits;
        let index = offset.saturating_sub(self.guest) / cluster_bits.bytes();
        let word = |index: u64| {
            usize::try_from(index).ok().and_then(|index| self.words.get(index)).copied()
        };
        let (raw, bitmap) = if geometry.extended_l2 {
            (word(index * 2), word(index * 2 + 1))
        } else {
            (word(index), None)
        };
        let at = HostOffset(self.at.0.saturating_add(index * geometry.l2_entry_bytes()));
        let guest = GuestOffset(offset - cluster_bits.offset_in_cluster(offset));
        let bitmap = SubclusterBitmap(bitmap.unwrap_or_default());
        self.rules.decode(raw.unwrap_or_default(), bitmap, guest, at)
    }
}
