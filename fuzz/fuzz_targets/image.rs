//! Any bytes as an image that is opened, mapped and read.
//!
//! ```text
//! byte 0    low 3 bits: the second reader's slices, 512 bytes and up · 0x08 caches · 0x10 threads ·
//!           0x20 read more at once · 0xc0 the disk: active, snapshot "1", "2" or "first"
//! rest      the file; it is its own external data file, if it wants one
//! ```
//!
//! Invariants:
//!
//! 1. No panic; one call takes bounded time, whatever size the disk claims. Errors are of the image
//!    or of what it needs, never of the request.
//! 2. Two readers, with other slices, caches and numbers of threads, say the same: runs, bytes,
//!    errors.
//! 3. Runs follow each other without gaps, are not empty, stay within what was asked for; where a map
//!    gives them, two in a row never are one.
//! 4. Bytes are what the runs say: zeros, the file's own at the offset named, or what is below, asked
//!    for in order and exactly where the runs say so.
//! 5. A read in pieces gives the same as one read.
//! 6. Memory follows the file: the L1 table, the stated caches, the buffers (the run's
//!    `-malloc_limit_mb` watches that).

#![no_main]

use libfuzzer_sys::fuzz_target;
use qcow2_format::address::GuestOffset;
use qcow2_format::image::{Run, RunKind};
use qcow2_format::{Error, Image, ReadOptions};
use qcow2_fuzz::Bytes;

/// Calls of `run_at` from one place.
const STEPS: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let flags = input.byte();
    let file = input.rest();
    let snapshot = [None, Some("1"), Some("2"), Some("first")][usize::from(flags >> 6)];
    let cache = if flags & 8 == 0 { 0 } else { 64 << 10 };
    let first = ReadOptions::new().threads(1);
    let second = ReadOptions::new()
        .l2_slice(512 << (flags & 7))
        .l2_cache(cache)
        .cluster_cache(cache)
        .threads(if flags & 16 == 0 { 1 } else { 3 });
    let (first, second) = match (open(file, first, snapshot), open(file, second, snapshot)) {
        (Ok(first), Ok(second)) => (first, second),
        (first, second) => {
            let error = first.map(drop).expect_err("both open or none");
            assert_eq!(error.to_string(), second.map(drop).expect_err("none opens").to_string());
            return;
        }
    };
    let most = if flags & 32 == 0 { 16 << 10 } else { 600 << 10 };
    let size = first.virtual_size();
    assert_eq!(size, second.virtual_size());
    let mut starts = vec![0, size / 2, size.saturating_sub(most / 2)];
    starts.extend(walk(&first, &second, 0));
    starts.extend(walk(&first, &second, size - size / 3));
    for start in starts {
        let length = most.min(size.saturating_sub(start));
        map(&first, start, length.min(64 << 10));
        read(&first, &second, start, usize::try_from(length).expect("a few KiB"));
    }
});

fn open<'a>(
    file: &'a [u8],
    options: ReadOptions,
    snapshot: Option<&str>,
) -> Result<Image<&'a [u8]>, Error> {
    let options = match snapshot {
        Some(name) => options.snapshot(name),
        None => options,
    };
    match Image::open(file, &options) {
        Err(Error::Request(_)) => Image::open_with_data(file, file, &options),
        other => other,
    }
}

/// Goes from run to run as far as that is few steps; returns where the first ones and the first few
/// of other kinds started.
fn walk(first: &Image<&[u8]>, second: &Image<&[u8]>, from: u64) -> Vec<u64> {
    let (mut at, size) = (from, first.virtual_size());
    let (mut starts, mut before) = (Vec::new(), None);
    for _ in 0..STEPS {
        if at >= size {
            break;
        }
        let limit = size - at;
        match (first.run_at(GuestOffset(at), limit), second.run_at(GuestOffset(at), limit)) {
            (Ok(run), Ok(again)) => {
                assert_eq!(run.start.to_u64(), at);
                assert_eq!((run.start, run.kind), (again.start, again.kind));
                assert!((1..=limit).contains(&run.length) && (1..=limit).contains(&again.length));
                let kind = std::mem::discriminant(&run.kind);
                if starts.len() < 4 && before != Some(kind) {
                    starts.push(at + run.length / 3);
                }
                before = Some(kind);
                at += run.length.min(again.length);
            }
            (Err(error), Err(again)) => {
                assert_of_the_image(&error);
                assert_eq!(error.to_string(), again.to_string());
                starts.push(at);
                break;
            }
            (run, again) => panic!("{run:?}, then {again:?}"),
        }
    }
    starts
}

