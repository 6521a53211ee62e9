//! The archive from the inside: maps against a plain model, ranges against the whole, a disk that
//! changes. What other programs make of it is told by the suite `pack`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::header;
use super::map::{BLOCK, CHUNK, DiskMap};
use super::stream::ArchiveStream;
use crate::control::{CancelToken, Control};
use crate::disk::{ContentRun, DiskContent};
use crate::error::{ErrorKind, Result};

/// A disk in memory. `grain` is what it knows of holes: 0 for nothing.
struct Memory {
    bytes: Vec<u8>,
    grain: usize,
    /// After so many reads a byte of what is read is another one.
    changes_after: usize,
    reads: AtomicUsize,
}

impl Memory {
    fn new(bytes: &[u8], grain: usize) -> Self {
        let (bytes, reads) = (bytes.to_vec(), AtomicUsize::new(0));
        Self { bytes, grain, changes_after: usize::MAX, reads }
    }
}

impl DiskContent for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        let left = &self.bytes[usize::try_from(offset).unwrap()..];
        if self.grain == 0 {
            return Ok(ContentRun { length: left.len() as u64, zero: false, compressed: false });
        }
        let pieces = left.chunks(self.grain).take_while(|piece| is_zero(piece));
        let zeros: usize = pieces.map(<[u8]>::len).sum();
        Ok(match zeros {
            0 => ContentRun {
                length: left.len().min(self.grain) as u64,
                zero: false,
                compressed: false,
            },
            zeros => ContentRun { length: zeros as u64, zero: true, compressed: false },
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        bytes.copy_from_slice(&self.bytes[offset..offset + bytes.len()]);
        if self.reads.fetch_add(1, Ordering::SeqCst) >= self.changes_after {
            bytes[0] ^= 0x80;
        }
        Ok(())
    }
}

/// By comparing, which is quick in tests too.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 65_536] = [0; 65_536];
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// A disk with data in these ranges.
fn disk(size: usize, data: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (offset, length) in data {
        for (index, byte) in bytes[*offset..offset + length].iter_mut().enumerate() {
            *byte = u8::try_from((index * 31 + offset / 4096) % 255).unwrap() + 1;
        }
    }
    bytes
}

/// A disk of `chunks` chunks and a bit, in which every `step`-th block holds one byte.
fn speckled(chunks: usize, step: usize) -> Vec<u8> {
    let mut bytes = vec![0; chunks * 64 * 4096 + 1000];
    bytes.iter_mut().skip(77).step_by(step * 4096).for_each(|byte| *byte = 5);
    bytes
}

fn pairs(map: &DiskMap) -> Vec<(u64, u64)> {
    map.runs.iter().map(|run| (run.offset, run.length)).collect()
}

/// The same by looking at every block.
fn model(bytes: &[u8], block: usize) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (index, piece) in bytes.chunks(block).enumerate() {
        if !is_zero(piece) {
            let (offset, length) = ((index * block) as u64, piece.len() as u64);
            match runs.last_mut() {
                Some((start, before)) if *start + *before == offset => *before += length,
                _ => runs.push((offset, length)),
            }
        }
    }
    runs
}

fn shapes() -> Vec<Vec<u8>> {
    let mib = 1 << 20;
    vec![
        disk(0, &[]),
        disk(1, &[]),
        disk(1, &[(0, 1)]),
        disk(1000, &[(999, 1)]),
        disk(20 * mib, &[]),
        disk(5000, &[(0, 5000)]),
        disk(20 * mib + 1, &[(20 * mib, 1)]),
        disk(3 * mib, &[(4095, 2), (mib, mib), (3 * mib - 1, 1)]),
        // Runs that cross chunks and stripes.
        disk(33 * mib, &[(15 * mib, 2 * mib), (32 * mib - 4096, 8192)]),
        speckled(3, 2),
    ]
}

#[test]
fn the_map_is_what_the_bytes_say_whatever_is_known_of_holes() {
    for bytes in shapes() {
        let expected = model(&bytes, 4096);
        for (grain, threads) in [(0, 1), (512, 2), (4096, 3), (65_536, 8)] {
            let memory = Memory::new(&bytes, grain);
            let map = DiskMap::scan(&memory, threads, &Control::new()).unwrap();
            assert_eq!(pairs(&map), expected, "{} {grain} {threads}", bytes.len());
            assert_eq!(map.stored, expected.iter().map(|(_, length)| length).sum::<u64>());
            assert_eq!(map.block, BLOCK);
        }
    }
}

#[test]
fn too_many_runs_make_the_block_double_until_they_fit() {
    // Runs of one block in every third, in every 40th and in every 300th.
    for step in [3, 40, 300] {
        let bytes = speckled(70, step);
        for most in [1, 2, 7, 100, 10_000] {
            let memory = Memory::new(&bytes, 4096);
            let map = DiskMap::scan_within(&memory, 2, &Control::new(), most).unwrap();
            let block = usize::try_from(map.block).unwrap();
            assert_eq!(pairs(&map), model(&bytes, block), "{step} {most}");
            assert!(map.runs.len() <= most);
            let finer = model(&bytes, block / 2).len();
            assert!(map.block == BLOCK || finer > most, "{step} {most}: {block} is too large");
        }
    }
}

