//! Header extensions (spec: "Header extensions" and the sections on each).
//!
//! ```text
//! byte 0      4       8                        8 + length      next multiple of 8
//!      [ type ][length][ data …                ][ padding …   ]
//!
//! 0x00000000  end of the area
//! 0xe2792aca  backing file format name          a string, at most 15 bytes
//! 0x6803f857  feature name table                48 bytes an entry: type, bit, 46 of name
//! 0x23852875  bitmaps                           24 bytes: count, reserved, size and offset
//! 0x0537be77  full disk encryption header       16 bytes: offset, length
//! 0x44415441  external data file name           a string
//! other       unknown: kept as it came
//! ```
//!
//! The area ends where the backing file name starts, else with the first cluster. Callers:
//! `header`.

use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, FieldError, OptionsError, Result, Unsupported, Violation};
use crate::feature::{Feature, FeatureType, IncompatibleFeatures};
use crate::geometry::ClusterBits;
use crate::raw::{RawBitmaps, RawEncryptionHeader, RawExtensionHeader, RawFeatureName};

/// Extension types of the specification.
pub(crate) mod extension_type {
    pub(crate) const END: u32 = 0;
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(crate) const FEATURE_NAME_TABLE: u32 = 0x6803_f857;
    pub(crate) const BITMAPS: u32 = 0x2385_2875;
    pub(crate) const ENCRYPTION_HEADER: u32 = 0x0537_be77;
    pub(crate) const EXTERNAL_DATA_FILE: u32 = 0x4441_5441;
}

/// QEMU keeps the name in 16 bytes, the last of them a NUL.
pub(crate) const BACKING_FORMAT_MAX: usize = 15;
const BITMAP_DIRECTORY_MAX_BYTES: u64 = 64 << 20;
/// A directory entry's fixed part (spec: "Bitmap directory").
const BITMAP_DIRECTORY_ENTRY_MIN_BYTES: u64 = 24;

/// One header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderExtension {
    /// The backing file's format, as in `raw`.
    BackingFormat(Vec<u8>),
    /// Names for feature bits, for programs that do not know them.
    FeatureNameTable(FeatureNameTable),
    /// Where the bitmap directory lies.
    Bitmaps(Bitmaps),
    /// Where the LUKS header lies.
    EncryptionHeader(EncryptionHeader),
    /// The name of the file that holds the guest's clusters.
    ExternalDataFile(Vec<u8>),
    /// Anything else, kept byte for byte. Also a bitmaps extension that its autoclear bit does
    /// not vouch for and that is not well-formed.
    Unknown {
        /// The extension's type.
        extension_type: u32,
        /// Its data, without padding.
        data: Vec<u8>,
    },
}

/// The data of a feature name table, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureNameTable(Vec<u8>);

impl FeatureNameTable {
    /// The table qemu-img writes: every feature of the specification.
    #[must_use]
    pub fn standard() -> Self {
        let mut table = Vec::with_capacity(Feature::ALL.len() * size_of::<RawFeatureName>());
        for feature in Feature::ALL {
            let mut entry = RawFeatureName {
                feature_type: feature.feature_type.to_u8(),
                bit: feature.bit,
                name: [0; 46],
            };
            for (to, from) in entry.name.iter_mut().zip(feature.name.bytes()) {
                *to = from;
            }
            table.extend_from_slice(entry.as_bytes());
        }
        Self(table)
    }

    #[cfg(test)]
    pub(crate) fn of(data: Vec<u8>) -> Self {
        Self(data)
    }

    /// What the table calls a bit, if it does.
    #[must_use]
    pub fn name(&self, feature_type: FeatureType, bit: u32) -> Option<String> {
        let (_, _, name) = self
            .entries()
            .find(|(kind, at, _)| *kind == feature_type.to_u8() && u32::from(*at) == bit)?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Type, bit and name of each entry, in order. As in QEMU the first one without a name ends the
    /// table, and the last one may be cut.
    fn entries(&self) -> impl Iterator<Item = (u8, u8, &[u8])> {
        let entries = self.0.chunks(size_of::<RawFeatureName>()).filter_map(|entry| {
            let (kind, rest) = entry.split_first()?;
            let (bit, name) = rest.split_first()?;
            Some((*kind, *bit, name.split(|byte| *byte == 0).next().unwrap_or_default()))
        });
        entries.take_while(|(_, _, name)| !name.is_empty())
    }
}

/// Where the bitmap directory lies (spec: "Bitmaps extension").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmaps {
    /// Number of bitmaps.
    pub nb_bitmaps: u32,
    /// Length of the bitmap directory in bytes.
    pub bitmap_directory_size: u64,
    /// Where the bitmap directory starts in the file.
    pub bitmap_directory_offset: u64,
}

