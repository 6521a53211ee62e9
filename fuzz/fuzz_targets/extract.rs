//! Any bytes as a source, through the whole extractor: reading, decompression, archive, writing.
//!
//! ```text
//! byte 0    what is made of the rest: 0 nothing, 1 a tar with right checksums, 2 that in zstd,
//!           3 in two zstd frames, 4 in gzip, 5 in xz; +8 asks for the member "disk.img"
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

#![no_main]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::OnceLock;

use disk_engine::source::Source;
use disk_engine::transfer::{TransferOptions, TransferReport, extract_into};
use disk_engine::{Error, Sha256Digest};
use libfuzzer_sys::fuzz_target;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use qcow2_fuzz::{Bytes, Pieces, assert_typed, limits, seal_all};
use sha2::{Digest, Sha256};

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let (mode, step) = (input.byte(), input.byte());
    let bytes = source(mode, input.rest());
    let member = mode & 8 != 0;
    let (whole, disk) = extract(&bytes, 0, member, false);
    let (pieces, again) = extract(&bytes, usize::from(step) + 1, member, true);
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
) -> (Result<TransferReport, Error>, Vec<u8>) {
    let reader = Pieces { bytes: bytes.to_vec(), at: 0, step };
    let mut source = Source::reader(reader, "the input").with_limits(limits());
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
