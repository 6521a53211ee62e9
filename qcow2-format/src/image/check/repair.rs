//! A damaged image made consistent, as far as that goes.
//!
//! ```text
//! 0  autoclear bits nobody knows     cleared, as by every writer                bits
//! 1  bitmaps, if none can be kept    no longer spoken of                       bitmaps
//! 2  entries that break a rule       mended where they stand, or let go of      entries, mend
//! 3  refcounts                       made the number of references              counts
//!    or, if blocks are damaged,      written anew elsewhere, switched by one    rebuild
//!    or a snapshot entry is          write to the header
//! 4  COPIED flags                    as the refcounts say                       copied
//! 5  dirty and corrupt bits          cleared, if a check finds nothing more     bits
//! ```
//!
//! Each step counts anew what the one before has left, and each write leaves the image as readable
//! as it was: a process killed anywhere leaves one that the next repair goes on with. What is written
//! in step 2 only ever replaces what could not be read, or reads the same. An overlap is left: it is
//! counted, and the next write to either side moves it.
//!
//! A plan is the same code on a storage that keeps what is written to itself. Callers:
//! disk-engine's `ops::check`.

mod area;
mod bitmaps;
mod bits;
mod copied;
mod counts;
mod draft;
mod entries;
mod fix;
mod mend;
mod rebuild;
mod snapshots;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::address::HostOffset;
use crate::error::{Error, Result, Violation};
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::image::check::finding::{Finding, Severity};
use crate::image::check::refcounts::RefcountTable;
use crate::image::check::report::{CheckOptions, CheckReport, Sink};
use crate::image::check::snapshots::SnapshotL1;
use crate::image::check::spread::spread;
use crate::image::check::tally::{Cursor, Tally};
use crate::image::check::walk::Subject;
use crate::image::check::{header, repair::draft::Draft};
use crate::io::{ReadAt, WriteAt};

use bitmaps::NewBitmaps;
pub use fix::Fix;

/// Where `l1_size` lies in the header.
const L1_SIZE_OFFSET: u64 = 36;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// Space that is counted and not used is given back; nothing else changes, unless nothing else
    /// is wrong.
    Leaks,
    /// Everything.
    All,
}

/// How an image is repaired.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    mode: RepairMode,
    check: CheckOptions,
    flush: bool,
}

impl RepairOptions {
    /// Repairs what `mode` says, with the default options of a check, and syncs.
    #[must_use]
    pub fn new(mode: RepairMode) -> Self {
        Self { mode, check: CheckOptions::new(), flush: true }
    }

    /// Checks as `check` says: the image is checked before, between and after.
    #[must_use]
    pub fn check(mut self, check: CheckOptions) -> Self {
        self.check = check;
        self
    }

    /// Whether the storage is flushed between steps, so that what holds for a killed process holds
    /// for a power cut.
    #[must_use]
    pub fn flush(mut self, flush: bool) -> Self {
        self.flush = flush;
        self
    }
}

/// What a repair found, and left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// What a check found before.
    pub before: CheckReport,
    /// What it finds now.
    pub after: CheckReport,
    /// How many changes were made.
    pub fixes: u64,
    /// Corruptions that were mended, as QEMU counts them: an entry is one, and so is a COPIED flag that
    /// was changed, be it because its refcount was. One that was right once its refcount was is none.
    pub corruptions_fixed: u64,
    /// Leaks that were given back, those included that mended entries left.
    pub leaks_fixed: u64,
}

/// Repairs the image in `storage`. What is found before is shown to `found`, as
/// [`check`](super::check()) does it, and each change to `fixed`, before it is made.
///
/// Nothing else may write to the storage meanwhile.
///
/// # Errors
///
/// As [`check`](super::check()); [`Error::Corrupt`] also if the active L1 table is where something
/// else is and broken: no more than autoclear bits is changed then. [`Error::Io`] from the storage;
/// [`RequestError::Full`](crate::error::RequestError::Full). What was changed until then is whole.
pub fn repair<S: WriteAt + Sync>(
    storage: &S,
    options: &RepairOptions,
    mut found: impl FnMut(&Finding, u64) + Send,
    mut fixed: impl FnMut(&Fix),
) -> Result<RepairReport> {
    let mut fixes = Fixes { listener: &mut fixed, count: 0, mended: 0, rest: None };
    run(storage, options, &mut found, &mut fixes)
}

