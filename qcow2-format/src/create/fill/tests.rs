use super::*;
use crate::compressed::{CompressedDescriptor, Encoder};
use crate::create::StreamedImage;
use crate::geometry::{ClusterBits, RefcountOrder};
use crate::header::CompressionType;
use crate::image::{Image, ReadOptions};
use crate::io::{Memory, ReadAt};
use crate::refcount;

const SHAPES: &[(u32, u32, bool)] = &[
    (9, 4, false),
    (9, 6, false),
    (9, 0, false),
    (12, 0, false),
    (12, 3, false),
    (14, 4, true),
    (16, 4, false),
    (16, 6, true),
    (21, 1, false),
];

fn options(size: u64, (cluster_bits, order, extended): (u32, u32, bool)) -> CreateOptions {
    CreateOptions::new(size)
        .cluster_bits(ClusterBits::new(cluster_bits).unwrap())
        .refcount_order(RefcountOrder::new(order).unwrap())
        .extended_l2(extended)
}

/// The content of cluster `index`.
fn cluster(index: u64, bytes: u64) -> Vec<u8> {
    let byte = |at: u64| (index + 1).wrapping_mul(at / 7 + 3) & 0xff;
    (0..bytes).map(|at| u8::try_from(byte(at)).unwrap()).collect()
}

/// Every cluster the image's structures take is counted as often as it is taken, and no other.
fn check_counts(image: &[u8], taken: &[(u64, u64)]) {
    let header = Header::read(image).unwrap();
    let geometry = header.geometry();
    let bytes = geometry.cluster_bits.bytes();
    let clusters = (image.len() as u64).div_ceil(bytes);
    let mut expected = vec![0_u64; usize::try_from(clusters).unwrap()];
    let mut take = |at: u64, length: u64| {
        for cluster in at / bytes..(at + length).div_ceil(bytes) {
            expected[usize::try_from(cluster).unwrap()] += 1;
        }
    };
    let number = |at: u64| {
        let mut raw = [0; 8];
        image.read_full_at(&mut raw, at).unwrap();
        u64::from_be_bytes(raw)
    };
    take(0, bytes);
    taken.iter().for_each(|(at, length)| take(*at, *length));
    let l1 = header.l1_table_offset().to_u64();
    take(l1, u64::from(header.l1_size()) * 8);
    for index in 0..u64::from(header.l1_size()) {
        let table = number(l1 + index * 8) & 0x00ff_ffff_ffff_fe00;
        if table != 0 {
            take(table, bytes);
        }
    }
    let table = header.refcount_table_offset().to_u64();
    let length = u64::from(header.refcount_table_clusters()) * bytes;
    take(table, length);
    let blocks: Vec<_> = (0..length / 8).map(|index| number(table + index * 8)).collect();
    for block in blocks.iter().filter(|block| **block != 0) {
        take(*block, bytes);
    }
    for (cluster, expected) in (0_u64..).zip(&expected) {
        let block = blocks[usize::try_from(cluster / geometry.refcounts_per_block()).unwrap()];
        assert_ne!(block, 0, "cluster {cluster} is counted nowhere");
        let block = &image[usize::try_from(block).unwrap()..];
        let entry = usize::try_from(cluster % geometry.refcounts_per_block()).unwrap();
        let found = refcount::get(geometry.refcount_order, block, entry);
        assert_eq!(found, *expected, "cluster {cluster} of {clusters}");
    }
}

#[test]
fn what_is_filled_is_read_and_counted() {
    for shape in SHAPES {
        let bytes = 1_u64 << shape.0;
        let clusters = if shape.0 == 9 { 6000 } else { 200 };
        let size = clusters * bytes - if bytes > 512 { 512 } else { 0 };
        let mut filler = options(size, *shape).fill(Memory::default()).unwrap();
        let mut encoder = Encoder::default();
        let (mut payload, mut taken) = (Vec::new(), Vec::new());
        let mut expected = vec![0; usize::try_from(clusters * bytes).unwrap()];
        let mut next = 0;
        while next < clusters {
            let guest = GuestOffset(next * bytes);
            let content = cluster(next, bytes);
            let place = usize::try_from(guest.0).unwrap();
            match next * 7 % 11 {
                0 | 1 => {}
                2 => filler.zero(guest, 1).unwrap(),
                3..=6 => {
                    assert!(encoder.encode(CompressionType::Zlib, &content, &mut payload).unwrap());
                    assert!(filler.write_compressed(guest, &payload).unwrap());
                    expected[place..place + content.len()].copy_from_slice(&content);
                }
                _ => {
                    let at = filler.place(guest, 1).unwrap();
                    filler.data_storage().write_all_at(&content, at.0).unwrap();
                    taken.push((at.0, bytes));
                    expected[place..place + content.len()].copy_from_slice(&content);
                }
            }
            next += 1;
        }
        let (header, storage) = filler.finish().unwrap();
        let image = storage.into_bytes();
        assert_eq!(Header::read(image.as_slice()).unwrap(), header);
        let opened = Image::open(image.as_slice(), &ReadOptions::new()).unwrap();
        let mut found = vec![1; usize::try_from(size).unwrap()];
        opened.read_at(&mut found, GuestOffset(0)).unwrap();
        expected.truncate(found.len());
        assert!(found == expected, "{shape:?}");
        // Payloads are counted by where they lie; that is in the tables alone.
        let width = if shape.2 { 16 } else { 8 };
        let l1 = header.l1_table_offset().to_u64();
        let number = |at: u64| {
            let at = usize::try_from(at).unwrap();
            u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
        };
        for index in 0..u64::from(header.l1_size()) {
            let table = number(l1 + index * 8) & 0x00ff_ffff_ffff_fe00;
            for entry in 0..if table == 0 { 0 } else { bytes / width } {
                let raw = number(table + entry * width);
                if raw >> 62 & 1 == 1 {
                    let bits = ClusterBits::new(shape.0).unwrap();
                    let descriptor = CompressedDescriptor::decode(raw, bits);
                    let end = descriptor.host().0 + descriptor.length();
                    // The last sector may be behind the cluster that the payload ends in.
                    let end = end.min((end - 1) / bytes * bytes + bytes);
                    taken.push((descriptor.host().0, end - descriptor.host().0));
                }
            }
        }
        check_counts(&image, &taken);
    }
}

