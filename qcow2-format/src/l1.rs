//! The L1 table (spec: "L1 table entry"): where the L2 tables lie.
//!
//! ```text
//! bit  63      62 … 56    55 … 9                    8 … 0
//!      COPIED  reserved   offset of the L2 table    reserved      offset 0: no L2 table
//! ```
//!
//! The active table, or a snapshot's. It is read once; its length is bounded by QEMU's ceiling and
//! by the file. Who writes to the image changes the entries in memory and in the file. Callers:
//! `image`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::{Geometry, L1_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::io::{ReadAt, read_table};

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(crate) const RESERVED: u64 = !(COPIED | OFFSET);

/// An entry of the L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry {
    /// Where the L2 table lies; `None` if all it would map is unallocated.
    pub l2_table: Option<HostOffset>,
    /// Whether the L2 table's refcount is exactly one.
    pub copied: bool,
}

impl L1Entry {
    /// The meaning of `raw`, an entry that lies at `at` in the file.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if reserved bits are set or the L2 table is not on a cluster boundary.
    pub fn decode(raw: u64, at: HostOffset, geometry: Geometry) -> Result<Self> {
        let corrupt = |violation| {
            Err(FieldError { field: "L1 entry", value: raw, offset: at.0, violation }.into())
        };
        if raw & RESERVED != 0 {
            return corrupt(Violation::ReservedBits { bits: raw & RESERVED });
        }
        let offset = raw & OFFSET;
        if !geometry.cluster_bits.is_aligned(offset) {
            let cluster_size = geometry.cluster_bits.bytes();
            return corrupt(Violation::Unaligned { cluster_size });
        }
        let l2_table = (offset != 0).then_some(HostOffset(offset));
        Ok(Self { l2_table, copied: raw & COPIED != 0 })
    }
}

/// An L1 table in memory.
#[derive(Debug)]
pub(crate) struct L1Table {
    at: HostOffset,
    entries: Vec<AtomicU64>,
    geometry: Geometry,
}

