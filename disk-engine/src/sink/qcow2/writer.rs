//! The side of the sink that writes: chunks put in order, and into the image.
//!
//! Caller: `sink::qcow2`.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use qcow2_format::image::Preallocation;
use qcow2_format::{CreateOptions, GuestOffset, Header, ImageFiller, ReadAt, WriteAt};

use super::Order;
use super::examine::{Examined, Rules, Verdict};
use crate::disk::StoredRun;
use crate::disk::chain::from_format;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::offload::Offload;
use crate::source::extent::DiskShape;
use crate::source::input;

/// Clusters whose space is taken at once.
const RESERVED_AT_ONCE: u64 = 4096;

/// What became of the disk's clusters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Bytes stored as they are.
    pub(crate) stored: u64,
    /// Clusters stored compressed.
    pub(crate) compressed: u64,
    /// Bytes they take.
    pub(crate) payload_bytes: u64,
    /// Bytes said to be zeros, over something else.
    pub(crate) zeroed: u64,
    /// Length of the image's file in bytes.
    pub(crate) file_length: u64,
}

/// The writing side, to be [run](Qcow2Writer::run) on a thread of its own.
pub(crate) struct Qcow2Writer<'a, S> {
    image: &'a CreateOptions,
    /// Empty while a filler has it; and that of the external data file.
    storage: Option<(S, Option<S>)>,
    rules: &'a Rules<'a>,
    orders: Receiver<(u64, Result<Order>)>,
    free: Sender<Vec<u8>>,
    offload: &'a Offload,
    written: &'a AtomicU64,
    counts: Counts,
    /// The file of the guest's clusters, for the kernel.
    target: Option<&'a File>,
    /// All clusters before this offset were given their place.
    reserved: u64,
}

impl<'a, S: WriteAt> Qcow2Writer<'a, S> {
    pub(super) fn new(
        image: &'a CreateOptions,
        storage: (S, Option<S>),
        rules: &'a Rules<'a>,
        orders: Receiver<(u64, Result<Order>)>,
        free: Sender<Vec<u8>>,
        (offload, written): (&'a Offload, &'a AtomicU64),
    ) -> Self {
        Self {
            image,
            storage: Some(storage),
            rules,
            orders,
            free,
            offload,
            written,
            counts: Counts::default(),
            target: None,
            reserved: 0,
        }
    }

    /// The guest's clusters lie in `file`, so that the kernel can copy into it.
    pub(crate) fn in_file(mut self, file: &'a File) -> Self {
        self.target = Some(file);
        self
    }

    /// Writes until the disk is whole, or the other side is dropped, which is an error of that side.
    /// `path` is what errors call the image.
    pub(crate) fn run(mut self, path: &Path) -> Result<Option<(Header, Counts)>> {
        let named = |error| named(error, path);
        let mut early = BTreeMap::new();
        let mut next = 0;
        let mut filler: Option<ImageFiller<S>> = None;
        while let Some(order) = self.order(&mut early, &mut next)? {
            match order {
                Order::Begin(shape) => {
                    let storage = match filler.take() {
                        Some(filler) => Some(filler.into_storage()),
                        None => self.storage.take(),
                    };
                    let Some(storage) = storage else { return Ok(None) };
                    filler = Some(self.begin(storage, shape).map_err(named)?);
                }
                Order::Chunk(examined) => {
                    let Some(filler) = &mut filler else { return Err(unbegun()) };
                    self.chunk(filler, &examined).map_err(named)?;
                    // The other side may have ended meanwhile.
                    let _ = self.free.send(examined.chunk.into_memory());
                }
                Order::Share(guest, file, range) => {
                    let Some(filler) = &mut filler else { return Err(unbegun()) };
                    self.share(filler, guest, &file, range, path)?;
                }
                Order::Finish(size) => {
                    let Some(mut filler) = filler.take() else { return Err(unbegun()) };
                    filler.set_virtual_size(size).map_err(named)?;
                    let end = filler.header().virtual_size();
                    self.reserve(&mut filler, end).map_err(named)?;
                    self.counts.file_length = filler.length();
                    let (header, storage) = filler.finish().map_err(named)?;
                    let length = storage.length();
                    self.counts.file_length =
                        length.map_err(|error| Error::io("look at", path, error))?;
                    return Ok(Some((header, self.counts)));
                }
            }
        }
        Ok(None)
    }

