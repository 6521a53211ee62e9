//! Images damaged on purpose, images that claim much, and what does not depend on memory or threads.
//! What QEMU says of damaged images is asked by `image_check` of `testkit`.

use std::time::Instant;

use super::*;
use crate::address::{GuestOffset, HostOffset};
use crate::create::CreateOptions;
use crate::error::RequestError;
use crate::geometry::{ClusterBits, RefcountOrder};
use crate::header::{Header, Version};
use crate::image::{Durability, WritableImage, WriteOptions};
use crate::io::{Memory, WriteAt};
use crate::l2::COPIED;

const CLUSTER: u64 = 512;

fn options() -> CreateOptions {
    CreateOptions::new(64 * CLUSTER).cluster_bits(ClusterBits::MIN)
}

fn written(options: &CreateOptions) -> Memory {
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    let options = WriteOptions::new().durability(Durability::None);
    let image = WritableImage::open(&storage, &options).unwrap();
    image.write_at(&[7; 1024], GuestOffset(0)).unwrap();
    image.write_at(&[9; 512], GuestOffset(20 * CLUSTER)).unwrap();

    image.close().unwrap();
    storage
}

fn word(storage: &Memory, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_full_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(storage: &Memory, at: u64, word: u64) {
    storage.write_all_at(&word.to_be_bytes(), at).unwrap();
}

/// Where the first L2 table lies.
fn l2(storage: &Memory) -> u64 {
    let header = Header::read(storage).unwrap();
    word(storage, header.l1_table_offset().0) & 0x00ff_ffff_ffff_fe00
}

/// Where the refcount of `cluster` lies; 16 bits, in the first block.
fn refcount_place(storage: &Memory, cluster: u64) -> u64 {
    let table = Header::read(storage).unwrap().refcount_table_offset().0;
    word(storage, table) + cluster * 2
}

type Findings = Vec<(Finding, u64)>;

fn run(storage: &Memory, options: &CheckOptions) -> Result<(CheckReport, Findings)> {
    let mut findings = Vec::new();
    let report = check(storage, options, |finding, times| findings.push((finding.clone(), times)))?;
    Ok((report, findings))
}

fn found(storage: &Memory) -> Vec<String> {
    let (_, findings) = run(storage, &CheckOptions::new()).unwrap();
    findings.into_iter().map(|(finding, times)| format!("{times} {finding}")).collect()
}

#[test]
fn what_was_written_well_is_sound() {
    for version in [Version::V2, Version::V3] {
        let storage = written(&options().version(version));
        let (report, findings) = run(&storage, &CheckOptions::new()).unwrap();
        assert_eq!(findings, []);
        assert!(report.is_sound() && report.leaks == 0);
        assert_eq!((report.total_clusters, report.allocated_clusters), (64, 3));
        assert_eq!(report.image_end_offset, storage.length().unwrap());
    }
    for bits in [1, 2, 4, 8, 32, 64] {
        let order = RefcountOrder::from_bits(bits).unwrap();
        let storage = written(&options().refcount_order(order));
        assert_eq!(found(&storage), Vec::<String>::new(), "{bits}");
    }
    let extended =
        CreateOptions::new(1 << 20).cluster_bits(ClusterBits::EXTENDED_L2_MIN).extended_l2(true);
    assert_eq!(found(&written(&extended)), Vec::<String>::new());
}

#[test]
fn each_damage_is_told_with_its_guest_offset() {
    let storage = written(&options());
    let table = l2(&storage);
    let entry = word(&storage, table);
    let cluster = (entry & !COPIED) / CLUSTER;
    storage.write_all_at(&2_u16.to_be_bytes(), refcount_place(&storage, cluster)).unwrap();
    let (report, findings) = run(&storage, &CheckOptions::new()).unwrap();
    let (guest, refcount) = (GuestOffset(0), 2);
    assert_eq!(
        findings,
        [
            (Finding::L2Copied { entry, refcount, guest }, 1),
            (Finding::Leaked { cluster, refcount, references: 1 }, 1)
        ]
    );
    assert_eq!((report.corruptions, report.leaks), (1, 1));

    let storage = written(&options());
    put(&storage, table + 20 * 8, COPIED | 1 << 40);
    let (_, findings) = run(&storage, &CheckOptions::new()).unwrap();
    let offset = HostOffset(1 << 40);
    let guest = Some(GuestOffset(20 * CLUSTER));
    assert!(findings.contains(&(Finding::BeyondFile { offset, length: 512, guest }, 1)));
    assert_eq!(findings.first().and_then(|(finding, _)| finding.guest()), guest);
}

/// An image whose L2 table names clusters all over a file of 100 MiB.
fn scattered() -> Memory {
    let storage = written(&options());
    let table = l2(&storage);
    storage.set_length(100 << 20).unwrap();
    for (index, host) in (0..).zip([99 << 20, 5 << 20, 66 << 20, 40 << 20, 1 << 20, 99 << 20]) {
        put(&storage, table + 200 + index * 8, COPIED | host);
    }
    storage
}

#[test]
fn neither_memory_nor_threads_change_what_is_found() {
    let storage = scattered();
    let (report, mut findings) = run(&storage, &CheckOptions::new()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (11, 0));
    let little = CheckOptions { memory: 1, ..CheckOptions::new() };
    let (same, mut later) = run(&storage, &little).unwrap();
    assert_eq!(same, report);
    // Refcounts come in the order of the passes.
    let text = |(finding, _): &(Finding, u64)| finding.to_string();
    findings.sort_by_key(text);
    later.sort_by_key(text);
    assert_eq!(later, findings);

    let options = CreateOptions::new(1 << 30).cluster_bits(ClusterBits::MIN);
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    let l1 = Header::read(&storage).unwrap().l1_table_offset().0;
    let behind = storage.length().unwrap().next_multiple_of(CLUSTER);
    for index in 0..4000 {
        let at = behind + index * CLUSTER;
        put(&storage, l1 + index * 8, at);
        // Reserved bits, and a cluster past the end.
        put(&storage, at + 8, 2);
        put(&storage, at + 504, (1 << 50) + index * CLUSTER);
    }
    let (_, one) = run(&storage, &CheckOptions::new().threads(1)).unwrap();
    assert!(one.len() > 8000);
    for threads in [2, 7] {
        assert!(run(&storage, &CheckOptions::new().threads(threads)).unwrap().1 == one);
    }
    // A list of tables that does not hold all of them.
    let (_, rounds) = run(&storage, &CheckOptions { memory: 1, ..CheckOptions::new() }).unwrap();
    assert!(rounds == one, "{} {}", rounds.len(), one.len());
}

#[test]
fn what_many_share_is_read_once() {
    let started = Instant::now();
    // Each entry of the longest L1 table names one L2 table, and its own.
    let options = CreateOptions::new(128 << 30).cluster_bits(ClusterBits::MIN);
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    let header = Header::read(&storage).unwrap();
    let table = storage.length().unwrap().next_multiple_of(CLUSTER);
    let entries: Vec<u8> = (0..header.l1_size()).flat_map(|_| table.to_be_bytes()).collect();
    storage.write_all_at(&entries, header.l1_table_offset().0).unwrap();
    let cluster = table + CLUSTER;
    storage.set_length(cluster + CLUSTER).unwrap();
    for index in 0..64 {
        put(&storage, table + index * 8, cluster);
    }
    let (report, findings) = run(&storage, &CheckOptions::new()).unwrap();
    let tables = u64::from(header.l1_size());
    assert_eq!(report.allocated_clusters, tables * 64);
    let counted = |cluster: u64, references| {
        let cluster = cluster / CLUSTER;
        let low = |(finding, _): &(Finding, u64)| matches!(finding, Finding::TooLow { cluster: c, .. } if *c == cluster);
        let over = |(finding, times): &(Finding, u64)| {
            matches!(finding, Finding::Overflow { offset } if offset.0 / CLUSTER == cluster)
                && *times == references - 65_535
        };
        findings.iter().any(low) && findings.iter().any(over)
    };
    assert!(counted(table, tables) && counted(cluster, tables * 64));

    // As many snapshots as there may be, one L1 table for all.
    let storage = written(&self::options());
    let header = Header::read(&storage).unwrap();
    let at = storage.length().unwrap().next_multiple_of(CLUSTER);
    let mut snapshot = [0; 40];
    snapshot[..8].copy_from_slice(&header.l1_table_offset().0.to_be_bytes());
    snapshot[8..12].copy_from_slice(&header.l1_size().to_be_bytes());
    storage.write_all_at(&snapshot.repeat(65_536), at).unwrap();
    storage.write_all_at(&65_536_u32.to_be_bytes(), 60).unwrap();
    put(&storage, 64, at);
    let (report, findings) = run(&storage, &CheckOptions::new()).unwrap();
    assert_eq!(report.allocated_clusters, 3);
    let cluster = header.l1_table_offset().0 / CLUSTER;
    let low = Finding::TooLow { cluster, refcount: 1, references: 65_535 };
    assert!(findings.contains(&(low, 1)));
    // Minutes, if each were looked at for itself.
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn the_caller_may_stop_it() {
    let storage = written(&options());
    let options = CheckOptions::new().progress(|done, of| done < of);
    let error = run(&storage, &options).unwrap_err();
    assert!(matches!(error, Error::Request(RequestError::Cancelled)), "{error:?}");
}
