//! Writes the seeds of `decompression`, `sparse_map`, `pax` and `manifest`, and the built ones of
//! `image` and `extract`.
//!
//! `seeds.sh` calls it with the folder of the corpora; each seed is what its target's first lines
//! describe, and is called after what it holds.

use std::fs;
use std::path::Path;

use qcow2_format::compressed::Encoder;
use qcow2_format::geometry::ClusterBits;
use qcow2_format::header::CompressionType;
use qcow2_format::{CreateOptions, Header, Memory, WriteAt};
use qcow2_fuzz::sparse::{Form, Map};
use qcow2_fuzz::{header, put, record};

fn main() {
    let folder = std::env::args().nth(1).expect("the folder of the corpora");
    let write = |target: &str, name: &str, parts: &[&[u8]]| {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder).expect("the corpus");
        fs::write(folder.join(name), parts.concat()).expect("a seed");
    };

    let (mut encoder, mut payload) = (Encoder::default(), Vec::new());
    for bits in [9_u8, 12, 16, 21] {
        let size = 1_usize << bits;
        let text: Vec<u8> = (0..size).map(|at| (at * at / 97 % 23) as u8 + b'a').collect();
        for (name, kind, cluster) in [
            ("zeros", 0, vec![0; size]),
            ("text", 0, text.clone()),
            ("zeros-zstd", 0x80, vec![0; size]),
            ("text-zstd", 0x80, text),
        ] {
            let compression = if kind == 0 { CompressionType::Zlib } else { CompressionType::Zstd };
            assert!(encoder.encode(compression, &cluster, &mut payload).expect("both are there"));
            if payload.len() < 4096 {
                let kind = kind | if bits == 21 { 0x1f } else { bits - 9 };
                write("decompression", &format!("{name}-{bits}"), &[&[kind, bits], &payload]);
                let bytes = &cluster[..cluster.len().min(1000)];
                write(
                    "decompression",
                    &format!("{name}-{bits}-content"),
                    &[&[kind | 0x40, bits], bytes],
                );
            }
        }
    }
    // Blocks without compression, of deflate and of zstd, and two frames for one cluster.
    let stored =
        [&[0, 0, 1, 0xff, 0xfe][..], &[7; 256], &[1, 0, 1, 0xff, 0xfe], &[8; 256]].concat();
    write("decompression", "stored", &[&[0, 0], &stored]);
    let frame = |byte| zstd::bulk::compress(&[byte; 256], 1).expect("a frame");
    write("decompression", "two-frames", &[&[0x80, 3], &frame(1), &frame(2)]);
    let streamed = zstd::stream::encode_all(&[9; 512][..], 1).expect("a frame");
    write("decompression", "streamed", &[&[0x80, 200], &streamed]);

    write("image", "subclusters", &[&[0x22], &subclusters()]);

    let blocks: [(&str, &[u16]); 5] = [
        ("two-pieces", &[1, 2, 3, 1]),
        ("many-pieces", &[1, 1].repeat(30)),
        ("ragged-end", &[0, 2, 2, 0x4000 + 100]),
        ("no-pieces", &[]),
        ("ends-in-a-hole", &[0, 1, 4, 0]),
    ];
    for (name, words) in blocks {
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        write("sparse_map", name, &[&[0], &4096_u64.to_be_bytes(), &[0], &words]);
        write("sparse_map", &format!("{name}-too-little"), &[&[0], &[0; 8], &[0xff], &words]);
    }
    let map = Map {
        pairs: vec![(512, 512), (4096, 1024), (8192, 0)],
        size: 8192,
        stored: 1536,
        data: (0..1536).map(|at| (at % 251) as u8).collect(),
    };
    let long = Map {
        pairs: (0..40).map(|at| (at * 4096, 512)).collect(),
        size: 40 * 4096,
        stored: 40 * 512,
        data: vec![7; 40 * 512],
    };
    let gnu = map.archive(Form::OldGnu);
    write("sparse_map", "raw-gnu", &[&[1], &gnu[386..495], &[6, 0], &gnu[512..1024]]);
    write("sparse_map", "raw-pax-0.1", &[&[3], &[0x20, 0, 6, 0], b"512,512,4096,1024,8192,0"]);
    write("sparse_map", "raw-pax-1.0", &[&[5], &[0x20, 0, 8, 0], b"2\n512\n512\n4096\n1024\n"]);

    for form in Form::ALL {
        let name = format!("{form:?}").to_ascii_lowercase();
        write("extract", &format!("sparse-{name}"), &[&[1, 0], &map.archive(form)]);
        write("extract", &format!("sparse-{name}-zstd"), &[&[2, 5], &map.archive(form)]);
    }
    // Many frames, and many with one byte changed: where and into what, the end says.
    let many = long.archive(Form::OldGnu);
    write("extract", "many-frames", &[&[6, 0], &many]);
    write("extract", "many-frames-damaged", &[&[7, 3], &many, &[0x01, 0x40, 0x55]]);
    write("extract", "sparse-long-gzip", &[&[4, 0], &long.archive(Form::OldGnu)]);
    write("extract", "sparse-long-xz", &[&[5, 0], &long.archive(Form::Pax10)]);
    let several = several();
    write("extract", "several-two-frames", &[&[3, 9], &several]);
    write("extract", "several-by-name", &[&[8 + 1, 0], &several]);
    write("extract", "bare-two-frames", &[&[3, 0], &[0xeb; 2048], &[0; 8192]]);

    let pairs = [
        ("path", vec![("path", "a/much/longer/name")]),
        ("path-taken-back", vec![("path", "first"), ("path", "")]),
        ("size", vec![("size", "512")]),
        ("times", vec![("mtime", "1700000000.5"), ("atime", "0"), ("LIBARCHIVE.xattr.a", "eA==")]),
        (
            "sparse-0.0",
            vec![
                ("GNU.sparse.size", "4096"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.offset", "512"),
                ("GNU.sparse.numbytes", "512"),
            ],
        ),
        (
            "sparse-0.1",
            vec![
                ("GNU.sparse.size", "4096"),
                ("GNU.sparse.name", "disk.img"),
                ("GNU.sparse.map", "512,512,4096,0"),
            ],
        ),
        (
            "sparse-1.0",
            vec![
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "disk.img"),
                ("GNU.sparse.realsize", "0"),
            ],
        ),
        ("star", vec![("SCHILY.realsize", "4096")]),
    ];
    for (name, pairs) in pairs {
        let text: String = pairs.iter().map(|(key, value)| record(key, value)).collect();
        write("pax", name, &[&[1], text.as_bytes()]);
        write("pax", &format!("{name}-global"), &[&[0x81], text.as_bytes()]);
    }
    write("pax", "malformed", &[&[1], b"9 a=b\n8 c=d\n"]);

    let manifest = manifest();
    write("manifest", "body", &[&[1], &manifest]);
    write("manifest", "body-cut", &[&[1], &manifest[..100]]);
    let sealed = disk_engine::fuzzing::sealed(disk_engine::fuzzing::Record::Manifest, &manifest);
    disk_engine::fuzzing::manifest(&sealed).expect("the seed is a manifest");
    write("manifest", "whole", &[&[0], &sealed]);
    write("manifest", "memo", &[&[3], &[3; 56], &[9; 32]]);
    let holder = b"pid 4711\nhost builder-7\nsince 1700000000\npurpose extracting a\n";
    write("manifest", "holder", &[&[4], holder]);
    write("manifest", "key-content", &[&[5], b"content"]);
    write("manifest", "key-sha256", &[&[5], b"sha256:", "00fF".repeat(16).as_bytes()]);
    write("manifest", "key-name", &[&[5], b"name:debian-12"]);
    let notes = [note(b"/vms/0/primary.qcow2"), note(b"/vms/1/primary.qcow2")].concat();
    assert!(!disk_engine::fuzzing::uses(&notes).1, "the seed is a record of overlays");
    write("manifest", "uses", &[&[6], &notes]);
}

