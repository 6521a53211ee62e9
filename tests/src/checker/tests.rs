//! The checker against `qemu-img check`, over images that QEMU made and someone damaged.

use super::*;
use crate::random::Random;
use crate::{qemu, tool};

#[test]
fn says_of_damaged_images_what_qemu_img_says() {
    if !tool::available("checking damaged images", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tool::memory_folder();
    let path = folder.path().join("image");
    let name = path.to_str().unwrap();
    let mut random = Random(7);
    let (mut sound, mut leaking, mut corrupt) = (0, 0, 0);
    for (options, snapshot) in [
        ("cluster_size=512,refcount_bits=1", false),
        ("cluster_size=1024,refcount_bits=2", true),
        ("cluster_size=4096,refcount_bits=64", true),
        ("cluster_size=65536,refcount_bits=16,compat=0.10", true),
        ("cluster_size=16384,refcount_bits=8,extended_l2=on", true),
        ("cluster_size=2097152,refcount_bits=32", false),
    ] {
        qemu::img(["create", "-q", "-f", "qcow2", "-o", options, name, "3M"]).expect_success();
        let write = |command: &str| {
            qemu::io(["-f", "qcow2", "-c", command, name]).expect_success();
        };
        write("write -P 1 0 300k");
        // Payloads that share a cluster are counted once each, which few bits cannot.
        if !options.contains("refcount_bits=1") && !options.contains("refcount_bits=2")
            || options.contains("refcount_bits=16")
        {
            let bulk = if options.contains("2097152") { "2M 1M" } else { "2M 64k" };
            write(&format!("write -c -P 2 {bulk}"));
        }
        if snapshot {
            qemu::img(["snapshot", "-c", "one", name]).expect_success();
            write("write -P 3 100k 100k");
        }
        if !options.contains("0.10") {
            write("write -z 200k 200k");
        }
        let image = Sparse::load(&path).unwrap();
        let clean = check(&image).unwrap();
        assert_eq!((clean.sound(), clean.leaks), (Ok(()), 0), "{options}: {clean:?}");
        let tables = tables(&image);
        for _ in 0..12 {
            let mut damaged = image.clone();
            for _ in 0..=random.below(2) {
                let at = tables[random.below(tables.len())];
                let mut byte = damaged.bytes(at, 1);
                byte[0] ^= 1 << random.below(8);
                damaged.write(&byte, at);
            }
            damaged.store(&path).unwrap();
            let said = qemu::img(["check", "-f", "qcow2", "--output=json", name]);
            let Ok(said) = serde_json::from_str::<serde_json::Value>(&said.stdout) else {
                // QEMU did not open it, or stopped checking.
                continue;
            };
            if said["check-errors"] != 0 {
                continue;
            }
            let ours = check(&damaged).unwrap();
            let corruptions = said["corruptions"].as_u64().unwrap_or(0);
            let leaks = said["leaks"].as_u64().unwrap_or(0);
            // We find more: what two guest clusters share, and a bit that only some entries have.
            let more = |what: &String| what.contains(" and ") || what.ends_with("no zero bit here");
            let shared = ours.corruptions.iter().any(more);
            assert!(
                ours.sound().is_err() == (corruptions > 0) || shared,
                "{options}: {said:#}\n{ours:#?}"
            );
            // A corrupt entry's cluster may be one that nobody knows to be used.
            let same = (ours.leaks > 0) == (leaks > 0);
            assert!(same || corruptions > 0, "{options}: {said:#}\n{ours:#?}");
            sound += usize::from(corruptions + leaks == 0);
            leaking += usize::from(corruptions == 0 && leaks > 0);
            corrupt += usize::from(corruptions > 0);
        }
    }
    tool::tell(&format!("checker: {sound} sound, {leaking} leaking, {corrupt} corrupt images"));
    assert!(![sound, leaking, corrupt].contains(&0));
}

/// Where bytes of refcount blocks, L1 and L2 tables lie.
fn tables(image: &Sparse) -> Vec<u64> {
    let mut checker = Checker::new(image).unwrap();
    checker.metadata(0, 1, "header");
    let said = checker.said();
    checker.l1(checker.header.l1, Some(&said));
    let cluster = checker.cluster();
    let mut places = Vec::new();
    for (number, what) in &checker.owned {
        if matches!(*what, "refcount block" | "L1 table" | "L2 table") {
            for (at, page) in checker.pages(number * cluster, cluster) {
                let bytes = page.iter().enumerate().filter(|(_, byte)| **byte != 0);
                // And the zeros beside them.
                places
                    .extend(bytes.flat_map(|(byte, _)| [at + byte as u64, (at + byte as u64) ^ 8]));
            }
        }
    }
    places
}
