//! Which blocks of a disk hold data: the first of two passes.
//!
//! ```text
//! disk     │ stripe, 16 MiB         │ stripe                 │ …    one thread at a time each
//! stripe   │chunk│chunk│ … 64 …     │                               read and summed as a whole
//! chunk    ████░░░░░░██░░░░             256 KiB: a bit for each of its 64 blocks of 4096 bytes,
//!                                       CRC-32 of all its bytes
//! ```
//!
//! A block is data if one of its bytes is not zero. What the file system says about holes saves
//! reading and decides nothing, so the map follows from the content alone. Runs of blocks are what
//! the archive stores; where there would be more than [`RUNS_MAX`], blocks are taken twice as long,
//! and twice again, until they fit.
//!
//! The sums tell the second pass when somebody writes to the disk meanwhile. Memory: a stripe that
//! holds data takes 1 KiB, 64 MiB per TiB of data; each thread reads into one chunk. Callers:
//! `ops::pack` scans, `stream` reads by the map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::control::{Control, Event};
use crate::disk::DiskContent;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a block: what file systems allocate, and what sparse files have holes of.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCK_BYTES: usize = 4096;
/// Bytes of a chunk: one bit per block in a word.
pub(crate) const CHUNK: u64 = CHUNK_BYTES as u64;
pub(crate) const CHUNK_BYTES: usize = 64 * BLOCK_BYTES;
/// Chunks of a stripe: enough to be worth a thread's turn.
const STRIPE_CHUNKS: usize = 64;
const STRIPE: u64 = STRIPE_CHUNKS as u64 * CHUNK;
/// Most runs of a map. Our own reader takes twice as many, others take any number.
const RUNS_MAX: usize = 100_000;
/// Offsets of files are signed.
const SIZE_MAX: u64 = i64::MAX as u64;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a chunk held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chunk {
    /// Bit n: its block n is data.
    pub(crate) blocks: u64,
    /// The CRC-32 of the chunk, zeros included.
    pub(crate) crc32: u32,
}

type Stripe = Box<[Chunk; STRIPE_CHUNKS]>;

/// A part of the disk that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where it begins on the disk, in bytes: a multiple of the map's block.
    pub(crate) offset: u64,
    /// How long it is in bytes: whole blocks, but where the disk ends.
    pub(crate) length: u64,
    /// Bytes stored before it.
    pub(crate) stored: u64,
}

/// What of a disk is data.
#[derive(Debug)]
pub(crate) struct DiskMap {
    stripes: BTreeMap<u64, Stripe>,
    /// The stored parts, ascending, with a hole between any two.
    pub(crate) runs: Vec<Run>,
    /// The bytes that were looked at as one: 4096 unless there were too many runs.
    pub(crate) block: u64,
    /// Bytes of all runs.
    pub(crate) stored: u64,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
}

impl DiskMap {
    /// Reads all of `disk` with `threads` threads.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] for a disk of 2^63 bytes and more, [`ErrorKind::Cancelled`], and what
    /// reading the disk fails with.
    pub(crate) fn scan(disk: &dyn DiskContent, threads: usize, control: &Control) -> Result<Self> {
        Self::scan_within(disk, threads, control, RUNS_MAX)
    }

    /// As [`DiskMap::scan`], with at most `most` runs, which is at least one.
    pub(super) fn scan_within(
        disk: &dyn DiskContent,
        threads: usize,
        control: &Control,
        most: usize,
    ) -> Result<Self> {
        let size = disk.size();
        if size > SIZE_MAX {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("a disk of {size} bytes is too large"),
            ));
        }
        let scan = Scan {
            disk,
            size,
            walk: Mutex::new(Walk { next: 0, known: None }),
            stop: AtomicBool::new(false),
            control,
        };
        let stripes = scan.run(threads)?;
        Ok(Self::of(stripes, size, most))
    }

    fn of(stripes: BTreeMap<u64, Stripe>, size: u64, most: usize) -> Self {
        let mut block = BLOCK;
        let runs = loop {
            match runs(&stripes, size, block, most) {
                Some(runs) => break runs,
                None => block *= 2,
            }
        };
        let stored = runs.last().map_or(0, |run| run.stored + run.length);
        Self { stripes, runs, block, stored, size }
    }

    /// What chunk `index` held; `None` if nothing.
    pub(crate) fn chunk(&self, index: u64) -> Option<Chunk> {
        let chunks = STRIPE_CHUNKS as u64;
        let within = usize::try_from(index % chunks).ok()?;
        let chunk = self.stripes.get(&(index / chunks))?.get(within)?;
        (chunk.blocks != 0).then_some(*chunk)
    }

    /// The run that holds byte `at` of what is stored.
    pub(crate) fn run_of(&self, at: u64) -> Option<Run> {
        let after = self.runs.partition_point(|run| run.stored <= at);
        self.runs.get(after.checked_sub(1)?).copied()
    }
}

