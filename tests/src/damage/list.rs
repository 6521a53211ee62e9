//! The damages: one field each, by name.
//!
//! Callers: `damage`.

use super::Map;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const FAR: u64 = 1 << 40;
/// Past the end, and not so far that QEMU, which makes the file longer there, takes minutes.
const BEHIND: u64 = 1 << 26;

/// An image with one thing wrong.
#[derive(Clone, Debug)]
pub struct Damage {
    /// Which base, and what is wrong.
    pub name: String,
    /// The image.
    pub bytes: Vec<u8>,
}

struct List<'a> {
    base: &'a str,
    map: Map<'a>,
    bytes: &'a [u8],
    damages: Vec<Damage>,
}

impl List<'_> {
    /// Makes `width` bytes at `at` the number `value`.
    fn set(&mut self, what: &str, at: u64, width: usize, value: u64) {
        let mut bytes = self.bytes.to_vec();
        bytes[at as usize..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        if bytes != self.bytes {
            self.damages.push(Damage { name: format!("{}: {what}", self.base), bytes });
        }
    }

    fn flip(&mut self, what: &str, at: u64, width: usize, bits: u64) {
        let value = self.map.number(at, width) ^ bits;
        self.set(what, at, width, value);
    }

    /// Makes the refcount of `cluster` something else.
    fn count(&mut self, what: &str, cluster: u64, count: u64) {
        let (bits, block) = (self.map.refcount_bits(), self.map.block());
        if bits >= 8 {
            let width = (bits / 8) as usize;
            self.set(what, block + cluster * bits / 8, width, count);
        } else {
            let at = block + cluster * bits / 8;
            let shift = cluster * bits % 8;
            let mask = ((1 << bits) - 1) << shift;
            let value = self.map.number(at, 1) & !mask | (count << shift) & mask;
            self.set(what, at, 1, value);
        }
    }
}

/// Every damage of the base image `base`, whose bytes are `bytes`.
#[must_use]
pub fn damages(base: &str, bytes: &[u8]) -> Vec<Damage> {
    let map = Map::new(bytes);
    let mut list = List { base, map, bytes, damages: Vec::new() };
    if base == "plain" || base == "v2" {
        header(&mut list);
    }
    if base == "backing" {
        backing(&mut list);
    }
    l1(&mut list);
    l2(&mut list);
    if base == "extended" {
        subclusters(&mut list);
    }
    if base == "compressed" {
        compressed(&mut list);
    }
    refcounts(&mut list);
    if base == "snapshots" {
        snapshots(&mut list);
    }
    if base == "bitmaps" {
        bitmaps(&mut list);
    }
    list.damages
}

fn header(list: &mut List<'_>) {
    let map = list.map.clone();
    let (cluster, l1, table) = (map.cluster(), map.number(40, 8), map.refcount_table());
    for (what, at, width, value) in [
        ("magic", 0, 4, 0x5146_49fa),
        ("version 1", 4, 4, 1),
        ("version 4", 4, 4, 4),
        ("backing name in the header", 8, 8, 40),
        ("backing name past the cluster", 8, 8, 4096),
        ("cluster_bits 8", 20, 4, 8),
        ("cluster_bits 10", 20, 4, 10),
        ("cluster_bits 22", 20, 4, 22),
        ("size 0", 24, 8, 0),
        ("size of one cluster more", 24, 8, map.number(24, 8) + cluster),
        ("size huge", 24, 8, 1 << 62),
        ("crypt_method 3", 32, 4, 3),
        ("l1_size 0", 36, 4, 0),
        ("l1_size one less", 36, 4, map.number(36, 4) - 1),
        ("l1_size one cluster more", 36, 4, map.number(36, 4) + cluster / 8),
        ("l1_size huge", 36, 4, u64::from(u32::MAX)),
        ("l1_table_offset 0", 40, 8, 0),
        ("l1_table_offset unaligned", 40, 8, l1 + 8),
        ("l1_table_offset far", 40, 8, FAR),
        ("l1_table_offset on the refcount table", 40, 8, table),
        ("l1_table_offset on the refcount block", 40, 8, map.block()),
        ("l1_table_offset on an L2 table", 40, 8, map.l2_table()),
        ("refcount_table_offset 0", 48, 8, 0),
        ("refcount_table_offset unaligned", 48, 8, table + 8),
        ("refcount_table_offset far", 48, 8, FAR),
        ("refcount_table_offset on the L1 table", 48, 8, l1),
        ("refcount_table_clusters 0", 56, 4, 0),
        ("refcount_table_clusters 2", 56, 4, 2),
        ("refcount_table_clusters huge", 56, 4, u64::from(u32::MAX)),
        ("nb_snapshots 1", 60, 4, 1),
        ("nb_snapshots too many", 60, 4, 65_537),
        ("snapshots_offset unaligned, without snapshots", 64, 8, 7),
    ] {
        list.set(what, at, width, value);
    }
    if list.base == "v2" {
        return;
    }
    for (what, at, width, bits) in [
        ("dirty bit", 72, 8, 1),
        ("corrupt bit", 72, 8, 2),
        ("external data file bit", 72, 8, 4),
        ("compression type bit", 72, 8, 8),
        ("extended L2 bit", 72, 8, 16),
        ("unknown incompatible bit", 72, 8, 32),
        ("unknown compatible bit", 80, 8, 32),
        ("bitmaps bit", 88, 8, 1),
        ("raw external data bit", 88, 8, 2),
        ("unknown autoclear bit", 88, 8, 32),
        ("refcount_order 3", 96, 4, 4 ^ 3),
        ("refcount_order 7", 96, 4, 4 ^ 7),
        ("header_length one more", 100, 4, 1),
        ("compression_type 1", 104, 1, 1),
        ("extension type", 112, 4, 1),
        ("extension length", 116, 4, 1 << 20),
    ] {
        list.flip(what, at, width, bits);
    }
}

