//! Whether an image is consistent: every reference counted, and held against every refcount.
//!
//! ```text
//! header ─┬▶ L1 tables ─▶ L2 tables ─▶ clusters, compressed payloads ─┐
//!         ├▶ snapshot table, bitmaps, encryption header ──────────────┼▶ used ┐
//!         └▶ refcount table ─▶ refcount blocks ───────────────────────┘       ├▶ findings
//!                              refcounts ────────────────────────────▶ said ┘
//! ```
//!
//! Works on images that are dirty, marked corrupt or damaged; only what nothing can be found without
//! has to hold. Counts are qemu-img's.
//!
//! **Memory is bounded, whatever the image claims**: the counts by [`CheckOptions::memory`] (half a
//! byte for each cluster of the file that lies near one in use: 128 MiB for 16 TiB in clusters of
//! 64 KiB), the refcount table by 8 MiB, the snapshots' and bitmaps' places by 5 MiB, a thread by two
//! clusters and 8192 findings, which then wait for nobody: what is found is told and forgotten. Where the counts do not fit, host clusters are counted in
//! several passes, each over all L2 tables.
//!
//! **Time follows what is there**: a table that many name is read once and counted as often as it is
//! named, be it an L1 table of 65,536 snapshots or an L2 table of every L1 entry. Tables that are not
//! on a cluster boundary may overlap each other: 1024 of them are read.
//!
//! Callers: `write` (refcounts of a dirty image), disk-engine's `ops::check`.

mod bitmaps;
mod compare;
mod counting;
mod counts;
mod finding;
mod header;
mod refcounts;
mod repair;
mod report;
mod scan;
mod snapshots;
mod spread;
mod tables;
mod tally;
mod walk;
mod workers;

use crate::error::{Error, Result};
use crate::header::Header;
use crate::io::ReadAt;

pub(super) use counting::Counting;
pub use finding::{Finding, Metadata, Severity};
pub use repair::{Fix, RepairMode, RepairOptions, RepairReport, plan_repair, repair};
pub use report::{CheckOptions, CheckReport, Progress};

use bitmaps::Bitmaps;
use refcounts::RefcountTable;
use report::Sink;
use scan::Scan;
use tally::Tally;
use walk::Subject;

/// Checks the image in `storage`. Each finding is shown to `found` when it is made, with how often
/// it is there; how many there are nothing bounds.
///
/// An external data file is not needed: what lies in it has no refcounts.
///
/// # Errors
///
/// [`Error::Corrupt`] and [`Error::Unsupported`] if nothing can be found through the header or the
/// snapshot table; [`Error::Io`] from the storage;
/// [`RequestError::Cancelled`](crate::error::RequestError::Cancelled).
pub fn check<S: ReadAt + Sync>(
    storage: &S,
    options: &CheckOptions,
    mut found: impl FnMut(&Finding, u64) + Send,
) -> Result<CheckReport> {
    let mut sink = Sink::new(&mut found);
    let subject = Subject::open(storage, &mut sink)?;
    subject.check(options, &mut sink)?;
    Ok(sink.report)
}

impl<'a, S: ReadAt + Sync> Subject<'a, S> {
    fn open(storage: &'a S, sink: &mut Sink<'_>) -> Result<Self> {
        let header = header::read(storage)?;
        header::check_refcount_table(&header)?;
        let table = RefcountTable::read(storage, &header)?;
        Self::of(storage, header, table, false, sink)
    }

    /// What `header` leads to. Where `repairing`, snapshots are read as far as they can be.
    fn of(
        storage: &'a S,
        header: Header,
        table: RefcountTable,
        repairing: bool,
        sink: &mut Sink<'_>,
    ) -> Result<Self> {
        let snapshots = snapshots::read(storage, &header, repairing, |finding| {
            sink.tell(finding, 1);
            Ok(())
        })?;
        let file_length = file_length(storage)?;
        let bitmaps: Bitmaps = bitmaps::read(storage, &header, file_length, |finding| {
            sink.tell(finding, 1);
        })?;
        let subject = Self {
            storage,
            file_length,
            table,
            header,
            snapshots,
            bitmaps,
            with_refcounts: true,
            with_snapshot_table: true,
            as_mended: false,
        };
        if subject.has_data_file() && subject.header.nb_snapshots > 0 {
            let count = subject.header.nb_snapshots;
            sink.tell(Finding::SnapshotsWithDataFile { count }, 1);
        }
        Ok(subject)
    }

    fn check(&self, options: &CheckOptions, sink: &mut Sink<'_>) -> Result<()> {
        let bits = self.cluster_bits();
        // As in QEMU, half a sector at the end is none.
        sink.report.total_clusters = bits.clusters(self.header.virtual_size & !511);
        self.each_pass(options, sink, |tally, sink| self.compare(tally, sink))?;
        let report = &mut sink.report;
        report.image_end_offset = report.image_end_offset.max(bits.bytes());
        Ok(())
    }

    /// Counts all references, pass by pass, and shows each pass to `each`.
    fn each_pass<'s>(
        &'s self,
        options: &CheckOptions,
        sink: &mut Sink<'_>,
        mut each: impl FnMut(&Tally<'s, S>, &mut Sink<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        loop {
            // A part of the memory is for the list of L2 tables.
            let tally = Tally::new(self.storage, &self.table, start, options.memory / 8 * 7);
            self.count(options, &tally, sink)?;
            each(&tally, sink)?;
            start = tally.end();
            sink.first = false;
            if start == u64::MAX {
                return Ok(());
            }
        }
    }

    /// L2 tables that are known at once.
    fn tables_max(&self, options: &CheckOptions) -> usize {
        // There are twice as many while a round is made.
        let count = options.memory / 16 / size_of::<tables::Table>() as u64;
        usize::try_from(count).unwrap_or(usize::MAX).max(1024)
    }

    fn count<'s>(
        &'s self,
        options: &CheckOptions,
        tally: &Tally<'s, S>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        self.count_roots(tally, sink)?;
        let landmarks = self.landmarks(sink);
        self.check_l1(tally, &landmarks, sink)?;
        let mut from = 0;
        loop {
            let round = self.round(from, self.tables_max(options))?;
            let (subject, landmarks, tables) = (self, &landmarks, &round.tables[..]);
            let first = sink.first;
            Scan { subject, tally, landmarks, tables, first }.run(options, sink)?;
            match round.next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.count_blocks(tally, sink)
    }
}

/// Length of the file in bytes; as in QEMU, a sector that is there in part is there.
fn file_length(storage: &impl ReadAt) -> Result<u64> {
    let length = storage.length().map_err(Error::io("read the image's length", 0))?;
    Ok(length.checked_next_multiple_of(512).unwrap_or(length))
}

#[cfg(test)]
mod tests;
