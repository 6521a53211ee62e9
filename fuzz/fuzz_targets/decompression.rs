//! Any bytes as the payload of a compressed cluster, or as the cluster that is to be compressed.
//!
//! ```text
//! byte 0    low 3 bits: the cluster size, 512 bytes to 64 KiB; with 0x1f, 2 MiB, which is slow ·
//!           0x40 what follows is the cluster, cut or filled up with zeros, else the payload · 0x80 zstd
//! byte 1    bytes between the start of a sector and the payload, halved
//! rest      the payload or the cluster
//! ```
//!
//! Invariants:
//!
//! 1. No panic, no more memory than clusters take; what does not decode is corrupt, and nothing else.
//! 2. What decodes, decodes to the same in a second decoder, which reads a stream a little at a time;
//!    with deflate, what that one decodes is accepted.
//! 3. A part of a cluster is that part of the whole one, decoded anew or from the cache.
//! 4. What was decoded before makes no difference: two clusters of one payload are equal.
//! 5. A cluster that is encoded is smaller and decodes to itself, and an encoder that was used before
//!    gives the same.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use qcow2_format::address::GuestOffset;
use qcow2_format::compressed::Encoder;
use qcow2_format::geometry::ClusterBits;
use qcow2_format::header::CompressionType;
use qcow2_format::{Error, Image, ReadOptions};
use qcow2_fuzz::{Bytes, image};

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let (kind, skip) = (input.byte(), usize::from(input.byte()) * 2);
    let cluster_bits = if kind & 0x1f == 0x1f { 21 } else { 9 + u32::from(kind & 7) };
    let cluster_bits = ClusterBits::new(cluster_bits).expect("9 to 21");
    let compression = if kind & 0x80 == 0 { CompressionType::Zlib } else { CompressionType::Zstd };
    let size = usize::try_from(cluster_bits.bytes()).expect("at most 2 MiB");
    let bytes = input.rest();
    if kind & 0x40 != 0 {
        encode(bytes, size, cluster_bits, compression);
        return;
    }
    // More than two clusters no descriptor counts.
    let payload = &bytes[..bytes.len().min(2 * size - skip % 512)];

    let file = image::compressed(cluster_bits, compression, payload, skip);
    let decoded = decode(&file, size);
    let start = file.len() - 1024 - payload.len();
    let sector = (start + payload.len().max(1)).next_multiple_of(512);
    let second = match compression {
        CompressionType::Zlib => inflate(&file[start..sector], size),
        CompressionType::Zstd => unpack(&file[start..sector], size),
    };
    match (&decoded, &second) {
        (Some(cluster), Some(second)) => assert!(cluster == second, "decoded otherwise"),
        (Some(_), None) => panic!("accepted, and no stream"),
        // A frame longer than its cluster is none that QEMU makes, and refused.
        (None, Some(_)) => assert!(compression == CompressionType::Zstd, "not accepted"),
        (None, None) => {}
    }
});

/// The first cluster, if it decodes; the second, and parts of both, must be the same.
fn decode(file: &[u8], size: usize) -> Option<Vec<u8>> {
    let image = Image::open(file, &ReadOptions::new().threads(1)).expect("an image that opens");
    let read = |offset: usize, length: usize| -> Option<Vec<u8>> {
        let mut buffer = vec![0xaa; length];
        match image.read_at(&mut buffer, GuestOffset(offset as u64)) {
            Ok(()) => Some(buffer),
            Err(Error::Corrupt(_)) => None,
            Err(error) => panic!("{error}: {error:?}"),
        }
    };
    let cluster = read(0, size);
    let again = read(size, size);
    assert!(cluster == again, "once so, once otherwise");
    for (skip, length) in [(1, size - 1), (size / 3, size / 2), (size - 1, 1), (0, 7)] {
        let part = cluster.as_ref().map(|cluster| &cluster[skip..skip + length]);
        assert!(read(skip, length).as_deref() == part, "a part is otherwise");
    }
    cluster
}

/// The first `size` bytes of a deflate stream, by pieces.
fn inflate(payload: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut cluster = Vec::new();
    let decoder = flate2::bufread::DeflateDecoder::new(payload);
    decoder.take(size as u64).read_to_end(&mut cluster).ok()?;
    (cluster.len() == size).then_some(cluster)
}

/// The first `size` bytes of zstd frames, as QEMU asks for them.
fn unpack(payload: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut cluster = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(payload).ok()?;
    decoder.take(size as u64).read_to_end(&mut cluster).ok()?;
    (cluster.len() == size).then_some(cluster)
}

fn encode(bytes: &[u8], size: usize, cluster_bits: ClusterBits, compression: CompressionType) {
    let mut cluster = bytes[..bytes.len().min(size)].to_vec();
    cluster.resize(size, 0);
    let (mut encoder, mut payload, mut again) = (Encoder::default(), Vec::new(), Vec::new());
    let encoded = encoder.encode(compression, &cluster, &mut payload).expect("both are built in");
    assert_eq!(
        encoder.encode(compression, &cluster, &mut again).expect("both are built in"),
        encoded
    );
    if !encoded {
        return;
    }
    assert!(payload == again && payload.len() < size);
    let file = image::compressed(cluster_bits, compression, &payload, 77);
    assert!(decode(&file, size) == Some(cluster), "a cluster does not come back");
}