/// What [`repair`] would do, with the same words. It takes memory for what would be written, at most
/// as much as the check is allowed.
///
/// # Errors
///
/// As [`repair`]; [`Error::Io`] if that memory does not do.
pub fn plan_repair<S: ReadAt + Sync>(
    storage: &S,
    options: &RepairOptions,
    mut found: impl FnMut(&Finding, u64) + Send,
    mut planned: impl FnMut(&Fix),
) -> Result<RepairReport> {
    let mut fixes = Fixes { listener: &mut planned, count: 0, mended: 0, rest: None };
    let draft = Draft::new(storage, options.check.memory);
    let draft = draft.map_err(Error::io("read the image's length", 0))?;
    run(&draft, options, &mut found, &mut fixes)
}

/// Who hears of changes.
struct Fixes<'f> {
    listener: &'f mut dyn FnMut(&Fix),
    count: u64,
    /// What each of them mended, where that is known at once: entries, COPIED flags, lengths.
    mended: u64,
    /// What is left to refcounts and new structures, once entries are mended.
    rest: Option<Verdict>,
}

impl Fixes<'_> {
    fn tell(&mut self, fix: &Fix) {
        self.count = self.count.saturating_add(1);
        let at_once = matches!(
            fix,
            Fix::L1Entry { .. }
                | Fix::L2Entry { .. }
                | Fix::L1Size { .. }
                | Fix::BitmapsLost { .. }
                | Fix::L1Copied { .. }
                | Fix::L2Copied { .. }
        );
        self.mended = self.mended.saturating_add(at_once.into());
        (self.listener)(fix);
    }
}

/// Entries that are kept of L1 tables, by where they start and how many entries they are said to have.
type Cut = BTreeMap<(u64, u32), u32>;

/// A snapshot table that replaces the one there is.
struct NewSnapshots {
    bytes: Vec<u8>,
    kept: u32,
    /// The L1 tables of those that are kept.
    tables: Vec<SnapshotL1>,
}

/// What is written anew together with the refcount structures.
struct Renewal {
    snapshots: Option<NewSnapshots>,
    /// Length of an active L1 table that maps nothing, since the one there is lies past the end of the
    /// file; 0 to keep that.
    l1_bytes: u64,
    bitmaps: Option<NewBitmaps>,
}

impl Renewal {
    const fn is_nothing(&self) -> bool {
        self.snapshots.is_none() && self.l1_bytes == 0 && self.bitmaps.is_none()
    }
}

/// An image under repair.
struct Mender<'a, S> {
    subject: Subject<'a, S>,
    options: &'a RepairOptions,
    /// Whether bitmaps are known to be wrong.
    marked: Cell<bool>,
    /// Clusters of L1 tables in which something else lies, too, once that is known.
    taken: Vec<u64>,
    /// L1 tables of snapshots that are longer than they can be.
    cut: Cut,
}

/// What a check has said that decides what is done.
#[derive(Debug, Default)]
struct Verdict {
    report: CheckReport,
    /// Corruptions but for COPIED flags.
    hard: u64,
    /// A refcount block is used by something else as well.
    shared_block: bool,
    /// Clusters in use that no block counts.
    uncounted: bool,
}

