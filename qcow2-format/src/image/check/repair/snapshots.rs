//! A snapshot table whose entries lack what version 3 demands, have too much, or lead nowhere, made
//! anew.
//!
//! ```text
//! entry as stored ─┬▶ kept, with the sizes of state and disk added, extra data cut
//!                  └▶ its L1 table cannot be found: left out, and named
//! ```
//!
//! Callers: `repair`.

use zerocopy::IntoBytes;

use crate::address::HostOffset;
use crate::error::{Error, Result};
use crate::geometry::{L1_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::header::{Header, SNAPSHOTS_MAX, Version};
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Cut, Fixes, NewSnapshots};
use crate::image::check::snapshots::{EXTRA_DATA_MIN_BYTES, Entry, SnapshotL1, entries};
use crate::image::check::walk::Subject;
use crate::io::ReadAt;
use crate::snapshot::EXTRA_DATA_MAX_BYTES;

/// The table that should replace the one there is, if one should. The L1 tables that start where
/// `lost` says are none.
pub(super) fn renewed<S: ReadAt>(
    subject: &Subject<'_, S>,
    lost: &[u64],
    cut: &Cut,
    fixes: &mut Fixes<'_>,
) -> Result<Option<NewSnapshots>> {
    let header = &subject.header;
    let mut new = NewSnapshots { bytes: Vec::new(), kept: 0, tables: Vec::new() };
    // Of a count that no image has, the first are read.
    let mut changed = header.nb_snapshots > SNAPSHOTS_MAX;
    let (start, length) = (header.snapshots_offset.0, subject.snapshots.length);
    // There, only zeros are found.
    let beyond = subject.within(start, length).is_none();
    let mut gone = Vec::new();
    let mut seen = 0_u32;
    entries(subject.storage, header, true, |_, mut entry| {
        seen = seen.saturating_add(1);
        let at = entry.raw.l1_table_offset.get();
        if let Some(entries) = cut.get(&(at, entry.raw.l1_size.get())) {
            changed = true;
            entry.raw.l1_size = (*entries).into();
        }
        let bytes = u64::from(entry.raw.l1_size.get()) * TABLE_ENTRY_BYTES;
        let leads = header.geometry.cluster_bits.is_aligned(at)
            && bytes <= L1_TABLE_MAX_BYTES
            && subject.within(at, bytes).is_some()
            && !subject.has_data_file()
            && !lost.contains(&at);
        let nameless = entry.id.is_empty() && entry.name.is_empty();
        if !leads || nameless && (beyond || header.nb_snapshots > SNAPSHOTS_MAX) {
            changed = true;
            if !nameless {
                gone.push(Fix::SnapshotLost { id: entry.id, name: entry.name });
            }
            return Ok(());
        }
        new.tables.push(SnapshotL1 { at: HostOffset(at), entries: entry.raw.l1_size.get() });
        new.kept = new.kept.saturating_add(1);
        changed |= append(&mut new.bytes, entry, header)?;
        Ok(())
    })?;
    // Behind an entry that is too long no other is found.
    changed |= seen < header.nb_snapshots.min(SNAPSHOTS_MAX);
    if !changed {
        return Ok(None);
    }
    for fix in &gone {
        fixes.tell(fix);
    }
    Ok(Some(new))
}

/// Adds to `cut` the L1 tables that are longer than their disks and machine states need, and are said to
/// reach past the end of the file or into clusters that are `taken`.
pub(super) fn too_long<S: ReadAt>(
    subject: &Subject<'_, S>,
    taken: &[u64],
    cut: &mut Cut,
) -> Result<()> {
    let header = &subject.header;
    let bits = header.geometry.cluster_bits;
    entries(subject.storage, header, true, |_, entry| {
        let (at, claimed) = (entry.raw.l1_table_offset.get(), entry.raw.l1_size.get());
        let Some(needed) = needed(&entry, header).filter(|needed| *needed < claimed) else {
            return Ok(());
        };
        let bytes = |entries: u32| u64::from(entries) * TABLE_ENTRY_BYTES;
        let there =
            bytes(claimed) <= L1_TABLE_MAX_BYTES && subject.within(at, bytes(claimed)).is_some();
        let behind = bits.clusters(at.saturating_add(bytes(needed)))
            ..bits.clusters(at.saturating_add(bytes(claimed)));
        let reaches = taken.iter().any(|cluster| behind.contains(cluster));
        let fits = bits.is_aligned(at) && subject.within(at, bytes(needed)).is_some();
        if fits && (!there || reaches) {
            cut.insert((at, claimed), needed);
        }
        Ok(())
    })?;
    Ok(())
}

/// L1 entries for the snapshot's disk, and for the state of the machine that lies behind it.
fn needed(entry: &Entry, header: &Header) -> Option<u32> {
    let number = |at: usize| {
        let bytes: [u8; 8] = entry.extra.get(at..at.checked_add(8)?)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    let disk = number(8).unwrap_or(header.virtual_size);
    let state = number(0).unwrap_or(entry.raw.vm_state_size.get().into());
    let span = header.geometry.l1_entry_span();
    let entries = header.geometry.l1_entries(disk).checked_add(state.div_ceil(span))?;
    u32::try_from(entries).ok()
}

/// Appends `entry` to the table in `bytes`; whether it was changed for that.
fn append(bytes: &mut Vec<u8>, mut entry: Entry, header: &Header) -> Result<bool> {
    let stored = entry.raw.extra_data_size.get();
    let mut changed = stored > EXTRA_DATA_MAX_BYTES;
    if header.version == Version::V3 && stored < EXTRA_DATA_MIN_BYTES {
        changed = true;
        let state = u64::from(entry.raw.vm_state_size.get()).to_be_bytes();
        let disk = header.virtual_size.to_be_bytes();
        let standard = state.into_iter().chain(disk);
        let missing = standard.skip(if stored < 8 { 0 } else { 8 });
        entry.extra.truncate(if stored < 8 { 0 } else { 8 });
        entry.extra.extend(missing);
    }
    entry.raw.extra_data_size = u32::try_from(entry.extra.len()).unwrap_or(0).into();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let parts = [entry.raw.as_bytes(), &entry.extra, &entry.id, &entry.name];
    let more = parts.iter().map(|part| part.len()).sum();
    if bytes.try_reserve(more).is_err() {
        let error = std::io::ErrorKind::OutOfMemory.into();
        return Err(Error::io("make a snapshot table", 0)(error));
    }
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(changed)
}
