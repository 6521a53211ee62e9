//! A program of requests on a valid image in memory, and the same on a flat copy of the disk.
//!
//! ```text
//! setup ─▶ a new image, perhaps over a disk below ┐
//! program: write, zero, discard, compress, flush, ├─▶ bytes equal the flat copy's
//!          close and open, snapshot, be killed    ┘   refcounts equal what a second reader counts
//! ```
//!
//! Invariants:
//!
//! 1. No panic, and no request on a valid image fails.
//! 2. What is read is what was written, before and after opening anew, in snapshots as well; what lies
//!    below shows exactly where nothing was ever written.
//! 3. A closed image has every cluster counted as often as it is referred to, and COPIED only where
//!    that is once.
//! 4. A writer that is killed between two requests leaves an image where no cluster is counted too
//!    little, or which says that refcounts may be wrong. What was flushed before reads back, every byte
//!    either as it was then or as it was written since.
//! 5. Memory follows the disk's size, at most 128 KiB here, and the stated caches.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use qcow2_format::address::GuestOffset;
use qcow2_format::create::{BackingFile, BackingFormat};
use qcow2_format::geometry::{ClusterBits, RefcountOrder};
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::image::{
    DetectZeroes, Discard, Durability, Preallocation, WriteOptions, ZeroMode,
};
use qcow2_format::{CreateOptions, Error, Image, Memory, ReadAt, ReadOptions, WritableImage};
use qcow2_fuzz::model::File;

const DISK_MAX: u64 = 128 << 10;
const PROGRAM_MAX: usize = 60;
const SNAPSHOTS_MAX: usize = 4;

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    options: Options,
    program: Vec<Request>,
}

#[derive(Arbitrary, Debug)]
struct Setup {
    version2: bool,
    cluster: u8,
    refcount_order: u8,
    extended_l2: bool,
    lazy_refcounts: bool,
    zstd: bool,
    preallocated: bool,
    sectors: u8,
    /// Sectors of the disk below.
    below: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Options {
    durability: u8,
    detect_zeroes: u8,
    ignore_discards: bool,
    small_caches: bool,
    tell_below: bool,
}

#[derive(Arbitrary, Debug)]
enum Request {
    Write { place: Place, fill: Fill },
    Zero { place: Place, unmap: bool },
    Discard { place: Place },
    Compressed { cluster: u8, count: u8, fill: Fill },
    Flush,
    Reopen(Options),
    Snapshot,
    Killed(Options),
}

/// A range of the disk.
#[derive(Arbitrary, Debug)]
struct Place {
    at: u32,
    length: u16,
    /// Neither, sectors, clusters.
    aligned: u8,
}

#[derive(Arbitrary, Debug)]
enum Fill {
    Zeros,
    Byte(u8),
    Noise(u8),
    ZerosThen(u8),
}

impl Fill {
    fn bytes(&self, length: usize) -> Vec<u8> {
        match *self {
            Self::Zeros => vec![0; length],
            Self::Byte(byte) => vec![byte; length],
            Self::Noise(seed) => {
                let mut state = 0x9e37_79b9_7f4a_7c15 ^ u64::from(seed) << 8;
                let byte = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_be_bytes()[0]
                };
                std::iter::repeat_with(byte).take(length).collect()
            }
            Self::ZerosThen(byte) => {
                let mut bytes = vec![0; length];
                bytes[length / 2..].fill(byte);
                bytes
            }
        }
    }
}

/// The disk below: no byte of it is zero, and it ends.
#[derive(Clone, Copy)]
struct Below(u64);

impl Below {
    fn byte(self, at: u64) -> u8 {
        if at < self.0 { (at / 3 % 251) as u8 + 1 } else { 0 }
    }

    fn read(self, buffer: &mut [u8], at: GuestOffset) -> Result<(), Error> {
        for (byte, at) in buffer.iter_mut().zip(at.to_u64()..) {
            *byte = self.byte(at);
        }
        Ok(())
    }
}

/// What has to be true.
struct Model {
    disk: Vec<u8>,
    /// The disk at the last flush, and after each request since.
    since: Vec<Vec<u8>>,
    snapshots: Vec<Vec<u8>>,
    below: Below,
    has_below: bool,
    version2: bool,
    cluster: u64,
    /// A killed writer may have left clusters counted that nobody uses.
    leaks: bool,
}

fuzz_target!(|input: Input| {
    let (storage, mut model) = set_up(&input.setup);
    let mut program = input.program.into_iter().take(PROGRAM_MAX);
    let mut options = input.options;
    let mut storage = storage;
    // One opened image after the other.
    loop {
        let (next, more) = run(&storage, &options, &mut model, &mut program);
        let Some(next_options) = more else { return };
        storage = Memory::new(next);
        options = next_options;
    }
});