/// Where the LUKS header lies (spec: "Full disk encryption header pointer").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptionHeader {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// What the checks of an extension's data need to know of the rest of the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub cluster_bits: ClusterBits,
    pub file_length: u64,
    pub luks: bool,
    pub external_data: bool,
    pub bitmaps_consistent: bool,
}

impl HeaderExtension {
    /// The type of the bitmaps extension, which is `Unknown` where its autoclear bit does not vouch for it
    /// and it is not well-formed.
    pub const BITMAPS: u32 = extension_type::BITMAPS;

    /// An extension the specification does not know.
    pub(crate) fn unknown(extension_type: u32, data: Vec<u8>) -> Result<Self, OptionsError> {
        if extension_type == extension_type::END || is_known(extension_type) {
            return Err(OptionsError::ExtensionTypeTaken { extension_type });
        }
        Ok(Self::Unknown { extension_type, data })
    }

    /// The extension's type.
    #[must_use]
    pub fn extension_type(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => extension_type::BACKING_FORMAT,
            Self::FeatureNameTable(_) => extension_type::FEATURE_NAME_TABLE,
            Self::Bitmaps(_) => extension_type::BITMAPS,
            Self::EncryptionHeader(_) => extension_type::ENCRYPTION_HEADER,
            Self::ExternalDataFile(_) => extension_type::EXTERNAL_DATA_FILE,
            Self::Unknown { extension_type, .. } => *extension_type,
        }
    }

    /// Appends the extension and its padding to `area`.
    pub(crate) fn encode(&self, area: &mut Vec<u8>) {
        let bitmaps;
        let encryption;
        let data: &[u8] = match self {
            Self::BackingFormat(data)
            | Self::ExternalDataFile(data)
            | Self::FeatureNameTable(FeatureNameTable(data))
            | Self::Unknown { data, .. } => data,
            Self::Bitmaps(value) => {
                bitmaps = RawBitmaps {
                    nb_bitmaps: value.nb_bitmaps.into(),
                    reserved: 0.into(),
                    bitmap_directory_size: value.bitmap_directory_size.into(),
                    bitmap_directory_offset: value.bitmap_directory_offset.into(),
                };
                bitmaps.as_bytes()
            }
            Self::EncryptionHeader(value) => {
                encryption = RawEncryptionHeader {
                    offset: value.offset.into(),
                    length: value.length.into(),
                };
                encryption.as_bytes()
            }
        };
        encode_raw(self.extension_type(), data, area);
    }
}

/// Appends the end of the header extension area.
pub(crate) fn encode_end(area: &mut Vec<u8>) {
    encode_raw(extension_type::END, &[], area);
}

fn encode_raw(extension_type: u32, data: &[u8], area: &mut Vec<u8>) {
    // Data longer than a cluster does not fit either way; the encoder's size check says so.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let header =
        RawExtensionHeader { extension_type: extension_type.into(), length: length.into() };
    area.extend_from_slice(header.as_bytes());
    area.extend_from_slice(data);
    area.resize(area.len().next_multiple_of(8), 0);
}

