//! What a disk may come in.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::source::tar::build::{Archive, header, number, record, seal};
use crate::source::{Compression, Container, SparseForm};

const FORMS: [SparseForm; 5] = [
    SparseForm::Dense,
    SparseForm::OldGnu,
    SparseForm::Pax00,
    SparseForm::Pax01,
    SparseForm::Pax10,
];

/// A disk with data in `ranges` only.
fn disk(size: usize, ranges: &[Range<usize>]) -> Vec<u8> {
    let mut disk = vec![0; size];
    let data = noise(size);
    for range in ranges {
        disk[range.clone()].copy_from_slice(&data[range.clone()]);
    }
    disk
}

#[test]
fn bare_disks_come_in_every_compression() {
    for size in [512, 4096, 5000, 1 << 20, (1 << 20) + 1, 3_000_000] {
        let disk = disk(size, &[0..size.min(700), size / 2..size]);
        for (name, compress) in compressions() {
            let (bytes, report) = run_bytes(compress(&disk)).unwrap();
            assert!(bytes == disk, "{name} {size}");
            assert_eq!(report.compression.as_str(), name);
            assert_eq!(report.container, Container::Bare);
        }
    }
}

#[test]
fn frames_may_be_many_and_skippable_ones_anywhere() {
    let disk = noise(10_000);
    let skip = |length: u8| {
        [&[0x53, 0x2a, 0x4d, 0x18, length, 0, 0, 0][..], &vec![9; length.into()]].concat()
    };
    let source =
        [skip(0), zstd(&disk[..1000]), skip(200), zstd(&[]), zstd(&disk[1000..]), skip(3)].concat();
    assert_eq!(run_bytes(source).unwrap().0, disk);
    #[cfg(feature = "gzip")]
    assert_eq!(run_bytes([gzip(&disk[..1000]), gzip(&disk[1000..])].concat()).unwrap().0, disk);
    #[cfg(feature = "xz")]
    assert_eq!(
        run_bytes([xz(&disk[..1000]), vec![0; 8], xz(&disk[1000..]), vec![0; 4]].concat())
            .unwrap()
            .0,
        disk
    );
}

#[test]
fn constant_memory_suffices_for_many_empty_frames() {
    let frames = zstd(&[]).repeat(200_000);
    let disk = noise(600);
    assert_eq!(run_bytes([frames, zstd(&disk)].concat()).unwrap().0, disk);
}

#[test]
fn every_form_of_a_sparse_file_gives_the_same_disk() {
    let size = 3 << 20;
    let ranges: Vec<_> =
        (0..60).map(|index| index * 48_640..index * 48_640 + 512 * (index % 7 + 1)).collect();
    let disk = disk(size, &ranges);
    for form in FORMS {
        for (name, compress) in compressions() {
            let archive = Archive::default().sparse(form, "./disk.img", &disk, &ranges).end();
            let (bytes, report) = run_bytes(compress(&archive)).unwrap();
            assert!(bytes == disk, "{form:?} {name}");
            assert_eq!(report.sparse_form, form);
            assert_eq!(report.container, Container::Tar { member: "disk.img".into() });
        }
    }
}

#[test]
fn a_disk_that_is_all_hole_is_only_a_size() {
    let disk = vec![0; 5 << 20];
    for form in FORMS {
        let archive = Archive::default().sparse(form, "a", &disk, &[]).end();
        let (bytes, report) = run_bytes(archive).unwrap();
        assert!(bytes == disk, "{form:?}");
        assert_eq!((report.written_bytes, report.extents.len()), (0, 0), "{form:?}");
    }
}

#[test]
fn numbers_over_8_gib_are_base_256() {
    let far = 9 << 30;
    let archive = Archive::default()
        .gnu_sparse("disk.img", 50 << 30, &[(far, 512), (50 << 30, 0)], 512)
        .data(&noise(512))
        .end();
    let file = tempfile::tempfile().unwrap();
    let report =
        extract_into(source_of(zstd(&archive)), &file, Path::new("x"), &TransferOptions::default())
            .unwrap();
    assert_eq!((report.virtual_size, report.written_bytes), (50 << 30, 4096));
    assert_eq!(report.extents[0].offset, far);
}