/// Where an L1 table lies, and which fields say so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L1Place {
    pub at: HostOffset,
    pub entries: u32,
    /// Name and place of the field that holds `at`.
    pub offset_field: (&'static str, u64),
    /// Name and place of the field that holds `entries`.
    pub size_field: (&'static str, u64),
}

impl L1Table {
    /// Reads as much of the table as maps a disk of `virtual_size` bytes; entries that a short
    /// table lacks are unallocated.
    pub(crate) fn read(
        storage: &(impl ReadAt + ?Sized),
        place: L1Place,
        geometry: Geometry,
        virtual_size: u64,
    ) -> Result<Self> {
        place.check(storage, geometry)?;
        let count = geometry.l1_entries(virtual_size).min(place.entries.into());
        let entries = read_table(storage, place.at.0, count, "read the L1 table")?;
        let entries = entries.into_iter().map(AtomicU64::new).collect();
        Ok(Self { at: place.at, entries, geometry })
    }

    /// The L2 table that maps `offset`.
    pub(crate) fn l2_table(&self, offset: GuestOffset) -> Result<Option<HostOffset>> {
        Ok(self.entry(self.geometry.l1_index(offset))?.l2_table)
    }

    /// Entry `index`; what a short table lacks maps nothing.
    pub(crate) fn entry(&self, index: u64) -> Result<L1Entry> {
        let raw = usize::try_from(index).ok().and_then(|index| self.entries.get(index));
        // Whoever set it had written what it names.
        let raw = raw.map_or(0, |raw| raw.load(Ordering::Acquire));
        if raw == 0 {
            return Ok(L1Entry { l2_table: None, copied: false });
        }
        L1Entry::decode(raw, self.entry_offset(index), self.geometry)
    }

    /// Where entry `index` lies in the file.
    pub(crate) fn entry_offset(&self, index: u64) -> HostOffset {
        HostOffset(self.at.0.saturating_add(index.saturating_mul(TABLE_ENTRY_BYTES)))
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entry `index` as it stands in the file.
    pub(crate) fn raw(&self, index: u64) -> u64 {
        let raw = usize::try_from(index).ok().and_then(|index| self.entries.get(index));
        raw.map_or(0, |raw| raw.load(Ordering::Acquire))
    }

    /// Makes entry `index` name the L2 table at `table`, which nothing else refers to.
    pub(crate) fn set(&self, index: u64, table: HostOffset) {
        if let Some(entry) = usize::try_from(index).ok().and_then(|index| self.entries.get(index)) {
            entry.store(COPIED | table.0, Ordering::Release);
        }
    }
}

impl L1Place {
    /// The rules the header's own L1 table is held to; a snapshot's must keep them as well.
    pub(crate) fn check(&self, storage: &(impl ReadAt + ?Sized), geometry: Geometry) -> Result<()> {
        let corrupt = |(field, offset), value, violation| -> Result<()> {
            Err(FieldError { field, value, offset, violation }.into())
        };
        let length = u64::from(self.entries) * TABLE_ENTRY_BYTES;
        if length > L1_TABLE_MAX_BYTES {
            let max = L1_TABLE_MAX_BYTES / TABLE_ENTRY_BYTES;
            return corrupt(self.size_field, self.entries.into(), Violation::L1TooLarge { max });
        }
        if !geometry.cluster_bits.is_aligned(self.at.0) {
            let cluster_size = geometry.cluster_bits.bytes();
            return corrupt(self.offset_field, self.at.0, Violation::Unaligned { cluster_size });
        }
        let file_length = storage.length().map_err(Error::io("read the image's length", 0))?;
        if length > 0 && self.at.checked_add(length).is_none_or(|end| end.0 > file_length) {
            let violation = Violation::BeyondFile { length, file_length };
            return corrupt(self.offset_field, self.at.0, violation);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{ClusterBits, RefcountOrder};

    const GEOMETRY: Geometry = Geometry {
        cluster_bits: ClusterBits::DEFAULT,
        refcount_order: RefcountOrder::DEFAULT,
        extended_l2: false,
    };

    #[test]
    fn every_bit_of_an_entry_is_looked_at() {
        let decode = |raw| L1Entry::decode(raw, HostOffset(0x30_0008), GEOMETRY);
        let entry = decode(1 << 63 | 0x50_0000).unwrap();
        assert_eq!(entry, L1Entry { l2_table: Some(HostOffset(0x50_0000)), copied: true });
        assert_eq!(decode(0).unwrap(), L1Entry { l2_table: None, copied: false });
        for bit in 0..63 {
            let raw = 0x50_0000 | 1 << bit;
            let violation = match bit {
                16..=55 => None,
                9..=15 => Some(Violation::Unaligned { cluster_size: 65_536 }),
                _ => Some(Violation::ReservedBits { bits: 1 << bit }),
            };
            match (decode(raw), violation) {
                (Ok(_), None) => {}
                (Err(Error::Corrupt(field)), Some(violation)) => assert_eq!(
                    field,
                    FieldError { field: "L1 entry", value: raw, offset: 0x30_0008, violation }
                ),
                (result, _) => panic!("bit {bit}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_table_keeps_the_rules_wherever_it_is_named() {
        let storage = [0; 1 << 17];
        let read = |at, entries| {
            let place = L1Place {
                at: HostOffset(at),
                entries,
                offset_field: ("l1_table_offset", 40),
                size_field: ("l1_size", 36),
            };
            L1Table::read(&storage[..], place, GEOMETRY, 1 << 40).map(|table| table.entries.len())
        };
        let violation = |at, entries| match read(at, entries) {
            Err(Error::Corrupt(field)) => (field.offset, field.violation),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(1 << 16, 8192).unwrap(), 2048);
        assert_eq!(read(1 << 16, 3).unwrap(), 3);
        assert_eq!(violation(512, 1), (40, Violation::Unaligned { cluster_size: 65_536 }));
        assert_eq!(violation(1 << 16, 4 << 20 | 1), (36, Violation::L1TooLarge { max: 4 << 20 }));
        let beyond = Violation::BeyondFile { length: 8193 * 8, file_length: 1 << 17 };
        assert_eq!(violation(1 << 16, 8193), (40, beyond));
    }
}
