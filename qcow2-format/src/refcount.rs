//! Refcount blocks (spec: "Host cluster management"): one count per host cluster.
//!
//! ```text
//! order   width     entry n of a block
//! 0..=2   1,2,4 b   byte n / (8 / width), least significant bits first
//! 3..=6   8…64 b    big-endian at byte n × width / 8
//! ```
//!
//! Callers: `create` (the blocks of a new image).

use crate::geometry::RefcountOrder;

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
}
