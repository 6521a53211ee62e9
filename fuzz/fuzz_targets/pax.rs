//! Any bytes as the pax records of a member, or of a whole archive.
//!
//! ```text
//! byte 0    0x80 global · low bits: bytes the header says the member stores, in blocks
//! rest      the records
//! ```
//!
//! Invariants:
//!
//! 1. No panic; an error blames the input; how the bytes arrive makes no difference.
//! 2. What is accepted is well-formed to a reader of the standard's own words: "%d %s=%s\n", each
//!    length that of its record, one after the other to the end.
//! 3. The member is called what the last `path` says (`GNU.sparse.name` before it), and has the size
//!    the last `size` says, or what its header says; a size in a global header is refused.
//! 4. Well-formed records without a key that means something here are accepted.

#![no_main]

use disk_engine::fuzzing::{self, Told};
use disk_engine::source::{Container, Source, SparseForm};
use disk_engine::{Error, Result};
use libfuzzer_sys::fuzz_target;
use qcow2_fuzz::{Bytes, Pieces, assert_typed, header, limits, put};

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let flags = input.byte();
    let records = input.rest();
    let global = flags & 0x80 != 0;
    let stored = u64::from(flags & 3) * 512;
    let mut archive = Vec::new();
    archive.extend(header("pax", if global { b'g' } else { b'x' }, records.len() as u64));
    put(&mut archive, records);
    archive.extend(header("plain", b'0', stored));
    // Zeros are a member's data as well as an archive's end.
    archive.resize(archive.len() + (16 << 10), 0);
    let parsed = parse(records);
    match (read(&archive, 0, 4096), read(&archive, 3, 100)) {
        (Ok(told), Ok(again)) => {
            assert_eq!(told, again);
            let parsed = parsed.expect("accepted records are well-formed");
            check(&told, &parsed, global, stored);
        }
        (Err(error), Err(again)) => {
            assert_typed(&error);
            assert_eq!(error.to_string(), again.to_string());
            let harmless = parsed.is_some_and(|parsed| parsed.iter().all(|(key, _)| is_other(key)));
            let small = records.len() as u64 <= limits().max_metadata / 2;
            assert!(!harmless || !small, "{error}");
        }
        (told, again) => panic!("{told:?}, then {again:?}"),
    }
});

fn read(archive: &[u8], step: usize, room: usize) -> Result<Told, Error> {
    let reader = Pieces { bytes: archive.to_vec(), at: 0, step };
    fuzzing::extents(Source::reader(reader, "the input").with_limits(limits()), room)
}

/// The records, as the standard has them; `None` if they are not.
fn parse(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let digits = &bytes[..space];
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Some(records)
}

fn check(told: &Told, records: &[(&[u8], &[u8])], global: bool, stored: u64) {
    let last = |wanted: &[u8]| {
        records.iter().rev().find(|(key, _)| *key == wanted).map(|(_, value)| *value)
    };
    let sparse = records.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
    let Container::Tar { member } = &told.container else { panic!("{:?}", told.container) };
    let name = last(b"GNU.sparse.name").filter(|name| !name.is_empty());
    let name = name.or(last(b"path").filter(|name| !name.is_empty())).unwrap_or(b"plain");
    let mut name = name;
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    assert_eq!(*member, String::from_utf8_lossy(name));
    if global {
        assert!(last(b"size").is_none() && (!sparse || told.sparse_form == SparseForm::Dense));
    }
    if told.sparse_form == SparseForm::Dense {
        let size = last(b"size").map(|size| {
            std::str::from_utf8(size).expect("digits").parse::<u64>().expect("a number")
        });
        assert_eq!(told.size, Some(size.unwrap_or(stored)));
    }
}

fn is_other(key: &[u8]) -> bool {
    key != b"path"
        && key != b"size"
        && key != b"SCHILY.realsize"
        && !key.starts_with(b"GNU.sparse.")
}
