//! Any bytes as a source, through the whole extractor: reading, decompression, archive, writing.
//!
//! ```text
//! byte 0    what is made of the rest: 0 nothing, 1 a tar with right checksums, 2 that in zstd,
//!           3 in two zstd frames, 4 in gzip, 5 in xz, 6 in many zstd frames, and 7 those with checksums
//!           and one byte changed; +8 asks for the member "disk.img"
//! byte 1    how the reader cuts it into pieces
//! ```
//!
//! Invariants:
//!
//! 1. No panic, whatever the bytes; an error blames the input and never the machine.
//! 2. On success the file is as long as the report says, within the limit.
//! 3. Each sum of the report is that of the file's bytes; outside of them there are only zeros, and
//!    they cover as much as was written.
//! 4. The report counts the source's bytes, and its digest is theirs.
//! 5. However the bytes arrive, the outcome is the same: file, report and error.
//! 6. However many threads decode, so it is.
//! 7. Any range of it, where there is a seek table, is what extracting gave, or an error.

#![no_main]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::OnceLock;

use disk_engine::disk::DiskContent;
use disk_engine::fuzzing;
use disk_engine::source::Source;
use disk_engine::source::seekable::{SeekableDisk, SeekableOptions};
use disk_engine::transfer::{TransferOptions, TransferReport, extract_into};
use disk_engine::{Error, Sha256Digest};
use libfuzzer_sys::fuzz_target;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use qcow2_format::io::Memory;
use qcow2_fuzz::{Bytes, Pieces, assert_typed, limits, seal_all};
use sha2::{Digest, Sha256};

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let (mode, step) = (input.byte(), input.byte());
    let bytes = source(mode, input.rest());
    let member = mode & 8 != 0;
    let (whole, disk) = extract(&bytes, 0, member, false, 1);
    if bytes.starts_with(&[0x28]) || bytes.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) {
        let (shared, again) = extract(&bytes, 0, member, false, 3);
        match (&whole, shared) {
            (Ok(whole), Ok(shared)) => {
                let shared = TransferReport { threads: 1, ..shared };
                assert_eq!(format!("{whole:?}"), format!("{shared:?}"));
                assert!(disk == again, "on three threads it is another disk");
            }
            (Err(whole), Err(shared)) => {
                assert_eq!(whole.kind(), shared.kind(), "{whole}, then {shared}");
                assert_eq!(whole.message(), shared.message());
            }
            (whole, shared) => panic!("on one thread {whole:?}, on three {shared:?}"),
        }
    }
    check_ranges(&bytes, member, whole.as_ref().ok().map(|_| disk.as_slice()));
    let (pieces, again) = extract(&bytes, usize::from(step) + 1, member, true, 1);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            check(&whole, &disk);
            assert_eq!(whole.source_bytes, bytes.len() as u64);
            let digest = Sha256Digest(Sha256::digest(&bytes).into());
            assert_eq!(pieces.source_sha256, Some(digest));
            let pieces = TransferReport { source_sha256: None, ..pieces };
            assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
            assert!(disk == again, "the same source gave two disks");
        }
        (Err(whole), Err(pieces)) => {
            assert_typed(&whole);
            assert_eq!(whole.kind(), pieces.kind(), "{whole}, then {pieces}");
            assert_eq!(whole.message(), pieces.message());
        }
        (whole, pieces) => panic!("at once {whole:?}, in pieces {pieces:?}"),
    }
});