fn run<S: WriteAt + Sync>(
    storage: &S,
    options: &RepairOptions,
    found: &mut (dyn FnMut(&Finding, u64) + Send),
    fixes: &mut Fixes<'_>,
) -> Result<RepairReport> {
    let (mut mender, before) = Mender::open(storage, options, found)?;
    mender.forget_unknown(fixes)?;
    let cleared = fixes.count;
    match options.mode {
        RepairMode::All => mender.mend_all(&before, fixes)?,
        RepairMode::Leaks => mender.mend_leaks(&before, fixes)?,
    }
    let (mut report, mut left) = (before.report, before.hard);
    if fixes.count > cleared {
        let (again, after) = Mender::open(storage, options, &mut |_, _| {})?;
        mender = again;
        (report, left) = (after.report, after.hard);
    }
    mender.mark_clean(&report, fixes)?;
    let rest = fixes.rest.take();
    let rest = rest.as_ref().unwrap_or(&before);
    Ok(RepairReport {
        before: before.report,
        after: report,
        fixes: fixes.count,
        corruptions_fixed: rest.hard.saturating_sub(left).saturating_add(fixes.mended),
        leaks_fixed: rest.report.leaks.saturating_sub(report.leaks),
    })
}

impl<'a, S: WriteAt + Sync> Mender<'a, S> {
    /// The image, and what a check says of it.
    fn open(
        storage: &'a S,
        options: &'a RepairOptions,
        found: &mut (dyn FnMut(&Finding, u64) + Send),
    ) -> Result<(Self, Verdict)> {
        let all = options.mode == RepairMode::All;
        let header = header::read(storage)?;
        let table = match header::check_refcount_table(&header) {
            Ok(()) => RefcountTable::read(storage, &header)?,
            Err(error) if !all => return Err(error),
            // All of it is written anew.
            Err(_) => RefcountTable::empty(&header),
        };
        let per_block = table.per_block();
        let named: Vec<u64> = table.entries().map(|(index, _)| index).collect();
        let mut verdict = Verdict::default();
        let mut listener = |finding: &Finding, times: u64| {
            match finding {
                Finding::L1Copied { .. } | Finding::L2Copied { .. } => {}
                other if other.severity() == Severity::Corruption => {
                    verdict.hard = verdict.hard.saturating_add(times);
                }
                _ => {}
            }
            if let Finding::TooLow { cluster, refcount: 0, .. } = finding {
                let block = cluster / per_block;
                verdict.uncounted |= named.binary_search(&block).is_err();
            }
            found(finding, times);
        };
        let mut sink = Sink::new(&mut listener);
        let subject = Subject::of(storage, header, table, all, &mut sink)?;
        subject.check(&options.check, &mut sink)?;
        let Sink { report, shared_block, .. } = sink;
        verdict = Verdict { report, shared_block, ..verdict };
        Ok((
            Self { subject, options, marked: Cell::new(false), taken: Vec::new(), cut: Cut::new() },
            verdict,
        ))
    }

    /// L2 tables that are known at once.
    fn tables_max(&self) -> usize {
        self.subject.tables_max(&self.options.check)
    }

    fn barrier(&self) -> Result<()> {
        if !self.options.flush {
            return Ok(());
        }
        self.subject.storage.flush().map_err(Error::io("flush the image", 0))
    }

