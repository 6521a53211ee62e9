//! The bitmap directory (spec: "Bitmaps", "Bitmap directory"): which persistent dirty bitmaps there are.
//!
//! ```text
//! byte 0         24           + extra_data_size        next multiple of 8
//!      [ fixed  ][ extra data ][ name ][ 0 … ][ the next entry …
//! ```
//!
//! The header's rules bound the directory: at most 64 MiB, inside the file, at most 65,535 entries. It
//! is read when somebody asks for it; what the bitmaps hold is not. Callers: `image::write`, `image::check`,
//! disk-engine's `ops::info` and `ops::measure`.

use zerocopy::FromBytes;

use crate::address::HostOffset;
use crate::error::{Error, FieldError, Result, Violation};
use crate::feature::AutoclearFeatures;
use crate::header::Header;
use crate::header::extension::{Bitmaps, HeaderExtension};
use crate::io::{ReadAt, zeroed};
use crate::raw::RawBitmap;

/// A bitmap's entry in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, unique in the image.
    pub name: Vec<u8>,
    /// Where its table starts.
    pub table_offset: HostOffset,
    /// Number of entries in its table.
    pub table_size: u32,
    /// Its flags, those that the specification does not name as well.
    pub flags: u32,
    /// What it tells; 1 is which parts of the disk were written to.
    pub kind: u8,
    /// Bytes of the disk that a bit stands for are two to the power of this.
    pub granularity_bits: u8,
    /// Whether its entry has extra data, of which the specification names none.
    pub(crate) has_extra_data: bool,
    /// Where its entry lies.
    pub(crate) at: HostOffset,
}

impl Bitmap {
    /// The flag of a bitmap that was not stored when it was last used, and may be wrong.
    pub const IN_USE: u32 = 1;
    /// The flag of a bitmap that follows what is written to the disk.
    pub const AUTO: u32 = 2;
    /// The flag of a bitmap whose extra data may be ignored.
    pub const EXTRA_DATA_COMPATIBLE: u32 = 4;

    /// Whether it may be wrong.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        self.flags & Self::IN_USE != 0
    }

    /// Reads the bitmap directory of the image in `storage`, whose header is `header`. An image that
    /// does not vouch for its bitmaps has none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage; [`Error::Corrupt`] if an entry ends past the directory.
    pub fn read_directory(storage: &(impl ReadAt + ?Sized), header: &Header) -> Result<Vec<Self>> {
        let Some(bitmaps) = directory(header) else { return Ok(Vec::new()) };
        let bytes = read(storage, bitmaps)?;
        let count = usize::try_from(bitmaps.nb_bitmaps).unwrap_or(usize::MAX);
        let found = entries(&bytes, bitmaps.bitmap_directory_offset).take(count);
        found.map(|entry| entry.map(|(bitmap, _)| bitmap)).collect()
    }

    /// The entry at the start of `bytes`, which lie at `at`, and the bytes it takes.
    fn parse(bytes: &[u8], at: u64) -> Result<(Self, usize)> {
        let corrupt = |value: u64| FieldError {
            field: "bitmap directory entry",
            value,
            offset: at,
            violation: Violation::BitmapDirectory,
        };
        let (raw, behind) = RawBitmap::read_from_prefix(bytes)
            .map_err(|_| corrupt(size_of::<RawBitmap>() as u64))?;
        let (name_size, extra_size) = (raw.name_size.get(), raw.extra_data_size.get());
        // At most 24 bytes, 64 KiB and 4 GiB.
        let needed = (size_of::<RawBitmap>() as u64 + u64::from(name_size) + u64::from(extra_size))
            .next_multiple_of(8);
        if needed > bytes.len() as u64 {
            return Err(corrupt(needed).into());
        }
        let extra = usize::try_from(extra_size).unwrap_or(usize::MAX);
        let name = behind.get(extra..).and_then(|rest| rest.get(..usize::from(name_size)));
        let bitmap = Self {
            name: name.unwrap_or_default().to_vec(),
            table_offset: HostOffset(raw.bitmap_table_offset.get()),
            table_size: raw.bitmap_table_size.get(),
            flags: raw.flags.get(),
            kind: raw.kind,
            granularity_bits: raw.granularity_bits,
            has_extra_data: extra_size > 0,
            at: HostOffset(at),
        };
        Ok((bitmap, usize::try_from(needed).unwrap_or(usize::MAX)))
    }
}

/// Where the bitmap directory lies and how long it is, if the header vouches for it.
pub(crate) fn directory(header: &Header) -> Option<Bitmaps> {
    if !header.autoclear_features().contains(AutoclearFeatures::BITMAPS) {
        return None;
    }
    header.extensions().iter().find_map(|extension| match extension {
        HeaderExtension::Bitmaps(bitmaps) => Some(*bitmaps),
        _ => None,
    })
}

/// The bytes of the directory, which the header's rules hold to 64 MiB. What lies past the end of the
/// file is zeros.
pub(crate) fn read(storage: &(impl ReadAt + ?Sized), directory: Bitmaps) -> Result<Vec<u8>> {
    let start = directory.bitmap_directory_offset;
    let failed = || Error::io("read the bitmap directory", start);
    let size = usize::try_from(directory.bitmap_directory_size).unwrap_or(usize::MAX);
    let mut bytes = zeroed(size).map_err(failed())?;
    storage.read_full_at(&mut bytes, start).map_err(failed())?;
    Ok(bytes)
}

/// The entries of the directory in `bytes`, which lie at `start`, with the bytes that each takes. Behind
/// one that does not end where the directory does there is none.
pub(crate) fn entries(bytes: &[u8], start: u64) -> impl Iterator<Item = Result<(Bitmap, &[u8])>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // A difference of lengths in memory.
        let at = start.saturating_add((bytes.len() - rest.len()) as u64);
        let entry = Bitmap::parse(rest, at);
        let length = entry.as_ref().map_or(rest.len(), |(_, length)| *length);
        let (taken, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = behind;
        Some(entry.map(|(bitmap, _)| (bitmap, taken)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITMAPS: &[u8] = include_bytes!("../../testdata/images/bitmaps.qcow2");

    #[test]
    fn qemus_directory_is_read() {
        let found = Bitmap::read_directory(BITMAPS, &Header::read(BITMAPS).unwrap()).unwrap();
        assert!(!found.is_empty());
        for bitmap in &found {
            assert_eq!(bitmap.kind, 1);
            assert!(!bitmap.name.is_empty() && !bitmap.is_in_use(), "{bitmap:?}");
            assert!((9..=31).contains(&bitmap.granularity_bits));
        }
    }

    #[test]
    fn an_entry_ends_where_the_directory_does_or_before() {
        let header = Header::read(BITMAPS).unwrap();
        let start = usize::try_from(directory(&header).unwrap().bitmap_directory_offset).unwrap();
        for (place, bytes) in [(18, &[255, 255][..]), (20, &[255; 4])] {
            let mut image = BITMAPS.to_vec();
            image[start + place..start + place + bytes.len()].copy_from_slice(bytes);
            match Bitmap::read_directory(&image[..], &header) {
                Err(Error::Corrupt(error)) => {
                    assert_eq!(error.violation, Violation::BitmapDirectory);
                    assert_eq!(error.offset, start as u64);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