fn set_up(setup: &Setup) -> (Memory, Model) {
    let extended = setup.extended_l2 && !setup.version2;
    let bits = if extended { 14 } else { 9 + u32::from(setup.cluster % 4) };
    let cluster = 1_u64 << bits;
    let most = (DISK_MAX / 512).min(u64::from(setup.sectors) * (cluster / 512).min(16) + 1);
    let size = most * 512;
    let mut options =
        CreateOptions::new(size).cluster_bits(ClusterBits::new(bits).expect("a size"));
    if setup.version2 {
        options = options.version(Version::V2);
    } else {
        let order = RefcountOrder::new(u32::from(setup.refcount_order % 7)).expect("an order");
        options = options
            .refcount_order(order)
            .extended_l2(extended)
            .lazy_refcounts(setup.lazy_refcounts)
            .compression_type(match setup.zstd {
                true => CompressionType::Zstd,
                false => CompressionType::Zlib,
            });
    }
    let below = Below(setup.below.map_or(0, |sectors| u64::from(sectors) * 512));
    if setup.below.is_some() {
        options = options.backing(BackingFile::new("below", BackingFormat::Raw));
    } else if setup.preallocated {
        options = options.preallocation(Preallocation::Metadata);
    }
    let storage = Memory::default();
    options.plan().and_then(|plan| plan.write_to(&storage)).expect("an image");
    let disk: Vec<u8> = (0..size).map(|at| below.byte(at)).collect();
    let model = Model {
        since: vec![disk.clone()],
        disk,
        snapshots: Vec::new(),
        below,
        has_below: setup.below.is_some(),
        version2: setup.version2,
        cluster,
        leaks: false,
    };
    (storage, model)
}

fn bytes(storage: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; storage.length().expect("memory") as usize];
    storage.read_full_at(&mut bytes, 0).expect("memory");
    bytes
}

/// Opens the image and runs requests until it is to be opened anew: the file then, and how.
fn run(
    storage: &Memory,
    options: &Options,
    model: &mut Model,
    program: &mut impl Iterator<Item = Request>,
) -> (Vec<u8>, Option<Options>) {
    let image = WritableImage::open(storage, &write_options(options, model)).expect("it opens");
    model.compare(&image, 0, model.disk.len());
    for request in program {
        match request {
            Request::Killed(next) => {
                let file = bytes(storage);
                drop(image);
                model.killed(&file);
                return (file, Some(next));
            }
            Request::Reopen(next) => {
                image.close().expect("it closes");
                let file = File::new(bytes(storage));
                model.closed(&file);
                return (file.bytes, Some(next));
            }
            Request::Snapshot => {
                image.close().expect("it closes");
                let mut file = File::new(bytes(storage));
                model.closed(&file);
                if model.snapshots.len() < SNAPSHOTS_MAX && file.snapshot().is_some() {
                    model.snapshots.push(model.disk.clone());
                    model.closed(&file);
                }
                let again = Options { ..*options };
                return (file.bytes, Some(again));
            }
            request => model.apply(&image, options, &request),
        }
    }
    model.compare(&image, 0, model.disk.len());
    image.close().expect("it closes");
    let file = File::new(bytes(storage));
    model.closed(&file);
    (file.bytes, None)
}

fn write_options(options: &Options, model: &Model) -> WriteOptions {
    let mut write = WriteOptions::new()
        .threads(1)
        .durability([Durability::None, Durability::Flush, Durability::Full][durability(options)])
        .detect_zeroes(
            [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap]
                [usize::from(options.detect_zeroes % 3)],
        )
        .discard(if options.ignore_discards { Discard::Ignore } else { Discard::Unmap });
    if options.small_caches {
        write = write.l2_cache(0).l2_slice(512).refcount_cache(0).cluster_cache(0);
    }
    if options.tell_below && model.has_below { write.below(model.below.0) } else { write }
}

fn durability(options: &Options) -> usize {
    usize::from(options.durability % 3)
}

impl Model {
    fn range(&self, place: &Place) -> (usize, usize) {
        let size = self.disk.len();
        let unit = [1, 512, self.cluster as usize][usize::from(place.aligned % 3)];
        let start = place.at as usize % size / unit * unit;
        let length =
            (usize::from(place.length) % (5 * self.cluster as usize)).next_multiple_of(unit);
        (start, size.min(start + length))
    }

