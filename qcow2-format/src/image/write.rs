//! An image that is written: whole at every instant.
//!
//! ```text
//! request ─▶ look up ─┬─▶ a place of its own: data ─▶ file
//!            (lock)   └─▶ none, shared, compressed:
//!                         take clusters (lock) ─▶ data, with what surrounds it ─▶ file ─▶
//!                         change the entry (lock)
//! settle     what waits in memory ─▶ file, in order
//! ```
//!
//! The order of writes, which each part keeps and `settle` draws:
//!
//! 1. a cluster's refcount is in the file before anything there refers to the cluster;
//! 2. data before the entry that exposes it;
//! 3. a new table before the pointer to it;
//! 4. the new one written, the reference switched, then the old one released;
//! 5. a released cluster is used again or punched only when nothing in the file refers to it, and
//!    nobody under way may;
//! 6. the header names a new refcount table last.
//!
//! Many may read and write at once: the lock is held for tables alone. Two requests for the same
//! cluster wait for each other only where it gets a new place. What a crash leaves is at worst
//! clusters that are counted and not used.
//!
//! Callers: disk-engine's `disk`.

pub(super) mod bitmaps;
mod compress;
mod counts;
mod data;
mod discard;
mod flight;
mod guard;
mod moving;
mod options;
mod preallocate;
mod rebuild;
mod settle;
mod space;
mod state;
mod table;
mod zero;

use std::fmt;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::address::GuestOffset;
use crate::compressed::Encoder;
use crate::error::{Error, FieldError, RequestError, Result, Violation};
use crate::feature::IncompatibleFeatures;
use crate::header::{Header, Version};
use crate::image::map::{Run, Runs};
use crate::image::{Image, active_l1};
use crate::io::WriteAt;
use crate::snapshot::Snapshot;

pub use options::{DetectZeroes, Discard, Durability, WriteOptions, ZeroMode};
pub use preallocate::Preallocation;

use counts::Counts;
use flight::Flights;
use guard::{Guard, Kind};
use state::State;