#[test]
fn every_range_of_the_stream_is_that_part_of_the_whole() {
    for (bytes, most) in shapes().into_iter().map(|bytes| (bytes, 1000)).chain([
        // Runs that hold zeros the map knows of.
        (speckled(3, 7), 5),
    ]) {
        let memory = Memory::new(&bytes, 4096);
        let map = DiskMap::scan_within(&memory, 1, &Control::new(), most).unwrap();
        let stream = ArchiveStream::new(&memory, &map, "disk.img", 0).unwrap();
        let read = |from: u64, to: u64| {
            let (mut reader, mut all) = (stream.reader(from..to).unwrap(), Vec::new());
            while let Some(piece) = reader.next_piece().unwrap() {
                assert!(!piece.is_empty());
                all.extend_from_slice(piece);
            }
            all
        };
        let whole = read(0, stream.length());
        assert_eq!(whole.len() as u64, stream.length());
        assert!(whole.len().is_multiple_of(10_240));
        let stored: Vec<u8> = pairs(&map)
            .iter()
            .flat_map(|(offset, length)| {
                let offset = usize::try_from(*offset).unwrap();
                bytes[offset..offset + usize::try_from(*length).unwrap()].to_vec()
            })
            .collect();
        let head = header::encode("disk.img", 0, &map).unwrap().len();
        assert!(whole[head..].starts_with(&stored));
        assert!(is_zero(&whole[head + stored.len()..]));
        assert!(whole.len() >= head + stored.len() + 1024);
        for size in [7001, 65_536, 300_001] {
            let ends = (0..=stream.length()).step_by(size).chain([stream.length()]);
            let ends: Vec<u64> = ends.collect();
            let joined: Vec<u8> = ends.windows(2).flat_map(|pair| read(pair[0], pair[1])).collect();
            assert!(joined == whole, "{} in steps of {size}", bytes.len());
        }
    }
}

#[test]
fn a_disk_that_changes_between_the_passes_is_noticed() {
    let bytes = disk(1 << 20, &[(0, 8192), (600_000, 5000)]);
    let mut memory = Memory::new(&bytes, 4096);
    let map = DiskMap::scan(&memory, 1, &Control::new()).unwrap();
    let pack = |memory: &Memory| {
        let stream = ArchiveStream::new(memory, &map, "disk.img", 0).unwrap();
        let mut reader = stream.reader(0..stream.length()).unwrap();
        while reader.next_piece()?.is_some() {}
        Ok::<_, crate::Error>(())
    };
    pack(&memory).unwrap();
    let reads = memory.reads.load(Ordering::SeqCst);
    memory.changes_after = reads + 1;
    let error = pack(&memory).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Mismatch, Some(2 * CHUNK)), "{error}");
}

#[test]
fn a_scan_ends_when_it_is_cancelled_and_when_reading_fails() {
    struct Broken;
    impl DiskContent for Broken {
        fn size(&self) -> u64 {
            1 << 40
        }
        fn run_at(&self, _: u64) -> Result<ContentRun> {
            Ok(ContentRun { length: 1 << 40, zero: false, compressed: false })
        }
        fn read_at(&self, _: &mut [u8], offset: u64) -> Result<()> {
            Err(crate::Error::new(ErrorKind::Io, "read").with_offset(offset))
        }
    }
    let cancel = CancelToken::new();
    cancel.cancel();
    let control = Control::new().with_cancel(cancel);
    let memory = Memory::new(&disk(1 << 20, &[(0, 1 << 20)]), 0);
    let error = DiskMap::scan(&memory, 3, &control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = DiskMap::scan(&Broken, 3, &Control::new()).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Io, "read"));
}

#[test]
fn a_scan_skips_holes_of_exabytes() {
    struct Huge;
    impl DiskContent for Huge {
        fn size(&self) -> u64 {
            i64::MAX as u64
        }
        fn run_at(&self, offset: u64) -> Result<ContentRun> {
            Ok(ContentRun { length: self.size() - offset, zero: true, compressed: false })
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            unreachable!("there is no data")
        }
    }
    let map = DiskMap::scan(&Huge, 2, &Control::new()).unwrap();
    assert_eq!((map.runs.len(), map.stored), (0, 0));
}

#[test]
fn names_no_reader_takes_as_they_are_get_refused() {
    let long = "n".repeat(4096);
    for name in ["", "/disk", "a//b", "a/", "./a", "a/../b", "..", "a\0b", &long] {
        let error = header::check_name(name).unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("member")));
    }
    for name in ["disk.img", "a/b", "..a", "dïsk ☃\n", &long[1..]] {
        header::check_name(name).unwrap();
    }
}

#[test]
fn all_numbers_of_maps_with_many_runs_are_there() {
    let bytes = speckled(2, 2);
    let memory = Memory::new(&bytes, 0);
    let map = DiskMap::scan(&memory, 1, &Control::new()).unwrap();
    let head = header::encode("disk.img", 0, &map).unwrap();
    // Four pairs, then 21 in each block; the last byte but the padding says whether more follow.
    assert_eq!(head.len(), 512 * (1 + (map.runs.len() + 1 - 4).div_ceil(21)));
    let flags: BTreeMap<usize, u8> =
        (1..head.len() / 512).map(|block| (block, head[block * 512 + 504])).collect();
    assert!(flags.iter().all(|(block, flag)| (*flag == 1) == (block * 512 + 512 < head.len())));
    assert_eq!(head[482], 1);
}