/// What a map of this range says about itself.
fn map(image: &Image<&[u8]>, start: u64, length: u64) {
    let (mut at, end) = (start, start + length);
    let mut before: Option<Run> = None;
    for run in image.map(start..end).expect("a range of the disk") {
        let Ok(run) = run else { return };
        assert_eq!(run.start.to_u64(), at);
        assert!(run.length > 0 && run.length <= end - at);
        if let Some(before) = before {
            assert!(!goes_on(&before, &run), "{before:?}, then {run:?}");
        }
        at += run.length;
        before = Some(run);
    }
    assert_eq!(at, end);
}

fn goes_on(before: &Run, run: &Run) -> bool {
    let place = |kind| match kind {
        RunKind::Data { host } => Some(host),
        RunKind::Unallocated { host } | RunKind::Zero { host } => host,
        RunKind::Compressed => None,
    };
    let same = std::mem::discriminant(&before.kind) == std::mem::discriminant(&run.kind);
    let next = place(before.kind).map(|host| host.to_u64().saturating_add(before.length));
    same && next == place(run.kind).map(|host| host.to_u64())
}

fn read(first: &Image<&[u8]>, second: &Image<&[u8]>, start: u64, length: usize) {
    let mut bytes = vec![0xaa; length];
    let mut asked = Vec::new();
    let one = first.read_over::<Error>(&mut bytes, GuestOffset(start), |part, at| {
        asked.push((at.to_u64(), part.len() as u64));
        part.fill(0xbb);
        Ok(())
    });
    let mut again = vec![0xcc; length];
    let mut at = start;
    let mut pieces = Ok(());
    for piece in again.chunks_mut(7777) {
        let count = piece.len() as u64;
        pieces = second.read_over::<Error>(piece, GuestOffset(at), |part, _| {
            part.fill(0xbb);
            Ok(())
        });
        at += count;
        if pieces.is_err() {
            break;
        }
    }
    match (one, pieces) {
        (Ok(()), Ok(())) => assert!(bytes == again, "pieces at {start:#x} read otherwise"),
        (Err(error), Err(again)) => {
            assert_of_the_image(&error);
            assert_eq!(error.to_string(), again.to_string());
            return;
        }
        (one, pieces) => panic!("{one:?}, then in pieces {pieces:?}"),
    }
    check(first, start, &bytes, &asked);
}

/// That `bytes` are what the runs from `start` on say, and that those below were `asked` as they say.
fn check(image: &Image<&[u8]>, start: u64, bytes: &[u8], asked: &[(u64, u64)]) {
    let mut below = asked.iter();
    let (mut at, mut rest) = (start, bytes);
    while !rest.is_empty() {
        let run = image.run_at(GuestOffset(at), rest.len() as u64).expect("what was read maps");
        let length = usize::try_from(run.length).expect("part of a buffer");
        let (part, behind) = rest.split_at(length);
        match run.kind {
            RunKind::Zero { .. } => assert!(part.iter().all(|byte| *byte == 0)),
            RunKind::Unallocated { .. } => {
                assert!(part.iter().all(|byte| *byte == 0xbb));
                assert_eq!(below.next(), Some(&(at, run.length)));
            }
            RunKind::Data { host } => {
                let file = *image.data_storage();
                let from = usize::try_from(host.to_u64()).unwrap_or(usize::MAX).min(file.len());
                let there = &file[from..file.len().min(from.saturating_add(length))];
                assert!(part[..there.len()] == *there);
                assert!(part[there.len()..].iter().all(|byte| *byte == 0));
            }
            RunKind::Compressed => {}
        }
        at += run.length;
        rest = behind;
    }
    assert_eq!(below.next(), None);
}

fn assert_of_the_image(error: &Error) {
    assert!(matches!(error, Error::Corrupt(_) | Error::Unsupported(_)), "{error}: {error:?}");
}
