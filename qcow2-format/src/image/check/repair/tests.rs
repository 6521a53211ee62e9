//! Damaged images repaired, and repairs killed at every write. What QEMU says of repaired images is
//! asked by `image_check` of `testkit`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::address::GuestOffset;
use crate::header::Header;
use crate::image::check::check;
use crate::image::{Image, ReadOptions};
use crate::io::Memory;

/// Images of QEMU's with clusters of 512 bytes to 16 KiB.
const IMAGES: [&str; 9] = [
    "bitmaps",
    "compressed",
    "dirty",
    "extended-l2",
    "grown",
    "refcount-bits-1",
    "snapshots",
    "v2",
    "written",
];

fn image(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/images");
    fs::read(folder.join(format!("{name}.qcow2"))).unwrap()
}

/// Storage whose writes fail once so many have succeeded.
struct Cut {
    memory: Memory,
    left: AtomicU64,
}

impl ReadAt for Cut {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.memory.read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
}

impl WriteAt for Cut {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let less = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => self.memory.write_all_at(data, offset),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        unreachable!("a repair does not cut the file")
    }

    fn flush(&self) -> io::Result<()> {
        self.memory.flush()
    }
}

fn mend(storage: &(impl WriteAt + Sync)) -> Result<(RepairReport, Vec<Fix>)> {
    let mut fixes = Vec::new();
    let options = RepairOptions::new(RepairMode::All);
    let report = repair(storage, &options, |_, _| {}, |fix| fixes.push(fix.clone()))?;
    Ok((report, fixes))
}

/// Where the first L1 entry of an image with clusters of 512 bytes lies that names a table, and where
/// that table has an entry.
fn entries_of(name: &str) -> (usize, usize) {
    let bytes = image(name);
    let word = |at: usize| u64::from_be_bytes(bytes[at..][..8].try_into().unwrap());
    let l1 = (0x600..0x700).step_by(8).find(|at| word(*at) != 0).unwrap();
    let table = usize::try_from(word(l1) & crate::l1::OFFSET).unwrap();
    (l1, (table..table + 512).step_by(8).find(|at| word(*at) & crate::l1::OFFSET != 0).unwrap())
}

/// Each sector of each disk of the image: its bytes, or nothing where it cannot be read.
fn sectors(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut all = Vec::new();
    for name in [None, Some("1"), Some("2")] {
        let options = ReadOptions::new().threads(1);
        let options = name.map_or(options.clone(), |name| options.snapshot(name));
        let Ok(image) = Image::open(bytes, &options) else { continue };
        for sector in 0..(image.virtual_size() / 512).min(512) {
            let mut bytes = vec![0; 512];
            let read = image.read_over(&mut bytes, GuestOffset(sector * 512), |part, _| {
                part.fill(0);
                Ok::<(), Error>(())
            });
            all.push(read.ok().map(|()| bytes));
        }
    }
    all
}

/// Flips a few bits of what is not zero, behind the header.
fn damaged(name: &str, seed: u64) -> Vec<u8> {
    let mut bytes = image(name);
    let mut state = seed;
    let mut below = |count: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % count
    };
    let is_used = |at: &usize| bytes[at & !7..].iter().take(8).any(|byte| *byte != 0);
    let used: Vec<_> = (512..bytes.len()).filter(is_used).collect();
    for _ in 0..=below(3) {
        bytes[used[below(used.len())]] ^= 1 << below(8);
    }
    bytes
}

