//! The snapshot table of an image that may be damaged.
//!
//! ```text
//! entries ─▶ where the L1 tables lie, one line for each that is wrong
//! ```
//!
//! As in QEMU, what lies past the end of the file is zeros. An entry that says where the next one
//! starts in a way no table can is an error: nothing behind it can be found. Callers: `check`,
//! `repair`.

use zerocopy::FromBytes;

use crate::address::HostOffset;
use crate::error::{Error, Result, Violation};
use crate::geometry::{L1_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::header::{Header, SNAPSHOTS_MAX, Version};
use crate::image::check::finding::Finding;
use crate::image::check::header::{check_snapshot_table, corrupt};
use crate::io::{ReadAt, zeroed};
use crate::raw::RawSnapshot;
use crate::snapshot::{EXTRA_DATA_MAX_BYTES, TABLE_MAX_BYTES};

/// Extra data that version 3 demands: the size of the machine's state and of the disk.
pub(super) const EXTRA_DATA_MIN_BYTES: u32 = 16;

/// The L1 table of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) struct SnapshotL1 {
    pub(in crate::image) at: HostOffset,
    pub(in crate::image) entries: u32,
}

#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Of those that can be followed.
    pub(super) tables: Vec<SnapshotL1>,
    /// Bytes of the snapshot table.
    pub(super) length: u64,
}

/// An entry of the table.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) raw: RawSnapshot,
    pub(super) extra: Vec<u8>,
    pub(super) id: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// Shows `each` the entries of the table, in order, with where they end. Extra data that is too long
/// is an error unless `repairing`; then the start of it is kept.
pub(super) fn entries(
    storage: &impl ReadAt,
    header: &Header,
    repairing: bool,
    mut each: impl FnMut(u32, Entry) -> Result<()>,
) -> Result<u64> {
    check_snapshot_table(header, repairing)?;
    let start = header.snapshots_offset.0;
    let mut end = start;
    for index in 0..header.nb_snapshots.min(SNAPSHOTS_MAX) {
        let at = end.next_multiple_of(8);
        let fixed = bytes(storage, at, size_of::<RawSnapshot>() as u64)?;
        let Ok((raw, _)) = RawSnapshot::read_from_prefix(&fixed) else { break };
        let extra_size = raw.extra_data_size.get();
        if extra_size > EXTRA_DATA_MAX_BYTES && !repairing {
            let place = at.saturating_add(36);
            let violation = Violation::SnapshotExtraData;
            return Err(corrupt("snapshot's extra_data_size", extra_size.into(), place, violation));
        }
        let behind = at.saturating_add(size_of::<RawSnapshot>() as u64);
        let extra = bytes(storage, behind, extra_size.min(EXTRA_DATA_MAX_BYTES).into())?;
        let behind = behind.saturating_add(extra_size.into());
        let id = bytes(storage, behind, raw.id_str_size.get().into())?;
        let behind = behind.saturating_add(id.len() as u64);
        let name = bytes(storage, behind, raw.name_size.get().into())?;
        end = behind.saturating_add(name.len() as u64);
        if end.saturating_sub(start) > TABLE_MAX_BYTES {
            if repairing {
                return Ok(at);
            }
            let violation = Violation::SnapshotTableTooLarge;
            return Err(corrupt("nb_snapshots", header.nb_snapshots.into(), 60, violation));
        }
        each(index, Entry { raw, extra, id, name })?;
    }
    Ok(end)
}

/// Reads the table; `found` hears of what is wrong with it.
pub(super) fn read(
    storage: &impl ReadAt,
    header: &Header,
    repairing: bool,
    mut found: impl FnMut(Finding) -> Result<()>,
) -> Result<Snapshots> {
    let mut tables = Vec::new();
    let v3 = header.version == Version::V3;
    let end = entries(storage, header, repairing, |index, entry| {
        let (at, entries) = (entry.raw.l1_table_offset.get(), entry.raw.l1_size.get());
        if v3 && entry.raw.extra_data_size.get() < EXTRA_DATA_MIN_BYTES {
            found(Finding::SnapshotIncomplete { index })?;
        }
        if !header.geometry.cluster_bits.is_aligned(at) {
            let (id, name) = (entry.id, entry.name);
            return found(Finding::SnapshotL1Unaligned { id, name, offset: HostOffset(at) });
        }
        if u64::from(entries) * TABLE_ENTRY_BYTES > L1_TABLE_MAX_BYTES {
            let (id, name) = (entry.id, entry.name);
            return found(Finding::SnapshotL1TooLarge { id, name, entries });
        }
        tables.push(SnapshotL1 { at: HostOffset(at), entries });
        Ok(())
    })?;
    Ok(Snapshots { tables, length: end.saturating_sub(header.snapshots_offset.0) })
}

/// Bytes of the file, zeros past its end. At most 64 KiB are asked for.
fn bytes(storage: &impl ReadAt, at: u64, length: u64) -> Result<Vec<u8>> {
    let doing = "read a snapshot";
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = zeroed(length).map_err(Error::io(doing, at))?;
    storage.read_full_at(&mut bytes, at).map_err(Error::io(doing, at))?;
    Ok(bytes)
}
