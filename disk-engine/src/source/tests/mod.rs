//! Whole sources, from bytes to a file.
//!
//! ```text
//! forms      what a disk may come in, compared byte for byte
//! hostile    what is refused, by which name, leaving nothing
//! archives   files made by other programs, in testdata/archives
//! random     arbitrary bytes and mutated archives
//! parallel   one thread or many: the same outcome
//! ```

mod archives;
mod forms;
mod hostile;
mod parallel;
mod random;

use std::fs::File;
use std::io::{Cursor, Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::transfer::{TransferOptions, TransferReport, extract_into};

/// Extracts a source into an unnamed file and returns what is in it.
fn run(source: Source) -> Result<(Vec<u8>, TransferReport)> {
    let mut file = tempfile::tempfile().unwrap();
    let report = extract_into(source, &file, Path::new("disk"), &TransferOptions::default())?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    check_report(&file, &bytes, &report);
    Ok((bytes, report))
}

fn run_bytes(bytes: impl Into<Vec<u8>>) -> Result<(Vec<u8>, TransferReport)> {
    run(source_of(bytes))
}

fn source_of(bytes: impl Into<Vec<u8>>) -> Source {
    Source::reader(Cursor::new(bytes.into()), "bytes of a test")
}

fn refusal(bytes: impl Into<Vec<u8>>) -> Error {
    run_bytes(bytes).map(|(bytes, _)| bytes.len()).expect_err("should have been refused")
}

fn kind(bytes: impl Into<Vec<u8>>) -> ErrorKind {
    refusal(bytes).kind()
}

/// What every report must keep: sums that are those of the file, holes that are zeros.
fn check_report(file: &File, bytes: &[u8], report: &TransferReport) {
    assert_eq!(report.virtual_size, bytes.len() as u64);
    let mut covered = vec![false; bytes.len()];
    for sum in &report.extents {
        let start = usize::try_from(sum.offset).unwrap();
        let end = start + usize::try_from(sum.length).unwrap();
        assert_eq!(sum.crc32, crc32fast::hash(&bytes[start..end]));
        covered[start..end].fill(true);
    }
    assert!(bytes.iter().zip(covered).all(|(byte, covered)| *byte == 0 || covered));
    let allocated = crate::sys::space::allocated(&file.metadata().unwrap());
    let written = report.written_bytes;
    assert!(allocated <= written + 4096, "{allocated} bytes allocated for {written}");
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[cfg(feature = "gzip")]
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[cfg(feature = "xz")]
fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Compress = fn(&[u8]) -> Vec<u8>;

/// Every way to compress, by name.
fn compressions() -> Vec<(&'static str, Compress)> {
    vec![
        ("none", <[u8]>::to_vec as Compress),
        ("zstd", zstd),
        #[cfg(feature = "gzip")]
        ("gzip", gzip),
        #[cfg(feature = "xz")]
        ("xz", xz),
    ]
}

/// A disk whose bytes all differ from zero, as far as a test can tell.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_be_bytes().map(|byte| byte | 1));
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn lengths_of_sources_that_are_files_are_known_and_links_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let disk = noise(5000);
    std::fs::write(folder.path().join("x.txt"), zstd(&disk)).unwrap();
    std::os::unix::fs::symlink("x.txt", folder.path().join("link")).unwrap();
    let (bytes, _) = run(Source::path(folder.path().join("link"))).unwrap();
    assert_eq!(bytes, disk);
    for (path, kind) in [
        (folder.path(), ErrorKind::InvalidInput),
        (Path::new("/dev/null"), ErrorKind::InvalidInput),
        (&folder.path().join("none"), ErrorKind::NotFound),
    ] {
        let error = run(Source::path(path)).unwrap_err();
        assert_eq!((error.kind(), error.path()), (kind, Some(path)));
    }
}