#[test]
fn a_repair_killed_at_any_write_loses_nothing_and_is_gone_on_with() {
    let mut kinds = BTreeSet::new();
    let random = (0..400)
        .zip(IMAGES.iter().cycle())
        .map(|(seed, name)| (*name, format!("seed {seed}"), damaged(name, seed)));
    let chosen = [
        // Flags of the L1 entry and of the first L2 entry.
        ("written", entries_of("written").0, 0x80),
        ("written", entries_of("written").1, 0x80),
        // The first snapshot's L1 table: unaligned, then its extra data and the second's number.
        ("snapshots", 0x2007, 0x01),
        ("snapshots", 0x2027, 0x18 ^ 0x08),
        // The L1 table, and the refcount table, far past the end.
        ("written", 40 + 2, 0x01),
        ("v2", 48 + 2, 0x01),
    ];
    let chosen = chosen.into_iter().map(|(name, at, bits)| {
        let mut bytes = image(name);
        bytes[at] ^= bits;
        (name, format!("{at:#x} ^ {bits:#x}"), bytes)
    });
    for (name, damage, bytes) in random.chain(chosen) {
        let before = sectors(&bytes);
        let mut left = 0;
        loop {
            let storage = Cut { memory: Memory::new(bytes.clone()), left: AtomicU64::new(left) };
            let ended = mend(&storage);
            let image = storage.memory.into_bytes();
            let what = format!("{name}, {damage}, {left} writes");
            let now = sectors(&image);
            for (sector, (before, now)) in before.iter().zip(&now).enumerate() {
                assert!(before.is_none() || before == now, "{what}: sector {sector}");
            }
            let storage = Memory::new(image);
            let (report, fixes) = mend(&storage).unwrap();
            assert_eq!((report.after.corruptions, report.after.leaks), (0, 0), "{what} {fixes:?}");
            assert!(
                sectors(&storage.into_bytes())
                    .iter()
                    .all(|sector| { sector.is_some() || name == "compressed" })
            );
            if let Ok((report, first)) = ended {
                assert_eq!(fixes, [], "{what}");
                assert_eq!(report.after.corruptions, 0);
                kinds.extend(
                    first
                        .iter()
                        .map(|fix| format!("{fix:?}").split(' ').next().unwrap().to_owned()),
                );
                break;
            }
            left += 1;
        }
    }
    let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "BitmapDirectory",
            "BitmapLost",
            "BitmapsLost",
            "L1Copied",
            "L1Entry",
            "L1Table",
            "L2Copied",
            "L2Entry",
            "MarkedClean",
            "Rebuilt",
            "Refcount",
            "SnapshotLost",
            "SnapshotTable"
        ]
    );
}

#[test]
fn a_plan_says_what_a_repair_does_and_changes_nothing() {
    for (seed, name) in (1000..1060).zip(IMAGES.iter().cycle()) {
        let bytes = damaged(name, seed);
        let mut planned = Vec::new();
        let options = RepairOptions::new(RepairMode::All);
        let storage = bytes.as_slice();
        let plan =
            plan_repair(&storage, &options, |_, _| {}, |fix| planned.push(fix.clone())).unwrap();
        let storage = Memory::new(bytes);
        let (report, fixes) = mend(&storage).unwrap();
        assert_eq!((plan, planned), (report, fixes), "{name}, seed {seed}");
    }
}

#[test]
fn leaks_alone_are_given_back_and_nothing_else_is_touched() {
    let bytes = image("snapshots");
    let header = Header::parse(&bytes, bytes.len() as u64).unwrap();
    let mut leaking = bytes.clone();
    // The last count of the first block counts a cluster far behind the file: nobody compares it.
    let block = usize::try_from(header.refcount_table_offset().0).unwrap();
    let block = u64::from_be_bytes(leaking[block..][..8].try_into().unwrap());
    let block = usize::try_from(block).unwrap();
    leaking[block + 1] += 3;
    let storage = Memory::new(leaking.clone());
    let options = RepairOptions::new(RepairMode::Leaks);
    let report = repair(&storage, &options, |_, _| {}, |_| {}).unwrap();
    assert_eq!((report.before.leaks, report.leaks_fixed, report.fixes), (1, 1, 1));
    assert_eq!(storage.into_bytes(), bytes);

    // With a corruption beside it, the leak goes and the corruption stays.
    let l1 = usize::try_from(header.l1_table_offset().0).unwrap();
    leaking[l1 + 7] |= 1;
    let storage = Memory::new(leaking);
    let report = repair(&storage, &options, |_, _| {}, |_| {}).unwrap();
    assert_eq!((report.before.leaks, report.after.leaks), (1, 0));
    assert_eq!((report.before.corruptions, report.after.corruptions), (1, 1));
}

#[test]
fn an_l1_table_on_something_else_is_not_written_to() {
    let mut bytes = image("written");
    // The active L1 table is said to lie where the refcount table does.
    bytes[40..48].copy_from_slice(&0x200_u64.to_be_bytes());
    bytes[0x200 + 7] |= 1;
    let storage = Memory::new(bytes.clone());
    let error = mend(&storage).unwrap_err();
    assert!(error.to_string().contains("l1_table_offset"), "{error}");
    assert_eq!(storage.into_bytes(), bytes);
}

#[test]
fn a_refcount_table_that_is_nowhere_is_made_anew() {
    for (at, field) in [(48, 0x201_u64.to_be_bytes()), (52, [0xff; 8])] {
        let mut bytes = image("snapshots");
        let before = sectors(&bytes);
        bytes[at..at + 8].copy_from_slice(&field);
        assert!(check(&bytes.as_slice(), &CheckOptions::new(), |_, _| {}).is_err());
        let storage = Memory::new(bytes);
        let (report, _) = mend(&storage).unwrap();
        assert_eq!((report.after.corruptions, report.after.leaks), (0, 0));
        assert_eq!(sectors(&storage.into_bytes()), before);
    }
}
