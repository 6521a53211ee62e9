//! Compressed clusters that are encoded here, read by QEMU and by a second deflate.
//!
//! ```text
//!           ┌ zeros ─────┐
//! content ──┼ text ──────┼─▶ Encoder ─▶ payloads, one behind the other ─▶ L2 entries, refcounts
//!           ├ half noise │                                                       │
//!           └ noise ─────┴─▶ not smaller: stored as it is              qemu-img check, compare
//! ```
//!
//! The images are put together by hand, as densely as the format allows: payloads start at any
//! byte, straddle host clusters and share them, and the file ends where the last one does.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use qcow2_format::address::{GuestOffset, HostOffset};
use qcow2_format::compressed::{CompressedDescriptor, Encoder};
use qcow2_format::geometry::ClusterBits;
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::{CreateOptions, Header, Image, Memory, ReadOptions, WriteAt};
use testkit::qemu::img;
use testkit::tool::{available, memory_folder};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In each image.
const CLUSTERS: usize = 20;

/// Bytes that no compression makes smaller.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed << 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(byte).take(length).collect()
}

/// One guest cluster; every kind there is comes several times.
fn cluster(index: usize, size: usize) -> Vec<u8> {
    let seed = index as u64;
    match index % 5 {
        0 => vec![0; size],
        1 => format!("line {index} of a text, ")
            .into_bytes()
            .into_iter()
            .cycle()
            .take(size)
            .collect(),
        2 => [noise(seed, size / 2), vec![0xee; size / 2]].concat(),
        // Repeats within deflate's window in QEMU, in clusters that are large enough.
        3 => noise(seed, 3800.min(size / 3)).into_iter().cycle().take(size).collect(),
        _ => noise(seed, size),
    }
}

/// An image as it grows, with the refcount of each host cluster.
struct Builder {
    file: Vec<u8>,
    references: Vec<u16>,
    cluster_bits: ClusterBits,
}

impl Builder {
    /// Where a new cluster of its own starts; the file is filled up to there.
    fn align(&mut self) -> u64 {
        let size = usize::try_from(self.cluster_bits.bytes()).unwrap();
        self.file.resize(self.file.len().next_multiple_of(size), 0);
        self.file.len() as u64
    }

    /// Counts one more user of every host cluster from `start` up to `end`.
    fn refer(&mut self, start: u64, end: u64) {
        let bits = self.cluster_bits.to_u32();
        let (first, last) = (start >> bits, (end - 1) >> bits);
        let needed = usize::try_from(last).unwrap() + 1;
        self.references.resize(self.references.len().max(needed), 0);
        for index in first..=last {
            self.references[usize::try_from(index).unwrap()] += 1;
        }
    }
}

/// What one image held: how many of its clusters became smaller, and shared host clusters.
#[derive(Debug, Default)]
struct Told {
    compressed: usize,
    shared: usize,
}