#[test]
fn long_names_and_pax_names_are_names() {
    let disk = noise(1000);
    let long = "n".repeat(300);
    let gnu = Archive::default()
        .entry("././@LongLink", b'L', format!("{long}\0").as_bytes())
        .entry("././@LongLink", b'K', b"a target\0")
        .file("nnn", &disk);
    let pax = Archive::default().pax(&[("path", long.clone())]).file("nnn", &disk);
    let global = Archive::default()
        .entry("g", b'g', (record("comment", "1") + &record("path", &long)).as_bytes())
        .file("nnn", &disk);
    let other = |archive: Archive| archive.file("other", b"x");
    for archive in [other(gnu), other(pax), global] {
        let archive = archive.end();
        let (bytes, _) = run(source_of(archive).with_member(long.clone())).unwrap();
        assert_eq!(bytes, disk);
    }
    let mut block = header(b"disk.img", b'0', &number(1000));
    block[345..351].copy_from_slice(b"prefix");
    seal(&mut block);
    let archive = Archive(block.to_vec()).data(&disk).end();
    assert_eq!(run(source_of(archive).with_member("prefix/disk.img")).unwrap().0, disk);
}

#[test]
fn the_size_of_a_pax_record_wins_for_the_file_and_for_nothing_else() {
    let disk = noise(1000);
    let mut archive = Archive::default().pax(&[("size", "1000".into())]).entry(
        "././@LongLink",
        b'L',
        b"disk.img\0",
    );
    archive.0.extend(header(b"d", b'0', &number(0)));
    assert_eq!(run_bytes(archive.data(&disk).end()).unwrap().0, disk);
}

#[test]
fn the_disk_is_found_among_other_members_in_one_pass() {
    let disk = disk(2 << 20, &[0..512, (1 << 20)..(1 << 20) + 4096]);
    let decoy = noise(3 << 20);
    for form in FORMS {
        let archive = Archive::default()
            .entry("./", b'5', b"")
            .file("README", &decoy)
            .file("notes", &decoy)
            .sparse(form, "./disk.img", &disk, &[0..512, (1 << 20)..(1 << 20) + 4096])
            .file("later", &decoy)
            .end();
        let (bytes, report) = run_bytes(archive.clone()).unwrap();
        assert!(bytes == disk, "{form:?}");
        assert_eq!(report.written_bytes, 8192);
        assert!(run(source_of(archive).with_member("notes")).unwrap().0 == decoy);
    }
}

#[test]
fn a_decoy_that_is_no_disk_is_forgiven_when_the_disk_follows() {
    let decoy = [b"QFI\xfb".to_vec(), noise(600)].concat();
    let archive = Archive::default().file("old.qcow2", &decoy);
    let disk = noise(700);
    let both = archive.clone().file("disk.img", &disk).end();
    assert_eq!(run_bytes(both).unwrap().0, disk);
    assert_eq!(kind(archive.end()), ErrorKind::Unsupported);
}

#[test]
fn one_block_of_zeros_ends_an_archive_and_more_may_follow() {
    let disk = noise(700);
    let archive = Archive::default().file("disk.img", &disk).end();
    assert_eq!(run_bytes(&archive[..archive.len() - 512]).unwrap().0, disk);
    assert_eq!(run_bytes([archive, vec![0; 100_000]].concat()).unwrap().0, disk);
}

#[test]
fn the_source_is_hashed_as_it_is_given() {
    let source = zstd(&noise(3_000_000));
    let expected = {
        use sha2::Digest;
        crate::Sha256Digest(sha2::Sha256::digest(&source).into())
    };
    let file = tempfile::tempfile().unwrap();
    let options = TransferOptions { hash_source: true, ..Default::default() };
    let report = extract_into(source_of(source.clone()), &file, Path::new("x"), &options).unwrap();
    assert_eq!(report.source_sha256, Some(expected));
    assert_eq!(report.source_bytes, source.len() as u64);
    assert_eq!(report.compression, Compression::Zstd);
    let wrong = TransferOptions {
        expected_sha256: Some(crate::Sha256Digest([0; 32])),
        ..Default::default()
    };
    let error = extract_into(source_of(source), &file, Path::new("x"), &wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

/// Ranges on sector boundaries, the last one maybe not, and the size of their disk.
fn ranges() -> impl Strategy<Value = (usize, Vec<Range<usize>>)> {
    let pieces = prop::collection::vec((0_usize..40, 1_usize..40), 0..60);
    (pieces, 0_usize..2000, 0_usize..512).prop_map(|(pieces, tail, short)| {
        let mut at = 0;
        let mut ranges = Vec::new();
        for (gap, length) in pieces {
            at += gap * 512;
            ranges.push(at..at + length * 512);
            at += length * 512;
        }
        if let Some(last) = ranges.last_mut() {
            last.end -= short;
            at = last.end;
        }
        (at + tail, ranges)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_ranges_survive_any_form((size, ranges) in ranges(), form in prop::sample::select(&FORMS[..])) {
        let disk = disk(size, &ranges);
        let archive = Archive::default().sparse(form, "disk", &disk, &ranges).end();
        let (bytes, report) = run_bytes(zstd(&archive)).unwrap();
        prop_assert!(bytes == disk);
        prop_assert!(report.written_bytes <= disk.len() as u64);
    }
}