    /// The next order; `None` if no more come.
    fn order(&self, early: &mut BTreeMap<u64, Order>, next: &mut u64) -> Result<Option<Order>> {
        loop {
            if let Some(order) = early.remove(next) {
                *next = next.saturating_add(1);
                return Ok(Some(order));
            }
            match self.orders.recv() {
                Ok((number, order)) => {
                    early.insert(number, order?);
                }
                Err(_) => return Ok(None),
            }
        }
    }

    fn begin(
        &mut self,
        (storage, data): (S, Option<S>),
        shape: DiskShape,
    ) -> Result<ImageFiller<S>, qcow2_format::Error> {
        self.counts = Counts::default();
        self.reserved = 0;
        self.written.store(0, Ordering::Relaxed);
        let mut image = self.image.clone();
        let reserves = self.rules.stores_zeros()
            && self.rules.below.is_none()
            && !self.rules.compresses_zeros();
        if reserves && image.wanted_preallocation() == Preallocation::Off {
            image = image.preallocation(Preallocation::Full);
        }
        let size = match shape.size {
            Some(size) => size,
            // Whatever it is: the end will tell.
            None => image.plan()?.header().geometry().max_virtual_size(),
        };
        let mut filler = match data {
            Some(data) => image.virtual_size(size).fill_with_data(storage, data),
            None => image.virtual_size(size).fill(storage),
        }?;
        if let Some(least) = self.rules.hole() {
            filler.leave_holes(least);
        }
        Ok(filler)
    }

    fn chunk(
        &mut self,
        filler: &mut ImageFiller<S>,
        examined: &Examined,
    ) -> Result<(), qcow2_format::Error> {
        let bytes = examined.chunk.bytes();
        let cluster = self.rules.cluster;
        let start = examined.chunk.start();
        let size = filler.header().virtual_size();
        let at = |index: usize| start.saturating_add(index.saturating_mul(cluster) as u64);
        let mut index = 0;
        while let Some(verdict) = examined.verdicts.get(index) {
            let guest = at(index);
            if guest >= size {
                break;
            }
            let same = |other: &&Verdict| *other == verdict;
            let rest = examined.verdicts.get(index..).unwrap_or_default();
            let mut count = rest.iter().take_while(same).count();
            if !matches!(verdict, Verdict::Nothing) {
                self.reserve(filler, guest)?;
            }
            let from = index.saturating_mul(cluster);
            match verdict {
                Verdict::Nothing => {}
                Verdict::Zero => {
                    filler.zero(GuestOffset(guest), self.clusters(guest, count, size))?;
                    self.counts.zeroed += (count.saturating_mul(cluster)) as u64;
                }
                Verdict::Data => {
                    let clusters = self.clusters(guest, count, size);
                    let length = usize::try_from(clusters).unwrap_or(usize::MAX) * cluster;
                    let data = bytes.get(from..from + length).unwrap_or_default();
                    filler.write(GuestOffset(guest), data)?;
                    self.stored(length);
                }
                Verdict::Subclusters(bitmap) => {
                    count = 1;
                    let data = bytes.get(from..from + cluster).unwrap_or_default();
                    filler.write_subclusters(GuestOffset(guest), data, *bitmap)?;
                    self.stored(cluster);
                }
                Verdict::ZeroSubclusters(bitmap) => {
                    count = 1;
                    filler.zero_subclusters(GuestOffset(guest), *bitmap)?;
                    self.counts.zeroed += cluster as u64;
                }
                Verdict::Payload(range) => {
                    count = 1;
                    let payload = examined.payloads.get(range.clone()).unwrap_or_default();
                    if filler.write_compressed(GuestOffset(guest), payload)? {
                        self.counts.compressed += 1;
                        self.counts.payload_bytes += payload.len() as u64;
                        self.written.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    } else {
                        let data = bytes.get(from..from + cluster).unwrap_or_default();
                        filler.write(GuestOffset(guest), data)?;
                        self.stored(cluster);
                    }
                }
            }
            if !matches!(verdict, Verdict::Nothing) {
                self.reserved = at(index.saturating_add(count));
            }
            index = index.saturating_add(count);
        }
        Ok(())
    }

