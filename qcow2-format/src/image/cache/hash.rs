//! Places in a file as keys: hashed with two multiplications, after a secret of the map's own.
//!
//! ```text
//! number ─▶ xor secret ─▶ × odd constant ─▶ high half xor low half ─▶ mixed once more
//! ```
//!
//! The standard hash takes longer than all the rest of a lookup. Images choose these numbers, so the
//! secret matters: without it a table of offsets could be made that all fall together.
//! Callers: `cache`, `write::guard`, `write::counts`.

use std::hash::{BuildHasher, Hasher, RandomState};

/// An odd number without pattern: the golden ratio's fraction.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Another one.
const FINISH: u64 = 0xd6e8_feb8_6659_fd93;

#[derive(Clone, Debug)]
pub(in crate::image) struct PlaceHash {
    secret: u64,
}

impl Default for PlaceHash {
    fn default() -> Self {
        Self { secret: RandomState::new().hash_one(FACTOR) }
    }
}

impl BuildHasher for PlaceHash {
    type Hasher = PlaceHasher;

    fn build_hasher(&self) -> PlaceHasher {
        PlaceHasher(self.secret)
    }
}

pub(in crate::image) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(FACTOR);
        // Both halves of a product of 128 bits.
        let [high, low] = [product >> 64, product & u128::from(u64::MAX)];
        self.0 = u64::try_from(high ^ low).unwrap_or_default();
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(FINISH);
        mixed ^ mixed >> 29
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn places_that_differ_in_few_bits_fall_apart() {
        let hash = PlaceHash::default();
        for shift in [0, 9, 12, 16, 21] {
            // What maps look at: low bits for the place, high bits to tell neighbours apart.
            for part in [|hash: u64| hash & 0xffff, |hash: u64| hash >> 48] {
                let found: HashSet<u64> =
                    (0..4096_u64).map(|number| part(hash.hash_one(number << shift))).collect();
                assert!(found.len() > 3600, "{shift}: {}", found.len());
            }
        }
    }

    #[test]
    fn each_map_has_a_secret_of_its_own() {
        let [one, other] = [PlaceHash::default(), PlaceHash::default()];
        assert_ne!(one.hash_one(7_u64), other.hash_one(7_u64));
    }
}
