//! Whether an image is consistent, told in microseconds: `qemu-img check`'s rules once more, read from
//! the specification and not from our library, so that each of thousands of states can be asked.
//!
//! ```text
//! header ─┬▶ refcount table ─▶ refcount blocks ──────────▶ said:  counts    said < used   corrupt
//!         ├▶ L1 ─▶ L2 ─▶ clusters, compressed payloads ──▶ used:  references said > used   leak
//!         └▶ snapshot table ─▶ L1 ─▶ L2 ─▶ …             ──▶                 COPIED ≠ (said = 1)
//! ```
//!
//! Beyond QEMU it asks that no two guest clusters share a host cluster unless a snapshot may be why:
//! two writers were given the same cluster then, whatever the counts say; and that the zero bit is
//! set where there is one. The tests hold it to `qemu-img check` over damaged images. Callers: `image_crash`, `image_faults`.

use std::collections::BTreeMap;

use crate::sparse::{PAGE, Sparse};

const DIRTY: u64 = 1 << 0;
const DATA_FILE: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The image says that its refcounts may be wrong.
    pub dirty: bool,
    /// What makes the image dangerous to use.
    pub corruptions: Vec<String>,
    /// Counts that are too low, or COPIED flags that disagree: corruption, unless the image is dirty.
    pub stale: Vec<String>,
    /// Clusters that are counted and not used.
    pub leaks: u64,
    /// Clusters past the end of the file that are counted: leaks, once it has grown.
    pub beyond: u64,
}

impl Findings {
    /// Whether nobody could tell that anything went wrong, but for leaks.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn sound(&self) -> Result<(), String> {
        let stale = if self.dirty { &[][..] } else { &self.stale };
        let wrong: Vec<_> = self.corruptions.iter().chain(stale).take(8).cloned().collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

/// Checks an image.
///
/// # Errors
///
/// Its header is not one.
pub fn check(file: &Sparse) -> Result<Findings, String> {
    let checker = Checker::new(file)?;
    Ok(checker.run())
}

struct Checker<'a> {
    file: &'a Sparse,
    header: Header,
    clusters: u64,
    used: BTreeMap<u64, u64>,
    /// Host clusters of uncompressed guest clusters of the active disk, and metadata.
    owned: BTreeMap<u64, &'static str>,
    found: Findings,
}

#[derive(Clone, Copy)]
struct Header {
    version: u32,
    bits: u32,
    features: u64,
    order: u32,
    snapshots: u32,
    snapshots_offset: u64,
    refcount_table: (u64, u64),
    l1: (u64, u64),
}

