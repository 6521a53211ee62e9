//! Persistent bitmaps of an image that may be damaged (spec: "Bitmaps").
//!
//! ```text
//! directory ─▶ entries, each held to QEMU's rules ─▶ tables ─▶ clusters
//! ```
//!
//! QEMU does not open an image with a bitmap that breaks a rule. Here each is a finding, and the others
//! are followed. Callers: `check`, `repair`.

use std::collections::BTreeSet;
use std::ops::Range;

use zerocopy::FromBytes;

use crate::bitmap::{self, Bitmap};
use crate::error::Result;
use crate::feature::AutoclearFeatures;
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::header::Header;
use crate::header::extension::{self, HeaderExtension};
use crate::image::check::finding::Finding;
use crate::io::ReadAt;
use crate::raw::RawBitmaps;

/// Entries of a bitmap's table, at most.
const TABLE_MAX_ENTRIES: u64 = 0x800_0000;
/// Bytes of a bitmap, at most.
const BITMAP_MAX_BYTES: u64 = 512 << 20;
const NAME_MAX: usize = 1023;
/// Bytes of a directory, at most.
const DIRECTORY_MAX_BYTES: u64 = 64 << 20;
/// Extra data, and the flag that it may be ignored, nobody knows.
const FLAGS: u32 = Bitmap::IN_USE | Bitmap::AUTO;
/// Of a bitmap's table: offset, and the bit that says all ones.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED: u64 = !(OFFSET | ALL_ONES);
const ALL_ONES: u64 = 1;

/// The bitmaps that can be followed.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// Where the directory lies, in bytes, if there is one.
    pub(super) directory: Option<Range<u64>>,
    /// Where the bitmaps' tables lie, in bytes.
    pub(super) tables: Vec<Range<u64>>,
    /// Whether a rule is broken: others than these may be meant to be there.
    pub(super) broken: bool,
}

/// Where a bitmap directory lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    pub(super) place: extension::Bitmaps,
    /// Whether the extension that says so keeps the header's rules.
    pub(super) stated_well: bool,
}

/// Where the directory lies, if the header vouches for one and the file holds it; or what is wrong.
pub(super) fn directory(
    header: &Header,
    file_length: u64,
) -> Result<Option<Directory>, &'static str> {
    let well = bitmap::directory(header);
    let place = match well.or_else(|| badly_stated(header)) {
        Some(place) => place,
        None if is_vouched_for(header) && has_extension(header) => return Err(BAD_EXTENSION),
        None => return Ok(None),
    };
    let (start, size) = (place.bitmap_directory_offset, place.bitmap_directory_size);
    if start.checked_add(size).is_none_or(|end| end > file_length) {
        return Err("it lies past the end of the file");
    }
    Ok(Some(Directory { place, stated_well: well.is_some() }))
}

fn is_vouched_for(header: &Header) -> bool {
    header.autoclear_features().contains(AutoclearFeatures::BITMAPS)
}

/// The directory of an extension that breaks the header's rules, if it says a place where one can be.
fn badly_stated(header: &Header) -> Option<extension::Bitmaps> {
    let data = header.extensions().iter().find_map(|extension| match extension {
        HeaderExtension::Unknown { extension_type: HeaderExtension::BITMAPS, data } => Some(data),
        _ => None,
    })?;
    let raw = RawBitmaps::read_from_bytes(data).ok().filter(|_| is_vouched_for(header))?;
    let place = extension::Bitmaps {
        nb_bitmaps: raw.nb_bitmaps.get(),
        bitmap_directory_size: raw.bitmap_directory_size.get(),
        bitmap_directory_offset: raw.bitmap_directory_offset.get(),
    };
    let bits = header.geometry.cluster_bits;
    let can_be = bits.is_aligned(place.bitmap_directory_offset)
        && place.bitmap_directory_offset > 0
        && place.bitmap_directory_size <= DIRECTORY_MAX_BYTES;
    can_be.then_some(place)
}

/// Whether the header has an extension for bitmaps, be it well-formed or not.
pub(super) fn has_extension(header: &Header) -> bool {
    let wanted = HeaderExtension::BITMAPS;
    header.extensions().iter().any(|extension| extension.extension_type() == wanted)
}

