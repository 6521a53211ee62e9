//! Any bytes as an image that is checked.
//!
//! ```text
//! byte 0    low 3 bits: threads of the second check · 0x08 its memory: the least there is, or plenty
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
//! 4. Memory follows the file (the run's `-malloc_limit_mb` watches that).

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use qcow2_format::Error;
use qcow2_format::image::check::{CheckOptions, CheckReport, Severity, check};
use qcow2_fuzz::Bytes;

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
});

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
