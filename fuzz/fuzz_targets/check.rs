//! Any bytes as an image that is checked, and repaired.
//!
//! ```text
//! byte 0    low 3 bits: threads of the second check · 0x08 its memory: the least there is, or plenty ·
//!           0x10 only leaks are repaired · 0xe0 how many changes are made before the process is killed
//! rest      the file
//! ```
//!
//! Invariants:
//!
//! 1. No panic; bounded time, whatever tables name each other. Errors are of the image, never of the
//!    request.
//! 2. Two checks, with other numbers of threads and other memory, find the same, and say the same in
//!    the end.
//! 3. What is counted in the report was shown, as often as it is counted.
//! 4. A repair does what its plan says, and finds in the end what a check finds then. Where nothing of
//!    the guest's is metadata at once, what could be read before reads the same, whether the repair
//!    ends or is killed at any write; the next one ends.
//! 5. Memory follows the file (the run's `-malloc_limit_mb` watches that).

#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use libfuzzer_sys::fuzz_target;
use qcow2_format::image::check::{
    CheckOptions, CheckReport, Finding, RepairMode, RepairOptions, Severity, check, plan_repair,
    repair,
};
use qcow2_format::{Error, GuestOffset, Image, Memory, ReadAt, ReadOptions, WriteAt};
use qcow2_fuzz::Bytes;

/// Guest bytes that are read at each of a few places.
const LOOK: u64 = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let flags = input.byte();
    let file = input.rest();
    let first = looked_at(file, &CheckOptions::new().threads(1));
    let memory = if flags & 8 == 0 { 1 } else { 64 << 20 };
    let second = CheckOptions::new().threads(usize::from(flags & 7) + 1).memory(memory);
    match (first, looked_at(file, &second)) {
        (Ok(first), Ok(second)) => assert_eq!(first, second),
        (first, second) => {
            let error = first.expect_err("both end or none");
            assert!(!matches!(error, Error::Request(_) | Error::Io { .. }), "{error}");
            assert_eq!(error.to_string(), second.expect_err("none ends").to_string());
        }
    }
    let mode = if flags & 16 == 0 { RepairMode::All } else { RepairMode::Leaks };
    let options = RepairOptions::new(mode).check(CheckOptions::new().threads(1));
    repaired(file, &options);
    if flags >> 5 > 0 {
        killed(file, &options, 1 << (flags >> 5) >> 1);
    }
});

/// Repairs a copy of the file.
fn repaired(file: &[u8], options: &RepairOptions) {
    let before = content(file);
    let (storage, plan) = (Memory::new(file.to_vec()), Memory::new(file.to_vec()));
    let (mut planned, mut done) = (Vec::new(), Vec::new());
    let foretold = plan_repair(&plan, options, |_, _| {}, |fix| planned.push(fix.to_string()));
    assert!(plan.into_bytes() == file, "a plan changes nothing");
    let outcome = repair(&storage, options, |_, _| {}, |fix| done.push(fix.to_string()));
    let after = storage.into_bytes();
    same(&before, &after);
    match (foretold, outcome) {
        (Ok(foretold), Ok(report)) => {
            assert_eq!(foretold, report);
            assert_eq!(planned, done);
            let (found, _) =
                looked_at(&after, &CheckOptions::new().threads(1)).expect("it was checked");
            assert_eq!(found, report.after);
        }
        (Err(foretold), Err(error)) => assert_eq!(foretold.to_string(), error.to_string()),
        (foretold, outcome) => panic!("planned {foretold:?}, then {outcome:?}"),
    }
}

/// Repairs a copy of the file up to some write; then another repair goes on.
fn killed(file: &[u8], options: &RepairOptions, writes: u64) {
    let before = content(file);
    let storage = Mortal { memory: Memory::new(file.to_vec()), left: AtomicU64::new(writes) };
    let _ = repair(&storage, options, |_, _| {}, |_| {});
    let between = storage.memory.into_bytes();
    same(&before, &between);
    repaired(&between, options);
}

/// Memory that takes so many writes.
struct Mortal {
    memory: Memory,
    left: AtomicU64,
}

impl Mortal {
    fn live(&self) -> io::Result<()> {
        let count = |left: u64| left.checked_sub(1);
        let lives = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
        lives.map(drop).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl ReadAt for Mortal {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.memory.read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
}

impl WriteAt for Mortal {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.live()?;
        self.memory.write_all_at(data, offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.live()?;
        self.memory.set_length(length)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What can be read of the disk, and where, at its start, in its middle and at its end, in pieces of
/// 512 bytes; nothing of an image that does not open.
fn content(file: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let mut found = BTreeMap::new();
    if overlaps(file) {
        return found;
    }
    let Ok(image) = Image::open(file, &ReadOptions::new().threads(1)) else { return found };
    let size = image.virtual_size();
    for start in [0, size / 2, size.saturating_sub(LOOK)] {
        let start = start / 512 * 512;
        for at in (start..size.min(start + LOOK)).step_by(512) {
            let mut bytes = vec![0x5a; 512.min(size - at) as usize];
            let below = |part: &mut [u8], _| {
                part.fill(0xbe);
                Ok::<(), Error>(())
            };
            if image.read_over(&mut bytes, GuestOffset(at), below).is_ok() {
                found.insert(at, bytes);
            }
        }
    }
    found
}

/// Whether something of the guest's is metadata as well, or nobody can tell. An entry that a repair has
/// mended may be found to be that.
fn overlaps(file: &[u8]) -> bool {
    let mut overlap = false;
    let checked = check(&file, &CheckOptions::new().threads(1), |finding, _| {
        overlap |= matches!(finding, Finding::Overlap { .. });
    });
    overlap || checked.is_err()
}

/// Whether everything that could be read still is what it was.
fn same(before: &BTreeMap<u64, Vec<u8>>, file: &[u8]) {
    if before.is_empty() || overlaps(file) {
        return;
    }
    let after = content(file);
    assert!(!after.is_empty(), "the image opened before");
    for (at, bytes) in before {
        assert!(after.get(at) == Some(bytes), "guest offset {at:#x} reads otherwise");
    }
}

/// The report, and each finding with how often it was shown.
fn looked_at(
    file: &[u8],
    options: &CheckOptions,
) -> Result<(CheckReport, BTreeMap<String, u64>), Error> {
    let mut found = BTreeMap::new();
    let mut shown = CheckReport::default();
    let report = check(&file, options, |finding, times| {
        *found.entry(finding.to_string()).or_insert(0) += times;
        match finding.severity() {
            Severity::Corruption => shown.corruptions += times,
            Severity::Leak => shown.leaks += times,
            Severity::CheckError => shown.check_errors += times,
            _ => {}
        }
    })?;
    let totals = |report: &CheckReport| (report.corruptions, report.leaks, report.check_errors);
    assert_eq!(totals(&report), totals(&shown));
    Ok((report, found))
}
