//! The image header (spec: "Header"): what the first cluster says.
//!
//! ```text
//! 0                72 (v2)      header_length                                  cluster size
//! [ fixed fields  ]            [ header extensions … end ][ backing file name ]
//!                 [ v3 fields ]
//! ```
//!
//! [`Header::parse`] checks every field against the specification and the file's length before
//! anything is allocated or read by it; [`Header::encode`] writes the same area back. What is
//! unknown (fields behind `compression_type`, extensions, feature bits that may be ignored) is
//! kept byte for byte.
//!
//! The parser never panics, and allocates at most a few times the bytes it was given.
//!
//! Callers: `create` (the header of a new image), disk-engine's `overlay` and `ops::info`.

mod check;
pub mod extension;
mod parse;
mod rewrite;

use crate::address::HostOffset;
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::Geometry;
use crate::header::extension::HeaderExtension;

/// Most bytes a backing file name may have.
pub const BACKING_NAME_MAX: usize = 1023;
/// Most snapshots an image may have: QEMU's limit.
pub const SNAPSHOTS_MAX: u32 = 65_536;
/// What qemu-img writes as `header_length` of a version 3 image.
pub(crate) const HEADER_LENGTH_V3: usize = 112;

/// The format's version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Version 2, qemu-img's `compat=0.10`.
    V2,
    /// Version 3, qemu-img's `compat=1.1`.
    #[default]
    V3,
}

impl Version {
    /// The number in the header.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// What qemu-img calls the version.
    #[must_use]
    pub const fn compat(self) -> &'static str {
        match self {
            Self::V2 => "0.10",
            Self::V3 => "1.1",
        }
    }
}

/// How guest data is encrypted (spec: `crypt_method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// AES-CBC, deprecated.
    Aes,
    /// LUKS.
    Luks,
}

impl CryptMethod {
    const fn to_u32(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }
}

/// How compressed clusters are compressed (spec: `compression_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionType {
    /// Deflate, which the specification and qemu-img call zlib.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

impl CompressionType {
    /// What qemu-img calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(crate) version: Version,
    pub(crate) geometry: Geometry,
    pub(crate) virtual_size: u64,
    pub(crate) crypt_method: CryptMethod,
    pub(crate) l1_size: u32,
    pub(crate) l1_table_offset: HostOffset,
    pub(crate) refcount_table_offset: HostOffset,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) nb_snapshots: u32,
    pub(crate) snapshots_offset: HostOffset,
    pub(crate) incompatible: IncompatibleFeatures,
    pub(crate) compatible: CompatibleFeatures,
    pub(crate) autoclear: AutoclearFeatures,
    pub(crate) compression_type: CompressionType,
    /// Bytes 104 to `header_length` as they came; the first is `compression_type`.
    pub(crate) additional: Vec<u8>,
    pub(crate) extensions: Vec<HeaderExtension>,
    pub(crate) backing_file: Option<Vec<u8>>,
}

impl Header {
    /// The data of the unknown extension of `extension_type`.
    #[must_use]
    pub fn unknown_extension(&self, extension_type: u32) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            HeaderExtension::Unknown { extension_type: found, data }
                if *found == extension_type =>
            {
                Some(data.as_slice())
            }
            _ => None,
        })
    }

    /// The format's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Cluster size, refcount width and kind of L2 entries.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Size of the disk the guest sees, in bytes: whole sectors of 512.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// How guest data is encrypted.
    #[must_use]
    pub fn crypt_method(&self) -> CryptMethod {
        self.crypt_method
    }

    /// Number of entries in the active L1 table.
    #[must_use]
    pub fn l1_size(&self) -> u32 {
        self.l1_size
    }

    /// Where the active L1 table starts.
    #[must_use]
    pub fn l1_table_offset(&self) -> HostOffset {
        self.l1_table_offset
    }

    /// Where the refcount table starts.
    #[must_use]
    pub fn refcount_table_offset(&self) -> HostOffset {
        self.refcount_table_offset
    }

    /// Clusters the refcount table takes.
    #[must_use]
    pub fn refcount_table_clusters(&self) -> u32 {
        self.refcount_table_clusters
    }

    /// Number of internal snapshots.
    #[must_use]
    pub fn nb_snapshots(&self) -> u32 {
        self.nb_snapshots
    }

    /// Where the snapshot table starts.
    #[must_use]
    pub fn snapshots_offset(&self) -> HostOffset {
        self.snapshots_offset
    }

    /// The incompatible feature bits; none of them unknown.
    #[must_use]
    pub fn incompatible_features(&self) -> IncompatibleFeatures {
        self.incompatible
    }

    /// The compatible feature bits.
    #[must_use]
    pub fn compatible_features(&self) -> CompatibleFeatures {
        self.compatible
    }

    /// The autoclear feature bits.
    #[must_use]
    pub fn autoclear_features(&self) -> AutoclearFeatures {
        self.autoclear
    }

    /// How compressed clusters are compressed.
    #[must_use]
    pub fn compression_type(&self) -> CompressionType {
        self.compression_type
    }

    /// Length of the header structure in bytes, extensions not counted.
    #[must_use]
    pub fn header_length(&self) -> u32 {
        match self.version {
            Version::V2 => 72,
            // The additional fields end within a cluster, so this cannot saturate.
            Version::V3 => {
                104_u32.saturating_add(u32::try_from(self.additional.len()).unwrap_or(u32::MAX))
            }
        }
    }

    /// The header extensions, in file order, without the end marker.
    #[must_use]
    pub fn extensions(&self) -> &[HeaderExtension] {
        &self.extensions
    }

    /// The backing file's name as stored: any bytes but NUL. Whether to follow it is the caller's
    /// decision.
    #[must_use]
    pub fn backing_file(&self) -> Option<&[u8]> {
        self.backing_file.as_deref()
    }

    /// The backing file's format, as in `raw`. An empty one is none.
    #[must_use]
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions
            .iter()
            .find_map(|extension| match extension {
                HeaderExtension::BackingFormat(format) => Some(format.as_slice()),
                _ => None,
            })
            .filter(|format| !format.is_empty())
    }

    /// The external data file's name as stored.
    #[must_use]
    pub fn external_data_file(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            HeaderExtension::ExternalDataFile(name) => Some(name.as_slice()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
