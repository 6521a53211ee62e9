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

use crate::bitmap::{self, Bitmap};
use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::header::Header;
use crate::io::{WriteAt, read_table};

/// Where an entry has its flags.
const FLAGS: u64 = 12;
/// QEMU's ceiling for a bitmap's table.
const TABLE_MAX_BYTES: u64 = 0x800_0000 * TABLE_ENTRY_BYTES;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the bitmap directory lies and how long it is, if the header vouches for it.
pub(super) fn directory(header: &Header) -> Option<(u64, u64)> {
    bitmap::directory(header)
        .map(|bitmaps| (bitmaps.bitmap_directory_offset, bitmaps.bitmap_directory_size))
}

/// What bitmaps take of the file: a table, and the clusters it names.
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) clusters: Vec<u64>,
}

/// Marks every bitmap as one that may be wrong.
pub(in crate::image) fn mark_in_use(storage: &impl WriteAt, header: &Header) -> Result<()> {
    for bitmap in Bitmap::read_directory(storage, header)? {
        if !bitmap.is_in_use() {
            let place = bitmap.at.0.saturating_add(FLAGS);
            storage
                .write_all_at(&(bitmap.flags | Bitmap::IN_USE).to_be_bytes(), place)
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
    for bitmap in Bitmap::read_directory(storage, header)? {
        let start = bitmap.table_offset.to_u64();
        let length = u64::from(bitmap.table_size) * TABLE_ENTRY_BYTES;
        // Tables that do not overlap fit into the file together.
        let fits = start.checked_add(length).is_some_and(|end| end <= file_length);
        if !fits || length > left || length > TABLE_MAX_BYTES {
            let (field, value, offset) = ("bitmap_table_offset", start, bitmap.at.0);
            let violation = Violation::BeyondFile { length, file_length };
            return Err(FieldError { field, value, offset, violation }.into());
        }
        left -= length;
        let count = bitmap.table_size.into();
        let words = read_table(storage, start, count, "read a bitmap table")?;
        let clusters = words.into_iter().map(|word| word & OFFSET).filter(|at| *at != 0).collect();
        each(Table { offset: start, length, clusters })?;
    }
    Ok(())
}