impl<'a> Checker<'a> {
    fn new(file: &'a Sparse) -> Result<Self, String> {
        let word = |at: u64| u64::from_be_bytes(file.bytes(at, 8).try_into().unwrap());
        let half = |at: u64| u32::from_be_bytes(file.bytes(at, 4).try_into().unwrap());
        if half(0) != 0x5146_49fb {
            return Err("no header".to_owned());
        }
        let version = half(4);
        let v3 = version >= 3;
        let header = Header {
            version,
            bits: half(20),
            features: if v3 { word(72) } else { 0 },
            order: if v3 { half(96) } else { 4 },
            snapshots: half(60),
            snapshots_offset: word(64),
            refcount_table: (word(48), u64::from(half(56))),
            l1: (word(40), u64::from(half(36))),
        };
        if !(9..=21).contains(&header.bits) || header.order > 6 {
            return Err(format!("cluster_bits {}, refcount_order {}", header.bits, header.order));
        }
        Ok(Self {
            file,
            header,
            clusters: file.length().div_ceil(1 << header.bits),
            used: BTreeMap::new(),
            owned: BTreeMap::new(),
            found: Findings { dirty: header.features & DIRTY != 0, ..Findings::default() },
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.bits
    }

    fn run(mut self) -> Findings {
        self.metadata(0, 1, "header");
        let said = self.said();
        self.l1(self.header.l1, Some(&said));
        self.snapshots();
        for (cluster, used) in &self.used {
            let said = said.get(cluster).copied().unwrap_or(0);
            if said < *used {
                let place = cluster * self.cluster();
                self.found.stale.push(format!("{place:#x} has {used} users, refcount {said}"));
            }
        }
        let used = |cluster: &u64| self.used.get(cluster).copied().unwrap_or(0);
        // As in QEMU: what is counted past the end is not looked at.
        let leaks = said.range(..self.clusters).filter(|(cluster, said)| **said > used(cluster));
        let leaks = leaks.count();
        self.found.beyond = said.range(self.clusters..).count() as u64;
        self.found.leaks = leaks as u64;
        self.found
    }

    fn corrupt(&mut self, what: String) {
        self.found.corruptions.push(what);
    }

    /// A structure that takes whole clusters.
    fn metadata(&mut self, offset: u64, length: u64, what: &'static str) {
        for cluster in offset >> self.header.bits..(offset + length).div_ceil(self.cluster()) {
            self.metadata_cluster(cluster, what);
        }
    }

    fn metadata_cluster(&mut self, cluster: u64, what: &'static str) {
        *self.used.entry(cluster).or_default() += 1;
        self.own(cluster, what);
    }

    fn own(&mut self, cluster: u64, what: &'static str) {
        if let Some(other) = self.owned.insert(cluster, what) {
            let place = cluster * self.cluster();
            self.corrupt(format!("{place:#x} is {what} and {other}"));
        }
    }

    /// The counts of the refcount blocks, those that are not zero.
    fn said(&mut self) -> BTreeMap<u64, u64> {
        let (offset, clusters) = self.header.refcount_table;
        self.metadata(offset, clusters * self.cluster(), "refcount table");
        let per_block = (self.cluster() * 8) >> self.header.order;
        let mut said = BTreeMap::new();
        for (number, block) in self.words(offset, clusters * self.cluster() / 8) {
            if block & 0x1ff != 0 {
                self.corrupt(format!("refcount table entry {number} is {block:#x}"));
            }
            if !block.is_multiple_of(self.cluster()) {
                self.corrupt(format!("refcount block at {block:#x}"));
                continue;
            }
            if block >> self.header.bits >= self.clusters {
                self.corrupt(format!("refcount block at {block:#x}, past the end"));
                continue;
            }
            self.metadata_cluster(block >> self.header.bits, "refcount block");
            for (at, page) in self.pages(block, self.cluster()) {
                for (entry, count) in counts(&page, self.header.order) {
                    let first = ((at - block) * 8) >> self.header.order;
                    said.insert(number * per_block + first + entry, count);
                }
            }
        }
        said
    }

    /// The 64-bit words of a table that are not zero, with their numbers.
    fn words(&self, offset: u64, count: u64) -> Vec<(u64, u64)> {
        let pages = self.pages(offset, count * 8).into_iter();
        pages
            .flat_map(|(at, page)| {
                let words = page.chunks(8).enumerate().filter_map(move |(number, bytes)| {
                    let word = u64::from_be_bytes(bytes.try_into().ok()?);
                    (word != 0).then_some(((at - offset) / 8 + number as u64, word))
                });
                words.collect::<Vec<_>>()
            })
            .collect()
    }

    /// The parts of a range, at 512-byte boundaries of a table, that are not all zeros.
    fn pages(&self, offset: u64, length: u64) -> Vec<(u64, Vec<u8>)> {
        let (mut at, end) = (offset, offset + length);
        let mut pages = Vec::new();
        while at < end {
            let next = ((at / PAGE as u64 + 1) * PAGE as u64).min(end);
            if self.file.page(at / PAGE as u64).is_some() {
                let bytes = self.file.bytes(at, (next - at) as usize);
                if bytes.iter().any(|byte| *byte != 0) {
                    pages.push((at, bytes));
                }
            }
            at = next;
        }
        pages
    }

    /// An L1 table and all below; with the counts, if it is the active one.
    fn l1(&mut self, (offset, entries): (u64, u64), active: Option<&BTreeMap<u64, u64>>) {
        if !offset.is_multiple_of(self.cluster()) {
            return self.corrupt(format!("L1 table at {offset:#x}"));
        }
        self.metadata(offset, entries * 8, "L1 table");
        for (number, entry) in self.words(offset, entries) {
            if entry & L1_RESERVED != 0 {
                self.corrupt(format!("L1 entry {number} is {entry:#x}: reserved bits"));
            }
            let table = entry & OFFSET;
            if table == 0 {
                self.corrupt(format!("L1 entry {number} is {entry:#x}: flags of no table"));
                continue;
            }
            if !table.is_multiple_of(self.cluster()) {
                self.corrupt(format!("L2 table at {table:#x}"));
                continue;
            }
            self.reference(table, self.cluster());
            if let Some(said) = active {
                self.copied(entry, table, said, "L2 table");
                self.own(table >> self.header.bits, "L2 table");
            }
            self.l2(table, active);
        }
    }

    fn l2(&mut self, table: u64, active: Option<&BTreeMap<u64, u64>>) {
        let extended = self.header.features & EXTENDED_L2 != 0;
        let external = self.header.features & DATA_FILE != 0;
        let words = self.words(table, self.cluster() / 8);
        let bitmaps: BTreeMap<u64, u64> =
            words.iter().filter(|(number, _)| extended && number % 2 == 1).copied().collect();
        for (number, entry) in words {
            if extended && number % 2 == 1 {
                continue;
            }
            let bitmap = bitmaps.get(&(number + 1)).copied().unwrap_or(0);
            if entry & COMPRESSED != 0 {
                if bitmap != 0 {
                    self.corrupt(format!("compressed cluster {number} with bitmap {bitmap:#x}"));
                }
                self.compressed(entry, external);
                continue;
            }
            if entry & L2_RESERVED != 0 {
                self.corrupt(format!("L2 entry {number} is {entry:#x}: reserved bits"));
            }
            if entry & ZERO != 0 && (extended || self.header.version < 3) {
                self.corrupt(format!("L2 entry {number} is {entry:#x}: no zero bit here"));
            }
            if bitmap & (bitmap >> 32) != 0 {
                self.corrupt(format!("L2 bitmap {number} is {bitmap:#x}: allocated and zero"));
            }
            let host = entry & OFFSET;
            if host == 0 {
                if bitmap & 0xffff_ffff != 0 && !external {
                    self.corrupt(format!("L2 bitmap {number} is {bitmap:#x}, without a cluster"));
                }
                continue;
            }
            if !host.is_multiple_of(self.cluster()) {
                self.corrupt(format!("L2 entry {number} is {entry:#x}: unaligned"));
                continue;
            }
            if external {
                continue;
            }
            self.reference(host, self.cluster());
            if let Some(said) = active {
                self.copied(entry, host, said, "data");
                self.own(host >> self.header.bits, "data");
            }
        }
    }

    fn compressed(&mut self, entry: u64, external: bool) {
        if external || entry & COPIED != 0 {
            self.corrupt(format!("compressed entry {entry:#x}"));
        }
        if external {
            return;
        }
        let split = 62 - (self.header.bits - 8);
        let host = entry & ((1 << split) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> split;
        self.reference(host, (sectors + 1) * 512 - host % 512);
    }

    /// A cluster, or the clusters a payload touches, used once more.
    fn reference(&mut self, offset: u64, length: u64) {
        for cluster in offset >> self.header.bits..(offset + length).div_ceil(self.cluster()) {
            *self.used.entry(cluster).or_default() += 1;
            // As in QEMU: the last cluster may be cut, none may lie beyond.
            if cluster >= self.clusters {
                self.corrupt(format!("{:#x} is used and past the end", cluster * self.cluster()));
            }
        }
    }

    fn copied(&mut self, entry: u64, at: u64, said: &BTreeMap<u64, u64>, what: &str) {
        let count = said.get(&(at >> self.header.bits)).copied().unwrap_or(0);
        if (count == 1) != (entry & COPIED != 0) {
            self.found.stale.push(format!("{what} entry {entry:#x} with refcount {count}"));
        }
    }

    fn snapshots(&mut self) {
        let Header { snapshots, snapshots_offset: start, .. } = self.header;
        let mut at = start;
        for _ in 0..snapshots {
            let word =
                |field| u64::from_be_bytes(self.file.bytes(at + field, 8).try_into().unwrap());
            let half =
                |field| u32::from_be_bytes(self.file.bytes(at + field, 4).try_into().unwrap());
            let short =
                |field| u16::from_be_bytes(self.file.bytes(at + field, 2).try_into().unwrap());
            let l1 = (word(0), u64::from(half(8)));
            let variable = u64::from(half(36)) + u64::from(short(12)) + u64::from(short(14));
            at = (at + 40 + variable).next_multiple_of(8);
            self.l1(l1, None);
        }
        if snapshots > 0 {
            self.metadata(start, at - start, "snapshot table");
        }
    }
}

/// The counts in a part of a refcount block that are not zero, with their numbers.
fn counts(bytes: &[u8], order: u32) -> Vec<(u64, u64)> {
    let mut counts = Vec::new();
    if order >= 3 {
        let width = 1 << (order - 3);
        for (number, bytes) in bytes.chunks(width).enumerate() {
            let count = bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte));
            counts.push((number as u64, count));
        }
    } else {
        // Within a byte the first count lies in the lowest bits.
        let (width, per_byte) = (1 << order, 8 >> order);
        for (number, byte) in bytes.iter().enumerate() {
            for part in 0..per_byte {
                let count = u64::from(byte >> (part * width)) & ((1 << width) - 1);
                counts.push((number as u64 * per_byte + part, count));
            }
        }
    }
    counts.retain(|(_, count)| *count != 0);
    counts
}

#[cfg(test)]
mod tests;