fn backing(list: &mut List<'_>) {
    let (name, length) = (list.map.number(8, 8), list.map.number(16, 4));
    list.set("NUL in the backing file's name", name + 2, 1, 0);
    list.set("NUL at the end of the backing file's name", name + length - 1, 1, 0);
    list.set("NUL behind the backing file's name", 16, 4, length + 1);
    list.set("NUL for a backing file's name", name, 1, 0);
}

fn l1(list: &mut List<'_>) {
    let map = list.map.clone();
    let places = map.l1();
    let at = places[0];
    let entry = map.number(at, 8);
    for (what, bits) in [
        ("L1 entry: reserved bit 0", 1),
        ("L1 entry: reserved bit 8", 1 << 8),
        ("L1 entry: reserved bit 56", 1 << 56),
        ("L1 entry: reserved bit 62", 1 << 62),
        ("L1 entry: COPIED", COPIED),
    ] {
        list.flip(what, at, 8, bits);
    }
    let end = map.length().next_multiple_of(map.cluster());
    for (what, value) in [
        ("L1 entry: 0", 0),
        ("L1 entry: flag of no table", COPIED),
        ("L1 entry: far", entry | FAR),
        ("L1 entry: at the end of the file", COPIED | end),
        ("L1 entry: on the refcount table", COPIED | map.refcount_table()),
        ("L1 entry: on the refcount block", COPIED | map.block()),
        ("L1 entry: on the L1 table", COPIED | map.number(40, 8)),
        ("L1 entry: on a data cluster", COPIED | map.number(map.l2()[0], 8) & OFFSET),
    ] {
        list.set(what, at, 8, value);
    }
    if map.cluster() > 512 {
        list.set("L1 entry: unaligned", at, 8, entry + 512);
    }
    if let Some(other) = places.get(1) {
        list.set("L1 entry: another's L2 table", at, 8, map.number(*other, 8));
    }
}

fn l2(list: &mut List<'_>) {
    let map = list.map.clone();
    let places = map.l2();
    let (at, other) = (places[0], places[places.len() - 1]);
    let entry = map.number(at, 8);
    for (what, bits) in [
        ("L2 entry: zero bit", 1),
        ("L2 entry: reserved bit 1", 2),
        ("L2 entry: reserved bit 8", 1 << 8),
        ("L2 entry: reserved bit 56", 1 << 56),
        ("L2 entry: reserved bit 61", 1 << 61),
        ("L2 entry: compressed bit", 1 << 62),
        ("L2 entry: COPIED", COPIED),
    ] {
        list.flip(what, at, 8, bits);
    }
    let end = map.length().next_multiple_of(map.cluster());
    for (what, value) in [
        ("L2 entry: 0", 0),
        ("L2 entry: zero cluster", 1),
        ("L2 entry: far", entry | FAR),
        ("L2 entry: far, without COPIED", (entry | FAR) & !COPIED),
        ("L2 entry: at the end of the file", COPIED | end),
        ("L2 entry: another's cluster", map.number(other, 8)),
        ("L2 entry: on the refcount table", COPIED | map.refcount_table()),
        ("L2 entry: on the refcount block", COPIED | map.block()),
        ("L2 entry: on the L1 table", COPIED | map.number(40, 8)),
        ("L2 entry: on its L2 table", COPIED | map.l2_table()),
    ] {
        list.set(what, at, 8, value);
    }
    if map.cluster() > 512 {
        list.set("L2 entry: unaligned", at, 8, entry + 512);
        list.set("L2 entry: unaligned zero cluster", at, 8, (entry + 512) | 1);
    }
    let empty = map.empty_l2();
    list.set("empty L2 entry: flag", empty, 8, COPIED);
    list.set("empty L2 entry: reserved bit", empty, 8, 4);
    list.set("empty L2 entry: another's cluster", empty, 8, entry);
}

