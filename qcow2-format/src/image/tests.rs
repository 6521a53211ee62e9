//! Images put together by hand, one entry at a time. What QEMU makes is read in the suite
//! `read_equality`.

use super::*;
use crate::address::GuestOffset;
use crate::create::CreateOptions;
use crate::error::{Error, FieldError, Violation};
use crate::geometry::ClusterBits;
use crate::io::{Memory, WriteAt};

const CLUSTER: u64 = 512;
/// Where the L2 table of every image here lies, and its data.
const L2: u64 = 1 << 20;
const DATA: u64 = 2 << 20;

/// An image with clusters of 512 bytes whose first L2 table has `entries`.
fn image(size: u64, entries: &[u64]) -> Memory {
    let options = CreateOptions::new(size).cluster_bits(ClusterBits::MIN);
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    let l1 = Header::read(&storage).unwrap().l1_table_offset().to_u64();
    storage.write_all_at(&(1 << 63 | L2).to_be_bytes(), l1).unwrap();
    let table: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    storage.write_all_at(&table, L2).unwrap();
    storage
}

fn open(storage: &Memory) -> Image<&Memory> {
    Image::open(storage, &ReadOptions::new()).unwrap()
}

fn data(host: u64) -> RunKind {
    RunKind::Data { host: HostOffset(host) }
}

const ZERO: RunKind = RunKind::Zero { host: None };
const UNALLOCATED: RunKind = RunKind::Unallocated { host: None };

fn runs(image: &Image<&Memory>) -> Vec<(u64, u64, RunKind)> {
    let runs = image.map(0..image.virtual_size()).unwrap();
    runs.map(|run| run.unwrap()).map(|run| (run.start.0, run.length, run.kind)).collect()
}

#[test]
fn runs_merge_while_they_go_on() {
    let storage = image(64 * 2 * CLUSTER + 512, &[DATA, DATA + 512, DATA, 1, 1, DATA | 1, 0]);
    let image = open(&storage);
    let reserved = RunKind::Zero { host: Some(HostOffset(DATA)) };
    assert_eq!(
        runs(&image),
        [
            (0, 1024, data(DATA)),
            (1024, 512, data(DATA)),
            (1536, 1024, ZERO),
            (2560, 512, reserved),
            // To the end of the disk, across the end of the table.
            (3072, 64 * 1024 + 512 - 3072, UNALLOCATED),
        ]
    );
    let run = image.run_at(GuestOffset(700), 10_000).unwrap();
    assert_eq!((run.start.0, run.length, run.kind), (700, 324, data(DATA + 700)));
    assert_eq!(image.run_at(GuestOffset(100), 50).unwrap().length, 50);
    let range = image.map(600..3000).unwrap().map(|run| run.unwrap().length);
    assert_eq!(range.collect::<Vec<_>>(), [424, 512, 1024, 440]);
}

#[test]
fn runs_are_as_long_as_they_are_however_many_entries_that_takes() {
    // All L1 entries name one table: hostile, and nothing to read forbids it.
    let entries: Vec<u64> = vec![1; 64];
    let storage = image(CLUSTER * 64 * 1024, &entries);
    let l1 = Header::read(&storage).unwrap().l1_table_offset().to_u64();
    for index in 0..1024 {
        storage.write_all_at(&L2.to_be_bytes(), l1 + index * 8).unwrap();
    }
    let image = open(&storage);
    assert_eq!(runs(&image), [(0, CLUSTER * 64 * 1024, ZERO)]);
    // One call does a bounded part of that.
    assert_eq!(image.run_at(GuestOffset(0), u64::MAX).unwrap().length, 4096 * CLUSTER);
}

#[test]
fn bytes_come_from_where_the_runs_say() {
    let storage = image(CLUSTER * 8, &[DATA, 1, 0, DATA + 512, DATA + 1024]);
    storage.write_all_at(&[7; 512], DATA).unwrap();
    // The second data cluster is there in part, the third not at all.
    storage.write_all_at(&[8; 100], DATA + 512).unwrap();
    let image = open(&storage);
    let mut bytes = vec![0xaa; 512 * 8 - 12];
    image
        .read_over::<Error>(&mut bytes, GuestOffset(10), |part, at| {
            assert!(!part.is_empty());
            part.fill(if at.0 == 1024 { 0xbb } else { 0xcc });
            Ok(())
        })
        .unwrap();
    let parts = [(7, 502), (0, 512), (0xbb, 512), (8, 100), (0, 412 + 512), (0xcc, 512 * 3 - 2)];
    let expected: Vec<u8> = parts.into_iter().flat_map(|(byte, count)| vec![byte; count]).collect();
    assert!(bytes == expected);
    let mut alone = vec![0xaa; 512];
    image.read_at(&mut alone, GuestOffset(1024)).unwrap();
    assert_eq!(alone, [0; 512]);
}

