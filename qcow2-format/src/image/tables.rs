//! The tables that map the guest's disk: the L1 table in memory, L2 tables in cached slices.
//!
//! ```text
//! L2 table  [ slice ][ slice ][ slice ] …     4 KiB each by default: 32 MiB of 64 KiB clusters
//! ```
//!
//! Who writes replaces a slice by a changed copy, so that a reader has the one or the other. Changed
//! slices stay in memory until they stand in the file. Callers: `map`, `read`, `write`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Those that differ from the file, by where they lie.
    changed: Mutex<BTreeMap<u64, ChangedSlice>>,
    slice_bytes: u64,
}

/// A slice that differs from the file.
#[derive(Clone, Debug)]
pub(super) struct ChangedSlice {
    pub(super) words: Arc<[u64]>,
    /// The words that differ, and perhaps some between them.
    pub(super) range: Range<usize>,
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
    /// Guest bytes that it maps.
    span: u64,
    rules: L2Rules,
}

impl Tables {
    pub(super) fn new(l1: L1Table, rules: L2Rules, options: &ReadOptions) -> Self {
        let table = rules.geometry.cluster_bits.bytes();
        let wanted = options.l2_slice.clamp(512, 64 << 10);
        let slice_bytes = (1_u64 << wanted.ilog2()).min(table);
        let capacity = usize::try_from(options.l2_cache / slice_bytes).unwrap_or(usize::MAX);
        Self {
            l1,
            rules,
            slices: Cache::new(capacity.max(2)),
            changed: Mutex::default(),
            slice_bytes,
        }
    }

    /// Bytes of a slice.
    pub(super) fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    pub(super) fn l1(&self) -> &L1Table {
        &self.l1
    }

    pub(super) fn changed(&self) -> MutexGuard<'_, BTreeMap<u64, ChangedSlice>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the words of `slice` from `first` on. The file is left as it is.
    pub(super) fn change(&self, slice: &Slice, first: usize, new: &[u64]) {
        let mut words = slice.words.to_vec();
        let range = first..first.saturating_add(new.len());
        if let Some(place) = words.get_mut(range.clone()) {
            place.copy_from_slice(new);
        }
        let words: Arc<[u64]> = words.into();
        let at = slice.at.0;
        let mut changed = self.changed();
        let range = match changed.get(&at) {
            Some(before) => before.range.start.min(range.start)..before.range.end.max(range.end),
            None => range,
        };
        changed.insert(at, ChangedSlice { words: Arc::clone(&words), range });
        drop(changed);
        self.slices.change(at, words);
    }

    /// Forgets the slices of the table at `table`: something else lies there.
    pub(super) fn forget(&self, table: HostOffset) {
        let end = table.0.saturating_add(self.rules.geometry.cluster_bits.bytes());
        let mut at = table.0;
        while at < end {
            self.changed().remove(&at);
            self.slices.forget(at);
            at = at.saturating_add(self.slice_bytes);
        }
    }

    /// The part of the tables that maps `offset`.
    pub(super) fn part(&self, storage: &impl ReadAt, offset: u64) -> Result<Part> {
        let geometry = self.rules.geometry;
        let Some(table) = self.l1.l2_table(GuestOffset(offset))? else {
            let span = geometry.l1_entry_span();
            let end = (offset / span).saturating_add(1).saturating_mul(span);
            return Ok(Part::Hole { end });
        };
        let slice = self.slice(storage, table, offset)?;
        let end = slice.end();
        Ok(Part::Slice { slice, end })
    }

    /// The slice of the table at `table` that maps `offset`.
    pub(super) fn slice(
        &self,
        storage: &impl ReadAt,
        table: HostOffset,
        offset: u64,
    ) -> Result<Slice> {
        let geometry = self.rules.geometry;
        let per_slice = self.slice_bytes / geometry.l2_entry_bytes();
        let number = geometry.l2_index(GuestOffset(offset)) / per_slice;
        // A table offset of 56 bits and less than a table.
        let at = HostOffset(table.0.saturating_add(number * self.slice_bytes));
        let words = self.words(storage, at)?;
        let span = per_slice * geometry.cluster_bits.bytes();
        let guest = offset / span * span;
        Ok(Slice { words, at, guest, span, rules: self.rules })
    }

    fn words(&self, storage: &impl ReadAt, at: HostOffset) -> Result<Arc<[u64]>> {
        let mut before: Option<Arc<[u64]>> = None;
        loop {
            let changes = match self.slices.look(at.0) {
                Ok(words) => return Ok(words),
                Err(changes) => changes,
            };
            if let Some(changed) = self.changed().get(&at.0) {
                return Ok(Arc::clone(&changed.words));
            }
            let count = self.slice_bytes / 8;
            let words: Arc<[u64]> = read_table(storage, at.0, count, "read an L2 table")?.into();
            // What was read while somebody changed a slice may be half of that change.
            if self.slices.put_unchanged(at.0, Arc::clone(&words), changes) {
                return Ok(words);
            }
            // Whoever changes other slices all the time does not keep this one from being read.
            if before.as_ref() == Some(&words) {
                return Ok(words);
            }
            before = Some(words);
        }
    }
}

impl Slice {
    /// Where the guest bytes end that it maps.
    pub(super) fn end(&self) -> u64 {
        self.guest.saturating_add(self.span)
    }

    /// Which word the entry for `offset` starts at.
    pub(super) fn word_index(&self, offset: u64) -> usize {
        let geometry = self.rules.geometry;
        let index = offset.saturating_sub(self.guest) / geometry.cluster_bits.bytes();
        // A slice has at most 8192 words.
        usize::try_from(index * (geometry.l2_entry_bytes() / 8)).unwrap_or(usize::MAX)
    }

    /// Where the entry for `offset` lies in the file.
    pub(super) fn offset_of(&self, offset: u64) -> HostOffset {
        HostOffset(self.at.0.saturating_add(self.word_index(offset) as u64 * 8))
    }

    /// The entry as it stands in the table.
    pub(super) fn raw(&self, offset: u64) -> u64 {
        self.words.get(self.word_index(offset)).copied().unwrap_or_default()
    }

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
