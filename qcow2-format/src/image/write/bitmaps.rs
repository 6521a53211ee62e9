//! Persistent dirty bitmaps, which this library does not keep up to date (spec: "Bitmaps").
//!
//! ```text
//! directory   [ entry: table, size, flags, … name ][ entry … ]
//!                                   └ bit 0, in_use: the bitmap may be wrong
//! ```
//!
//! Before the first write every bitmap is marked in use, as a program does that will store it later
//! and then does not: whoever opens the image afterwards knows that it is inconsistent.
//! Callers: `write`.

use crate::bitmap::{self, Bitmap};
use crate::error::{Error, Result};
use crate::header::Header;
use crate::io::WriteAt;

/// Where an entry has its flags.
const FLAGS: u64 = 12;

/// Where the bitmap directory lies and how long it is, if the header vouches for it.
pub(super) fn directory(header: &Header) -> Option<(u64, u64)> {
    bitmap::directory(header)
        .map(|bitmaps| (bitmaps.bitmap_directory_offset, bitmaps.bitmap_directory_size))
}

/// Marks every bitmap as one that may be wrong.
pub(super) fn mark_in_use(storage: &impl WriteAt, header: &Header) -> Result<()> {
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