/// The runs at a granularity of `block` bytes; `None` if they are more than `most`.
fn runs(stripes: &BTreeMap<u64, Stripe>, size: u64, block: u64, most: usize) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for (stripe, chunks) in stripes {
        for (index, chunk) in (0..).zip(chunks.iter()) {
            let start = stripe * STRIPE + index * CHUNK;
            for found in data_in(chunk.blocks) {
                // No disk ends past 2^63, so neither sum leaves 64 bits.
                let offset = (start + found.start) / block * block;
                let end = (start + found.end).next_multiple_of(block).min(size);
                match runs.last_mut() {
                    Some(last) if last.offset + last.length >= offset => {
                        last.length = last.length.max(end - last.offset);
                    }
                    last => {
                        let stored = last.map_or(0, |last| last.stored + last.length);
                        if runs.len() == most {
                            return None;
                        }
                        runs.push(Run { offset, length: end - offset, stored });
                    }
                }
            }
        }
    }
    Some(runs)
}

/// The ranges of set bits, as bytes of the chunk.
pub(crate) fn data_in(blocks: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = blocks.checked_shr(at).filter(|left| *left != 0)?;
        let start = at + left.trailing_zeros();
        at = start + (blocks >> start).trailing_ones();
        Some(u64::from(start) * BLOCK..u64::from(at) * BLOCK)
    })
}

/// A scan under way.
struct Scan<'a> {
    disk: &'a dyn DiskContent,
    size: u64,
    walk: Mutex<Walk>,
    /// Somebody failed: the others need not go on.
    stop: AtomicBool,
    control: &'a Control,
}

/// Where the scan is, and the run of the disk found last. A file system may take long to say where
/// a run ends, so the answer is used to its end.
struct Walk {
    next: u64,
    known: Option<Known>,
}

#[derive(Clone)]
struct Known {
    range: Range<u64>,
    zero: bool,
}

