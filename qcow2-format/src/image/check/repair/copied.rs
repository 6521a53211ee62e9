//! COPIED flags made to say what the refcounts say.
//!
//! Callers: `repair`.

use crate::address::GuestOffset;
use crate::error::{Error, Result};
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Fixes, Mender};
use crate::image::check::tally::Cursor;
use crate::io::{WriteAt, read_table};
use crate::l2::{COMPRESSED, COPIED, OFFSET, ZERO};

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// Mends the flags of the active disk's entries. Refcounts are right, as far as they can be.
    pub(super) fn mend_copied(&self, fixes: &mut Fixes<'_>) -> Result<()> {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        let mut cursor = Cursor::default();
        subject.each_l1(|l1| {
            let table = l1.table();
            if !l1.active || table == 0 {
                return Ok(());
            }
            let cluster = table >> bits.to_u32();
            let refcount = subject.table.one(subject.storage, cluster, &mut cursor.piece)?;
            if (refcount == 1) != (l1.entry & COPIED != 0) {
                let (index, entry) = (l1.index, l1.entry);
                fixes.tell(&Fix::L1Copied { index, entry, refcount });
                let failed = Error::io("mend an L1 entry", l1.at);
                let bytes = (entry ^ COPIED).to_be_bytes();
                subject.storage.write_all_at(&bytes, l1.at).map_err(failed)?;
            }
            Ok(())
        })?;
        let mut from = 0;
        loop {
            let round = subject.round(from, self.tables_max())?;
            for table in round.tables.iter().filter(|table| table.active > 0) {
                self.mend_flags(table.offset, table.l1_index, &mut cursor, fixes)?;
            }
            match round.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    fn mend_flags(
        &self,
        table: u64,
        l1_index: u64,
        cursor: &mut Cursor,
        fixes: &mut Fixes<'_>,
    ) -> Result<()> {
        let subject = &self.subject;
        let bits = subject.cluster_bits();
        let extended = subject.header.geometry.extended_l2;
        let per_entry = if extended { 2 } else { 1 };
        let words = read_table(subject.storage, table, bits.bytes() / 8, "read an L2 table")?;
        let start = subject.guest_of(l1_index).0;
        for (index, raw) in (0_u64..).zip(words.iter().step_by(per_entry)) {
            let (entry, host) = (*raw, *raw & OFFSET);
            let zero = !extended && entry & ZERO != 0;
            let external = subject.has_data_file();
            let stored = host != 0 || external && !zero && entry & COPIED != 0;
            if entry & COMPRESSED != 0 || !stored {
                continue;
            }
            let refcount = match external {
                true => 1,
                false => {
                    let cluster = host >> bits.to_u32();
                    subject.table.one(subject.storage, cluster, &mut cursor.piece)?
                }
            };
            if (refcount == 1) == (entry & COPIED != 0) {
                continue;
            }
            let guest = GuestOffset(start.saturating_add(index * bits.bytes()));
            fixes.tell(&Fix::L2Copied { entry, refcount, guest });
            let at = table.saturating_add(index * per_entry as u64 * 8);
            let failed = Error::io("mend an L2 entry", at);
            let bytes = (entry ^ COPIED).to_be_bytes();
            subject.storage.write_all_at(&bytes, at).map_err(failed)?;
        }
        Ok(())
    }
}
