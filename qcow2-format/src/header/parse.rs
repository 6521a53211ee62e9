//! From the bytes of the first cluster to a header whose every field was looked at.
//!
//! ```text
//! fixed fields ─▶ unknown incompatible bits? ─▶ encryption, widths ─▶ backing name's place ─▶
//! extensions ─▶ rules between fields (`check`)
//! ```
//!
//! Unknown incompatible bits come first: they may have changed any other rule. Caller: `header`.

use zerocopy::FromBytes;

use crate::address::HostOffset;
use crate::create::SECTOR_BYTES;
use crate::error::{Error, Result, Unsupported, Violation};
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::{ClusterBits, Geometry, RefcountOrder};
use crate::header::extension::{
    Surroundings, corrupt, feature_name_table, parse_area, unknown_features,
};
use crate::header::{BACKING_NAME_MAX, CompressionType, CryptMethod, Header, Version};
use crate::io::ReadAt;
use crate::raw::{MAGIC, RawHeaderV2, RawHeaderV3};

const HEADER_LENGTH_OFFSET: usize = 100;
const COMPRESSION_TYPE_OFFSET: u64 = 104;

impl Header {
    /// Reads and checks the header of the image in `storage`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage, else as [`Header::parse`].
    pub fn read(storage: &(impl ReadAt + ?Sized)) -> Result<Self> {
        let file_length = storage.length().map_err(Error::io("read the image's length", 0))?;
        // Hardly a header is longer, and most clusters are.
        let mut start = vec![0; 4096];
        let count = storage.read_full_at(&mut start, 0).map_err(Error::io("read the header", 0))?;
        start.truncate(count);
        let fixed = Fixed::parse(&start)?;
        let cluster = fixed.cluster_bits.bytes().min(file_length);
        let cluster = usize::try_from(cluster).unwrap_or(usize::MAX);
        if cluster > count && !fixed.is_all_in(&start) {
            start.resize(cluster, 0);
            let behind = start.get_mut(count..).unwrap_or_default();
            let more = storage
                .read_full_at(behind, count as u64)
                .map_err(Error::io("read the header's cluster", count as u64))?;
            start.truncate(count.saturating_add(more));
        }
        Self::parse(&start, file_length)
    }

    /// Parses the header in `start`, the first cluster of a file of `file_length` bytes, or the
    /// whole file where it is shorter.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] names the field that contradicts the specification, its value, its
    /// offset and the rule; [`Error::Unsupported`] names the feature.
    pub fn parse(start: &[u8], file_length: u64) -> Result<Self> {
        let fixed = Fixed::parse(start)?;
        let cluster_size = fixed.cluster_bits.bytes();
        let first_cluster = usize::try_from(cluster_size)
            .ok()
            .and_then(|length| start.get(..length))
            .unwrap_or(start);

        let v3 = fixed.parse_v3(first_cluster)?;
        if v3.incompatible.unknown() != 0 {
            return Err(fixed.unknown_features(&v3, first_cluster));
        }
        let refcount_order = v3.parse_refcount_order()?;
        let crypt_method = fixed.parse_crypt_method()?;
        let surroundings = Surroundings {
            cluster_bits: fixed.cluster_bits,
            file_length,
            luks: crypt_method == CryptMethod::Luks,
            external_data: v3.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE),
            bitmaps_consistent: v3.autoclear.contains(AutoclearFeatures::BITMAPS),
        };
        let backing = fixed.parse_backing_range(v3.header_length)?;
        let area_end = backing.map_or(cluster_size, |(offset, _)| offset);
        let area = bytes_between(first_cluster, v3.header_length, area_end);
        let extensions = parse_area(area, v3.header_length, surroundings)?;
        let compression_type = v3.parse_compression_type()?;
        let geometry = Geometry {
            cluster_bits: fixed.cluster_bits,
            refcount_order,
            extended_l2: v3.incompatible.contains(IncompatibleFeatures::EXTENDED_L2),
        };
        let mut header = Self {
            version: fixed.version,
            geometry,
            virtual_size: fixed.raw.size.get(),
            crypt_method,
            l1_size: fixed.raw.l1_size.get(),
            l1_table_offset: HostOffset(fixed.raw.l1_table_offset.get()),
            refcount_table_offset: HostOffset(fixed.raw.refcount_table_offset.get()),
            refcount_table_clusters: fixed.raw.refcount_table_clusters.get(),
            nb_snapshots: fixed.raw.nb_snapshots.get(),
            snapshots_offset: HostOffset(fixed.raw.snapshots_offset.get()),
            incompatible: v3.incompatible,
            compatible: v3.compatible,
            autoclear: v3.autoclear,
            compression_type,
            additional: v3.additional,
            extensions,
            backing_file: backing
                .filter(|(_, length)| *length > 0)
                .map(|(offset, length)| backing_name(first_cluster, offset, length))
                .transpose()?,
        };
        header.check_feature_bits()?;
        header.check_tables(surroundings)?;
        // QEMU counts in sectors, and knows nothing of what the last one lacks.
        header.virtual_size -= header.virtual_size % SECTOR_BYTES;
        Ok(header)
    }
}