fn subclusters(list: &mut List<'_>) {
    let map = list.map.clone();
    let (at, empty) = (map.l2()[0] + 8, map.empty_l2() + 8);
    for (what, at, value) in [
        ("bitmap: a subcluster of both kinds", at, 0x0000_0001_ffff_ffff),
        ("bitmap: all subclusters of both kinds", at, u64::MAX),
        ("bitmap: zeros", at, 0xffff_ffff_0000_0000),
        ("bitmap: nothing", at, 0),
        ("bitmap: allocated in no cluster", empty, 1),
        ("bitmap: both kinds in no cluster", empty, 0x0000_0001_0000_0001),
        ("bitmap: zeros in no cluster", empty, 0x0000_0001_0000_0000),
    ] {
        list.set(what, at, 8, value);
    }
}

fn compressed(list: &mut List<'_>) {
    let map = list.map.clone();
    let at = map.compressed()[0];
    let entry = map.number(at, 8);
    for (what, bits) in [
        ("compressed: COPIED", COPIED),
        ("compressed: far", 1 << 50),
        ("compressed: one sector more", 1 << 58),
        ("compressed: eight sectors more", 1 << 61),
        ("compressed: offset of one byte more", 1),
        ("compressed: no longer", 1 << 62),
    ] {
        list.flip(what, at, 8, bits);
    }
    let mask = (1 << 58) - 1;
    let end = map.length();
    list.set("compressed: at the end of the file", at, 8, entry & !mask | end);
    list.set("compressed: across the end of the file", at, 8, entry & !mask | (end - 1) | 1 << 58);
    list.set("compressed: on the header", at, 8, entry & !mask);
    list.set("compressed: twice", map.empty_l2(), 8, entry);
}

fn refcounts(list: &mut List<'_>) {
    let map = list.map.clone();
    let (table, block, cluster) = (map.refcount_table(), map.block(), map.cluster());
    let end = map.length().next_multiple_of(cluster);
    for (what, value) in [
        ("refcount table entry: 0", 0),
        ("refcount table entry: reserved bit", block | 1),
        ("refcount table entry: past the end", block | BEHIND),
        ("refcount table entry: at the end of the file", end),
        ("refcount table entry: on the header's cluster", cluster),
        ("refcount table entry: on the L1 table", map.number(40, 8)),
        ("refcount table entry: on an L2 table", map.l2_table()),
    ] {
        list.set(what, table, 8, value);
    }
    if cluster > 512 {
        list.set("refcount table entry: unaligned", table, 8, block + 512);
    }
    list.set("second refcount table entry: the first one's block", table + 8, 8, block);
    list.set("second refcount table entry: past the end", table + 8, 8, BEHIND);
    list.set("second refcount table entry: reserved bit", table + 8, 8, 2);
    list.set("second refcount table entry: a leak", table + 8, 8, end - cluster);
    let clusters = |offset: u64| (offset & OFFSET) / cluster;
    let places = [
        ("the header", 0),
        ("the refcount table", clusters(table)),
        ("the refcount block", clusters(block)),
        ("the L1 table", clusters(map.number(40, 8))),
        ("the L2 table", clusters(map.l2_table())),
        ("data", clusters(map.number(map.l2()[0], 8))),
    ];
    for (what, number) in places {
        // In an external data file.
        if number * cluster >= map.length() {
            continue;
        }
        list.count(&format!("refcount of {what}: 0"), number, 0);
        if map.refcount_bits() > 1 {
            list.count(&format!("refcount of {what}: 3"), number, 3);
        }
    }
    let behind = end / cluster + 2;
    if behind < cluster * 8 / map.refcount_bits() {
        list.count("refcount past the end of the file", behind, 1);
    }
}

