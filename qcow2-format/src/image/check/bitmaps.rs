//! Persistent bitmaps of an image that may be damaged (spec: "Bitmaps").
//!
//! ```text
//! directory ─▶ entries, each held to QEMU's rules ─▶ tables ─▶ clusters
//! ```
//!
//! A directory that breaks a rule is one finding, and what it would name is not known: QEMU does not
//! open such an image at all. Callers: `check`, `repair`.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::feature::AutoclearFeatures;
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::header::Header;
use crate::header::extension::HeaderExtension;
use crate::io::{ReadAt, zeroed};

/// The fixed part of an entry.
const ENTRY_BYTES: usize = 24;
/// Entries of a bitmap's table, at most.
const TABLE_MAX_ENTRIES: u64 = 0x800_0000;
/// Bytes of a bitmap, at most.
const BITMAP_MAX_BYTES: u64 = 512 << 20;
const NAME_MAX: u64 = 1023;
const IN_USE: u64 = 1;
/// `in_use`, `auto` and `extra_data_compatible`.
const FLAGS: u64 = 0b111;
/// Of a bitmap's table: offset, and the bit that says all ones.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED: u64 = !(OFFSET | ALL_ONES);
const ALL_ONES: u64 = 1;

#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// Where the directory lies, in bytes, if there is one.
    pub(super) directory: Option<Range<u64>>,
    /// Where the bitmaps' tables lie, in bytes.
    pub(super) tables: Vec<Range<u64>>,
    /// What is wrong with the directory.
    pub(super) broken: Option<&'static str>,
}

/// Reads the bitmap directory, if the header vouches for one.
pub(super) fn read(storage: &impl ReadAt, header: &Header) -> Result<Bitmaps> {
    let vouched = header.autoclear_features().contains(AutoclearFeatures::BITMAPS);
    let extension = header.extensions().iter().find_map(|extension| match extension {
        HeaderExtension::Bitmaps(bitmaps) if vouched => Some(*bitmaps),
        _ => None,
    });
    let Some(extension) = extension else { return Ok(Bitmaps::default()) };
    let (start, size) = (extension.bitmap_directory_offset, extension.bitmap_directory_size);
    let doing = "read the bitmap directory";
    // The header's rules: at most 64 MiB. What lies past the end of the file is zeros.
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = zeroed(length).map_err(Error::io(doing, start))?;
    storage.read_full_at(&mut bytes, start).map_err(Error::io(doing, start))?;
    let mut bitmaps =
        Bitmaps { directory: Some(start..start.saturating_add(size)), ..Bitmaps::default() };
    let mut rest = bytes.as_slice();
    let mut count = 0_u32;
    while !rest.is_empty() {
        let (length, table) = match entry(rest, header) {
            Ok(entry) => entry,
            Err(what) => {
                bitmaps.broken = Some(what);
                return Ok(bitmaps);
            }
        };
        bitmaps.tables.push(table);
        count = count.saturating_add(1);
        rest = rest.get(length..).unwrap_or_default();
    }
    if count != extension.nb_bitmaps {
        bitmaps.broken = Some("it has not as many entries as the header says");
    }
    Ok(bitmaps)
}

/// The length of the entry that `bytes` start with, and where its table lies.
fn entry(bytes: &[u8], header: &Header) -> Result<(usize, Range<u64>), &'static str> {
    let number = |place: usize, width: usize| {
        let bytes = bytes.get(place..place + width).unwrap_or_default();
        bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (table, entries, flags) = (number(0, 8), number(8, 4), number(12, 4));
    let (kind, granularity, name, extra) =
        (number(16, 1), number(17, 1), number(18, 2), number(20, 4));
    let length = (ENTRY_BYTES as u64).saturating_add(extra).saturating_add(name);
    let length = usize::try_from(length.next_multiple_of(8)).unwrap_or(usize::MAX);
    let cluster_bits = header.geometry.cluster_bits;
    let bytes_of_bitmap = entries.saturating_mul(cluster_bits.bytes());
    let needed = header.virtual_size.div_ceil(8).div_ceil(1 << granularity.min(31));
    let wrong = [
        (length > bytes.len(), "an entry does not end where the directory does"),
        (
            entries == 0 || entries > TABLE_MAX_ENTRIES || bytes_of_bitmap > BITMAP_MAX_BYTES,
            "a bitmap's table has no entries, or too many",
        ),
        (table == 0 || !cluster_bits.is_aligned(table), "a bitmap's table is not aligned"),
        (!(9..=31).contains(&granularity), "a bitmap's granularity is out of range"),
        (flags & !FLAGS != 0, "a bitmap has reserved flags"),
        (name == 0 || name > NAME_MAX, "a bitmap has no name, or one that is too long"),
        (kind != 1, "a bitmap has an unknown type"),
        (
            flags & IN_USE == 0 && needed > bytes_of_bitmap,
            "a bitmap's table is too short for the disk",
        ),
    ];
    if let Some((_, what)) = wrong.iter().find(|(wrong, _)| *wrong) {
        return Err(what);
    }
    let end = table.checked_add(entries * TABLE_ENTRY_BYTES);
    Ok((length, table..end.ok_or("a bitmap's table is not aligned")?))
}

/// Where the cluster lies that an entry of a bitmap's table names, if it does; `Err` if the entry is
/// none.
pub(super) fn cluster(entry: u64, header: &Header) -> Result<Option<u64>, ()> {
    let offset = entry & OFFSET;
    let aligned = header.geometry.cluster_bits.is_aligned(offset);
    if entry & RESERVED != 0 || !aligned || offset != 0 && entry & ALL_ONES != 0 {
        return Err(());
    }
    Ok((offset != 0).then_some(offset))
}
