//! Every byte of a base against its manifest, by all cores.
//!
//! ```text
//! manifest   ├ extent ┤      ├──── extent ─────────────┤
//! windows    ├───── 16 MiB ─────┼───── 16 MiB ─────┼─   handed out in order, skipping where there
//!             sum      zeros? sum  sum                  is neither an extent nor data
//! ```
//!
//! An extent that lies in several windows is summed in parts, which are joined at the end: a
//! CRC-32 can be. What lies outside of all extents must read as zeros; only where the file has data
//! does anybody look.

use std::collections::TryReserveError;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crc32fast::Hasher;

use crate::cache::lease::Lease;
use crate::cache::mapped::{MappedBase, WINDOW, Window};
use crate::control::{Control, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::ExtentSum;
use crate::sys::sparse;

static ZEROS: [u8; 65_536] = [0; 65_536];

/// What came of reading a base.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// The first place at which the base is not what its manifest says.
    pub(crate) objection: Option<Error>,
}

/// Reads a leased base to its end.
///
/// # Errors
///
/// Only what says nothing about the base: cancelled, no memory.
pub(crate) fn read(
    lease: &Lease,
    path: &Path,
    threads: NonZeroUsize,
    control: &Control,
) -> Result<Reading> {
    let extents = lease.manifest.extents.as_slice();
    let size = lease.manifest.virtual_size;
    let work = Work {
        base: MappedBase::new(lease),
        lease,
        path,
        extents,
        control,
        queue: Mutex::new(Queue { position: 0, next: 0 }),
        stop: AtomicBool::new(false),
        read: AtomicU64::new(0),
        total: extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.length)),
    };
    let windows = usize::try_from(size.div_ceil(WINDOW)).unwrap_or(usize::MAX);
    let helpers = threads.get().min(windows).saturating_sub(1);
    let outcomes =
        thread::scope(|scope| {
            let mut running = Vec::new();
            for _ in 0..helpers {
                // Where no thread is to be had, fewer do.
                match thread::Builder::new().spawn_scoped(scope, || work.run()) {
                    Ok(helper) => running.push(helper),
                    Err(_) => break,
                }
            }
            let mut outcomes = vec![work.run()];
            outcomes.extend(running.into_iter().map(|helper| {
                helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }));
            outcomes
        });
    let mut found = Found::default();
    for outcome in outcomes {
        found.add(outcome?)?;
    }
    if let Some(error) = found.failures.pop_first_by_offset() {
        return Ok(Reading { bytes: work.read.into_inner(), objection: Some(error) });
    }
    let objection = first_wrong_extent(&mut found.parts, extents)?;
    Ok(Reading { bytes: work.read.into_inner(), objection })
}

/// A part of an extent, summed.
#[derive(Clone, Copy, Debug)]
struct Part {
    extent: usize,
    offset: u64,
    length: u64,
    crc32: u32,
}

/// What one thread found.
#[derive(Debug, Default)]
struct Found {
    parts: Vec<Part>,
    failures: Failures,
}

/// What could not be read, and zeros that are none.
#[derive(Debug, Default)]
struct Failures(Vec<Error>);

impl Failures {
    fn pop_first_by_offset(&mut self) -> Option<Error> {
        self.0.sort_by_key(Error::offset);
        (!self.0.is_empty()).then(|| self.0.swap_remove(0))
    }
}

impl Found {
    fn add(&mut self, other: Self) -> Result<()> {
        self.parts.try_reserve(other.parts.len()).map_err(no_memory)?;
        self.parts.extend(other.parts);
        self.failures.0.extend(other.failures.0);
        Ok(())
    }
}

/// What all threads share.
struct Work<'a> {
    base: MappedBase<'a>,
    lease: &'a Lease,
    path: &'a Path,
    extents: &'a [ExtentSum],
    control: &'a Control,
    queue: Mutex<Queue>,
    stop: AtomicBool,
    read: AtomicU64,
    total: u64,
}

/// How far windows have been handed out.
#[derive(Debug)]
struct Queue {
    position: u64,
    /// The first extent that ends after the position.
    next: usize,
}