fn snapshots(list: &mut List<'_>) {
    let map = list.map.clone();
    let (first, second) = (map.snapshots()[0], map.snapshots()[1]);
    let l1 = map.number(first, 8);
    for (what, at, width, value) in [
        ("snapshot: L1 table unaligned", first, 8, l1 + 8),
        ("snapshot: L1 table far", first, 8, l1 | FAR),
        ("snapshot: L1 table 0", first, 8, 0),
        ("snapshot: the other's L1 table", first, 8, map.number(second, 8)),
        ("snapshot: the active L1 table", first, 8, map.number(40, 8)),
        ("snapshot: L1 table on the refcount block", first, 8, map.block()),
        ("snapshot: l1_size 0", first + 8, 4, 0),
        ("snapshot: l1_size too large", first + 8, 4, 1 << 23),
        ("snapshot: l1_size one less", first + 8, 4, map.number(first + 8, 4) - 1),
        ("snapshot: no id", first + 12, 2, 0),
        ("snapshot: longer name", first + 14, 2, map.number(first + 14, 2) + 8),
        ("snapshot: long name", first + 14, 2, 4096),
        ("snapshot: date", first + 16, 4, 0),
        ("snapshot: extra data of 8 bytes", first + 36, 4, 8),
        ("snapshot: no extra data", first + 36, 4, 0),
        ("snapshot: extra data too long", first + 36, 4, 1025),
        ("snapshot: extra data huge", first + 36, 4, u64::from(u32::MAX)),
        ("last snapshot: extra data of 8 bytes", second + 36, 4, 8),
        ("last snapshot: extra data too long", second + 36, 4, 1025),
        ("snapshots: one less", 60, 4, 1),
        ("snapshots: one more", 60, 4, 3),
        ("snapshots: none", 60, 4, 0),
        ("snapshots: too many", 60, 4, 65_537),
        ("snapshots_offset 0", 64, 8, 0),
        ("snapshots_offset unaligned", 64, 8, map.number(64, 8) + 8),
        ("snapshots_offset far", 64, 8, FAR),
        ("snapshots_offset on the L1 table", 64, 8, map.number(40, 8)),
    ] {
        list.set(what, at, width, value);
    }
    let entry = (l1..).step_by(8).find(|at| map.number(*at, 8) != 0).unwrap();
    for (what, bits) in [
        ("snapshot's L1 entry: COPIED", COPIED),
        ("snapshot's L1 entry: reserved bit", 1),
        ("snapshot's L1 entry: far", FAR),
    ] {
        list.flip(what, entry, 8, bits);
    }
    list.set("snapshot's L1 entry: 0", entry, 8, 0);
    let table = map.number(entry, 8) & OFFSET;
    list.flip("snapshot's L2 entry: reserved bit", table, 8, 2);
    list.flip("snapshot's L2 entry: far", table, 8, FAR);
    list.set("snapshot's L2 entry: 0", table, 8, 0);
}

fn bitmaps(list: &mut List<'_>) {
    let map = list.map.clone();
    let (extension, directory) = (map.bitmaps_extension().unwrap(), map.bitmap_directory());
    let table = map.number(directory, 8);
    for (what, at, width, value) in [
        ("nb_bitmaps 0", extension, 4, 0),
        ("nb_bitmaps 1", extension, 4, 1),
        ("nb_bitmaps 3", extension, 4, 3),
        ("bitmaps reserved", extension + 4, 4, 1),
        ("bitmap_directory_size 24", extension + 8, 8, 24),
        ("bitmap_directory_size huge", extension + 8, 8, 1 << 30),
        ("bitmap_directory_offset unaligned", extension + 16, 8, directory + 8),
        ("bitmap_directory_offset far", extension + 16, 8, FAR),
        ("bitmaps bit cleared", 88, 8, 0),
        ("bitmap: table unaligned", directory, 8, table + 8),
        ("bitmap: table far", directory, 8, FAR),
        ("bitmap: table 0", directory, 8, 0),
        ("bitmap: no table", directory + 8, 4, 0),
        ("bitmap: table longer", directory + 8, 4, 65),
        ("bitmap: reserved flag", directory + 12, 4, 1 << 20),
        ("bitmap: in use", directory + 12, 4, 1),
        ("bitmap: type", directory + 16, 1, 2),
        ("bitmap: granularity 3", directory + 17, 1, 3),
        ("bitmap: no name", directory + 18, 2, 0),
        ("bitmap: long name", directory + 18, 2, 2000),
        ("bitmap: extra data", directory + 20, 4, 8),
        ("bitmap table entry: far", table, 8, FAR),
        ("bitmap table entry: reserved bit", table, 8, 1 << 60),
        ("bitmap table entry: a data cluster", table, 8, map.number(map.l2()[0], 8) & OFFSET),
    ] {
        list.set(what, at, width, value);
    }
}
