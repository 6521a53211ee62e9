//! Persistent dirty bitmaps, which this library does not keep up to date (spec: "Bitmaps").
//!
//! ```text
//! directory   [ entry: table, size, flags, … name ][ entry … ]
//!                                   └ bit 0, in_use: the bitmap may be wrong
//! ```
//!
//! Before the first write every bitmap is marked in use, as a program does that will store it later
//! and then does not: whoever opens the image afterwards knows that it is inconsistent.
//! Callers: `write`, `check::repair`.

use crate::error::{Error, FieldError, Result, Violation};
use crate::feature::AutoclearFeatures;
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::header::Header;
use crate::header::extension::HeaderExtension;
use crate::io::{WriteAt, read_table, zeroed};

const ENTRY_BYTES: usize = 24;
const FLAGS: usize = 12;
const IN_USE: u32 = 1;
/// QEMU's ceiling for a bitmap's table.
const TABLE_MAX_BYTES: u64 = 0x800_0000 * TABLE_ENTRY_BYTES;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the bitmap directory lies and how long it is, if the header vouches for it.
pub(super) fn directory(header: &Header) -> Option<(u64, u64)> {
    if !header.autoclear_features().contains(AutoclearFeatures::BITMAPS) {
        return None;
    }
    header.extensions().iter().find_map(|extension| match extension {
        HeaderExtension::Bitmaps(bitmaps) => {
            Some((bitmaps.bitmap_directory_offset, bitmaps.bitmap_directory_size))
        }
        _ => None,
    })
}

/// An entry of the directory.
struct Entry {
    /// Where it lies.
    at: u64,
    table: u64,
    table_entries: u32,
    flags: u32,
}

/// What bitmaps take of the file: a table, and the clusters it names.
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) clusters: Vec<u64>,
}

/// Marks every bitmap as one that may be wrong.
pub(in crate::image) fn mark_in_use(storage: &impl WriteAt, header: &Header) -> Result<()> {
    for entry in entries(storage, header)? {
        if entry.flags & IN_USE == 0 {
            let place = entry.at.saturating_add(FLAGS as u64);
            storage
                .write_all_at(&(entry.flags | IN_USE).to_be_bytes(), place)
                .map_err(Error::io("mark the bitmaps as in use", place))?;
        }
    }
    Ok(())
}

/// Tells `each` of the directory, without clusters of its own, and of each bitmap's table, one after
/// the other.
pub(super) fn tables(
    storage: &impl WriteAt,
    header: &Header,
    mut each: impl FnMut(Table) -> Result<()>,
) -> Result<()> {
    if let Some((offset, length)) = directory(header) {
        each(Table { offset, length, clusters: Vec::new() })?;
    }
    let file_length = storage.length().map_err(Error::io("read the image's length", 0))?;
    let mut left = file_length;
    for entry in entries(storage, header)? {
        let length = u64::from(entry.table_entries) * TABLE_ENTRY_BYTES;
        // Tables that do not overlap fit into the file together.
        let fits = entry.table.checked_add(length).is_some_and(|end| end <= file_length);
        if !fits || length > left || length > TABLE_MAX_BYTES {
            let (field, value, offset) = ("bitmap_table_offset", entry.table, entry.at);
            let violation = Violation::BeyondFile { length, file_length };
            return Err(FieldError { field, value, offset, violation }.into());
        }
        left -= length;
        let count = entry.table_entries.into();
        let words = read_table(storage, entry.table, count, "read a bitmap table")?;
        let clusters = words.into_iter().map(|word| word & OFFSET).filter(|at| *at != 0).collect();
        each(Table { offset: entry.table, length, clusters })?;
    }
    Ok(())
}

fn entries(storage: &impl WriteAt, header: &Header) -> Result<Vec<Entry>> {
    let Some((start, length)) = directory(header) else { return Ok(Vec::new()) };
    let count = header.extensions().iter().find_map(|extension| match extension {
        HeaderExtension::Bitmaps(bitmaps) => usize::try_from(bitmaps.nb_bitmaps).ok(),
        _ => None,
    });
    let count = count.unwrap_or_default();
    let doing = "read the bitmap directory";
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    // The header's rules: at most 64 MiB, and inside the file.
    let mut bytes = zeroed(size).map_err(Error::io(doing, start))?;
    storage.read_full_at(&mut bytes, start).map_err(Error::io(doing, start))?;
    let mut entries = Vec::new();
    let mut at = 0;
    while at < size && entries.len() < count {
        let entry = bytes.get(at..).unwrap_or_default();
        let number = |place: usize, width: usize| {
            let bytes = entry.get(place..place + width).unwrap_or_default();
            bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (name, extra) = (number(18, 2), number(20, 4));
        let needed = (ENTRY_BYTES as u64 + name + extra).next_multiple_of(8);
        let offset = start.saturating_add(at as u64);
        if needed > entry.len() as u64 {
            let (field, value) = ("bitmap directory entry", needed);
            let violation = Violation::BitmapDirectory;
            return Err(FieldError { field, value, offset, violation }.into());
        }
        let word = |place| u32::try_from(number(place, 4)).unwrap_or(u32::MAX);
        let table = number(0, 8);
        entries.push(Entry { at: offset, table, table_entries: word(8), flags: word(FLAGS) });
        // Checked above: it lies in the directory.
        at += usize::try_from(needed).unwrap_or(usize::MAX);
    }
    Ok(entries)
}