fn source(mode: u8, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mode = mode & 7;
    if mode != 0 {
        seal_all(&mut bytes);
    }
    match mode {
        2 => zstd::encode_all(bytes.as_slice(), 1).expect("zstd in memory"),
        3 => {
            let (first, second) = bytes.split_at(bytes.len() / 3);
            [first, second].map(|part| zstd::encode_all(part, 1).expect("zstd in memory")).concat()
        }
        6 | 7 => {
            let frame = |part: &[u8]| {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("zstd in memory");
                encoder.include_checksum(mode == 7).expect("zstd in memory");
                encoder.write_all(part).expect("zstd in memory");
                encoder.finish().expect("zstd in memory")
            };
            let mut frames: Vec<u8> = bytes.chunks(700).flat_map(frame).collect();
            // Which byte, and into what, the input's own end says.
            if let [.., high, low, value] = input
                && mode == 7
                && !frames.is_empty()
            {
                let at = usize::from(u16::from_be_bytes([*high, *low])) % frames.len();
                frames[at] = *value;
            }
            frames
        }
        4 => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&bytes).expect("gzip in memory");
            encoder.finish().expect("gzip in memory")
        }
        5 => {
            // A small dictionary: the encoder's memory, not the input, would take the time.
            let mut options = LzmaOptions::new_preset(0).expect("preset 0");
            options.dict_size(1 << 16);
            let mut filters = Filters::new();
            filters.lzma2(&options);
            let stream = Stream::new_stream_encoder(&filters, Check::Crc32).expect("an encoder");
            let mut encoder = XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(&bytes).expect("xz in memory");
            encoder.finish().expect("xz in memory")
        }
        _ => bytes,
    }
}

fn extract(
    bytes: &[u8],
    step: usize,
    member: bool,
    hash_source: bool,
    threads: usize,
) -> (Result<TransferReport, Error>, Vec<u8>) {
    let reader = Pieces { bytes: bytes.to_vec(), at: 0, step };
    let threads = NonZeroUsize::new(threads).expect("not zero");
    let source = Source::reader(reader, "the input").with_limits(limits()).with_threads(threads);
    let mut source = fuzzing::shared(source);
    if member {
        source = source.with_member("disk.img");
    }
    let file = disk();
    file.set_len(0).expect("an empty file");
    let options = TransferOptions { hash_source, ..TransferOptions::default() };
    let report = extract_into(source, file, Path::new("the disk"), &options);
    let mut disk = Vec::new();
    if report.is_ok() {
        let length = file.metadata().expect("its length").len();
        assert!(length <= limits().max_image_size, "{length} bytes are more than the limit");
        (&*file).rewind().expect("the start");
        (&*file).read_to_end(&mut disk).expect("the disk");
    }
    (report, disk)
}

/// Reads any range, if there is a seek table; `disk` is what extracting gave.
fn check_ranges(bytes: &[u8], member: bool, disk: Option<&[u8]>) {
    let options = SeekableOptions {
        member: member.then(|| "disk.img".into()),
        limits: limits(),
        frame_max: 1 << 20,
        cache_bytes: 1 << 20,
        ..SeekableOptions::default()
    };
    match SeekableDisk::of(Memory::new(bytes.to_vec()), "the input", &options) {
        Err(error) => assert_typed(&error),
        Ok(seekable) => {
            let length = seekable.size().min(limits().max_image_size);
            let mut read = vec![0; usize::try_from(length).expect("within the limit")];
            match (seekable.read_at(&mut read, 0), disk) {
                (Err(error), _) => assert_typed(&error),
                // Without checksums a table may cut content where it likes; with the whole at hand, see.
                (Ok(()), Some(disk)) => assert!(read == disk, "ranges are another disk"),
                (Ok(()), None) => {}
            }
        }
    }
}

/// One file in memory for all runs.
fn disk() -> &'static File {
    static DISK: OnceLock<File> = OnceLock::new();
    DISK.get_or_init(|| {
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile());
        file.expect("a temporary file")
    })
}

fn check(report: &TransferReport, disk: &[u8]) {
    assert_eq!(report.virtual_size, disk.len() as u64);
    let (mut end, mut covered) = (0, 0);
    for extent in &report.extents {
        let start = usize::try_from(extent.offset).expect("within the disk");
        let length = usize::try_from(extent.length).expect("within the disk");
        assert!(length > 0 && start >= end, "the extents overlap or are empty");
        assert!(disk[end..start].iter().all(|byte| *byte == 0), "data without a sum");
        end = start + length;
        covered += extent.length;
        assert_eq!(crc32fast::hash(&disk[start..end]), extent.crc32);
    }
    assert!(disk[end..].iter().all(|byte| *byte == 0), "data without a sum");
    assert_eq!(covered, report.written_bytes);
}
