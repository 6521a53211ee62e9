//! Sparse maps of tar: four forms of writing one, and one rule for all of them.
//!
//! ```text
//! byte 0    even: the rest is a map, told in all four forms
//!             size u64 · what is claimed beyond the truth i8 · entries of 4 bytes:
//!             gap and length, u16 each, in blocks; their two highest bits make them odd or huge
//!           odd: the rest is the map's own bytes
//!             1 GNU headers, 3 values of GNU.sparse.map, 5 lines before the data
//! ```
//!
//! Invariants:
//!
//! 1. No panic; an error blames the input.
//! 2. The four forms of one map are all accepted or all refused, and tell the same disk.
//! 3. What is accepted keeps the rule: extents ascend without gaps from zero to the file's size, and
//!    the data among them is the map's: same ranges, same bytes.
//! 4. A map that keeps the rule is accepted: ascending, disjoint, on whole blocks, inside the file,
//!    its lengths what is stored.
//! 5. How much is read at once makes no difference.

#![no_main]

use disk_engine::fuzzing::{self, Told};
use disk_engine::source::Source;
use disk_engine::source::extent::Extent;
use disk_engine::{Error, Result};
use libfuzzer_sys::fuzz_target;
use qcow2_fuzz::sparse::{Form, Map, pax};
use qcow2_fuzz::{Bytes, Pieces, assert_typed, header, limits, put, record, seal};

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let mode = input.byte();
    if mode % 2 == 0 { in_all_forms(input) } else { raw(mode, input) }
});

fn in_all_forms(input: Bytes<'_>) {
    let map = map(input);
    let lawful = keeps_the_rule(&map);
    let expected: Vec<(u64, u64)> =
        map.pairs.iter().copied().filter(|(_, length)| *length > 0).collect();
    for form in Form::ALL {
        match read(map.archive(form), 512) {
            Ok(told) => {
                assert!(lawful, "{form:?} accepts {map:?}");
                assert_eq!(told.size, Some(map.size));
                assert_eq!(check(&told), expected, "{form:?}");
                let stored = usize::try_from(map.stored).expect("there it is");
                assert_eq!(told.crc32, crc32fast::hash(&map.data[..stored]), "{form:?}");
            }
            Err(error) => {
                assert_typed(&error);
                assert!(!lawful, "{form:?} refuses {map:?}: {error}");
            }
        }
    }
}

fn map(mut input: Bytes<'_>) -> Map {
    let size = u64::from_be_bytes(input.array());
    let lie = i8::from_be_bytes(input.array());
    let mut map = Map::default();
    let mut at = 0_u64;
    while !input.0.is_empty() && map.pairs.len() < 300 {
        let gap = spread(u16::from_be_bytes(input.array()));
        let length = spread(u16::from_be_bytes(input.array()));
        at = at.wrapping_add(gap);
        map.pairs.push((at, length));
        at = at.wrapping_add(length);
    }
    // Mostly sizes that fit, since others end at once.
    map.size = if size >> 56 == 0 { at.wrapping_add(size % (1 << 12)) } else { size };
    let stored = map.pairs.iter().fold(0_u64, |sum, (_, length)| sum.wrapping_add(*length));
    let kept = stored.min(128 << 10);
    map.data = (0..kept).map(|at| (at % 251) as u8 + 1).collect();
    map.stored = stored.wrapping_add_signed(lie.into());
    map
}

/// A few blocks; or, by the highest bits, bytes, many blocks, or more than there are.
fn spread(value: u16) -> u64 {
    let low = u64::from(value & 0x3fff);
    match value >> 14 {
        0 => low % 8 * 512,
        1 => low % 1500,
        2 => low * 512,
        _ => low << 50 | low,
    }
}