    /// Gives clusters their place and has the kernel fill it; what it does not is copied.
    fn share(
        &mut self,
        filler: &mut ImageFiller<S>,
        guest: u64,
        file: &File,
        range: Range<u64>,
        path: &Path,
    ) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        let clusters = length / self.rules.cluster as u64;
        self.reserve(filler, guest).map_err(|error| named(error, path))?;
        let host = filler.place(GuestOffset(guest), clusters);
        let host = host.map_err(|error| named(error, path))?.to_u64();
        let stored = StoredRun { file, offset: range.start, length };
        let failed =
            |error, at| Error::io("copy the disk's data into", path, error).with_offset(at);
        let mut done = match self.target {
            Some(target) => {
                self.offload.take(stored, target, host).map_err(|error| failed(error, host))?
            }
            None => 0,
        };
        let mut memory = input::zeroed(if done < length { self.rules.chunk } else { 0 })?;
        while done < length {
            let count = usize::try_from(length - done).unwrap_or(usize::MAX).min(memory.len());
            let bytes = memory.get_mut(..count).unwrap_or_default();
            // What lies behind the file's end is zeros, as for every reader.
            let from = range.start.saturating_add(done);
            let read = file
                .read_full_at(bytes, from)
                .map_err(|error| Error::io("read the disk for", path, error).with_offset(from))?;
            let to = host.saturating_add(done);
            let bytes = bytes.get(..read).unwrap_or_default();
            filler.data_storage().write_all_at(bytes, to).map_err(|error| failed(error, to))?;
            done = done.saturating_add(count as u64);
        }
        self.counts.stored += length;
        self.written.fetch_add(length, Ordering::Relaxed);
        self.reserved = guest.saturating_add(length);
        Ok(())
    }

    /// How many of `count` clusters from `guest` on the disk has.
    fn clusters(&self, guest: u64, count: usize, size: u64) -> u64 {
        let left = size.saturating_sub(guest).div_ceil(self.rules.cluster as u64);
        left.min(count as u64)
    }

    fn stored(&mut self, length: usize) {
        self.counts.stored += length as u64;
        self.written.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Takes space for all before `end` that has none, if the image is to have it.
    fn reserve(
        &mut self,
        filler: &mut ImageFiller<S>,
        end: u64,
    ) -> Result<(), qcow2_format::Error> {
        if filler.preallocation() == Preallocation::Off || self.rules.below.is_some() {
            return Ok(());
        }
        let cluster = self.rules.cluster as u64;
        let end = end.next_multiple_of(cluster);
        while self.reserved < end {
            let clusters = ((end - self.reserved) / cluster).min(RESERVED_AT_ONCE);
            filler.reserve(GuestOffset(self.reserved), clusters)?;
            self.reserved += clusters * cluster;
        }
        Ok(())
    }
}

fn named(error: qcow2_format::Error, path: &Path) -> Error {
    let error = from_format(error, path);
    if error.kind() == ErrorKind::NoSpace {
        error.with_hint("free some space or choose another folder")
    } else {
        error
    }
}

fn unbegun() -> Error {
    Error::new(ErrorKind::Io, "a disk's bytes came before the disk")
}