/// Reads the bitmap directory, if the header vouches for one; `found` hears of what is wrong with it.
pub(super) fn read(
    storage: &impl ReadAt,
    header: &Header,
    file_length: u64,
    mut found: impl FnMut(Finding),
) -> Result<Bitmaps> {
    let directory = match directory(header, file_length) {
        Ok(None) => return Ok(Bitmaps::default()),
        Ok(Some(directory)) => directory,
        Err(what) => {
            found(Finding::BitmapDirectory { what });
            return Ok(Bitmaps { broken: true, ..Bitmaps::default() });
        }
    };
    let Directory { place, stated_well } = directory;
    let (start, size) = (place.bitmap_directory_offset, place.bitmap_directory_size);
    let mut bitmaps =
        Bitmaps { directory: Some(start..start.saturating_add(size)), ..Bitmaps::default() };
    if !stated_well {
        found(Finding::BitmapDirectory { what: BAD_EXTENSION });
        bitmaps.broken = true;
    }
    let bytes = bitmap::read(storage, place)?;
    let mut rules = Rules::new(header);
    let mut count = 0_u32;
    for entry in bitmap::entries(&bytes, start) {
        let Ok((bitmap, _)) = entry else {
            found(Finding::BitmapDirectory { what: BROKEN_ENTRY });
            bitmaps.broken = true;
            return Ok(bitmaps);
        };
        count = count.saturating_add(1);
        match rules.table(&bitmap) {
            Ok(table) => bitmaps.tables.push(table),
            Err(what) => {
                found(Finding::Bitmap { name: bitmap.name, what });
                bitmaps.broken = true;
            }
        }
    }
    if count != place.nb_bitmaps {
        let what = "it has not as many entries as the header says";
        found(Finding::BitmapDirectory { what });
        bitmaps.broken = true;
    }
    Ok(bitmaps)
}

/// Of an extension that breaks the header's own rules.
const BAD_EXTENSION: &str = "the header's extension breaks a rule";
/// Of an entry behind which no other is found.
pub(super) const BROKEN_ENTRY: &str = "an entry does not end where the directory does";

/// QEMU's rules for the entries of a directory.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    header: &'a Header,
    /// As QEMU compares them.
    names: BTreeSet<Vec<u8>>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(header: &'a Header) -> Self {
        Self { header, names: BTreeSet::new() }
    }

    /// Where the table of the next bitmap lies, in bytes; or the rule it breaks.
    pub(super) fn table(&mut self, bitmap: &Bitmap) -> Result<Range<u64>, &'static str> {
        let header = self.header;
        let cluster_bits = header.geometry.cluster_bits;
        let (table, entries) = (bitmap.table_offset.0, u64::from(bitmap.table_size));
        let granularity = bitmap.granularity_bits;
        let bytes = entries.saturating_mul(cluster_bits.bytes());
        let bits = header.virtual_size.div_ceil(1 << granularity.min(31));
        let needed = cluster_bits.clusters(bits.div_ceil(8));
        let wrong = [
            (
                entries == 0 || entries > TABLE_MAX_ENTRIES || bytes > BITMAP_MAX_BYTES,
                "its table has no entries, or too many",
            ),
            (table == 0 || !cluster_bits.is_aligned(table), "its table is not aligned"),
            (!(9..=31).contains(&granularity), "its granularity is out of range"),
            (bitmap.flags & !FLAGS != 0, "it has reserved flags"),
            (
                bitmap.name.is_empty() || bitmap.name.len() > NAME_MAX,
                "it has no name, or one that is too long",
            ),
            (bitmap.kind != 1, "its type is unknown"),
            (bitmap.has_extra_data, "it has extra data"),
            (
                !bitmap.is_in_use() && needed != entries,
                "its table is not as long as the disk needs",
            ),
        ];
        if let Some((_, what)) = wrong.iter().find(|(wrong, _)| *wrong) {
            return Err(what);
        }
        let end = table.checked_add(entries.saturating_mul(TABLE_ENTRY_BYTES));
        let end = end.ok_or("its table is not aligned")?;
        let name = bitmap.name.split(|byte| *byte == 0).next().unwrap_or_default();
        if !self.names.insert(name.to_vec()) {
            return Err("another has its name");
        }
        Ok(table..end)
    }
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
