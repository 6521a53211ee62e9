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
use crate::header::Header;
use crate::header::extension::HeaderExtension;
use crate::io::{WriteAt, zeroed};

const ENTRY_BYTES: usize = 24;
const FLAGS: usize = 12;
const IN_USE: u32 = 1;

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
    flags: u32,
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
        let flags = u32::try_from(number(FLAGS, 4)).unwrap_or(u32::MAX);
        entries.push(Entry { at: offset, flags });
        // Checked above: it lies in the directory.
        at += usize::try_from(needed).unwrap_or(usize::MAX);
    }
    Ok(entries)
}
