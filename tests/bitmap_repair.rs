//! Repairs of images whose persistent bitmaps break a rule.
//!
//! ```text
//! image with three bitmaps ─▶ one rule broken ─▶ repaired, or killed and repaired again
//!     ├▶ qemu-img check: clean, without a word
//!     └▶ qemu-img info: the bitmaps that were sound, with the same granularity, flags and bits
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use qcow2_format::image::check::{Fix, RepairMode, RepairOptions, repair};
use testkit::damage::Map;
use testkit::qemu::{img, img_in, io};
use testkit::recording::Recording;
use testkit::sparse::Sparse;
use testkit::tool;

const ALL: &[&str] = &["one", "two", "three"];
const OTHERS: &[&str] = &["one", "three"];

/// A bitmap: flags, granularity, and what its table names.
type Told = BTreeMap<String, (String, u64, Vec<Vec<u8>>)>;

/// Three bitmaps that know of different writes.
fn base(folder: &Path) -> Vec<u8> {
    img_in(folder, &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "image", "64M"]);
    let path = folder.join("image");
    for (name, write) in [("one", "0 64k"), ("two", "1M 128k"), ("three", "5M 64k")] {
        img_in(folder, &["bitmap", "--add", "image", name]);
        let write = format!("write -P 7 {write}");
        let done = io(["-f", "qcow2", "-c", &write, path.to_str().unwrap()]);
        assert!(done.status.success(), "{done:?}");
    }
    fs::read(path).unwrap()
}

/// The bitmaps of the image at `path`, as QEMU lists them.
fn told(path: &Path) -> Told {
    let text = path.to_str().unwrap();
    let said = img(["info", "-f", "qcow2", "--output=json", text]);
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let Some(listed) = json["format-specific"]["data"]["bitmaps"].as_array() else {
        return Told::new();
    };
    let bytes = fs::read(path).unwrap();
    let map = Map::new(&bytes);
    let mut at = map.bitmap_directory();
    let mut found = Told::new();
    for bitmap in listed {
        // QEMU lists them in the directory's order.
        let (table, entries) = (map.number(at, 8), map.number(at + 8, 4));
        let clusters = (0..entries).map(|entry| {
            let entry = map.number(table + 8 * entry, 8);
            let start = (entry & !1) as usize;
            let all_ones = vec![entry as u8];
            if start == 0 { all_ones } else { bytes[start..start + 4096].to_vec() }
        });
        let name = bitmap["name"].as_str().unwrap().to_owned();
        let granularity = bitmap["granularity"].as_u64().unwrap();
        found.insert(name, (bitmap["flags"].to_string(), granularity, clusters.collect()));
        at += (24 + map.number(at + 18, 2)).next_multiple_of(8);
    }
    found
}