impl Work<'_> {
    /// Reads windows until none is left, or someone failed.
    fn run(&self) -> Result<Found> {
        let mut found = Found::default();
        let outcome = self.fill(&mut found);
        if outcome.is_err() || !found.failures.0.is_empty() {
            self.stop.store(true, Ordering::Relaxed);
        }
        outcome.map(|()| found)
    }

    fn fill(&self, found: &mut Found) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.control.check()?;
            match self.hand_out() {
                Ok(None) => break,
                Ok(Some((range, first))) => match self.window(range, first, &mut found.parts) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Limit => return Err(error),
                    Err(error) => found.failures.0.push(error.with_path(self.path)),
                },
                Err(error) => found.failures.0.push(error),
            }
            if !found.failures.0.is_empty() {
                break;
            }
            self.control.emit(&Event::Verifying {
                base: self.path.to_path_buf(),
                verified_bytes: self.read.load(Ordering::Relaxed).min(self.total),
                total_bytes: self.total,
            });
        }
        Ok(())
    }

    /// The next window that holds anything, and the first extent that ends in or after it.
    fn hand_out(&self) -> Result<Option<(Range<u64>, usize)>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let extent = self.extents.get(queue.next).map(|extent| extent.offset);
        let start = match extent {
            Some(offset) if offset <= queue.position => queue.position,
            _ => match (extent, self.next_data(queue.position)?) {
                (Some(extent), Some(data)) => extent.min(data.start),
                (Some(offset), None) => offset,
                (None, Some(data)) => data.start,
                (None, None) => return Ok(None),
            },
        };
        let size = self.lease.manifest.virtual_size;
        if start >= size {
            return Ok(None);
        }
        let start = start - start % WINDOW;
        let start = start.max(queue.position);
        let end = (start - start % WINDOW).saturating_add(WINDOW).min(size);
        let first = queue.next;
        queue.position = end;
        while self.extents.get(queue.next).is_some_and(|extent| past(extent) <= end) {
            queue.next += 1;
        }
        Ok(Some((start..end, first)))
    }

    /// Sums the extents of one window, and makes sure that nothing is between them.
    fn window(&self, range: Range<u64>, first: usize, parts: &mut Vec<Part>) -> Result<()> {
        let window = self.base.window(range.clone());
        let mut position = range.start;
        for (index, extent) in self.extents.iter().enumerate().skip(first) {
            if extent.offset >= range.end {
                break;
            }
            let part = extent.offset.max(range.start)..past(extent).min(range.end);
            self.zeros(&window, position..part.start)?;
            let mut sum = Hasher::new();
            window.each(part.clone(), |bytes| sum.update(bytes))?;
            parts.try_reserve(1).map_err(no_memory)?;
            let length = part.end.saturating_sub(part.start);
            parts.push(Part { extent: index, offset: part.start, length, crc32: sum.finalize() });
            self.read.fetch_add(length, Ordering::Relaxed);
            position = part.end;
        }
        self.zeros(&window, position..range.end)
    }

    /// Refuses anything but zeros outside of the extents.
    fn zeros(&self, window: &Window<'_>, range: Range<u64>) -> Result<()> {
        let mut position = range.start;
        while position < range.end {
            let Some(data) = self.next_data(position)? else { break };
            if data.start >= range.end {
                break;
            }
            let data = data.start..data.end.min(range.end);
            let (mut at, mut wrong) = (data.start, None);
            window.each(data.clone(), |bytes| {
                if wrong.is_none() {
                    wrong = first_nonzero(bytes).map(|index| at.saturating_add(index));
                }
                at = at.saturating_add(bytes.len() as u64);
            })?;
            if let Some(offset) = wrong {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the base has data where its manifest knows of none",
                )
                .with_offset(offset));
            }
            self.read.fetch_add(data.end.saturating_sub(data.start), Ordering::Relaxed);
            position = data.end;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        sparse::next_data(self.lease.file(), offset)
            .map_err(|error| Error::io("look for data in", self.path, error).with_offset(offset))
    }
}

/// Joins the parts of each extent; the first extent with another sum is the objection.
fn first_wrong_extent(parts: &mut [Part], extents: &[ExtentSum]) -> Result<Option<Error>> {
    parts.sort_unstable_by_key(|part| (part.extent, part.offset));
    let mut parts = parts.iter().peekable();
    for (index, extent) in extents.iter().enumerate() {
        let mut sum = Hasher::new();
        while let Some(part) = parts.next_if(|part| part.extent == index) {
            sum.combine(&Hasher::new_with_initial_len(part.crc32, part.length));
        }
        let computed = sum.finalize();
        if computed != extent.crc32 {
            let message = format!(
                "the {} bytes there have the CRC-32 {computed:#010x}, not {:#010x}",
                extent.length, extent.crc32
            );
            return Ok(Some(Error::new(ErrorKind::Corrupt, message).with_offset(extent.offset)));
        }
    }
    Ok(None)
}

/// Where an extent ends. Parsing a manifest made sure that it lies inside the disk.
fn past(extent: &ExtentSum) -> u64 {
    extent.offset.saturating_add(extent.length)
}

fn first_nonzero(bytes: &[u8]) -> Option<u64> {
    let mut at = 0_usize;
    for block in bytes.chunks(ZEROS.len()) {
        if ZEROS.get(..block.len()) != Some(block) {
            let index = block.iter().position(|&byte| byte != 0)?;
            return Some(at.saturating_add(index) as u64);
        }
        at = at.saturating_add(block.len());
    }
    None
}

fn no_memory(_: TryReserveError) -> Error {
    Error::new(ErrorKind::Limit, "no memory for the checksums")
}
