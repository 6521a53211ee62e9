//! The header of an image that may be damaged: what only a check looks at is no reason not to open it.
//!
//! ```text
//! as stored ─▶ snapshot fields, refcount table set aside ─▶ parsed, as if the file never ended ─▶ put back
//!                 └ and what else breaks a rule that a check can do without: `Aside`
//! ```
//!
//! What is left must hold, since nothing can be found without it: cluster size and widths, features,
//! that the place of the active L1 table is aligned. Callers: `check`, `repair`.

use crate::address::HostOffset;
use crate::error::{Error, FieldError, Result, Violation};
use crate::feature::AutoclearFeatures;
use crate::geometry::REFCOUNT_TABLE_MAX_BYTES;
use crate::header::{Header, SNAPSHOTS_MAX};
use crate::io::{ReadAt, zeroed};

/// As if the file never ended; the sum of any offset and length that is looked at stays below 2^64.
const ENDLESS: u64 = 1 << 63;
/// `refcount_table_offset` and `refcount_table_clusters`.
const REFCOUNT_FIELDS: std::ops::Range<usize> = 48..60;
/// `nb_snapshots` and `snapshots_offset`.
const SNAPSHOT_FIELDS: std::ops::Range<usize> = 60..72;
const BACKING_OFFSET: usize = 8;
const BACKING_SIZE: usize = 16;
const L1_OFFSET: usize = 40;
/// The last byte of `autoclear_features`.
const AUTOCLEAR_LOW: usize = 95;
/// The largest cluster holds any header.
const HEADER_MAX: u64 = 2 << 20;

/// Reads the header; its refcount table and its snapshots may be anything, and its tables may lie
/// past the end of the file.
pub(super) fn read(storage: &(impl ReadAt + ?Sized)) -> Result<Header> {
    let doing = "read the header";
    let length = storage.length().map_err(Error::io("read the image's length", 0))?;
    let length = usize::try_from(length.min(HEADER_MAX)).unwrap_or(usize::MAX);
    let mut start = zeroed(length).map_err(Error::io(doing, 0))?;
    let count = storage.read_full_at(&mut start, 0).map_err(Error::io(doing, 0))?;
    start.truncate(count);
    let mut refcounts = [0; 12];
    let mut snapshots = [0; 12];
    for (fields, range) in [(&mut refcounts, REFCOUNT_FIELDS), (&mut snapshots, SNAPSHOT_FIELDS)] {
        if let Some(place) = start.get_mut(range) {
            fields.copy_from_slice(place);
            place.fill(0);
        }
    }
    // An image must have a refcount table somewhere; the second cluster will do.
    let cluster = start
        .get(20..24)
        .and_then(<[u8]>::first_chunk)
        .and_then(|bits| 1_u64.checked_shl(u32::from_be_bytes(*bits)))
        .unwrap_or_default();
    if let Some(place) = start.get_mut(REFCOUNT_FIELDS) {
        for (to, from) in
            place.iter_mut().zip(cluster.to_be_bytes().into_iter().chain([0, 0, 0, 1]))
        {
            *to = from;
        }
    }
    let mut aside = Aside::default();
    let mut header = loop {
        match Header::parse(&start, ENDLESS) {
            Err(Error::Corrupt(error)) if aside.takes(&error, &mut start, cluster) => {}
            other => break other?,
        }
    };
    aside.put_back(&mut header);
    header.check_data_file()?;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let word = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let (offset, clusters) = refcounts.split_at(8);
    header.refcount_table_offset = HostOffset(number(offset));
    header.refcount_table_clusters = word(number(clusters));
    let (count, offset) = snapshots.split_at(4);
    header.nb_snapshots = word(number(count));
    header.snapshots_offset = HostOffset(number(offset));
    Ok(header)
}

/// What is read as if it were something else, each at most once.
#[derive(Debug, Default)]
struct Aside {
    /// The bit that vouches for bitmaps where there are none, or none that can be found.
    bitmaps: bool,
    /// An L1 table that is said to be the header.
    l1: bool,
    /// A backing file's name in the header.
    name_place: bool,
    /// A backing file's name with a NUL: for QEMU it ends there. Nobody follows it.
    name: bool,
    has_backing: bool,
}