    fn apply(&mut self, image: &WritableImage<&Memory>, options: &Options, request: &Request) {
        let below = self.below;
        let read_below = |buffer: &mut [u8], at| below.read(buffer, at);
        let (start, end) = match request {
            Request::Write { place, fill } => {
                let (start, end) = self.range(place);
                let data = fill.bytes(end - start);
                let at = GuestOffset(start as u64);
                image.write_over(&data, at, read_below).expect("it writes");
                self.disk[start..end].copy_from_slice(&data);
                (start, end)
            }
            Request::Zero { place, unmap } => {
                let (start, end) = self.range(place);
                let mode = if *unmap { ZeroMode::Unmap } else { ZeroMode::Keep };
                let (at, length) = (GuestOffset(start as u64), (end - start) as u64);
                image.write_zeroes_over(at, length, mode, read_below).expect("it zeroes");
                self.disk[start..end].fill(0);
                (start, end)
            }
            Request::Discard { place } => {
                let (start, end) = self.range(place);
                image
                    .discard(GuestOffset(start as u64), (end - start) as u64)
                    .expect("it discards");
                self.discarded(image, options, start, end);
                (start, end)
            }
            Request::Compressed { cluster, count, fill } => {
                let size = self.cluster as usize;
                let start = usize::from(*cluster) % self.disk.len().div_ceil(size) * size;
                let end = self.disk.len().min(start + (1 + usize::from(*count % 3)) * size);
                let data = fill.bytes(end - start);
                image.write_compressed(&data, GuestOffset(start as u64)).expect("it compresses");
                self.disk[start..end].copy_from_slice(&data);
                (start, end)
            }
            _ => {
                image.flush().expect("it flushes");
                self.since.clear();
                (0, 0)
            }
        };
        // With these, a request that is done is in the file.
        if durability(options) != 1 {
            self.since.clear();
        }
        self.since.push(self.disk.clone());
        let around = self.cluster as usize;
        self.compare(image, start.saturating_sub(around), self.disk.len().min(end + around));
    }

    /// Whole clusters become zeros. Version 2 may keep what it cannot say over a disk below.
    fn discarded(
        &mut self,
        image: &WritableImage<&Memory>,
        options: &Options,
        start: usize,
        end: usize,
    ) {
        if options.ignore_discards {
            return;
        }
        let size = self.cluster as usize;
        let end = if end == self.disk.len() { end } else { end / size * size };
        let mut at = start.next_multiple_of(size);
        while at < end {
            let next = self.disk.len().min(at + size);
            let zeros = vec![0; next - at];
            if self.version2 && self.has_below {
                let found = self.read(image, at, next);
                assert!(found == zeros || found == self.disk[at..next], "neither kept nor zeros");
                self.disk[at..next].copy_from_slice(&found);
            } else {
                self.disk[at..next].copy_from_slice(&zeros);
            }
            at = next;
        }
    }

    fn read(&self, image: &WritableImage<&Memory>, start: usize, end: usize) -> Vec<u8> {
        let mut found = vec![0xaa; end - start];
        let at = GuestOffset(start as u64);
        image.read_over(&mut found, at, |part, at| self.below.read(part, at)).expect("it reads");
        found
    }

    fn compare(&self, image: &WritableImage<&Memory>, start: usize, end: usize) {
        same(&self.read(image, start, end), &self.disk[start..end], start);
    }

    /// Everything about a file that was closed.
    fn closed(&mut self, file: &File) {
        assert!(!file.dirty, "closed, and dirty");
        file.check(!self.leaks);
        same(&self.read_file(&file.bytes, None), &self.disk, 0);
        self.check_snapshots(&file.bytes);
        self.since = vec![self.disk.clone()];
    }

    /// Everything about the file of a writer that was killed.
    fn killed(&mut self, file: &[u8]) {
        let file = File::new(file.to_vec());
        if !file.dirty {
            file.check(false);
        }
        self.leaks = true;
        let found = self.read_file(&file.bytes, None);
        for (at, byte) in found.iter().enumerate() {
            let known = self.since.iter().any(|disk| disk[at] == *byte);
            assert!(known, "byte {at:#x} is {byte:#x}, which it never was since the flush");
        }
        self.check_snapshots(&file.bytes);
        self.since = vec![found.clone()];
        self.disk = found;
    }

    fn check_snapshots(&self, file: &[u8]) {
        for (id, disk) in (1..).zip(&self.snapshots) {
            same(&self.read_file(file, Some(id)), disk, 0);
        }
    }

    fn read_file(&self, file: &[u8], snapshot: Option<u64>) -> Vec<u8> {
        let mut options = ReadOptions::new().threads(1);
        if let Some(id) = snapshot {
            options = options.snapshot(id.to_string());
        }
        let image = Image::open(file, &options).expect("a reader opens it");
        let mut found = vec![0xaa; self.disk.len()];
        image
            .read_over(&mut found, GuestOffset(0), |part, at| self.below.read(part, at))
            .expect("a reader reads it");
        found
    }
}

fn same(found: &[u8], expected: &[u8], start: usize) {
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    if let Some(at) = at {
        panic!("byte {:#x} is {:#x}, not {:#x}", start + at, found[at], expected[at]);
    }
}