/// An image with subclusters in every state. To be small, its refcount block is its L2 table, and
/// its guest reads the image's own header.
fn subclusters() -> Vec<u8> {
    let storage = Memory::default();
    let options = CreateOptions::new(1 << 20).cluster_bits(ClusterBits::EXTENDED_L2_MIN);
    let plan = options.extended_l2(true).plan().expect("an image");
    plan.write_to(&storage).expect("an image in memory");
    let l1 = Header::read(&storage).expect("its header").l1_table_offset().to_u64();
    let l2 = 2 << 14;
    let put_entry = |at: u64, entry: u64| {
        storage.write_all_at(&entry.to_be_bytes(), at).expect("memory");
    };
    put_entry(l1, 1 << 63 | l2);
    let (all, half) = (u64::from(u32::MAX), 0xffff_0000);
    let entries = [(0, 0), (0, all << 32), (1 << 63, half), (1 << 63 | 1 << 14, all)];
    let mixed = [(1 << 63 | 1 << 14, 0x5555_5555_2222_2222), (0, half << 32), (1 << 14, 0)];
    for (index, (entry, bitmap)) in entries.into_iter().chain(mixed).enumerate() {
        put_entry(l2 + index as u64 * 16, entry);
        put_entry(l2 + index as u64 * 16 + 8, bitmap);
    }
    storage.into_bytes()
}

/// A note about an overlay, as it stands in a record of overlays.
fn note(path: &[u8]) -> Vec<u8> {
    let body = [&1_700_000_000_u64.to_be_bytes()[..], &[3; 32], path].concat();
    let length = u32::try_from(12 + body.len()).expect("it is short").to_be_bytes();
    [b"USE1", &length[..], &crc32fast::hash(&body).to_be_bytes(), &body].concat()
}

/// Files around a disk, a long name and a link among them.
fn several() -> Vec<u8> {
    let mut archive = Vec::new();
    archive.extend(header("README", b'0', 3));
    put(&mut archive, b"hi\n");
    archive.extend(header("link", b'2', 0));
    archive.extend(header("././@LongLink", b'L', 150));
    put(&mut archive, &[b'n'; 150]);
    archive.extend(header("nnn", b'0', 600));
    put(&mut archive, &[1; 600]);
    archive.extend(header("./disk.img", b'0', 3000));
    put(&mut archive, &[2; 3000]);
    archive.extend([0; 10240]);
    archive
}

/// A manifest's body with everything in it; see `cache::manifest` for the drawing.
fn manifest() -> Vec<u8> {
    let mut body = vec![0xab; 32];
    for number in [8192_u64, 4096, 1_700_000_000] {
        body.extend(number.to_be_bytes());
    }
    body.extend([1; 16]);
    body.extend([2; 32]);
    body.extend(999_u64.to_be_bytes());
    body.extend(2_u64.to_be_bytes());
    body.extend([2, 15, 0, 0]);
    for text in ["label", "name", "disk.img"] {
        body.extend((text.len() as u32).to_be_bytes());
    }
    body.extend(4711_u64.to_be_bytes());
    body.extend(1_700_000_001_u64.to_be_bytes());
    for number in [999_999_999_u32, 5] {
        body.extend(number.to_be_bytes());
    }
    body.extend(b"labelnamedisk.img/root");
    for (offset, length) in [(0_u64, 512_u64), (4096, 4096)] {
        body.extend(offset.to_be_bytes());
        body.extend(length.to_be_bytes());
        body.extend([1, 2, 3, 4]);
    }
    body
}
