//! A source read no faster than told.
//!
//! Caller: `ops::convert`.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::disk::StoredRun;
use crate::error::Result;
use crate::source::extent::{Extent, ExtentSource};

/// Bytes that are taken over inside the kernel at once, so that they can be paced.
const AT_ONCE: u64 = 16 << 20;

/// A source and its pace.
pub(crate) struct Paced<'a> {
    source: &'a mut dyn ExtentSource,
    /// Bytes in a second.
    rate: Option<NonZeroU64>,
    start: Instant,
    bytes: u64,
}

impl<'a> Paced<'a> {
    pub(crate) fn new(source: &'a mut dyn ExtentSource, rate: Option<NonZeroU64>) -> Self {
        Self { source, rate, start: Instant::now(), bytes: 0 }
    }

    /// Waits until so many more bytes may have come.
    fn moved(&mut self, count: u64) {
        let Some(rate) = self.rate else { return };
        self.bytes = self.bytes.saturating_add(count);
        let (whole, rest) = (self.bytes / rate, self.bytes % rate);
        // Below a second's worth, which fits.
        let nanos = u128::from(rest) * 1_000_000_000 / u128::from(rate.get());
        let due = Duration::new(whole, u32::try_from(nanos).unwrap_or(0));
        thread::sleep(due.saturating_sub(self.start.elapsed()));
    }
}

impl ExtentSource for Paced<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        self.source.next_extent()
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let count = self.source.read(bytes)?;
        self.moved(count as u64);
        Ok(count)
    }

    fn stored(&self) -> Result<Option<StoredRun<'_>>> {
        let most = if self.rate.is_some() { AT_ONCE } else { u64::MAX };
        let stored = self.source.stored()?;
        Ok(stored.map(|stored| StoredRun { length: stored.length.min(most), ..stored }))
    }

    fn pass(&mut self, count: u64) -> Result<()> {
        self.source.pass(count)?;
        self.moved(count);
        Ok(())
    }

    fn map(&self) -> Option<Vec<(u64, u64)>> {
        self.source.map()
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }
}