/// The rule, told apart from the reader.
fn keeps_the_rule(map: &Map) -> bool {
    const MOST: u128 = i64::MAX as u128;
    let limits = limits();
    let mut end = 0_u128;
    let mut ragged = false;
    let mut stored = 0_u128;
    for (offset, length) in &map.pairs {
        let (offset, length) = (u128::from(*offset), u128::from(*length));
        if offset < end || offset + length > MOST || length > MOST {
            return false;
        }
        if length > 0 && (ragged || offset % 512 != 0) {
            return false;
        }
        ragged |= length % 512 != 0;
        end = offset + length;
        stored += length;
    }
    map.pairs.len() <= limits.max_extents
        && end <= u128::from(map.size)
        && map.size <= limits.max_image_size
        && stored == u128::from(map.stored)
        && stored == map.data.len() as u128
}

fn raw(mode: u8, input: Bytes<'_>) {
    let bytes = input.rest();
    let mut archive = Vec::new();
    match mode % 6 {
        1 => {
            // A header's sparse part, then as many extension headers as there are bytes for.
            let mut block = header("disk.img", b'S', 0);
            block[257..265].copy_from_slice(b"ustar  \0");
            let (inline, more) = bytes.split_at(bytes.len().min(109));
            block[386..386 + inline.len()].copy_from_slice(inline);
            let size = more.get(..2).unwrap_or(&[0, 0]);
            let stored = u64::from(size[0]) << 8 | u64::from(size[1]);
            block[124..136].copy_from_slice(&qcow2_fuzz::number(stored));
            seal(&mut block);
            archive.extend(block);
            put(&mut archive, more.get(2..).unwrap_or_default());
        }
        3 => {
            let (claims, map) = bytes.split_at(bytes.len().min(4));
            let mut claims = Bytes(claims);
            let size = u64::from(u16::from_be_bytes(claims.array()));
            let stored = u64::from(u16::from_be_bytes(claims.array()));
            let map = String::from_utf8_lossy(map);
            let records =
                record("GNU.sparse.size", &size.to_string()) + &record("GNU.sparse.map", &map);
            pax(&mut archive, &records);
            archive.extend(header("x", b'0', stored));
        }
        _ => {
            let (claims, map) = bytes.split_at(bytes.len().min(4));
            let mut claims = Bytes(claims);
            let size = u64::from(u16::from_be_bytes(claims.array()));
            let stored = u64::from(u16::from_be_bytes(claims.array()));
            let records = record("GNU.sparse.major", "1")
                + &record("GNU.sparse.minor", "0")
                + &record("GNU.sparse.realsize", &size.to_string());
            pax(&mut archive, &records);
            archive.extend(header("x", b'0', stored));
            put(&mut archive, map);
        }
    }
    // Enough for whatever is claimed above, and the archive's end.
    archive.resize(archive.len() + (66 << 10), 0);
    match (read(archive.clone(), 512), read(archive, 7)) {
        (Ok(told), Ok(again)) => {
            check(&told);
            assert_eq!(told, again);
        }
        (Err(error), Err(again)) => {
            assert_typed(&error);
            assert_eq!(error.to_string(), again.to_string());
        }
        (told, again) => panic!("{told:?}, then {again:?}"),
    }
}

fn read(archive: Vec<u8>, room: usize) -> Result<Told, Error> {
    let reader = Pieces { bytes: archive, at: 0, step: 0 };
    fuzzing::extents(Source::reader(reader, "the input").with_limits(limits()), room)
}

/// The data ranges of a disk told in order and without gaps.
fn check(told: &Told) -> Vec<(u64, u64)> {
    let mut end = 0;
    let mut data = Vec::new();
    for extent in &told.extents {
        let (offset, length) = match *extent {
            Extent::Zero { offset, length } => (offset, length),
            Extent::Data { offset, length: Some(length) } => {
                data.push((offset, length));
                (offset, length)
            }
            Extent::Data { length: None, .. } | Extent::Disk(_) => panic!("{extent:?}"),
        };
        assert_eq!(offset, end, "{:?}", told.extents);
        assert!(length > 0, "{:?}", told.extents);
        end += length;
    }
    assert_eq!(told.size, Some(end));
    data
}
