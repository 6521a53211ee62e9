//! L2 tables: which there are, and how many L1 entries name each.
//!
//! ```text
//! active L1 table ─┐
//! snapshots' ──────┴▶ L1 entries ─▶ L2 tables by where they lie, each once ─▶ scan
//! ```
//!
//! At most so many tables are held at once; those behind them come in another round over the L1
//! tables. Callers: `check`, `repair`.

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, Result};
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::image::check::finding::Finding;
use crate::image::check::report::Sink;
use crate::image::check::spread::spread;
use crate::image::check::tally::{Cursor, Tally};
use crate::image::check::walk::{Landmarks, Subject, beyond};
use crate::io::ReadAt;
use crate::l1::{COPIED, OFFSET, RESERVED};

/// An L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Where it starts in the file, in bytes.
    pub(super) offset: u64,
    /// How many entries of the active L1 table name it.
    pub(super) active: u64,
    /// How many entries of snapshots' L1 tables do.
    pub(super) snapshots: u64,
    /// Which entry one of them is; of the active table, if one names it.
    pub(super) l1_index: u64,
}

/// An L1 entry, perhaps of several snapshots that share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct L1Use {
    pub(super) entry: u64,
    /// Where it lies in the file.
    pub(super) at: u64,
    pub(super) index: u64,
    pub(super) times: u64,
    pub(super) active: bool,
}

impl L1Use {
    pub(super) fn table(&self) -> u64 {
        self.entry & OFFSET
    }
}

/// Some of the L2 tables, in order.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) tables: Vec<Table>,
    /// Where the tables of the next round start; `None` if there is none.
    pub(super) next: Option<u64>,
}

impl<S: ReadAt> Subject<'_, S> {
    /// Shows `each` the L1 entries that are not zero.
    pub(super) fn each_l1(&self, mut each: impl FnMut(L1Use) -> Result<()>) -> Result<()> {
        let active = self.active_l1();
        let doing = "read an L1 table";
        self.each_entry(active.clone(), doing, |at, entry| {
            let index = at.saturating_sub(active.start) / TABLE_ENTRY_BYTES;
            each(L1Use { entry, at, index, times: 1, active: true })
        })?;
        for part in spread(self.snapshot_l1s().collect()) {
            let (start, times) = (part.start, part.times);
            self.each_entry(part.range, doing, |at, entry| {
                let index = at.saturating_sub(start) / TABLE_ENTRY_BYTES;
                each(L1Use { entry, at, index, times, active: false })
            })?;
        }
        Ok(())
    }

    /// The guest offset that L1 entry `index` maps.
    pub(super) fn guest_of(&self, index: u64) -> GuestOffset {
        GuestOffset(index.saturating_mul(self.header.geometry.l1_entry_span()))
    }

    /// The L2 tables from `from` on, at most `capacity` of them.
    pub(super) fn round(&self, from: u64, capacity: usize) -> Result<Round> {
        let mut round = Round::default();
        self.each_l1(|l1| {
            let offset = l1.table();
            if round.tables.len() >= capacity.saturating_mul(2) {
                round.merge(capacity);
            }
            // What lies past the end of the file is zeros.
            if offset < from || offset >= round.next.unwrap_or(self.file_length) {
                return Ok(());
            }
            let (active, snapshots) = if l1.active { (1, 0) } else { (0, l1.times) };
            let table = Table { offset, active, snapshots, l1_index: l1.index };
            if round.tables.try_reserve(1).is_err() {
                let error = std::io::ErrorKind::OutOfMemory.into();
                return Err(Error::io("remember where the L2 tables lie", 0)(error));
            }
            round.tables.push(table);
            Ok(())
        })?;
        round.merge(capacity);
        Ok(round)
    }

    /// Tells what is wrong with L1 entries, L2 tables left aside.
    pub(super) fn check_l1(
        &self,
        tally: &Tally<'_, S>,
        landmarks: &Landmarks,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let bits = self.cluster_bits();
        let mut cursor = Cursor::default();
        self.each_l1(|l1| {
            let l1 = if self.as_mended { self.mended_l1(l1) } else { l1 };
            if l1.entry == 0 {
                return Ok(());
            }
            let (offset, guest) = (l1.table(), self.guest_of(l1.index));
            if l1.entry & RESERVED != 0 {
                sink.tell_first(Finding::L1Reserved { entry: l1.entry, guest }, l1.times);
            }
            let clusters = self.within(offset, bits.bytes());
            if clusters.is_none() {
                sink.tell_first(beyond(offset, bits.bytes(), Some(guest)), l1.times);
            }
            if !bits.is_aligned(offset) {
                let offset = HostOffset(offset);
                sink.tell_first(Finding::L2TableUnaligned { offset, guest }, l1.times);
            }
            let cluster = offset >> bits.to_u32();
            if l1.active
                && offset != 0
                && sink.first
                && let Some(refcount) = self.refcount(tally, &mut cursor, cluster)?
                && (refcount == 1) != (l1.entry & COPIED != 0)
            {
                let (index, entry) = (l1.index, l1.entry);
                sink.tell(Finding::L1Copied { index, entry, refcount, guest }, 1);
            }
            let overlap = clusters.as_ref().filter(|_| offset != 0);
            if let Some((cluster, metadata)) = overlap.and_then(|at| landmarks.find(at)) {
                let guest = Some(guest);
                sink.tell_first(Finding::Overlap { cluster, metadata, guest }, l1.times);
            }
            match clusters {
                Some(clusters) => tally.add(&mut cursor, clusters, l1.times),
                None => Ok(()),
            }
        })
    }
}

impl Round {
    /// Each table once; the first `capacity` of them.
    fn merge(&mut self, capacity: usize) {
        // The active table's entries first.
        self.tables.sort_unstable_by_key(|table| (table.offset, table.active == 0, table.l1_index));
        self.tables.dedup_by(|next, kept| {
            let same = next.offset == kept.offset;
            if same {
                kept.active = kept.active.saturating_add(next.active);
                kept.snapshots = kept.snapshots.saturating_add(next.snapshots);
            }
            same
        });
        if let Some(first) = self.tables.get(capacity) {
            self.next = Some(first.offset);
            self.tables.truncate(capacity);
        }
    }
}
