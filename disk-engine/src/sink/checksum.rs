//! CRC-32 of what was written, range by range, in bounded memory.
//!
//! ```text
//! written   ████████      ███   ██                ██████
//! runs      └ crc ─┘      └crc┘ └┘                └ crc ┘       at most 65,536 of them
//! merged    └ crc ─┘      └ crc ─┘                └ crc ┘       too many: close gaps are covered
//! ```
//!
//! A gap is a hole and reads as zeros, so covering it needs no reading: the CRC of zeros is computed
//! from their number. The outcome depends on what was written alone, not on timing. Callers:
//! `sink::raw` adds, the cache's manifest keeps the sums.

use crc32fast::Hasher;

/// The CRC-32 (IEEE) of a range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentSum {
    /// Where the range begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes. Holes inside it are zeros and count.
    pub length: u64,
    /// The CRC-32 of its bytes.
    pub crc32: u32,
}

/// Most runs kept.
const MOST: usize = 65_536;

/// Gathers sums of ascending ranges.
#[derive(Debug)]
pub(crate) struct ExtentSums {
    runs: Vec<ExtentSum>,
    /// The range being hashed: where it began, and its hash so far.
    open: Option<(u64, u64, Hasher)>,
    /// Gaps shorter than this are covered.
    distance: u64,
    most: usize,
}

impl ExtentSums {
    pub(crate) fn new() -> Self {
        Self::at_most(MOST)
    }

    fn at_most(most: usize) -> Self {
        Self { runs: Vec::new(), open: None, distance: 0, most }
    }

    /// Adds `bytes` at `offset`, past everything added before.
    pub(crate) fn add(&mut self, offset: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        match &mut self.open {
            Some((start, covered, hasher)) if *start + *covered == offset => {
                hasher.update(bytes);
                *covered += length;
            }
            _ => {
                self.close();
                let mut hasher = Hasher::new();
                hasher.update(bytes);
                self.open = Some((offset, length, hasher));
            }
        }
    }

    /// All sums, ascending and disjoint.
    pub(crate) fn finish(mut self) -> Vec<ExtentSum> {
        self.close();
        self.runs
    }

    fn close(&mut self) {
        let Some((offset, length, hasher)) = self.open.take() else { return };
        self.push(ExtentSum { offset, length, crc32: hasher.finalize() });
        while self.runs.len() > self.most {
            // Doubled each time, from a block on: few rounds, whatever the disk looks like.
            self.distance = self.distance.saturating_mul(2).max(8192);
            for run in std::mem::take(&mut self.runs) {
                self.push(run);
            }
        }
    }

    fn push(&mut self, run: ExtentSum) {
        match self.runs.last_mut() {
            Some(last) if run.offset - (last.offset + last.length) < self.distance => {
                *last = joined(last, &run);
            }
            _ => self.runs.push(run),
        }
    }
}

/// The sum of `first`, the zeros after it, and `second`.
fn joined(first: &ExtentSum, second: &ExtentSum) -> ExtentSum {
    let gap = second.offset - (first.offset + first.length);
    let crc32 = append(append(first.crc32, zeros(gap), gap), second.crc32, second.length);
    ExtentSum { offset: first.offset, length: first.length + gap + second.length, crc32 }
}

/// The CRC-32 of bytes with sum `first`, followed by `length` bytes with sum `second`.
fn append(first: u32, second: u32, length: u64) -> u32 {
    let mut hasher = Hasher::new_with_initial(first);
    hasher.combine(&Hasher::new_with_initial_len(second, length));
    hasher.finalize()
}

/// The CRC-32 of `length` zeros, by doubling.
fn zeros(length: u64) -> u32 {
    let mut sum = 0;
    // The sum of 2^bit zeros.
    let mut power = crc32fast::hash(&[0]);
    for bit in 0..u64::BITS - length.leading_zeros() {
        if length >> bit & 1 == 1 {
            sum = append(sum, power, 1 << bit);
        }
        power = append(power, power, 1 << bit);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 64 KiB with some written ranges, and the sums of it.
    fn sums(ranges: &[(usize, usize)], most: usize) -> (Vec<u8>, Vec<ExtentSum>) {
        let mut disk = vec![0; 64 << 10];
        let mut sums = ExtentSums::at_most(most);
        for (offset, length) in ranges {
            for (index, byte) in disk[*offset..offset + length].iter_mut().enumerate() {
                *byte = u8::try_from((index * 7 + offset) % 251).unwrap();
            }
            sums.add(*offset as u64, &disk[*offset..offset + length]);
        }
        (disk, sums.finish())
    }

    #[test]
    fn each_sum_is_the_crc_of_its_range() {
        let ranges = [(0, 100), (100, 50), (4096, 8192), (20480, 1), (61440, 4096)];
        for most in 1..6 {
            let (disk, sums) = sums(&ranges, most);
            assert!(sums.len() <= most, "{most}: {sums:?}");
            for sum in &sums {
                let start = usize::try_from(sum.offset).unwrap();
                let end = start + usize::try_from(sum.length).unwrap();
                assert_eq!(sum.crc32, crc32fast::hash(&disk[start..end]), "{most}: {sum:?}");
            }
            let covered = |at: usize| {
                sums.iter().any(|sum| (sum.offset..sum.offset + sum.length).contains(&(at as u64)))
            };
            assert!((0..disk.len()).all(|at| disk[at] == 0 || covered(at)));
        }
    }

    #[test]
    fn neighbours_that_touch_are_one_run() {
        assert_eq!(sums(&[(0, 4096), (4096, 4096), (12288, 4096)], 10).1.len(), 2);
    }

    #[test]
    fn the_crc_of_zeros_needs_no_zeros() {
        for length in [0_usize, 1, 2, 3, 4095, 4096, 100_000] {
            assert_eq!(zeros(length as u64), crc32fast::hash(&vec![0; length]), "{length}");
        }
    }
}