    /// Counts all references, pass by pass. The flag says whether it is the first pass.
    fn each_pass(&self, mut each: impl FnMut(&Tally<'_, S>, bool) -> Result<()>) -> Result<()> {
        let mut ignored = |_: &Finding, _| {};
        let mut sink = Sink::new(&mut ignored);
        self.subject
            .each_pass(&self.options.check, &mut sink, |tally, sink| each(tally, sink.first))
    }

    fn mend_leaks(&mut self, before: &Verdict, fixes: &mut Fixes<'_>) -> Result<()> {
        let sound = self.subject.table.is_sound(self.subject.clusters());
        // What cannot be followed may use what seems unused.
        if !sound || before.shared_block || self.subject.bitmaps.broken {
            return Ok(());
        }
        if before.report.leaks > 0 {
            self.each_pass(|tally, _| self.mend_counts(tally, true, fixes))?;
            self.barrier()?;
        }
        if before.hard == 0 && before.report.check_errors == 0 {
            self.mend_copied(fixes)?;
        }
        Ok(())
    }

    fn mend_all(&mut self, before: &Verdict, fixes: &mut Fixes<'_>) -> Result<()> {
        if before.hard > 0 {
            // What breaks a rule names nothing that a repair would keep.
            self.subject.as_mended = true;
            // What a claim that is too long covers is somebody else's.
            self.shorten_l1(fixes)?;
            self.cut_snapshots()?;
            self.taken = self.taken()?;
            self.shorten_l1(fixes)?;
            self.cut_snapshots()?;
        }
        let lost = self.lost_snapshots()?;
        let mut new = self.renewal(&lost, fixes)?;
        if before.report.is_sound() && before.report.leaks == 0 && new.is_nothing() {
            return Ok(());
        }
        // Their entries are somebody else's bytes.
        if let Some(snapshots) = &new.snapshots {
            self.subject.snapshots.tables.clone_from(&snapshots.tables);
        }
        new.bitmaps = self.mend_bitmaps(fixes)?;
        if before.hard > 0 {
            self.mend_l1(&BTreeSet::new(), fixes)?;
            self.each_pass(|tally, _| self.mend_entries(tally, fixes))?;
            self.barrier()?;
        }
        // Entries and bitmaps were mended: what is referred to is another matter now.
        let (mut mender, verdict) = Self::open(self.subject.storage, self.options, &mut |_, _| {})?;
        let sound = mender.subject.table.is_sound(mender.subject.clusters())
            && header::check_refcount_table(&mender.subject.header).is_ok()
            && mender.has_refcount_table();
        let rebuilds = !sound || verdict.shared_block || verdict.uncounted || !new.is_nothing();
        fixes.rest = Some(verdict);
        if rebuilds {
            mender.rebuild(&new, fixes)?;
        } else {
            mender.each_pass(|tally, _| mender.mend_counts(tally, false, fixes))?;
            mender.barrier()?;
        }
        let (mender, _) = Self::open(self.subject.storage, self.options, &mut |_, _| {})?;
        mender.mend_copied(fixes)?;
        mender.barrier()
    }

    /// What has to be made anew beside the refcount structures.
    fn renewal(&self, lost: &[u64], fixes: &mut Fixes<'_>) -> Result<Renewal> {
        let header = &self.subject.header;
        let snapshots = snapshots::renewed(&self.subject, lost, &self.cut, fixes)?;
        let length = u64::from(header.l1_size) * TABLE_ENTRY_BYTES;
        let l1 = self.subject.within(header.l1_table_offset.0, length).is_none();
        Ok(Renewal { snapshots, l1_bytes: if l1 { length } else { 0 }, bitmaps: None })
    }

    /// Whether there is a refcount table, in the file.
    fn has_refcount_table(&self) -> bool {
        let header = &self.subject.header;
        let clusters = header.refcount_table_clusters;
        let length = u64::from(clusters).saturating_mul(self.subject.cluster_bits().bytes());
        clusters > 0 && self.subject.within(header.refcount_table_offset.0, length).is_some()
    }

    /// Clusters of L1 tables in which something else lies, too.
    fn taken(&self) -> Result<Vec<u64>> {
        let subject = &self.subject;
        let all = subject.snapshot_l1s().chain(std::iter::once(subject.active_l1()));
        let inside = all
            .filter_map(|range| subject.within(range.start, range.end.saturating_sub(range.start)));
        let parts = spread(inside.collect());
        let mut taken = Vec::new();
        self.each_pass(|tally, _| {
            let mut cursor = Cursor::default();
            for part in &parts {
                tally.visit(&mut cursor, part.range.clone(), |page, range, first| {
                    for (cluster, index) in (first..).zip(range) {
                        if page.used.get(index) > part.times {
                            taken.push(cluster);
                        }
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        taken.sort_unstable();
        Ok(taken)
    }

    /// L1 tables, of the snapshots, that lie where something else does and are broken: they are none.
    /// Where they start, in bytes.
    fn lost_snapshots(&self) -> Result<Vec<u64>> {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        // Clusters whose entries break rules, most of them: guest data looks like that.
        let mut seen: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut tables: BTreeMap<u64, bool> = BTreeMap::new();
        subject.each_l1(|l1| {
            if l1.table() == 0 {
                return Ok(());
            }
            let cluster = l1.at >> bits.to_u32();
            let mut is_wrong = mend::l1_entry(subject, &l1).is_some();
            if !is_wrong && !l1.active && self.taken.binary_search(&cluster).is_ok() {
                is_wrong = match tables.get(&l1.table()) {
                    Some(known) => *known,
                    None => {
                        let is_none = self.is_no_table(&l1)?;
                        tables.insert(l1.table(), is_none);
                        is_none
                    }
                };
            }
            let (wrong, all) = seen.entry(cluster).or_default();
            *wrong += u64::from(is_wrong);
            *all += 1;
            Ok(())
        })?;
        let is_broken = |cluster: &u64| {
            seen.get(cluster).is_some_and(|(wrong, all)| wrong.saturating_mul(2) > *all)
        };
        let broken: Vec<u64> = self.taken.iter().copied().filter(is_broken).collect();
        let is_taken = |range: &Range<u64>| {
            let clusters = range.start >> bits.to_u32()..bits.clusters(range.end);
            let first = broken.partition_point(|cluster| *cluster < clusters.start);
            broken.get(first).is_some_and(|cluster| *cluster < clusters.end)
        };
        let active = subject.active_l1();
        if is_taken(&active) {
            let violation = Violation::Overlap { what: "rest of the image" };
            return Err(header::corrupt("l1_table_offset", active.start, 40, violation));
        }
        Ok(subject.snapshot_l1s().filter(is_taken).map(|range| range.start).collect())
    }

    /// An L1 table that is longer than the disk needs, and is said to reach past the end of the file or
    /// into something else, ends where it has to.
    fn shorten_l1(&mut self, fixes: &mut Fixes<'_>) -> Result<()> {
        let subject = &mut self.subject;
        let bits = subject.cluster_bits();
        let from = subject.header.l1_size;
        let needed = subject.header.geometry.l1_entries(subject.header.virtual_size);
        let bytes = needed.saturating_mul(TABLE_ENTRY_BYTES);
        let first = bits.clusters(subject.header.l1_table_offset.0.saturating_add(bytes));
        let end = u64::from(from) * TABLE_ENTRY_BYTES;
        let end = bits.clusters(subject.header.l1_table_offset.0.saturating_add(end));
        let Ok(to) = u32::try_from(needed) else { return Ok(()) };
        let start = subject.header.l1_table_offset.0;
        let is_there = |entries: u64| subject.within(start, entries * TABLE_ENTRY_BYTES).is_some();
        let beyond = to < from && !is_there(from.into()) && is_there(needed);
        if !beyond && !self.taken.iter().any(|cluster| (first..end).contains(cluster)) {
            return Ok(());
        }
        fixes.tell(&Fix::L1Size { from, to });
        subject.header.l1_size = to;
        let failed = Error::io("write the header", L1_SIZE_OFFSET);
        let bytes = to.to_be_bytes();
        subject.storage.write_all_at(&bytes, L1_SIZE_OFFSET).map_err(failed)?;
        self.barrier()
    }

    /// As [`Mender::shorten_l1`], of snapshots. What they say is written with the next snapshot table.
    fn cut_snapshots(&mut self) -> Result<()> {
        snapshots::too_long(&self.subject, &self.taken, &mut self.cut)?;
        for (&(at, claimed), &entries) in &self.cut {
            let tables = &mut self.subject.snapshots.tables;
            let (long, short) = (SnapshotL1 { at: HostOffset(at), entries: claimed }, entries);
            let cut = SnapshotL1 { entries: short, ..long };
            if tables.contains(&long) {
                tables.iter_mut().filter(|table| **table == long).for_each(|table| *table = cut);
            } else if !tables.contains(&cut) {
                // Too long to be followed before.
                tables.push(cut);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
