//! The places of a disk that are read or written, one request each.
//!
//! ```text
//! in order      0 1 2 3 4 5 6 7            the first `count` blocks of the disk
//! scattered     0 5 2 7 4 1 6 3            steps of 0.618 disks: each block once, before any again
//! ```
//!
//! QEMU's own benchmark goes in steps and knows no chance, so that everybody does. What is drawn by
//! chance would fall into the same places of tables and caches, in the long run.

use std::thread;

use super::Disk;

/// Where memory that is read to starts: at a page, as anybody would have it.
const ALIGNMENT: usize = 4096;

/// Requests of one size.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Whether in large steps.
    pub scattered: bool,
    /// Size of the disk in bytes: a power of two.
    pub size: u64,
    /// Bytes of a request: a power of two.
    pub block: usize,
    /// How many requests.
    pub count: u64,
    /// How many threads share them.
    pub threads: u64,
}

impl Walk {
    /// From one request's place to the next one's.
    #[must_use]
    pub fn step(&self) -> u64 {
        let block = self.block as u64;
        let blocks = self.size / block;
        // The golden section, made odd: it has no divisor in common with a power of two.
        let blocks = if self.scattered { (blocks * 40_503 / 65_536) | 1 } else { 1 };
        blocks * block
    }

    /// Where request `index` goes.
    #[must_use]
    pub fn offset(&self, index: u64) -> u64 {
        index.wrapping_mul(self.step()) % self.size
    }

    /// Reads everything.
    pub fn read(&self, disk: &dyn Disk) {
        self.each_thread(|from, to| {
            let mut memory = Memory::new(self.block);
            let buffer = memory.bytes();
            for index in from..to {
                disk.read(buffer, self.offset(index));
            }
        });
    }

    /// Reads everything, and compares it with what `truth` says.
    ///
    /// # Panics
    ///
    /// It is not the same.
    pub fn check(&self, disk: &dyn Disk, truth: &dyn Disk) {
        let (mut left, mut right) = (Memory::new(self.block), Memory::new(self.block));
        let (left, right) = (left.bytes(), right.bytes());
        for offset in (0..self.count).map(|index| self.offset(index)) {
            left.fill(0xee);
            disk.read(left, offset);
            truth.read(right, offset);
            assert!(left == right, "{} bytes at {offset} are not what they should be", self.block);
        }
    }

    /// Writes everything, with `byte`.
    pub fn write(&self, disk: &dyn Disk, byte: u8) {
        self.each_thread(|from, to| {
            let mut memory = Memory::new(self.block);
            let data = memory.bytes();
            data.fill(byte);
            for index in from..to {
                disk.write(data, self.offset(index));
            }
        });
    }

    fn each_thread(&self, work: impl Fn(u64, u64) + Sync) {
        if self.threads < 2 {
            return work(0, self.count);
        }
        thread::scope(|scope| {
            for number in 0..self.threads {
                let part = |number| self.count * number / self.threads;
                let work = &work;
                scope.spawn(move || work(part(number), part(number + 1)));
            }
        });
    }
}

/// Bytes that start at a page.
struct Memory {
    all: Vec<u8>,
    length: usize,
}

impl Memory {
    fn new(length: usize) -> Self {
        Self { all: vec![0; length + ALIGNMENT], length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let start = self.all.as_ptr().align_offset(ALIGNMENT);
        &mut self.all[start..start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_block_comes_once_before_any_comes_again() {
        for (size, block) in [(1 << 30, 4096), (1 << 30, 1 << 20), (2 << 20, 65536)] {
            let count = size / block as u64;
            let walk = Walk { scattered: true, size, block, count, threads: 1 };
            let places: HashSet<_> = (0..count).map(|index| walk.offset(index)).collect();
            assert_eq!(places.len() as u64, count);
            // What `qemu-img bench` takes.
            assert!(i32::try_from(walk.step()).is_ok());
        }
    }
}