/// The 72 bytes of every version, with what the rest of the parse needs at once.
struct Fixed {
    raw: RawHeaderV2,
    version: Version,
    cluster_bits: ClusterBits,
}

impl Fixed {
    fn parse(start: &[u8]) -> Result<Self> {
        let too_short = || {
            let available = start.len() as u64;
            let needed = size_of::<RawHeaderV2>() as u64;
            corrupt("header", available, 0, Violation::Truncated { needed, available })
        };
        // The magic first: whoever passes another file wants to hear that, not its length.
        let magic = start.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        if let Some(magic) = magic
            && magic != MAGIC
        {
            return Err(corrupt("magic", magic.into(), 0, Violation::Magic));
        }
        let (raw, _) = RawHeaderV2::read_from_prefix(start).map_err(|_| too_short())?;
        let version = match raw.version.get() {
            2 => Version::V2,
            3 => Version::V3,
            version => return Err(Unsupported::Version { version }.into()),
        };
        let bits = raw.cluster_bits.get();
        let cluster_bits = ClusterBits::new(bits)
            .ok_or_else(|| corrupt("cluster_bits", bits.into(), 20, Violation::ClusterBits))?;
        Ok(Self { raw, version, cluster_bits })
    }

    /// Whether everything that is looked at lies in `start`: the extensions to their end, and the
    /// name of the backing file.
    fn is_all_in(&self, start: &[u8]) -> bool {
        let number = |at: usize| {
            let bytes = start.get(at..)?.first_chunk()?;
            usize::try_from(u32::from_be_bytes(*bytes)).ok()
        };
        let name = usize::try_from(self.raw.backing_file_offset.get()).unwrap_or(usize::MAX);
        let name_length = usize::try_from(self.raw.backing_file_size.get()).unwrap_or(usize::MAX);
        if name > 0 && name.saturating_add(name_length) > start.len() {
            return false;
        }
        let mut at = match self.version {
            Version::V2 => Some(size_of::<RawHeaderV2>()),
            Version::V3 => number(HEADER_LENGTH_OFFSET),
        };
        loop {
            let Some(here) = at.filter(|here| here.saturating_add(8) <= start.len()) else {
                return false;
            };
            let ended = name > 0 && here.saturating_add(8) > name;
            if ended || number(here) == Some(0) {
                return true;
            }
            let length = number(here.saturating_add(4));
            at = length
                .map(|length| here.saturating_add(8).saturating_add(length.saturating_add(7) & !7));
        }
    }

    fn parse_crypt_method(&self) -> Result<CryptMethod> {
        match self.raw.crypt_method.get() {
            0 => Ok(CryptMethod::None),
            1 => Ok(CryptMethod::Aes),
            2 => Ok(CryptMethod::Luks),
            method => Err(corrupt("crypt_method", method.into(), 32, Violation::CryptMethod)),
        }
    }

    /// Offset and length of the backing file name, if there is a place for one. A length of 0 is
    /// no name, and still ends the extension area.
    fn parse_backing_range(&self, header_length: u64) -> Result<Option<(u64, u64)>> {
        let offset = self.raw.backing_file_offset.get();
        let length = u64::from(self.raw.backing_file_size.get());
        // Without an offset the size is undefined.
        if offset == 0 {
            return Ok(None);
        }
        if offset < header_length && length > 0 {
            let violation = Violation::BackingNameInHeader { header_length };
            return Err(corrupt("backing_file_offset", offset, 8, violation));
        }
        if length > BACKING_NAME_MAX as u64 {
            let violation = Violation::BackingNameTooLong;
            return Err(corrupt("backing_file_size", length, 16, violation));
        }
        let cluster_size = self.cluster_bits.bytes();
        if offset.checked_add(length).is_none_or(|end| end > cluster_size) {
            let violation = Violation::BackingNameBeyondCluster { cluster_size };
            return Err(corrupt("backing_file_offset", offset, 8, violation));
        }
        Ok(Some((offset, length)))
    }