impl Scan<'_> {
    fn run(&self, threads: usize) -> Result<BTreeMap<u64, Stripe>> {
        let mut stripes = BTreeMap::new();
        thread::scope(|scope| {
            let (results, arrived) = mpsc::sync_channel(threads);
            let mut outcome = Ok(());
            let mut workers = Vec::new();
            for number in 0..threads {
                let results = results.clone();
                match thread::Builder::new()
                    .name(format!("pack-scan-{number}"))
                    .spawn_scoped(scope, move || self.work(&results))
                {
                    Ok(worker) => workers.push(worker),
                    Err(error) => {
                        outcome = Err(self.cannot_start(error));
                        break;
                    }
                }
            }
            drop(results);
            for result in arrived {
                match result {
                    Ok((stripe, chunks, read)) => {
                        if let Some(chunks) = chunks {
                            stripes.insert(stripe, chunks);
                        }
                        self.tell(stripe, read);
                    }
                    Err(error) => {
                        self.stop.store(true, Ordering::Relaxed);
                        outcome = outcome.and(Err(error));
                    }
                }
            }
            for worker in workers {
                let ended = worker
                    .join()
                    .map_err(|_| Error::new(ErrorKind::Io, "a scanning thread stopped"));
                outcome = outcome.and(ended);
            }
            outcome
        })?;
        Ok(stripes)
    }

    fn cannot_start(&self, error: std::io::Error) -> Error {
        self.stop.store(true, Ordering::Relaxed);
        Error::new(ErrorKind::of_io(&error), "start a scanning thread").with_source(error)
    }

    fn tell(&self, stripe: u64, read: u64) {
        if read > 0 {
            let source_bytes = ((stripe + 1) * STRIPE).min(self.size);
            let event = Event::Progress { source_bytes, source_length: None, written_bytes: 0 };
            self.control.emit(&event);
        }
    }

    fn work(&self, results: &SyncSender<Result<(u64, Option<Stripe>, u64)>>) {
        let mut memory = Vec::new();
        let mut work = || -> Result<()> {
            memory.try_reserve_exact(CHUNK_BYTES).map_err(|_| no_memory())?;
            memory.resize(CHUNK_BYTES, 0);
            while let Some((stripe, known)) = self.take()? {
                let (chunks, read) = self.stripe(stripe, known, &mut memory)?;
                if results.send(Ok((stripe, chunks, read))).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = work() {
            // Nobody listens once another error was told.
            let _ = results.send(Err(error));
        }
    }

    /// The next stripe that may hold data, and what is known of it.
    fn take(&self) -> Result<Option<(u64, Option<Known>)>> {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        while walk.next < self.size && !self.stop.load(Ordering::Relaxed) {
            self.control.check()?;
            let run = self.run_at(walk.next, &mut walk.known)?;
            if run.zero {
                walk.next = run.range.end;
                continue;
            }
            let stripe = walk.next / STRIPE;
            walk.next = (stripe + 1) * STRIPE;
            return Ok(Some((stripe, walk.known.clone())));
        }
        Ok(None)
    }

    fn run_at(&self, offset: u64, known: &mut Option<Known>) -> Result<Known> {
        if let Some(known) = known.as_ref().filter(|known| known.range.contains(&offset)) {
            return Ok(known.clone());
        }
        let run = self.disk.run_at(offset)?;
        // A run of nothing would be asked for again and again.
        let end = offset.saturating_add(run.length.max(1)).min(self.size);
        Ok(known.insert(Known { range: offset..end, zero: run.zero }).clone())
    }

    fn stripe(
        &self,
        stripe: u64,
        mut known: Option<Known>,
        memory: &mut [u8],
    ) -> Result<(Option<Stripe>, u64)> {
        let mut chunks = Box::new([Chunk::default(); STRIPE_CHUNKS]);
        let (mut any, mut read) = (false, 0);
        for (index, chunk) in (0..).zip(chunks.iter_mut()) {
            let start = stripe * STRIPE + index * CHUNK;
            if start >= self.size || self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.control.check()?;
            let length = usize::try_from((self.size - start).min(CHUNK)).unwrap_or(memory.len());
            let bytes = memory.get_mut(..length).unwrap_or_default();
            let count = self.fill(bytes, start, &mut known)?;
            if count > 0 {
                *chunk = look_at(bytes);
            }
            any |= chunk.blocks != 0;
            read += count;
        }
        Ok((any.then_some(chunks), read))
    }

    /// Fills `bytes` with the disk's from `start` on; tells how many had to be read.
    fn fill(&self, bytes: &mut [u8], start: u64, known: &mut Option<Known>) -> Result<u64> {
        let (mut at, mut read, mut rest) = (start, 0, bytes);
        while !rest.is_empty() {
            let run = self.run_at(at, known)?;
            let length = usize::try_from(run.range.end - at).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at_mut(length);
            if run.zero {
                piece.fill(0);
            } else {
                self.disk.read_at(piece, at)?;
                read += length as u64;
            }
            at += length as u64;
            rest = behind;
        }
        Ok(read)
    }
}

/// Which blocks of a chunk are data, and the sum of it.
fn look_at(bytes: &[u8]) -> Chunk {
    let mut blocks = 0;
    for (index, block) in (0..).zip(bytes.chunks(BLOCK_BYTES)) {
        // One `memcmp`, which ends at the first byte that differs.
        let zero = ZEROS.get(..block.len()).is_some_and(|zeros| zeros == block);
        blocks |= u64::from(!zero) << index;
    }
    Chunk { blocks, crc32: if blocks == 0 { 0 } else { crc32fast::hash(bytes) } }
}

pub(crate) fn no_memory() -> Error {
    Error::new(ErrorKind::Limit, "no memory for a chunk of the disk")
}