#[test]
fn a_bad_entry_spoils_only_what_it_maps() {
    let storage = image(CLUSTER * 8, &[DATA, DATA | 2, DATA]);
    let image = open(&storage);
    let field = FieldError {
        field: "L2 entry",
        value: DATA | 2,
        offset: L2 + 8,
        violation: Violation::ReservedBits { bits: 2 },
    };
    let mut runs = image.map(0..4096).unwrap();
    assert_eq!(runs.next().unwrap().unwrap().length, 512);
    match runs.next() {
        Some(Err(Error::Corrupt(found))) => assert_eq!(found, field),
        other => panic!("{other:?}"),
    }
    assert!(runs.next().is_none());
    let mut bytes = [0; 512];
    assert!(image.read_at(&mut bytes, GuestOffset(0)).is_ok());
    assert!(image.read_at(&mut bytes, GuestOffset(1024)).is_ok());
    assert!(matches!(image.read_at(&mut bytes, GuestOffset(600)), Err(Error::Corrupt(_))));
}

#[test]
fn tables_that_name_each_other_and_the_header_are_read_as_what_they_are() {
    let storage = image(CLUSTER * 64 * 2, &[0]);
    let l1 = Header::read(&storage).unwrap().l1_table_offset().to_u64();
    // The L1 table is its own L2 table, and maps the guest to itself.
    storage.write_all_at(&(1 << 63 | l1).to_be_bytes(), l1).unwrap();
    let image = open(&storage);
    assert_eq!(image.run_at(GuestOffset(0), 512).unwrap().kind, data(l1));
    let mut bytes = [0; 8];
    image.read_at(&mut bytes, GuestOffset(0)).unwrap();
    assert_eq!(u64::from_be_bytes(bytes), 1 << 63 | l1);
}

#[test]
fn ranges_and_data_files_that_are_not_there_are_refused() {
    let storage = image(CLUSTER * 8, &[]);
    let image = open(&storage);
    for (offset, length) in [(4096, 1), (4095, 2), (u64::MAX, 1)] {
        let mut bytes = vec![0; length];
        let error = image.read_at(&mut bytes, GuestOffset(offset)).unwrap_err();
        assert!(matches!(error, Error::Request(RequestError::OutOfRange { .. })), "{error}");
    }
    assert!(image.run_at(GuestOffset(4096), 1).is_err());
    assert!(image.map(0..4097).is_err());
    assert!(image.read_at(&mut [], GuestOffset(4096)).is_ok());
    let extra = Image::open_with_data(&storage, &storage, &ReadOptions::new()).unwrap_err();
    assert!(matches!(extra, Error::Request(RequestError::DataFileUnexpected)));
    storage.write_all_at(&4_u64.to_be_bytes(), 72).unwrap();
    let missing = Image::open(&storage, &ReadOptions::new()).unwrap_err();
    assert!(matches!(missing, Error::Request(RequestError::DataFileNeeded)));
}

#[test]
fn encrypted_images_are_refused_by_name() {
    for (image, name) in [
        (&include_bytes!("../../../testdata/images/luks.qcow2")[..], "luks"),
        (include_bytes!("../../../testdata/images/aes.qcow2"), "aes"),
    ] {
        match Image::open(image, &ReadOptions::new()).unwrap_err() {
            Error::Unsupported(Unsupported::Encryption { method }) => assert_eq!(method, name),
            other => panic!("{other:?}"),
        }
    }
}

/// The compressed images hold one compressed cluster at the start.
#[test]
fn compressed_clusters_are_decoded_or_named() {
    for (image, with) in [
        (
            &include_bytes!("../../../testdata/images/compressed.qcow2")[..],
            cfg!(feature = "deflate"),
        ),
        (include_bytes!("../../../testdata/images/compressed-zstd.qcow2"), cfg!(feature = "zstd")),
    ] {
        let image = Image::open(image, &ReadOptions::new()).unwrap();
        let compressed = image
            .map(0..image.virtual_size())
            .unwrap()
            .map(|run| run.unwrap())
            .find(|run| run.kind == RunKind::Compressed)
            .unwrap();
        let mut bytes = vec![0; usize::try_from(compressed.length).unwrap()];
        match image.read_at(&mut bytes, compressed.start) {
            Ok(()) => assert!(with && bytes.iter().any(|byte| *byte != 0)),
            Err(Error::Unsupported(Unsupported::CompressionLeftOut { .. })) => assert!(!with),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[cfg(feature = "deflate")]
#[test]
fn whole_clusters_are_kept_unless_a_request_would_drive_out_the_rest() {
    let bytes = include_bytes!("../../../testdata/images/compressed.qcow2");
    let cluster = Header::read(&bytes[..]).unwrap().geometry().cluster_bits.bytes();
    for (room, kept) in [(8, true), (7, false)] {
        let storage = Memory::new(bytes.to_vec());
        let options = ReadOptions::new().cluster_cache(room * cluster);
        let image = Image::open(&storage, &options).unwrap();
        let mut first = vec![0; usize::try_from(cluster).unwrap()];
        image.read_at(&mut first, GuestOffset(0)).unwrap();
        // Only what is in memory can be read now.
        storage.set_length(0).unwrap();
        let mut again = vec![0; first.len()];
        let read = image.read_at(&mut again, GuestOffset(0));
        assert_eq!(read.is_ok(), kept, "{room}");
        assert!(!kept || again == first);
    }
}
