//! Refcount blocks (spec: "Host cluster management"): one count per host cluster.
//!
//! ```text
//! order   width     entry n of a block
//! 0..=2   1,2,4 b   byte n / (8 / width), least significant bits first
//! 3..=6   8…64 b    big-endian at byte n × width / 8
//! ```
//!
//! Callers: `create` (the blocks of a new image), `image::write`.

use std::ops::Range;

use crate::geometry::RefcountOrder;

/// The largest refcount of that width.
pub(crate) const fn max(order: RefcountOrder) -> u64 {
    u64::MAX >> (64 - order.bits())
}

/// Entry `index` of `block`, or of a part of one that starts with entry 0; 0 past its end.
pub(crate) fn get(order: RefcountOrder, block: &[u8], index: usize) -> u64 {
    let width = order.bits() as usize;
    if width < 8 {
        let (byte, shift) = (index * width / 8, index * width % 8);
        let byte = block.get(byte).copied().unwrap_or_default();
        return u64::from(byte >> shift) & max(order);
    }
    let bytes = block.get(index * (width / 8)..).unwrap_or_default();
    bytes.iter().take(width / 8).fold(0, |count, byte| count << 8 | u64::from(*byte))
}

/// Makes `count`, which is at most [`max`], entry `index` of `block`.
pub(crate) fn set(order: RefcountOrder, block: &mut [u8], index: usize, count: u64) {
    let width = order.bits() as usize;
    let [.., low] = count.to_be_bytes();
    if width < 8 {
        let (byte, shift) = (index * width / 8, index * width % 8);
        let [.., mask] = max(order).to_be_bytes();
        if let Some(byte) = block.get_mut(byte) {
            *byte = *byte & !(mask << shift) | (low & mask) << shift;
        }
        return;
    }
    let bytes = count.to_be_bytes();
    let bytes = bytes.get(8 - width / 8..).unwrap_or_default();
    let start = index * (width / 8);
    if let Some(place) = block.get_mut(start..start + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The bytes of a block that hold the entries from `first` to `last`.
pub(crate) const fn bytes_of(order: RefcountOrder, first: usize, last: usize) -> Range<usize> {
    let width = order.bits() as usize;
    first * width / 8..(last * width + width).div_ceil(8)
}

/// The start of a refcount block whose entries are 1 where `used` says so, up to the last such
/// entry; what follows in the block is zero.
pub(crate) fn encode_ones(order: RefcountOrder, used: impl IntoIterator<Item = bool>) -> Vec<u8> {
    let mut block = Vec::new();
    for (index, used) in used.into_iter().enumerate() {
        if !used {
            continue;
        }
        let width = order.bits() as usize;
        if width < 8 {
            let (byte, shift) = (index * width / 8, index * width % 8);
            if block.len() <= byte {
                block.resize(byte + 1, 0);
            }
            if let Some(byte) = block.get_mut(byte) {
                *byte |= 1 << shift;
            }
        } else {
            // Big-endian: the count of one is the entry's last byte.
            block.resize((index + 1) * (width / 8) - 1, 0);
            block.push(1);
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_where_the_specification_puts_them() {
        let used = [true, true, false, true];
        for (order, expected) in [
            (0, vec![0b1011]),
            (1, vec![0b0100_0101]),
            (2, vec![0x11, 0x10]),
            (3, vec![1, 1, 0, 1]),
            (4, vec![0, 1, 0, 1, 0, 0, 0, 1]),
            (5, vec![0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            let order = RefcountOrder::new(order).unwrap();
            assert_eq!(encode_ones(order, used), expected, "{order:?}");
        }
    }

    #[test]
    fn each_entry_is_its_own_at_every_width() {
        for order in 0..=6 {
            let order = RefcountOrder::new(order).unwrap();
            let mut block = vec![0; 64];
            let entries = 64 * 8 / order.bits() as usize;
            let value =
                |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & max(order);
            for index in 0..entries {
                set(order, &mut block, index, value(index));
            }
            for index in 0..entries {
                assert_eq!(get(order, &block, index), value(index), "{order:?} {index}");
            }
            assert_eq!(get(order, &block, entries), 0);
            set(order, &mut block, 1, max(order));
            assert_eq!(get(order, &block, 0), value(0));
            assert_eq!(get(order, &block, 2), value(2));
            assert_eq!(encode_ones(order, [true]), {
                let mut one = vec![0; bytes_of(order, 0, 0).len()];
                set(order, &mut one, 0, 1);
                one
            });
        }
        assert_eq!(bytes_of(RefcountOrder::new(0).unwrap(), 7, 8), 0..2);
        assert_eq!(bytes_of(RefcountOrder::DEFAULT, 3, 3), 6..8);
    }
}