    fn parse_v3(&self, first_cluster: &[u8]) -> Result<V3> {
        if self.version == Version::V2 {
            return Ok(V3::of_version_2());
        }
        let behind = first_cluster.get(size_of::<RawHeaderV2>()..).unwrap_or_default();
        let available = first_cluster.len() as u64;
        let (raw, behind) = RawHeaderV3::read_from_prefix(behind).map_err(|_| {
            corrupt("header", available, 0, Violation::Truncated { needed: 104, available })
        })?;
        let header_length = u64::from(raw.header_length.get());
        let cluster_size = self.cluster_bits.bytes();
        let violation = if header_length < 104 {
            Some(Violation::HeaderLengthTooShort)
        } else if !header_length.is_multiple_of(8) {
            Some(Violation::HeaderLengthUnaligned)
        } else if header_length > cluster_size {
            Some(Violation::HeaderLengthBeyondCluster { cluster_size })
        } else if header_length > available {
            Some(Violation::Truncated { needed: header_length, available })
        } else {
            None
        };
        if let Some(violation) = violation {
            return Err(corrupt("header_length", header_length, 100, violation));
        }
        let additional = usize::try_from(header_length.saturating_sub(104))
            .ok()
            .and_then(|length| behind.get(..length))
            .unwrap_or_default();
        Ok(V3 {
            incompatible: IncompatibleFeatures(raw.incompatible_features.get()),
            compatible: CompatibleFeatures(raw.compatible_features.get()),
            autoclear: AutoclearFeatures(raw.autoclear_features.get()),
            refcount_order: raw.refcount_order.get(),
            header_length,
            additional: additional.to_vec(),
        })
    }

    /// The error for incompatible bits nobody knows. They may have changed any other rule, so only
    /// the image's own names for them are looked for, and only where they are easily found.
    fn unknown_features(&self, v3: &V3, first_cluster: &[u8]) -> Error {
        let table = self
            .parse_backing_range(v3.header_length)
            .ok()
            .map(|range| range.map_or(self.cluster_bits.bytes(), |(offset, _)| offset))
            .map(|end| bytes_between(first_cluster, v3.header_length, end))
            .and_then(feature_name_table);
        unknown_features(v3.incompatible, table.as_ref())
    }
}

/// What version 3 adds, or what version 2 always means.
struct V3 {
    incompatible: IncompatibleFeatures,
    compatible: CompatibleFeatures,
    autoclear: AutoclearFeatures,
    refcount_order: u32,
    header_length: u64,
    additional: Vec<u8>,
}

impl V3 {
    fn of_version_2() -> Self {
        Self {
            incompatible: IncompatibleFeatures::default(),
            compatible: CompatibleFeatures::default(),
            autoclear: AutoclearFeatures::default(),
            refcount_order: RefcountOrder::DEFAULT.to_u32(),
            header_length: 72,
            additional: Vec::new(),
        }
    }

    fn parse_refcount_order(&self) -> Result<RefcountOrder> {
        let order = self.refcount_order;
        RefcountOrder::new(order)
            .ok_or_else(|| corrupt("refcount_order", order.into(), 96, Violation::RefcountOrder))
    }

    fn parse_compression_type(&self) -> Result<CompressionType> {
        let announced = self.incompatible.contains(IncompatibleFeatures::COMPRESSION_TYPE);
        let value = self.additional.first().copied().unwrap_or(0);
        let wrong = |violation| {
            corrupt("compression_type", value.into(), COMPRESSION_TYPE_OFFSET, violation)
        };
        match (announced, value) {
            (false, 0) => Ok(CompressionType::Zlib),
            (false, _) => Err(wrong(Violation::CompressionTypeUnannounced)),
            (true, 0) => Err(wrong(Violation::CompressionTypeMissing)),
            (true, 1) => Ok(CompressionType::Zstd),
            (true, _) => Err(Unsupported::CompressionType { value }.into()),
        }
    }
}

/// The bytes from `start` to `end`, or as many of them as there are.
fn bytes_between(bytes: &[u8], start: u64, end: u64) -> &[u8] {
    bytes
        .get(..usize::try_from(end).unwrap_or(usize::MAX))
        .unwrap_or(bytes)
        .get(usize::try_from(start).unwrap_or(usize::MAX)..)
        .unwrap_or_default()
}

fn backing_name(first_cluster: &[u8], offset: u64, length: u64) -> Result<Vec<u8>> {
    let available = first_cluster.len() as u64;
    let needed = offset.saturating_add(length);
    let name = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(needed).ok())
        .and_then(|(start, end)| first_cluster.get(start..end))
        .ok_or_else(|| {
            let violation = Violation::Truncated { needed, available };
            corrupt("backing_file_offset", offset, 8, violation)
        })?;
    match name.iter().position(|byte| *byte == 0) {
        Some(at) => Err(corrupt(
            "backing file name",
            0,
            offset.saturating_add(at as u64),
            Violation::NameWithNul,
        )),
        None => Ok(name.to_vec()),
    }
}