/// Parses the extensions in `area`, which lies `offset` bytes into the file.
pub(crate) fn parse_area(
    area: &[u8],
    offset: u64,
    surroundings: Surroundings,
) -> Result<Vec<HeaderExtension>> {
    let mut extensions: Vec<HeaderExtension> = Vec::new();
    let mut rest = area;
    let mut offset = offset;
    // Fewer than 8 bytes hold no extension: the area ends without its end marker.
    while let Ok((header, behind)) = RawExtensionHeader::read_from_prefix(rest) {
        let extension_type = header.extension_type.get();
        let length = header.length.get();
        if extension_type == extension_type::END {
            break;
        }
        let too_long = || {
            corrupt("header extension length", length.into(), offset.saturating_add(4), {
                Violation::ExtensionTooLong {
                    length: length.into(),
                    available: behind.len() as u64,
                }
            })
        };
        let length = usize::try_from(length).map_err(|_| too_long())?;
        let data = behind.get(..length).ok_or_else(too_long)?;
        let data_offset = offset.saturating_add(8);
        if is_known(extension_type) {
            // The last one counts.
            extensions.retain(|other| other.extension_type() != extension_type);
        }
        extensions.push(parse_data(extension_type, data, data_offset, surroundings)?);
        // The last extension's padding may be cut off by the area's end.
        let taken = length.saturating_add(7) & !7;
        rest = behind.get(taken..).unwrap_or_default();
        offset = data_offset.saturating_add(taken as u64);
    }
    Ok(extensions)
}

fn is_known(extension_type: u32) -> bool {
    matches!(
        extension_type,
        extension_type::BACKING_FORMAT
            | extension_type::FEATURE_NAME_TABLE
            | extension_type::BITMAPS
            | extension_type::ENCRYPTION_HEADER
            | extension_type::EXTERNAL_DATA_FILE
    )
}

fn parse_data(
    extension_type: u32,
    data: &[u8],
    offset: u64,
    surroundings: Surroundings,
) -> Result<HeaderExtension> {
    Ok(match extension_type {
        extension_type::BACKING_FORMAT => {
            if data.len() > BACKING_FORMAT_MAX {
                return Err(corrupt(
                    "backing file format name length",
                    data.len() as u64,
                    offset.saturating_sub(4),
                    Violation::BackingFormatTooLong,
                ));
            }
            // A format is no path: what follows a NUL is padding.
            HeaderExtension::BackingFormat(until_nul(data))
        }
        extension_type::EXTERNAL_DATA_FILE => {
            let file = match name("external data file name", data, offset) {
                // Nobody opens it.
                Err(_) if !surroundings.external_data => until_nul(data),
                file => file?,
            };
            HeaderExtension::ExternalDataFile(file)
        }
        extension_type::FEATURE_NAME_TABLE => {
            HeaderExtension::FeatureNameTable(FeatureNameTable(data.to_vec()))
        }
        extension_type::ENCRYPTION_HEADER => {
            HeaderExtension::EncryptionHeader(parse_encryption(data, offset, surroundings)?)
        }
        extension_type::BITMAPS => match parse_bitmaps(data, offset, surroundings) {
            Ok(bitmaps) => HeaderExtension::Bitmaps(bitmaps),
            Err(error) if surroundings.bitmaps_consistent => return Err(error),
            // Nobody vouches for the data, so nobody may complain about it.
            Err(_) => HeaderExtension::Unknown { extension_type, data: data.to_vec() },
        },
        _ => HeaderExtension::Unknown { extension_type, data: data.to_vec() },
    })
}