/// An image open for reading and writing.
pub struct WritableImage<S: WriteAt + Sync> {
    image: Image<S>,
    options: WriteOptions,
    /// Changed slices that may wait.
    changed_max: usize,
    flights: Flights,
    state: Mutex<State>,
    /// Somebody has given clusters a new place, or has given up.
    settled: Condvar,
    encoders: Mutex<Vec<Encoder>>,
}

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Opens the image in `storage`, which holds its clusters itself. If its dirty bit says that
    /// refcounts may be wrong, they are counted anew first.
    ///
    /// Nothing else may write to the storage meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Image::open`]; [`RequestError::ReadOnly`] if the image is marked corrupt;
    /// [`Error::Corrupt`] if a table that writing relies on breaks a rule.
    pub fn open(storage: S, options: &WriteOptions) -> Result<Self> {
        Self::of_image(Image::open(storage, &options.read)?, options)
    }

    /// Opens the image in `storage`, whose guest clusters lie in `data`.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::open`]; [`RequestError::DataFileUnexpected`] if the image has no data
    /// file.
    pub fn open_with_data(storage: S, data: S, options: &WriteOptions) -> Result<Self> {
        Self::of_image(Image::open_with_data(storage, data, &options.read)?, options)
    }

    fn of_image(image: Image<S>, options: &WriteOptions) -> Result<Self> {
        if image.is_marked_corrupt() {
            return Err(RequestError::ReadOnly { why: "it is marked corrupt" }.into());
        }
        if image.snapshot.is_some() {
            return Err(RequestError::ReadOnly { why: "a snapshot is not written to" }.into());
        }
        let header = image.header.clone();
        let length = image.storage.length().map_err(Error::io("read the image's length", 0))?;
        let counts = Counts::open(&image.storage, &header, length, options.refcount_cache)?;
        let guard = guard(&image, &counts, length)?;
        let mut state = State::new(header, counts, guard, length);
        state.barriers = options.durability != Durability::None;
        let slice = image.tables.slice_bytes();
        let waiting = usize::try_from(options.l2_cache / 2 / slice).unwrap_or(usize::MAX);
        let dirty = image.is_dirty();
        let image = Self {
            image,
            options: options.clone(),
            changed_max: waiting.max(1),
            flights: Flights::default(),
            state: Mutex::new(state),
            settled: Condvar::new(),
            encoders: Mutex::default(),
        };
        if dirty {
            image.rebuild_refcounts()?;
        }
        Ok(image)
    }

    /// The image's header as it is now.
    #[must_use]
    pub fn header(&self) -> Header {
        self.lock().header.clone()
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.image.virtual_size()
    }

    /// The storage of the image itself.
    #[must_use]
    pub fn storage(&self) -> &S {
        self.image.storage()
    }

    /// The storage that [`RunKind::Data`](crate::image::RunKind) lies in.
    #[must_use]
    pub fn data_storage(&self) -> &S {
        self.image.data_storage()
    }

    /// As [`Image::run_at`]. Where it lies in the file it may no longer lie when this returns.
    ///
    /// # Errors
    ///
    /// As [`Image::run_at`].
    pub fn run_at(&self, offset: GuestOffset, limit: u64) -> Result<Run> {
        let _flight = self.flights.enter();
        self.image.run_at(offset, limit)
    }

    /// As [`Image::map`]. Each run is as it was when the iterator came to it.
    ///
    /// # Errors
    ///
    /// As [`Image::map`].
    pub fn map(&self, range: Range<u64>) -> Result<LiveRuns<'_, S>> {
        Ok(LiveRuns { runs: self.image.map(range)?, flights: &self.flights })
    }

    /// As [`Image::read_over`].
    ///
    /// # Errors
    ///
    /// As [`Image::read_over`].
    pub fn read_over<E: From<Error>>(
        &self,
        buffer: &mut [u8],
        offset: GuestOffset,
        below: impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        let _flight = self.flights.enter();
        self.image.read_over(buffer, offset, below)
    }

    /// As [`Image::read_at`].
    ///
    /// # Errors
    ///
    /// As [`Image::read_at`].
    pub fn read_at(&self, buffer: &mut [u8], offset: GuestOffset) -> Result<()> {
        self.read_over(buffer, offset, |part, at| self.nothing_below(part, at))
    }

    /// What lies below an image that stands alone, or whose disk below is said to be empty.
    fn nothing_below(&self, part: &mut [u8], at: GuestOffset) -> Result<()> {
        if self.options.below == Some(0) {
            part.fill(0);
            return Ok(());
        }
        self.image.nothing_below(part, at)
    }

    /// Has everything written so far survive a power cut, unless durability is
    /// [`Durability::None`]: then what waits goes to the file, and nothing is synced.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage. A sync that failed is final: what was written before may be
    /// lost, and neither writes nor flushes succeed any more.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        state.check_writable()?;
        self.settle(&mut state)
    }

    /// Writes and syncs, as [`WritableImage::flush`], what waits until the end as well: postponed
    /// refcounts, and the dirty bit, which is cleared. There is no second attempt: who wants one, after
    /// making room for instance, flushes first.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::flush`].
    pub fn close(self) -> Result<()> {
        let result = self.finish();
        // Once is enough.
        self.lock().failed = Some("it is closed");
        result
    }

    fn finish(&self) -> Result<()> {
        let mut state = self.lock();
        state.check_writable()?;
        if !state.begun {
            return self.barrier(&mut state);
        }
        self.settle(&mut state)?;
        state.write_counts(&self.image.storage)?;
        self.barrier(&mut state)?;
        let dirty = IncompatibleFeatures::DIRTY;
        if state.header.incompatible.contains(dirty) {
            let clean = state.header.incompatible.with(dirty, false);
            state.set_incompatible(&self.image.storage, clean)?;
            self.barrier(&mut state)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, when nobody is giving a new place to part of `range`, bytes of the guest's disk.
    fn lock_for(&self, range: &Range<u64>) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.is_busy(range) {
            state.waiting += 1;
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state
    }

    /// Lets go of the state after clusters were given a new place, or not. Those who wait for that
    /// are told; if nobody does, the system is not called.
    fn unlock_settled(&self, state: MutexGuard<'_, State>) {
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.settled.notify_all();
        }
    }

    /// Makes sure that the image may be written, and sets the marks that go before a first write.
    fn begin(&self, state: &mut State) -> Result<()> {
        state.check_writable()?;
        if state.begun {
            return Ok(());
        }
        let storage = &self.image.storage;
        if let Some((offset, length)) = bitmaps::directory(&state.header) {
            let own = Some(Kind::BitmapDirectory);
            let named_by = ("bitmap_directory_offset", offset, offset);
            let checked = state.guard.check(offset, length, own, named_by);
            state.judge(storage, checked)?;
        }
        state.clear_unknown_autoclear(storage)?;
        bitmaps::mark_in_use(storage, &state.header)?;
        state.barrier(storage)?;
        state.begun = true;
        Ok(())
    }

    /// What follows each request that changed the image.
    fn after_change(&self) -> Result<()> {
        let mut state = self.lock();
        match self.options.durability {
            Durability::None | Durability::Full => self.settle(&mut state),
            Durability::Flush => self.relieve(&mut state),
        }
    }

    /// Whether what the image leaves to the disk below may be anything but zeros in `range`.
    fn has_below(&self, offset: u64) -> bool {
        match self.options.below {
            Some(end) => offset < end,
            None => self.image.header.backing_file().is_some(),
        }
    }

    /// The end of the disk in bytes, in whole clusters.
    fn clusters_end(&self) -> u64 {
        let bytes = self.image.geometry().cluster_bits.bytes();
        // Sizes are bounded by what an L1 table maps.
        self.virtual_size().div_ceil(bytes).saturating_mul(bytes)
    }
}

