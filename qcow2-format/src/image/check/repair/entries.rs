//! Entries of L1 and L2 tables that break a rule, mended where they stand.
//!
//! ```text
//! L2 table ─┬▶ its cluster is an L2 table's and nothing else's: entries are mended
//!           └▶ something else lies there:
//!                most entries keep the rules ─▶ it is one all the same, and mended
//!                most do not                 ─▶ it is no L2 table: the L1 entry lets go of it
//! ```
//!
//! What is written is never longer than an entry, and only where it was an entry before. Callers:
//! `repair`.

use std::collections::BTreeSet;

use crate::address::GuestOffset;
use crate::error::{Error, Result};
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::mend::{self, Mended};
use crate::image::check::repair::{Fixes, Mender};
use crate::image::check::tables::{L1Use, Table};
use crate::image::check::tally::{Cursor, Tally};
use crate::image::check::walk::Subject;
use crate::io::{ReadAt, WriteAt, read_table};
use crate::l2::SubclusterBitmap;

impl<S: ReadAt> Subject<'_, S> {
    /// What a repair makes of the L1 entry.
    pub(in crate::image::check) fn mended_l1(&self, l1: L1Use) -> L1Use {
        mend::l1_entry(self, &l1).map_or(l1, |mended| L1Use { entry: mended.raw, ..l1 })
    }

    /// What a repair makes of the L2 entry.
    pub(in crate::image::check) fn mended_l2(
        &self,
        raw: u64,
        bitmap: SubclusterBitmap,
        guest: GuestOffset,
    ) -> (u64, SubclusterBitmap) {
        mend::l2_entry(self, raw, bitmap.0, guest)
            .map_or((raw, bitmap), |mended| (mended.raw, SubclusterBitmap(mended.bitmap)))
    }
}

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// Mends all entries of the L2 tables in this pass, and the L1 entries that name those.
    pub(super) fn mend_entries(&self, tally: &Tally<'_, S>, fixes: &mut Fixes<'_>) -> Result<()> {
        let mut from = 0;
        loop {
            let round = self.subject.round(from, self.tables_max())?;
            let mut dropped = BTreeSet::new();
            for table in &round.tables {
                self.mend_table(tally, table, &mut dropped, fixes)?;
            }
            if !dropped.is_empty() {
                self.mend_l1(&dropped, fixes)?;
            }
            match round.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    fn mend_table(
        &self,
        tally: &Tally<'_, S>,
        table: &Table,
        dropped: &mut BTreeSet<u64>,
        fixes: &mut Fixes<'_>,
    ) -> Result<()> {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        let cluster = table.offset >> bits.to_u32();
        let weight = table.active.saturating_add(table.snapshots);
        let mut alone = None;
        tally.visit(
            &mut Cursor::default(),
            cluster..cluster.saturating_add(1),
            |page, at, _| {
                alone = Some(page.used.get(at.start) == weight);
                Ok(())
            },
        )?;
        // Left to another pass, or to its L1 entry.
        let Some(alone) = alone.filter(|_| bits.is_aligned(table.offset) && table.offset != 0)
        else {
            return Ok(());
        };
        let words =
            read_table(subject.storage, table.offset, bits.bytes() / 8, "read an L2 table")?;
        // One entry that points here by mistake makes it no less a table.
        let alone = alone || !self.is_mostly_broken(table, &words);
        let start = subject.guest_of(table.l1_index).0;
        let per_entry = if subject.header.geometry.extended_l2 { 2 } else { 1 };
        for (index, entry) in (0_u64..).zip(words.chunks_exact(per_entry)) {
            let (raw, bitmap) = match entry {
                [0] | [0, 0] => continue,
                [raw] => (*raw, 0),
                [raw, bitmap] => (*raw, *bitmap),
                _ => continue,
            };
            let guest = GuestOffset(start.saturating_add(index * bits.bytes()));
            let Some(mended) = mend::l2_entry(subject, raw, bitmap, guest) else { continue };
            if !alone {
                dropped.insert(table.offset);
                return Ok(());
            }
            let Mended { raw: to, bitmap, lost } = mended;
            self.before_loss(lost && table.active > 0)?;
            fixes.tell(&Fix::L2Entry { guest, length: bits.bytes(), from: raw, to, lost });
            let mut bytes = to.to_be_bytes().to_vec();
            if per_entry == 2 {
                bytes.extend(bitmap.to_be_bytes());
            }
            let at = table.offset.saturating_add(index * bytes.len() as u64);
            let failed = Error::io("mend an L2 entry", at);
            subject.storage.write_all_at(&bytes, at).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the L2 table that the entry names breaks more rules than it keeps.
    pub(super) fn is_no_table(&self, l1: &L1Use) -> Result<bool> {
        let subject = &self.subject;
        let offset = l1.table();
        let count = subject.cluster_bits().bytes() / 8;
        let words = read_table(subject.storage, offset, count, "read an L2 table")?;
        let table = Table { offset, active: 0, snapshots: l1.times, l1_index: l1.index };
        Ok(self.is_mostly_broken(&table, &words))
    }

    /// Whether more entries break a rule than keep it: guest data looks like that.
    fn is_mostly_broken(&self, table: &Table, words: &[u64]) -> bool {
        let subject = &self.subject;
        let per_entry = if subject.header.geometry.extended_l2 { 2 } else { 1 };
        let start = subject.guest_of(table.l1_index).0;
        let (mut wrong, mut all) = (0_u64, 0_u64);
        for (index, entry) in (0_u64..).zip(words.chunks_exact(per_entry)) {
            let raw = entry.first().copied().unwrap_or_default();
            let bitmap = entry.get(1).copied().unwrap_or_default();
            if raw != 0 || bitmap != 0 {
                let at = index.saturating_mul(subject.cluster_bits().bytes());
                let guest = GuestOffset(start.saturating_add(at));
                wrong += u64::from(mend::l2_entry(subject, raw, bitmap, guest).is_some());
                all += 1;
            }
        }
        wrong.saturating_mul(2) > all
    }

    /// Mends L1 entries; those that name a table in `dropped` let go of it.
    pub(super) fn mend_l1(&self, dropped: &BTreeSet<u64>, fixes: &mut Fixes<'_>) -> Result<()> {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        let length = subject.header.geometry.l1_entry_span();
        let active = subject.active_l1();
        subject.each_l1(|l1| {
            // Who says that this is an L1 table may be wrong, and what else lies there right.
            let taken = self.taken.binary_search(&(l1.at >> bits.to_u32())).is_ok();
            let drops = dropped.contains(&l1.table());
            // Unless it says so itself.
            let own = l1.active && active.contains(&l1.table());
            if taken && (drops && !own || !l1.active) {
                return Ok(());
            }
            let mended = if drops {
                Some(Mended { raw: 0, bitmap: 0, lost: true })
            } else {
                mend::l1_entry(subject, &l1)
            };
            let Some(Mended { raw: to, lost, .. }) = mended else { return Ok(()) };
            let guest = subject.guest_of(l1.index);
            self.before_loss(lost && l1.active)?;
            fixes.tell(&Fix::L1Entry { guest, length, from: l1.entry, to, lost });
            let failed = Error::io("mend an L1 entry", l1.at);
            subject.storage.write_all_at(&to.to_be_bytes(), l1.at).map_err(failed)
        })
    }
}
