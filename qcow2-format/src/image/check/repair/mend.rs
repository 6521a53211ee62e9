//! Entries that break a rule, and what becomes of them.
//!
//! ```text
//! reserved bits, stray flags       cleared: what the entry names is kept
//! nowhere, past the end            zeros, or nothing, as it reads today
//! cannot be read                   zeros where the format has them, else nothing: lost, and named
//! elsewhere in a data file         where it has to lie: what was meant is lost, and named
//! ```
//!
//! Callers: `entries`.

use crate::address::GuestOffset;
use crate::compressed::CompressedDescriptor;
use crate::header::Version;
use crate::image::check::tables::L1Use;
use crate::image::check::walk::Subject;
use crate::io::ReadAt;
use crate::{l1, l2};

/// What an entry becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mended {
    pub(super) raw: u64,
    pub(super) bitmap: u64,
    /// Whether something that could not be read now reads as something else.
    pub(super) lost: bool,
}

/// What L1 entry `l1` becomes, if it breaks a rule.
pub(super) fn l1_entry(subject: &Subject<'_, impl ReadAt>, l1: &L1Use) -> Option<Mended> {
    let table = l1.table();
    let lost = !subject.cluster_bits().is_aligned(table);
    // An L2 table past the end of the file maps nothing.
    let raw = match lost || table == 0 || table >= subject.file_length {
        true => 0,
        false => l1.entry & !l1::RESERVED,
    };
    (raw != l1.entry).then_some(Mended { raw, bitmap: 0, lost })
}

/// What the L2 entry `raw` with `bitmap`, which maps `guest`, becomes if it breaks a rule.
pub(super) fn l2_entry(
    subject: &Subject<'_, impl ReadAt>,
    raw: u64,
    bitmap: u64,
    guest: GuestOffset,
) -> Option<Mended> {
    let mended = if raw & l2::COMPRESSED != 0 {
        compressed(subject, raw, bitmap)
    } else {
        standard(subject, raw, bitmap, guest)
    };
    (mended.raw != raw || mended.bitmap != bitmap).then_some(mended)
}

fn compressed(subject: &Subject<'_, impl ReadAt>, raw: u64, bitmap: u64) -> Mended {
    let descriptor = CompressedDescriptor::decode(raw, subject.cluster_bits());
    let inside = subject.within(descriptor.host().0, descriptor.length()).is_some();
    if !inside && let Some(raw) = shortened(subject, raw) {
        return Mended { raw: raw & !l2::COPIED, bitmap: 0, lost: false };
    }
    if subject.has_data_file() || !inside {
        return Mended { lost: true, ..zeros(subject, bitmap | 0xffff_ffff) };
    }
    Mended { raw: raw & !l2::COPIED, bitmap: 0, lost: false }
}

/// The compressed entry with so many sectors fewer that it ends where the file does: what it names can be
/// read all the same.
fn shortened(subject: &Subject<'_, impl ReadAt>, raw: u64) -> Option<u64> {
    let bits = subject.cluster_bits();
    // The number of sectors lies above the offset: at most 13 bits.
    let unit = 1_u64 << 62_u32.saturating_sub(bits.to_u32().saturating_sub(8));
    let sectors = (raw & (l2::COMPRESSED - 1)) / unit;
    (1..=sectors).filter(|_| !subject.has_data_file()).find_map(|fewer| {
        let raw = raw.saturating_sub(fewer.saturating_mul(unit));
        let descriptor = CompressedDescriptor::decode(raw, bits);
        let inside = descriptor.host().0 < subject.file_length
            && subject.within(descriptor.host().0, descriptor.length()).is_some();
        inside.then_some(raw)
    })
}

fn standard(
    subject: &Subject<'_, impl ReadAt>,
    raw: u64,
    bitmap: u64,
    guest: GuestOffset,
) -> Mended {
    let extended = subject.header.geometry.extended_l2;
    let v2 = subject.header.version == Version::V2;
    let mut raw = raw & !l2::RESERVED;
    if raw & l2::ZERO != 0 && (v2 || extended) {
        raw &= !l2::ZERO;
        if v2 {
            // Nobody reads such an entry. Whether it means zeros or has one bit too many nobody can
            // tell: what it names is kept.
            return Mended { lost: true, ..standard(subject, raw, bitmap, guest) };
        }
    }
    let zero = raw & l2::ZERO != 0;
    let host = raw & l2::OFFSET;
    let (stored, zeroed) = (bitmap & 0xffff_ffff, bitmap >> 32);
    let both = stored & zeroed;
    let bitmap = bitmap & !both;
    let copied = raw & l2::COPIED != 0;
    if host == 0 && (zero || !subject.has_data_file() || !copied) {
        let lost = extended && stored != 0;
        let bitmap = if lost { zeros(subject, bitmap).bitmap } else { bitmap };
        return Mended { raw, bitmap, lost };
    }
    if subject.has_data_file() {
        // There, a cluster lies where it lies on the guest's disk: nobody reads it from elsewhere.
        let lost = both != 0 || host != guest.0;
        return Mended { raw: raw & !l2::OFFSET | guest.0, bitmap, lost };
    }
    let aligned = subject.cluster_bits().is_aligned(host);
    if aligned && host < subject.file_length {
        return Mended { raw, bitmap, lost: both != 0 };
    }
    // What lies past the end of the file reads as zeros already.
    let data = if extended { stored != 0 } else { !zero };
    let backed = v2 && subject.header.backing_file.is_some();
    Mended { lost: !aligned || data && backed, ..zeros(subject, bitmap) }
}

/// The entry of a cluster that is not stored any more; its stored subclusters are zeros.
fn zeros(subject: &Subject<'_, impl ReadAt>, bitmap: u64) -> Mended {
    let (extended, v2) =
        (subject.header.geometry.extended_l2, subject.header.version == Version::V2);
    let raw = if extended || v2 { 0 } else { l2::ZERO };
    let bitmap = if extended { (bitmap | bitmap << 32) & 0xffff_ffff_0000_0000 } else { 0 };
    Mended { raw, bitmap, lost: false }
}
