//! A qcow2 file read by the book and without the library: who refers to which cluster, what its
//! refcount says, and a snapshot made by hand.
//!
//! ```text
//! header, refcount table, blocks ──┐
//! L1 tables ─▶ L2 tables ─▶ data ──┼─▶ references of each cluster  =  its refcount
//! snapshot table ─▶ L1 tables ─────┘                               ≥  after a crash
//! ```
//!
//! For images of the target `operations`: everything in one file, nothing encrypted, no bitmaps.

use std::ops::Range;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// A file, and what its header says.
pub struct File {
    pub bytes: Vec<u8>,
    cluster_bits: u32,
    l1: Range<u64>,
    table: Range<u64>,
    snapshots: (u64, u64),
    refcount_bits: u64,
    entry_bytes: u64,
    /// Refcounts may be wrong, and that is said.
    pub dirty: bool,
}

impl File {
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let number = |at, length| number(&bytes, at, length);
        let v3 = number(4, 4) == 3;
        let features = if v3 { number(72, 8) } else { 0 };
        let (l1, table) = (number(40, 8), number(48, 8));
        let cluster_bits = number(20, 4) as u32;
        Self {
            cluster_bits,
            l1: l1..l1 + number(36, 4) * 8,
            table: table..table + (number(56, 4) << cluster_bits),
            snapshots: (number(64, 8), number(60, 4)),
            refcount_bits: if v3 { 1 << number(96, 4) } else { 16 },
            entry_bytes: if features & 16 == 0 { 8 } else { 16 },
            dirty: features & 1 != 0,
            bytes,
        }
    }

    fn word(&self, at: u64) -> u64 {
        number(&self.bytes, at, 8)
    }

    fn put(&mut self, at: u64, word: u64) {
        let at = at as usize;
        self.bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }

    fn size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the refcount of `cluster` lies, in bits; none if its block is missing.
    fn refcount_place(&self, cluster: u64) -> Option<u64> {
        let per_block = self.size() * 8 / self.refcount_bits;
        let entry = self.table.start + cluster / per_block * 8;
        if entry >= self.table.end {
            return None;
        }
        let block = self.word(entry) & OFFSET;
        (block != 0).then_some(block * 8 + cluster % per_block * self.refcount_bits)
    }

    fn refcount(&self, cluster: u64) -> u64 {
        let Some(place) = self.refcount_place(cluster) else { return 0 };
        if self.refcount_bits >= 8 {
            return number(&self.bytes, place / 8, self.refcount_bits / 8);
        }
        // Narrow ones start at the low bits of their byte.
        number(&self.bytes, place / 8, 1) >> (place % 8) & ((1 << self.refcount_bits) - 1)
    }

    /// Adds to a refcount, or takes one from it; `false` if that cannot be.
    fn count(&mut self, cluster: u64, change: i64) -> bool {
        let value = self.refcount(cluster).checked_add_signed(change);
        let (Some(place), Some(value)) = (self.refcount_place(cluster), value) else {
            return false;
        };
        if self.refcount_bits < 64 && value >> self.refcount_bits != 0 {
            return false;
        }
        let at = (place / 8) as usize;
        if self.refcount_bits >= 8 {
            let length = (self.refcount_bits / 8) as usize;
            self.bytes.resize(self.bytes.len().max(at + length), 0);
            self.bytes[at..at + length].copy_from_slice(&value.to_be_bytes()[8 - length..]);
        } else {
            let mask = ((1_u64 << self.refcount_bits) - 1) << (place % 8);
            let byte = u64::from(self.bytes[at]) & !mask | value << (place % 8);
            self.bytes[at] = byte as u8;
        }
        true
    }

    /// The clusters an L2 entry refers to.
    fn clusters(&self, entry: u64) -> Range<u64> {
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.cluster_bits - 8);
            let host = entry & ((1 << shift) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
            let last = host / 512 * 512 + sectors * 512 - 1;
            return host >> self.cluster_bits..(last >> self.cluster_bits) + 1;
        }
        let host = (entry & OFFSET) >> self.cluster_bits;
        host..host + u64::from(host != 0)
    }

    /// Offsets of the L2 tables of an L1 table.
    fn tables(&self, l1: Range<u64>) -> Vec<u64> {
        let entries = l1.step_by(8).map(|at| self.word(at) & OFFSET);
        entries.filter(|table| *table != 0).collect()
    }

    /// Everything that the tables of an L1 table refer to, and they themselves.
    fn referred(&self, l1: Range<u64>) -> Vec<u64> {
        let mut all = Vec::new();
        for table in self.tables(l1) {
            all.push(table >> self.cluster_bits);
            for at in (table..table + self.size()).step_by(self.entry_bytes as usize) {
                all.extend(self.clusters(self.word(at)));
            }
        }
        all
    }

    /// The snapshots' L1 tables, and where their table ends.
    fn snapshots(&self) -> (Vec<Range<u64>>, u64) {
        let (mut at, count) = self.snapshots;
        let mut tables = Vec::new();
        for _ in 0..count {
            let l1 = self.word(at);
            tables.push(l1..l1 + number(&self.bytes, at + 8, 4) * 8);
            let id = number(&self.bytes, at + 12, 2);
            let name = number(&self.bytes, at + 14, 2);
            let extra = number(&self.bytes, at + 36, 4);
            at += (40 + extra + id + name).next_multiple_of(8);
        }
        (tables, at)
    }

    /// # Panics
    ///
    /// A cluster has fewer references counted than it has, or, if `exact`, more; or a COPIED bit is
    /// not what the refcount says.
    pub fn check(&self, exact: bool) {
        let bits = self.cluster_bits;
        let mut references = vec![0_u64; self.bytes.len().div_ceil(1 << bits)];
        let mut refer = |cluster: u64| {
            let index = cluster as usize;
            references.resize(references.len().max(index + 1), 0);
            references[index] += 1;
        };
        let spans = |range: Range<u64>| range.start >> bits..range.end.div_ceil(1 << bits);
        let (snapshots, end) = self.snapshots();
        refer(0);
        spans(self.table.clone()).chain(spans(self.l1.clone())).for_each(&mut refer);
        let blocks = self.table.clone().step_by(8).map(|at| self.word(at) & OFFSET);
        blocks.filter(|block| *block != 0).for_each(|block| refer(block >> bits));
        if !snapshots.is_empty() {
            spans(self.snapshots.0..end).for_each(&mut refer);
        }
        for l1 in &snapshots {
            spans(l1.clone()).for_each(&mut refer);
        }
        for l1 in snapshots.into_iter().chain([self.l1.clone()]) {
            self.referred(l1).into_iter().for_each(&mut refer);
        }
        for (cluster, references) in (0_u64..).zip(references) {
            let refcount = self.refcount(cluster);
            let right = refcount == references || !exact && refcount > references;
            assert!(right, "cluster {cluster:#x}: {references} references, refcount {refcount}");
        }
        self.check_copied();
    }

    /// COPIED promises that there is no other reference, so it may be missing, but not be wrong.
    fn check_copied(&self) {
        let single = |entry: u64| self.refcount((entry & OFFSET) >> self.cluster_bits) == 1;
        for at in self.l1.clone().step_by(8) {
            let entry = self.word(at);
            assert!(entry & COPIED == 0 || single(entry), "L1 entry {entry:#x}");
        }
        for table in self.tables(self.l1.clone()) {
            for at in (table..table + self.size()).step_by(self.entry_bytes as usize) {
                let entry = self.word(at);
                let copied = entry & COPIED != 0;
                assert!(!copied || entry & COMPRESSED == 0 && single(entry), "L2 entry {entry:#x}");
            }
        }
    }

    /// Takes a snapshot whose id is the number of those there are then, as far as refcounts and their
    /// blocks have room for it. Returns the id.
    pub fn snapshot(&mut self) -> Option<u64> {
        let before = self.bytes.clone();
        let id = self.add_snapshot();
        if id.is_none() {
            self.bytes = before;
        } else {
            *self = Self::new(std::mem::take(&mut self.bytes));
        }
        id
    }

    fn add_snapshot(&mut self) -> Option<u64> {
        for cluster in self.referred(self.l1.clone()) {
            self.count(cluster, 1).then_some(())?;
        }
        // Shared from now on.
        for table in self.tables(self.l1.clone()) {
            for at in (table..table + self.size()).step_by(self.entry_bytes as usize) {
                self.put(at, self.word(at) & !COPIED);
            }
        }
        for at in self.l1.clone().step_by(8) {
            self.put(at, self.word(at) & !COPIED);
        }
        let l1 = self.bytes[self.l1.start as usize..self.l1.end as usize].to_vec();
        let l1_at = self.append(&l1)?;
        let (_, end) = self.snapshots();
        let (start, count) = self.snapshots;
        let mut table = self.bytes[start as usize..end as usize].to_vec();
        if count > 0 {
            for cluster in start >> self.cluster_bits..end.div_ceil(self.size()) {
                self.count(cluster, -1).then_some(())?;
            }
        } else {
            table.clear();
        }
        let id = count + 1;
        table.extend(l1_at.to_be_bytes());
        table.extend(((l1.len() / 8) as u32).to_be_bytes());
        table.extend([0, 1, 0, 1]);
        table.extend([0; 20]);
        table.extend(16_u32.to_be_bytes());
        table.extend([0; 8]);
        table.extend(number(&self.bytes, 24, 8).to_be_bytes());
        table.extend([b'0' + id as u8, b's']);
        table.resize(table.len().next_multiple_of(8), 0);
        let table_at = self.append(&table)?;
        self.put(64, table_at);
        self.bytes[60..64].copy_from_slice(&(id as u32).to_be_bytes());
        Some(id)
    }

    /// Puts `data` behind the file's end; its clusters are counted.
    fn append(&mut self, data: &[u8]) -> Option<u64> {
        let size = self.size() as usize;
        let at = self.bytes.len().next_multiple_of(size);
        self.bytes.resize(at, 0);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
        for cluster in at / size..self.bytes.len() / size {
            (self.refcount(cluster as u64) == 0).then_some(())?;
            self.count(cluster as u64, 1).then_some(())?;
        }
        Some(at as u64)
    }
}

/// The big-endian number of `length` bytes at `at`; zeros behind the end.
fn number(bytes: &[u8], at: u64, length: u64) -> u64 {
    (at..at + length).fold(0, |value, at| {
        value << 8 | u64::from(bytes.get(at as usize).copied().unwrap_or_default())
    })
}
