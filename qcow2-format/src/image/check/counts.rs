//! Counts of the clusters of a page, as narrow as they fit.
//!
//! ```text
//! page   64 Ki clusters:   2 bits each, 16 KiB   then 8, 16 or 64, when one does not fit
//! ```
//!
//! Callers: `tally`.

use std::io;
use std::ops::Range;

use crate::geometry::RefcountOrder;
use crate::io::{is_zero, zeroed};
use crate::refcount;

/// Clusters of a page.
pub(in crate::image) const PAGE_CLUSTERS: usize = 1 << 16;
/// Four counts of one, at two bits.
const ONES: u8 = 0b0101_0101;

#[derive(Debug)]
pub(in crate::image) struct Counts {
    order: RefcountOrder,
    bytes: Vec<u8>,
}

/// The narrowest width that counts have.
fn narrow() -> RefcountOrder {
    RefcountOrder::from_bits(2).unwrap_or(RefcountOrder::DEFAULT)
}

impl Counts {
    pub(super) fn new() -> io::Result<Self> {
        let order = narrow();
        Ok(Self { order, bytes: zeroed(PAGE_CLUSTERS / 8 * order.bits() as usize)? })
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(in crate::image) fn get(&self, index: usize) -> u64 {
        refcount::get(self.order, &self.bytes, index)
    }

    /// Adds `times` to each count in `range`.
    pub(super) fn add(&mut self, range: Range<usize>, times: u64) -> io::Result<()> {
        let inner = range.start.next_multiple_of(4)..range.end & !3;
        if times == 1
            && self.order == narrow()
            && let Some(bytes) = self.bytes.get_mut(inner.start / 4..inner.end / 4)
            && is_zero(bytes)
        {
            bytes.fill(ONES);
            self.add_each(range.start..inner.start, 1)?;
            return self.add_each(inner.end..range.end, 1);
        }
        self.add_each(range, times)
    }

    fn add_each(&mut self, range: Range<usize>, times: u64) -> io::Result<()> {
        for index in range {
            self.set(index, self.get(index).saturating_add(times))?;
        }
        Ok(())
    }

    pub(super) fn set(&mut self, index: usize, count: u64) -> io::Result<()> {
        if count > refcount::max(self.order) {
            self.widen(count)?;
        }
        refcount::set(self.order, &mut self.bytes, index, count);
        Ok(())
    }

    /// Makes room for `count`.
    fn widen(&mut self, count: u64) -> io::Result<()> {
        let wide = [8, 16, 64].into_iter().filter_map(RefcountOrder::from_bits);
        let order = wide.filter(|order| refcount::max(*order) >= count).min();
        let order = order.unwrap_or(RefcountOrder::MAX);
        let mut bytes = zeroed(PAGE_CLUSTERS / 8 * order.bits() as usize)?;
        for index in 0..PAGE_CLUSTERS {
            let count = self.get(index);
            if count != 0 {
                refcount::set(order, &mut bytes, index, count);
            }
        }
        *self = Self { order, bytes };
        Ok(())
    }

    /// Takes `count` counts from `first` on from the start of `block`, a part of a refcount block.
    pub(super) fn load(
        &mut self,
        first: usize,
        count: usize,
        order: RefcountOrder,
        block: &[u8],
    ) -> io::Result<()> {
        // Most counts are 0 or 1, and most 16 bits wide.
        const GROUP: usize = 64;
        let group_bytes = GROUP * order.bits() as usize / 8;
        let ones = refcount::encode_ones(order, [true; GROUP]);
        let mut done = 0;
        for part in block.chunks(group_bytes) {
            let group = GROUP.min(count.saturating_sub(done));
            let at = first + done;
            done += group;
            if is_zero(part) {
                continue;
            }
            let whole = group == GROUP && at.is_multiple_of(4);
            if part == ones && whole && self.order == narrow() {
                let bytes = self.bytes.get_mut(at / 4..at / 4 + GROUP / 4).unwrap_or_default();
                bytes.fill(ONES);
                continue;
            }
            for index in 0..group {
                let count = refcount::get(order, part, index);
                if count != 0 {
                    self.set(at + index, count)?;
                }
            }
        }
        Ok(())
    }

    /// Whether each count in `range` is one.
    pub(super) fn all_ones(&self, range: Range<usize>) -> bool {
        let inner = range.start.next_multiple_of(4)..range.end & !3;
        if self.order == narrow()
            && let Some(bytes) = self.bytes.get(inner.start / 4..inner.end / 4)
        {
            return bytes.iter().all(|byte| *byte == ONES)
                && (range.start..inner.start)
                    .chain(inner.end..range.end)
                    .all(|i| self.get(i) == 1);
        }
        range.into_iter().all(|index| self.get(index) == 1)
    }

    /// Whether no count in `range` is one.
    pub(super) fn no_ones(&self, mut range: Range<usize>) -> bool {
        range.all(|index| self.get(index) != 1)
    }

    /// The first index from `from` on at which the two differ.
    pub(super) fn first_difference(&self, other: &Self, from: usize) -> Option<usize> {
        let mut from = from;
        if self.order == other.order {
            // Eight counts are whole bytes at every width.
            const STEP: usize = 1024;
            while from < PAGE_CLUSTERS {
                let end = (from / STEP + 1) * STEP;
                let bytes = refcount::bytes_of(self.order, from, end - 1);
                if self.bytes.get(bytes.clone()) != other.bytes.get(bytes) {
                    let found = (from..end).find(|index| self.get(*index) != other.get(*index));
                    if found.is_some() {
                        return found;
                    }
                }
                from = end;
            }
            return None;
        }
        while from < PAGE_CLUSTERS && self.get(from) == other.get(from) {
            from += 1;
        }
        (from < PAGE_CLUSTERS).then_some(from)
    }

    /// The last index below `end` whose count is not zero.
    pub(super) fn last_used(&self, end: usize) -> Option<usize> {
        let per_byte = 8_usize.div_ceil(self.order.bits() as usize);
        let bytes = refcount::bytes_of(self.order, 0, end.checked_sub(1)?);
        let last = self.bytes.get(bytes)?.iter().rposition(|byte| *byte != 0)?;
        // The counts that have bits in that byte, and those before if `end` lies within it.
        let behind = match self.order.bits() {
            bits if bits < 8 => (last + 1) * per_byte,
            bits => last / (bits as usize / 8) + 1,
        };
        (0..behind.min(end)).rev().find(|index| self.get(*index) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_widen_and_keep_what_they_were() {
        let mut counts = Counts::new().unwrap();
        counts.add(3..70, 1).unwrap();
        counts.add(5..6, 1).unwrap();
        assert_eq!((counts.memory(), counts.get(5), counts.get(69)), (16 << 10, 2, 1));
        counts.add(7..8, 300).unwrap();
        assert_eq!((counts.get(7), counts.get(5), counts.get(2), counts.get(70)), (301, 2, 0, 0));
        counts.add(9..10, u64::MAX).unwrap();
        counts.add(9..10, 2).unwrap();
        assert_eq!((counts.get(9), counts.get(7)), (u64::MAX, 301));
        assert_eq!(counts.last_used(PAGE_CLUSTERS), Some(69));
        assert_eq!(counts.last_used(69), Some(68));
        assert_eq!(counts.last_used(3), None);
    }

    #[test]
    fn what_is_loaded_is_what_the_block_says() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let order = RefcountOrder::from_bits(bits).unwrap();
            let mut block = vec![0; 512 * bits as usize / 8];
            let value = |index: usize| match index {
                0..=127 => 1,
                128..=255 => 0,
                other => other as u64 & refcount::max(order),
            };
            for index in 0..512 {
                refcount::set(order, &mut block, index, value(index));
            }
            let (mut counts, mut set) = (Counts::new().unwrap(), Counts::new().unwrap());
            counts.load(1000, 512, order, &block).unwrap();
            for index in 0..512 {
                assert_eq!(counts.get(1000 + index), value(index), "{bits} {index}");
                set.set(1000 + index, value(index)).unwrap();
            }
            assert!(counts.all_ones(1001..1127) && !counts.all_ones(1001..1129));
            assert!(counts.no_ones(1128..1256) && !counts.no_ones(1127..1256));
            assert_eq!(counts.first_difference(&set, 0), None);
            set.set(1100, 3).unwrap();
            set.set(65_000, 200).unwrap();
            assert_eq!(counts.first_difference(&set, 7), Some(1100));
            assert_eq!(counts.first_difference(&set, 1101), Some(65_000));
        }
    }
}
