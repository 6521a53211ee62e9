//! Damages by chance: up to three places in an image's metadata that are made something else.
//!
//! ```text
//! header · L1 and L2 entries · refcount table · refcounts · snapshot table · bitmap directory, tables
//!    └▶ a bit flipped, a byte made any, a word made 0, all ones, or what another word is
//! ```
//!
//! Callers: `check_random`.

use super::{Map, OFFSET};
use crate::random::Random;

/// Where a kind of metadata lies, in bytes.
#[derive(Clone, Debug)]
struct Place {
    what: &'static str,
    start: u64,
    length: u64,
}

/// Damages the image in `bytes`, and says where. The header is only damaged if `in_header` says so.
#[must_use]
pub fn by_chance(bytes: &[u8], in_header: bool, random: &mut Random) -> (String, Vec<u8>) {
    let places = places(bytes, in_header);
    let mut damaged = bytes.to_vec();
    let mut said = String::new();
    for _ in 0..=random.below(3) {
        let place = &places[random.below(places.len())];
        let at = place.start + random.word() % place.length.max(1);
        let Some(old) = bytes.get(at as usize).copied() else { continue };
        let word = (at & !7) as usize;
        let width = 8.min(bytes.len() - word);
        // QEMU makes the file as long as a refcount block is far away.
        let is_far = place.what == "refcount table" && at & 7 < 4;
        match random.below(6) {
            _ if is_far => {
                said.push_str(&format!(" {} {at:#x}=0", place.what));
                damaged[at as usize] = 0;
            }
            0..3 => {
                let bit = 1 << random.below(8);
                said.push_str(&format!(" {} {at:#x}^{bit:#x}", place.what));
                damaged[at as usize] = old ^ bit;
            }
            3 => {
                let byte = random.word() as u8;
                said.push_str(&format!(" {} {at:#x}={byte:#x}", place.what));
                damaged[at as usize] = byte;
            }
            _ => {
                let other = &places[random.below(places.len())];
                let from = (other.start + random.word() % other.length.max(1)) & !7;
                let value = match random.below(4) {
                    0 => [0; 8],
                    1 if place.what != "refcount table" => [0xff; 8],
                    2 => (1 << 63 | other.start).to_be_bytes(),
                    _ => match bytes.get(from as usize..from as usize + 8) {
                        Some(value) if place.what != "refcount table" => value.try_into().unwrap(),
                        _ => other.start.to_be_bytes(),
                    },
                };
                said.push_str(&format!(" {} {word:#x}={value:02x?}", place.what));
                damaged[word..word + width].copy_from_slice(&value[..width]);
            }
        }
    }
    (said, damaged)
}

/// Where the metadata of a sound image lies.
fn places(bytes: &[u8], in_header: bool) -> Vec<Place> {
    let map = Map::new(bytes);
    let cluster = map.cluster();
    let mut places = Vec::new();
    let mut add = |what, start: u64, length: u64| {
        if length > 0 && start + length <= map.length() {
            places.push(Place { what, start, length });
        }
    };
    if in_header {
        add("header", 8, 112);
    }
    let mut tables = Vec::new();
    let mut l1 = |what, start: u64, entries: u64, add: &mut dyn FnMut(&'static str, u64, u64)| {
        add(what, start, 8 * entries);
        let named = map.words(start, entries, 8).map(|(_, entry)| entry & OFFSET);
        tables.extend(named.filter(|table| *table != 0));
    };
    l1("L1 table", map.number(40, 8), map.number(36, 4), &mut add);
    for at in map.snapshots() {
        add("snapshot table", at, 56);
        l1("snapshot's L1 table", map.number(at, 8), map.number(at + 8, 4), &mut add);
    }
    tables.sort_unstable();
    tables.dedup();
    // Few entries of many are used, and those are the ones that matter.
    let step = if map.extended() { 16 } else { 8 };
    for table in tables.iter().take(8) {
        add("L2 table", *table, cluster);
        let entries = map.words(*table, cluster / step, step);
        for (at, _) in entries.filter(|(_, entry)| *entry != 0).take(4) {
            add("L2 entry", at, step);
        }
    }
    let (table, clusters) = (map.refcount_table(), map.number(56, 4));
    let blocks = map.words(table, clusters * cluster / 8, 8);
    let blocks: Vec<_> = blocks.filter(|(_, block)| *block != 0).collect();
    add("refcount table", table, (blocks.len() as u64 + 1) * 8);
    let per_block = cluster * 8 / map.refcount_bits();
    for (at, block) in blocks {
        let first = (at - table) / 8 * per_block;
        let counted = map.length().div_ceil(cluster).saturating_sub(first).min(per_block);
        add("refcounts", block, (counted * map.refcount_bits()).div_ceil(8));
    }
    if let Some(extension) = map.bitmaps_extension().filter(|_| map.number(4, 4) > 2) {
        let mut at = map.bitmap_directory();
        for _ in 0..map.number(extension, 4) {
            let length = (24 + map.number(at + 18, 2)).next_multiple_of(8);
            add("bitmap directory", at, length);
            add("bitmap table", map.number(at, 8), 8 * map.number(at + 8, 4));
            at += length;
        }
        if in_header {
            add("bitmaps extension", extension, 24);
        }
    }
    places
}
