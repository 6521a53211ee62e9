//! Images larger than the memory a check is given: several passes find what one does, and what
//! `qemu-img check` does.
//!
//! ```text
//! 16 TiB disk, 192 GiB sparse file   region of 2 GiB: │ refcount block │ L2 table │ … data … data …
//!                                    96 of them: the counts of a pass, some of them wide, take 1 MiB
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2_format::image::check::{CheckOptions, RepairMode, RepairOptions, check, repair};
use testkit::qemu::img_in;
use testkit::tool;
use testkit::verdict::Verdict;

const CLUSTER: u64 = 64 << 10;
/// Clusters that a refcount block counts.
const REGION: u64 = CLUSTER / 2;
const REGIONS: u64 = 96;
/// Clusters of data in a region.
const DATA: u64 = 9;
const COPIED: u64 = 1 << 63;

/// A disk of 16 TiB, all over a file of 192 GiB. Some refcounts are wrong.
fn make(folder: &Path) {
    img_in(folder, &["create", "-q", "-f", "qcow2", "image", "16T"]);
    let file = File::options().read(true).write(true).open(folder.join("image")).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let (l1, table) = (number(40), number(48));
    let first = number(table);
    // Of this image's own structures.
    let used = file.metadata().unwrap().len().div_ceil(CLUSTER);
    file.set_len(REGIONS * REGION * CLUSTER).unwrap();
    let put = |at: u64, value: u64| file.write_all_at(&value.to_be_bytes(), at).unwrap();
    for region in 0..REGIONS {
        let start = region * REGION;
        // The first region has its block, and other structures in front.
        let (block, l2) = match region {
            0 => (first, used * CLUSTER),
            _ => (start * CLUSTER, (start + 1) * CLUSTER),
        };
        let count = |cluster: u64, count: u16| {
            let at = block + cluster % REGION * 2;
            file.write_all_at(&count.to_be_bytes(), at).unwrap();
        };
        count(block / CLUSTER, 1);
        count(l2 / CLUSTER, 1);
        put(table + region * 8, block);
        put(l1 + region * 4093 % 32_768 * 8, COPIED | l2);
        for data in 0..DATA {
            let cluster = start + 100 + data * 3000 + region % 7;
            count(cluster, 1);
            put(l2 + (data * 800 + region % 5) * 8, COPIED | (cluster * CLUSTER));
        }
        // Leaks; a cluster that is not counted; one that two entries name.
        match region % 16 {
            // Counts of the whole page are wider for that.
            even if even % 2 == 0 => count(start + 29_000, 300),
            5 => count(start + 100 + region % 7, 0),
            7 => put(l2 + 8000 * 8, COPIED | ((start + 100 + region % 7) * CLUSTER)),
            _ => {}
        }
    }
}

/// What we say, how often which finding is there, and in how many passes that was found.
fn said(image: &File, memory: u64) -> (Verdict, BTreeMap<String, u64>, u64) {
    let passes = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&passes);
    // Each pass reads all tables once.
    let options = CheckOptions::new().memory(memory).progress(move |done, total| {
        seen.fetch_add(u64::from(done == total), Ordering::Relaxed);
        true
    });
    let mut found = BTreeMap::new();
    let report = check(image, &options, |finding, times| {
        *found.entry(finding.to_string()).or_default() += times;
    });
    (Verdict::from(&report.unwrap()), found, passes.load(Ordering::Relaxed))
}

#[test]
fn passes_find_what_one_does() {
    if !tool::available("checks in several passes", &["qemu-img", "timeout"]) {
        return;
    }
    let folder = tool::memory_folder();
    make(folder.path());
    let path = folder.path().join("image");
    let image = File::options().read(true).write(true).open(&path).unwrap();
    let theirs = Verdict::of_qemu(&path);
    let (once, found, one) = said(&image, 1 << 30);
    let (often, again, passes) = said(&image, 1 << 20);
    assert!(once.agrees(&theirs), "{once:?} {theirs:?}");
    assert!(often.agrees(&theirs), "{often:?} {theirs:?}");
    let [corruptions, leaks, ..] = theirs.counts.unwrap();
    assert!(corruptions > 10 && leaks > 40, "{theirs:?}");
    assert!(found == again && one == 1 && passes > 5, "{one} and {passes} passes");

    let options = RepairOptions::new(RepairMode::All).flush(false);
    let options = options.check(CheckOptions::new().memory(1 << 20));
    repair(&image, &options, |_, _| {}, |_| {}).unwrap();
    let theirs = Verdict::of_qemu(&path);
    assert_eq!(theirs.exit, 0, "{theirs:?}");
    tool::tell(&format!("large check suite: {passes} passes"));
}