fn until_nul(data: &[u8]) -> Vec<u8> {
    data.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn name(field: &'static str, data: &[u8], offset: u64) -> Result<Vec<u8>> {
    match data.iter().position(|byte| *byte == 0) {
        Some(at) => {
            Err(corrupt(field, 0, offset.saturating_add(at as u64), Violation::NameWithNul))
        }
        None => Ok(data.to_vec()),
    }
}

fn parse_encryption(
    data: &[u8],
    offset: u64,
    surroundings: Surroundings,
) -> Result<EncryptionHeader> {
    let raw = fixed::<RawEncryptionHeader>("full disk encryption header", data, offset)?;
    let value = EncryptionHeader { offset: raw.offset.get(), length: raw.length.get() };
    if !surroundings.luks {
        return Err(corrupt(
            "full disk encryption header",
            value.offset,
            offset,
            Violation::EncryptionHeaderUnexpected,
        ));
    }
    Table { field: "full disk encryption header offset", at: offset }.check(
        value.offset,
        value.length,
        surroundings,
    )?;
    Ok(value)
}

fn parse_bitmaps(data: &[u8], offset: u64, surroundings: Surroundings) -> Result<Bitmaps> {
    let raw = fixed::<RawBitmaps>("bitmaps extension", data, offset)?;
    let value = Bitmaps {
        nb_bitmaps: raw.nb_bitmaps.get(),
        bitmap_directory_size: raw.bitmap_directory_size.get(),
        bitmap_directory_offset: raw.bitmap_directory_offset.get(),
    };
    let count = u64::from(value.nb_bitmaps);
    if !(1..=65_535).contains(&count) {
        return Err(corrupt("nb_bitmaps", count, offset, Violation::BitmapCount));
    }
    let reserved = raw.reserved.get();
    if reserved != 0 {
        let at = offset.saturating_add(4);
        return Err(corrupt("bitmaps reserved", reserved.into(), at, Violation::Reserved));
    }
    let min = count * BITMAP_DIRECTORY_ENTRY_MIN_BYTES;
    if !(min..=BITMAP_DIRECTORY_MAX_BYTES).contains(&value.bitmap_directory_size) {
        return Err(corrupt(
            "bitmap_directory_size",
            value.bitmap_directory_size,
            offset.saturating_add(8),
            Violation::BitmapDirectorySize { bitmaps: count, min },
        ));
    }
    Table { field: "bitmap_directory_offset", at: offset.saturating_add(16) }.check(
        value.bitmap_directory_offset,
        value.bitmap_directory_size,
        surroundings,
    )?;
    Ok(value)
}

fn fixed<T: FromBytes>(field: &'static str, data: &[u8], offset: u64) -> Result<T> {
    T::read_from_bytes(data).map_err(|_| {
        let expected = size_of::<T>() as u64;
        let at = offset.saturating_sub(4);
        corrupt(field, data.len() as u64, at, Violation::ExtensionLength { expected })
    })
}

/// A field that says where a table starts, for the rules every table keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub field: &'static str,
    /// Where the field itself lies.
    pub at: u64,
}

impl Table {
    /// Checks that a table of `length` bytes at `offset` starts on a cluster boundary behind the
    /// header and ends within the file. Of an empty table only the boundary is asked.
    pub(crate) fn check(self, offset: u64, length: u64, within: Surroundings) -> Result<()> {
        let cluster_size = within.cluster_bits.bytes();
        let violation = if !within.cluster_bits.is_aligned(offset) {
            Violation::Unaligned { cluster_size }
        } else if length == 0 {
            return Ok(());
        } else if offset < cluster_size {
            Violation::OverlapsHeader
        } else if offset.checked_add(length).is_none_or(|end| end > within.file_length) {
            Violation::BeyondFile { length, file_length: within.file_length }
        } else {
            return Ok(());
        };
        Err(corrupt(self.field, offset, self.at, violation))
    }
}

pub(crate) fn corrupt(field: &'static str, value: u64, offset: u64, violation: Violation) -> Error {
    FieldError { field, value, offset, violation }.into()
}

/// The last feature name table in `area`, as far as its extensions can be walked.
pub(crate) fn feature_name_table(area: &[u8]) -> Option<FeatureNameTable> {
    let mut rest = area;
    let mut found = None;
    while let Ok((header, behind)) = RawExtensionHeader::read_from_prefix(rest) {
        let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        let Some(data) = behind.get(..length) else { break };
        match header.extension_type.get() {
            extension_type::END => break,
            extension_type::FEATURE_NAME_TABLE => found = Some(data),
            _ => {}
        }
        rest = behind.get(length.saturating_add(7) & !7..).unwrap_or_default();
    }
    found.map(|data| FeatureNameTable(data.to_vec()))
}

/// The error for unknown incompatible bits, with the names the image itself gives them.
pub(crate) fn unknown_features(
    features: IncompatibleFeatures,
    table: Option<&FeatureNameTable>,
) -> Error {
    let mut unknown = features.unknown();
    let mut names = Vec::new();
    for (kind, bit, name) in table.into_iter().flat_map(FeatureNameTable::entries) {
        let mask = 1_u64.checked_shl(bit.into()).unwrap_or(0);
        if kind == FeatureType::Incompatible.to_u8() && unknown & mask != 0 {
            let name = String::from_utf8_lossy(name);
            names.push(format!("\"{}\" (bit {bit})", name.escape_debug()));
            unknown &= !mask;
        }
    }
    let unnamed = (0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1);
    names.extend(unnamed.map(|bit| format!("unknown bit {bit}")));
    Unsupported::IncompatibleFeatures { value: features.0, names }.into()
}