/// The runs of a range of a disk that may be written to meanwhile.
#[derive(Debug)]
pub struct LiveRuns<'a, S> {
    runs: Runs<'a, S>,
    flights: &'a Flights,
}

impl<S: WriteAt + Sync> Iterator for LiveRuns<'_, S> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let _flight = self.flights.enter();
        self.runs.next()
    }
}

impl<S: WriteAt + Sync> Drop for WritableImage<S> {
    /// What [`WritableImage::close`] does, if nobody called it. Errors are lost.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

impl<S: WriteAt + Sync + fmt::Debug> fmt::Debug for WritableImage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WritableImage").field("image", &self.image).finish_non_exhaustive()
    }
}

/// Where the metadata of the image lies.
fn guard<S: WriteAt>(image: &Image<S>, counts: &Counts, file_length: u64) -> Result<Guard> {
    let geometry = image.geometry();
    let cluster_bytes = geometry.cluster_bits.bytes();
    let header = &image.header;
    let mut guard = Guard::new(geometry.cluster_bits);
    let (table, bytes) = counts.table_place();
    guard.add(Kind::RefcountTable, table.0, bytes)?;
    for block in counts.blocks() {
        guard.add(Kind::RefcountBlock, block.0, cluster_bytes)?;
    }
    let l1 = active_l1(header);
    guard.add(Kind::L1Table, l1.at.0, u64::from(l1.entries) * 8)?;
    let mut tables = Vec::new();
    for index in 0..image.tables.l1().len() {
        if let Some(table) = image.tables.l1().entry(index)?.l2_table {
            tables.push((table, index));
        }
    }
    tables.sort_unstable();
    guard.reserve(tables.len())?;
    let mut before = None;
    for (table, index) in tables {
        let violation = if before == Some(table) {
            Violation::SharedL2Table
        } else if table.0 >= file_length {
            Violation::StartsBeyondFile { file_length }
        } else {
            guard.add(Kind::L2Table, table.0, cluster_bytes)?;
            before = Some(table);
            continue;
        };
        let (l1, field) = (image.tables.l1(), "L1 entry");
        let (value, offset) = (l1.raw(index), l1.entry_offset(index).0);
        return Err(FieldError { field, value, offset, violation }.into());
    }
    let (snapshots, end) = Snapshot::read_table_to(&image.storage, header)?;
    let start = header.snapshots_offset().0;
    guard.add(Kind::SnapshotTable, start, end.saturating_sub(start))?;
    for snapshot in snapshots {
        let place = snapshot.l1_place();
        place.check(&image.storage, geometry)?;
        guard.add_snapshot_l1(place.at.0, u64::from(place.entries) * 8);
    }
    guard.check_snapshots()?;
    if let Some((offset, length)) = bitmaps::directory(header) {
        guard.add(Kind::BitmapDirectory, offset, length)?;
    }
    debug_assert!(header.version() == Version::V3 || !geometry.extended_l2);
    Ok(guard)
}

#[cfg(test)]
mod tests;