#[test]
fn a_streamed_image_is_read_and_counted() {
    for shape in SHAPES {
        let bytes = 1_u64 << shape.0;
        let clusters = if shape.0 == 9 { 6000 } else { 200 };
        let stored =
            [0..1, 5..clusters / 2, clusters / 2 + 3..clusters - 20, clusters - 1..clusters];
        let size = clusters * bytes - if bytes > 512 { 512 } else { 0 };
        let image: StreamedImage = options(size, *shape).lay_out(stored.to_vec()).unwrap();
        let mut sent = Vec::new();
        image
            .write_tables(|bytes| {
                sent.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        let mut expected = vec![0; usize::try_from(clusters * bytes).unwrap()];
        let mut taken = Vec::new();
        for index in stored.into_iter().flatten() {
            let content = cluster(index, bytes);
            let place = usize::try_from(index * bytes).unwrap();
            expected[place..place + content.len()].copy_from_slice(&content);
            taken.push((sent.len() as u64, bytes));
            sent.extend_from_slice(&content);
        }
        assert_eq!(image.length(), sent.len() as u64);
        let opened = Image::open(sent.as_slice(), &ReadOptions::new()).unwrap();
        let mut found = vec![1; usize::try_from(size).unwrap()];
        opened.read_at(&mut found, GuestOffset(0)).unwrap();
        expected.truncate(found.len());
        assert!(found == expected, "{shape:?}");
        check_counts(&sent, &taken);
    }
}

#[test]
fn clusters_come_once_in_order_and_on_the_disk() {
    let mut filler = options(1 << 20, (16, 4, false)).fill(Memory::default()).unwrap();
    filler.place(GuestOffset(3 << 16), 2).unwrap();
    for (guest, clusters) in
        [(0, 1), (4 << 16, 1), ((5 << 16) + 512, 1), (15 << 16, 2), (16 << 16, 1)]
    {
        let refused = filler.place(GuestOffset(guest), clusters).unwrap_err();
        assert!(matches!(refused, Error::Request(RequestError::OutOfRange { .. })), "{guest}");
    }
    assert!(filler.set_virtual_size(4 << 16).is_err(), "something lies behind it");
    assert!(filler.set_virtual_size(u64::MAX).is_err());
    filler.set_virtual_size(5 << 16).unwrap();
    assert_eq!(filler.finish().unwrap().0.virtual_size(), 5 << 16);
    for stored in [[1..1, 2..3], [0..2, 1..3], [5..6, 1..2], [0..1, 15..17]] {
        assert!(options(1 << 20, (16, 4, false)).lay_out(stored.to_vec()).is_err());
    }
}

#[test]
fn version_2_has_no_zero_clusters() {
    let options = options(1 << 20, (16, 4, false)).version(Version::V2);
    let mut filler = options.fill(Memory::default()).unwrap();
    filler.zero(GuestOffset(0), 2).unwrap();
    let (_, storage) = filler.finish().unwrap();
    let image = storage.into_bytes();
    let opened = Image::open(image.as_slice(), &ReadOptions::new()).unwrap();
    let run = opened.run_at(GuestOffset(0), 1 << 20).unwrap();
    assert!(matches!(run.kind, crate::image::RunKind::Data { .. }) && run.length == 2 << 16);
}

#[test]
fn an_image_that_was_not_finished_is_none() {
    let mut filler = options(1 << 20, (16, 4, false)).fill(Memory::new(vec![7; 100])).unwrap();
    filler.write(GuestOffset(0), &[7; 1 << 16]).unwrap();
    assert!(Header::read(&filler.into_storage().0).is_err());
}