impl Aside {
    /// Whether the rule that is broken does not matter here; `start` then keeps it.
    fn takes(&mut self, error: &FieldError, start: &mut [u8], cluster: u64) -> bool {
        let (flag, at, bytes) = match error.violation {
            _ if is_of_bitmaps(error) => {
                let low = start.get(AUTOCLEAR_LOW).copied().unwrap_or_default() & 0xfe;
                (&mut self.bitmaps, AUTOCLEAR_LOW, vec![low])
            }
            Violation::OverlapsHeader if error.field == "l1_table_offset" => {
                (&mut self.l1, L1_OFFSET, cluster.to_be_bytes().to_vec())
            }
            Violation::BackingNameInHeader { .. } => {
                self.has_backing = start.get(BACKING_SIZE..BACKING_SIZE + 4) != Some(&[0; 4]);
                (&mut self.name_place, BACKING_OFFSET, vec![0; 8])
            }
            Violation::NameWithNul if error.field == "backing file name" => {
                let name = start.get(BACKING_OFFSET..).and_then(<[u8]>::first_chunk);
                let name = name.map_or(0, |at| u64::from_be_bytes(*at));
                let length = u32::try_from(error.offset.saturating_sub(name)).unwrap_or(0);
                (&mut self.name, BACKING_SIZE, length.to_be_bytes().to_vec())
            }
            _ => return false,
        };
        let Some(place) = start.get_mut(at..at.saturating_add(bytes.len())) else { return false };
        place.copy_from_slice(&bytes);
        !std::mem::replace(flag, true)
    }

    fn put_back(self, header: &mut Header) {
        if self.bitmaps {
            header.autoclear = header.autoclear.with(AutoclearFeatures::BITMAPS, true);
        }
        if self.l1 {
            header.l1_table_offset = HostOffset(0);
        }
        if self.has_backing {
            header.backing_file = Some(Vec::new());
        }
    }
}

/// Whether the rule that is broken is one of the extension for bitmaps, or of the bit that vouches for it.
fn is_of_bitmaps(error: &FieldError) -> bool {
    let fields = [
        "bitmaps extension",
        "nb_bitmaps",
        "bitmaps reserved",
        "bitmap_directory_size",
        "bitmap_directory_offset",
    ];
    fields.contains(&error.field)
}

/// That the refcount table is where one can be.
pub(super) fn check_refcount_table(header: &Header) -> Result<()> {
    let cluster_size = header.geometry.cluster_bits.bytes();
    let (at, clusters) = (header.refcount_table_offset.0, header.refcount_table_clusters);
    let max = REFCOUNT_TABLE_MAX_BYTES / cluster_size;
    if u64::from(clusters) > max {
        let violation = Violation::RefcountTableTooLarge { max };
        return Err(corrupt("refcount_table_clusters", clusters.into(), 56, violation));
    }
    if !header.geometry.cluster_bits.is_aligned(at) || at >= ENDLESS {
        return Err(corrupt(
            "refcount_table_offset",
            at,
            48,
            Violation::Unaligned { cluster_size },
        ));
    }
    Ok(())
}

/// That the snapshot table is where one can be; where `repairing`, it may have too many entries.
pub(super) fn check_snapshot_table(header: &Header, repairing: bool) -> Result<()> {
    let (at, count) = (header.snapshots_offset.0, header.nb_snapshots);
    if count > SNAPSHOTS_MAX && !repairing {
        return Err(corrupt("nb_snapshots", count.into(), 60, Violation::TooManySnapshots));
    }
    let cluster_size = header.geometry.cluster_bits.bytes();
    if !header.geometry.cluster_bits.is_aligned(at) || at >= ENDLESS {
        return Err(corrupt("snapshots_offset", at, 64, Violation::Unaligned { cluster_size }));
    }
    Ok(())
}

pub(super) fn corrupt(field: &'static str, value: u64, offset: u64, violation: Violation) -> Error {
    FieldError { field, value, offset, violation }.into()
}