/// The file of an image made by `options` whose clusters hold `content`.
fn image(options: &CreateOptions, cluster_bits: ClusterBits, content: &[u8]) -> (Vec<u8>, Told) {
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    let header = Header::read(&storage).unwrap();
    let mut builder = Builder { file: storage.into_bytes(), references: Vec::new(), cluster_bits };
    let end = builder.align();
    builder.refer(0, end);

    let l2 = builder.align();
    let size = usize::try_from(cluster_bits.bytes()).unwrap();
    builder.file.resize(builder.file.len() + size, 0);
    builder.refer(l2, l2 + 1);
    let l1 = usize::try_from(header.l1_table_offset().to_u64()).unwrap();
    builder.file[l1..l1 + 8].copy_from_slice(&(COPIED | l2).to_be_bytes());

    let entry_bytes = if header.geometry().extended_l2 { 16 } else { 8 };
    let (mut encoder, mut payload, mut told) = (Encoder::default(), Vec::new(), Told::default());
    for (index, content) in content.chunks(size).enumerate() {
        // The last cluster is encoded in full.
        let mut cluster = content.to_vec();
        cluster.resize(size, 0);
        let (entry, bitmap) =
            if encoder.encode(header.compression_type(), &cluster, &mut payload).unwrap() {
                told.compressed += 1;
                let host = builder.file.len() as u64;
                let length = payload.len() as u64;
                let descriptor =
                    CompressedDescriptor::new(HostOffset(host), length, cluster_bits).unwrap();
                builder.file.extend(&payload);
                builder.refer(host, host + descriptor.length());
                (COMPRESSED | descriptor.encode(cluster_bits), 0)
            } else {
                let host = builder.align();
                builder.file.extend(&cluster);
                builder.refer(host, host + 1);
                (COPIED | host, u64::from(u32::MAX))
            };
        let at = usize::try_from(l2).unwrap() + index * entry_bytes;
        builder.file[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        if entry_bytes == 16 {
            builder.file[at + 8..at + 16].copy_from_slice(&bitmap.to_be_bytes());
        }
    }
    told.shared = builder.references.iter().filter(|count| **count > 1).count();

    // All refcounts lie in the block that the image was made with.
    let Builder { file, references, .. } = builder;
    assert!(references.len() <= size / 2);
    let table = usize::try_from(header.refcount_table_offset().to_u64()).unwrap();
    let block = u64::from_be_bytes(file[table..table + 8].try_into().unwrap());
    let storage = Memory::new(file);
    let counts: Vec<u8> = references.iter().flat_map(|count| count.to_be_bytes()).collect();
    storage.write_all_at(&counts, block).unwrap();
    (storage.into_bytes(), told)
}

#[test]
fn qemu_reads_what_is_encoded_here() {
    if !available("compressed clusters, read by QEMU", &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    let (path, raw) = (place.path().join("image.qcow2"), place.path().join("image.raw"));
    let kinds = [
        (Version::V2, CompressionType::Zlib, false),
        (Version::V3, CompressionType::Zlib, false),
        (Version::V3, CompressionType::Zstd, false),
        (Version::V3, CompressionType::Zlib, true),
        (Version::V3, CompressionType::Zstd, true),
    ];
    for bits in 9..=21 {
        let cluster_bits = ClusterBits::new(bits).unwrap();
        let size = 1_usize << bits;
        let mut content: Vec<u8> = (0..CLUSTERS).flat_map(|index| cluster(index, size)).collect();
        // The disk ends within its last cluster.
        content.truncate((CLUSTERS - 2) * size + 512.min(size / 2 + 256));
        fs::write(&raw, &content).unwrap();
        for (version, compression, extended_l2) in kinds {
            if extended_l2 && cluster_bits < ClusterBits::EXTENDED_L2_MIN {
                continue;
            }
            let options = CreateOptions::new(content.len() as u64)
                .version(version)
                .cluster_bits(cluster_bits)
                .compression_type(compression)
                .extended_l2(extended_l2);
            let (file, told) = image(&options, cluster_bits, &content);
            let what = format!("{bits} {version:?} {compression:?} {extended_l2} {told:?}");
            assert!((8..CLUSTERS).contains(&told.compressed) && told.shared > 0, "{what}");

            let ours = Image::open(file.as_slice(), &ReadOptions::new()).unwrap();
            let mut bytes = vec![1; content.len()];
            ours.read_at(&mut bytes, GuestOffset(0)).unwrap();
            assert!(bytes == content, "{what}");

            fs::write(&path, &file).unwrap();
            let path = path.to_str().unwrap();
            let check = img(["check", "--output=json", path]).expect_success();
            let check: serde_json::Value = serde_json::from_str(&check).unwrap();
            assert_eq!(check["compressed-clusters"], told.compressed, "{what}: {check}");
            assert_eq!(check["allocated-clusters"], CLUSTERS - 1, "{what}: {check}");
            img(["compare", "-f", "qcow2", "-F", "raw", path, raw.to_str().unwrap()])
                .expect_success();
        }
    }
}

/// Reads all of standard input as raw deflate in a window of 4 KiB, a little at a time: what lies
/// further back is forgotten, and asking for it an error.
const INFLATE: &str = "
import sys, zlib
inflater = zlib.decompressobj(-12)
rest, out = sys.stdin.buffer.read(), b''
while not inflater.eof:
    piece = inflater.decompress(rest, 100)
    rest = inflater.unconsumed_tail
    assert piece or rest or inflater.eof
    out += piece
sys.stdout.buffer.write(out)
";

#[test]
fn another_deflate_needs_no_more_than_4_kib_of_window() {
    if !available("deflate in a small window", &["python3"]) {
        return;
    }
    let (mut encoder, mut payload) = (Encoder::default(), Vec::new());
    for (period, size) in [(40, 1 << 16), (3800, 1 << 21), (5000, 1 << 16), (30_000, 1 << 21)] {
        // Bytes of 6 bits become fewer whatever the window.
        let noise = noise(1, period).into_iter().map(|byte| byte & 0x3f);
        let cluster: Vec<u8> = noise.collect::<Vec<_>>().into_iter().cycle().take(size).collect();
        assert!(encoder.encode(CompressionType::Zlib, &cluster, &mut payload).unwrap());
        let mut child = Command::new("python3")
            .args(["-c", INFLATE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&payload).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == cluster, "{period} {size}");
    }
}