/// What is written where, in so many bytes, and which bitmaps are kept.
type Harm = (&'static str, u64, usize, u64, &'static [&'static str]);

/// The damages of an image with these bytes.
fn harms(bytes: &[u8]) -> Vec<Harm> {
    let map = Map::new(bytes);
    let (extension, directory) = (map.bitmaps_extension().unwrap(), map.bitmap_directory());
    let two = directory + 32;
    assert_eq!(map.number(two + 24, 3), u64::from_be_bytes(*b"\0\0\0\0\0two"));
    let table = map.number(two, 8);
    vec![
        ("fewer than there are", extension, 4, 1, ALL),
        ("more than there are", extension, 4, 4, ALL),
        ("more than fit", extension, 4, 5, ALL),
        ("none", extension, 4, 0, ALL),
        ("reserved field", extension + 4, 4, 1, ALL),
        ("directory that ends in an entry", extension + 8, 8, 80, &["one", "two"]),
        ("directory too short", extension + 8, 8, 24, &[]),
        ("directory too long", extension + 8, 8, 1 << 30, &[]),
        ("directory not aligned", extension + 16, 8, directory + 8, &[]),
        ("directory on the header", extension + 16, 8, 0, &[]),
        ("directory past the end", extension + 16, 8, 1 << 40, &[]),
        ("extension too short", extension - 4, 4, 16, &[]),
        ("nobody vouches", 88, 8, 0, &[]),
        ("table not aligned", two, 8, table + 8, OTHERS),
        ("table past the end", two, 8, 1 << 40, OTHERS),
        ("table 0", two, 8, 0, OTHERS),
        ("table on guest data", two, 8, map.number(map.l2()[0], 8) << 8 >> 8, OTHERS),
        ("no table", two + 8, 4, 0, OTHERS),
        ("table longer", two + 8, 4, 3, OTHERS),
        ("reserved flag", two + 12, 4, 1 << 20 | 2, OTHERS),
        ("in use, and longer", two + 8, 8, 3 << 32 | 1, ALL),
        ("a flag of extra data", two + 12, 4, 6, OTHERS),
        ("extra data", two + 18, 6, 0x0001_0000_0002, OTHERS),
        ("type", two + 16, 1, 2, OTHERS),
        ("granularity of 8 bytes", two + 17, 1, 3, OTHERS),
        ("granularity that needs more", two + 17, 1, 9, OTHERS),
        ("no name, and nothing behind it", two + 18, 2, 0, &["one"]),
        ("a name that is too long", two + 18, 2, 2000, &["one"]),
        ("the first one's name", two + 24, 3, u64::from_be_bytes(*b"\0\0\0\0\0one"), OTHERS),
        ("the first one's name, for QEMU", two + 18, 6, 0x0004_0000_0000, OTHERS),
        ("table entry past the end", table, 8, 1 << 40, OTHERS),
        ("reserved bit of a table entry", table, 8, 1 << 60, OTHERS),
    ]
}

fn harmed(bytes: &[u8], (what, at, width, value, _): &Harm) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[*at as usize..][..*width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    if what.ends_with("for QEMU") {
        bytes[*at as usize + 6..][..4].copy_from_slice(b"one\0");
    }
    bytes
}

#[test]
fn bitmaps_that_are_sound_are_kept() {
    if !tool::available("repairs of bitmaps", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tool::memory_folder();
    let bytes = base(folder.path());
    let path = folder.path().join("image");
    let before = told(&path);
    assert_eq!(before.len(), 3);
    for harm in harms(&bytes) {
        let (what, .., kept) = &harm;
        let damaged = harmed(&bytes, &harm);
        let recording = Recording::new(vec![Sparse::new(&damaged)]);
        let mut fixes = Vec::new();
        let options = RepairOptions::new(RepairMode::All);
        let storage = recording.storage(0);
        let report = repair(&storage, &options, |_, _| {}, |fix| fixes.push(fix.clone()));
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.after.is_sound() && report.after.leaks == 0, "{what}: {report:?}");
        // Also those that a process leaves which was killed at some write, repaired again.
        let mut replay = recording.replay();
        loop {
            let again = Recording::new(replay.killed().to_vec());
            let mended = repair(&again.storage(0), &options, |_, _| {}, |_| {});
            mended.unwrap_or_else(|error| panic!("{what}, event {}: {error}", replay.at()));
            let place = format!("{what}, event {}: {fixes:?}", replay.at());
            judge(&path, &again.files()[0], &before, kept, &place);
            if !replay.advance() {
                break;
            }
        }
        judge(&path, &recording.files()[0], &before, kept, what);
        let lost = |fix: &&Fix| matches!(fix, Fix::BitmapLost { .. });
        let all = |fix: &Fix| matches!(fix, Fix::BitmapsLost { .. });
        let named = match kept.len() {
            3 => true,
            2 if *kept == OTHERS => fixes.iter().filter(lost).count() == 1,
            2 => fixes.contains(&Fix::BitmapDirectory { kept: 2 }),
            1 => fixes.contains(&Fix::BitmapDirectory { kept: 1 }),
            _ => fixes.iter().any(all),
        };
        assert!(named, "{what}: {fixes:?}");
    }
}

/// What QEMU says of the repaired image.
fn judge(path: &Path, file: &Sparse, before: &Told, kept: &[&str], what: &str) {
    file.store(path).unwrap();
    let said = img(["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
    assert!(said.status.success() && said.stderr.is_empty(), "{what}: {said:?}");
    let mut expected = before.clone();
    expected.retain(|name, _| kept.contains(&&**name));
    let mut found = told(path);
    if what.starts_with("in use") {
        // What is marked as wrong is listed as that, and has no bits.
        let two = found.remove("two").unwrap();
        assert_eq!((two.0.as_str(), two.1), ("[\"in-use\"]", before["two"].1), "{what}");
        expected.remove("two");
    }
    assert!(found == expected, "{what}: {:?} {:?}", found.keys(), expected.keys());
    let bytes = file.bytes(0, 4096);
    let map = Map::new(&bytes);
    assert_eq!(map.bitmaps_extension().is_some(), !kept.is_empty(), "{what}");
    assert_eq!(map.number(88, 8) & 1, u64::from(!kept.is_empty()), "{what}");
}
