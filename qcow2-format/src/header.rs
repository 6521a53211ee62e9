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

pub mod extension;

use zerocopy::{FromBytes, IntoBytes};

use crate::address::HostOffset;
use crate::error::{Error, OptionsError, Result, Unsupported, Violation};
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::{
    ClusterBits, Geometry, L1_TABLE_MAX_BYTES, REFCOUNT_TABLE_MAX_BYTES, RefcountOrder,
    TABLE_ENTRY_BYTES,
};
use crate::header::extension::{
    HeaderExtension, Surroundings, Table, corrupt, encode_end, feature_name_table, parse_area,
    unknown_features,
};
use crate::io::{ReadAt, WriteAt};
use crate::raw::{MAGIC, RawHeaderV2, RawHeaderV3};

/// Most bytes a backing file name may have.
pub const BACKING_NAME_MAX: usize = 1023;
/// Most snapshots an image may have: QEMU's limit.
pub const SNAPSHOTS_MAX: u32 = 65_536;
/// The fixed part of a snapshot table entry (spec: "Snapshots").
const SNAPSHOT_ENTRY_MIN_BYTES: u64 = 40;
/// What qemu-img writes as `header_length` of a version 3 image.
pub(crate) const HEADER_LENGTH_V3: usize = 112;
const COMPRESSION_TYPE_OFFSET: u64 = 104;

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
    /// Reads and checks the header of the image in `storage`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage, else as [`Header::parse`].
    pub fn read(storage: &(impl ReadAt + ?Sized)) -> Result<Self> {
        let file_length = storage.length().map_err(Error::io("read the image's length", 0))?;
        // The smallest cluster tells how large the first one is.
        let mut start = vec![0; 512];
        let count = storage.read_full_at(&mut start, 0).map_err(Error::io("read the header", 0))?;
        start.truncate(count);
        let cluster_bits = Fixed::parse(&start)?.cluster_bits;
        let cluster = usize::try_from(cluster_bits.bytes().min(file_length)).unwrap_or(usize::MAX);
        if cluster > count {
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
        let header = Self {
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
        Ok(header)
    }

    /// The header area of the image: header, extensions and backing file name, to be written at
    /// offset 0.
    ///
    /// # Errors
    ///
    /// [`OptionsError::HeaderTooLarge`] if it does not fit in the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let header_length = self.header_length();
        let mut behind = Vec::new();
        for extension in &self.extensions {
            extension.encode(&mut behind);
        }
        encode_end(&mut behind);
        let name_offset = u64::from(header_length).saturating_add(behind.len() as u64);
        let name = self.backing_file.as_deref().unwrap_or_default();
        let (backing_file_offset, backing_file_size) = match u32::try_from(name.len()) {
            Ok(length) if length > 0 => (name_offset, length),
            _ => (0, 0),
        };
        behind.extend_from_slice(name);

        let needed = u64::from(header_length).saturating_add(behind.len() as u64);
        let cluster_size = self.geometry.cluster_bits.bytes();
        if needed > cluster_size {
            return Err(OptionsError::HeaderTooLarge { needed, cluster_size }.into());
        }

        let fixed = RawHeaderV2 {
            magic: MAGIC.into(),
            version: self.version.to_u32().into(),
            backing_file_offset: backing_file_offset.into(),
            backing_file_size: backing_file_size.into(),
            cluster_bits: self.geometry.cluster_bits.to_u32().into(),
            size: self.virtual_size.into(),
            crypt_method: self.crypt_method.to_u32().into(),
            l1_size: self.l1_size.into(),
            l1_table_offset: self.l1_table_offset.to_u64().into(),
            refcount_table_offset: self.refcount_table_offset.to_u64().into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            nb_snapshots: self.nb_snapshots.into(),
            snapshots_offset: self.snapshots_offset.to_u64().into(),
        };
        let mut bytes = fixed.as_bytes().to_vec();
        if self.version == Version::V3 {
            let v3 = RawHeaderV3 {
                incompatible_features: self.incompatible.0.into(),
                compatible_features: self.compatible.0.into(),
                autoclear_features: self.autoclear.0.into(),
                refcount_order: self.geometry.refcount_order.to_u32().into(),
                header_length: header_length.into(),
            };
            bytes.extend_from_slice(v3.as_bytes());
            bytes.extend_from_slice(&self.additional);
        }
        bytes.extend_from_slice(&behind);
        Ok(bytes)
    }

    /// Names another backing file, with its format. Everything else stays as it is, but for
    /// autoclear bits that the specification does not name: who rewrites a header clears them.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if no image can carry that name or format, or this one cannot. The
    /// header is then as it was.
    pub fn set_backing_file(&mut self, backing: &crate::create::BackingFile) -> Result<()> {
        backing.check()?;
        if self.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA) {
            return Err(OptionsError::BackingWithRawExternalData.into());
        }
        let mut header = self.clone();
        let format = HeaderExtension::BackingFormat(backing.format.to_vec());
        let place = header
            .extensions
            .iter_mut()
            .find(|extension| matches!(extension, HeaderExtension::BackingFormat(_)));
        match place {
            Some(place) => *place = format,
            None => header.extensions.insert(0, format),
        }
        header.backing_file = Some(backing.name.clone());
        self.become_rewritten(header)
    }

    /// Writes this header over `previous`, the one the image in `storage` has, in one call.
    /// Whatever the previous header area held beyond the new one becomes zero.
    ///
    /// A killed process leaves the old or the new header, never a mixture, where the storage does
    /// not tear a single write; a file system tears none that stays within a page of 4096 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the header does not fit; [`Error::Io`] from the storage.
    pub fn replace(&self, previous: &Self, storage: &(impl WriteAt + ?Sized)) -> Result<()> {
        let mut bytes = self.encode()?;
        let old_length = previous.encode()?.len();
        if bytes.len() < old_length {
            bytes.resize(old_length, 0);
        }
        storage.write_all_at(&bytes, 0).map_err(Error::io("rewrite the header", 0))
    }

    /// Replaces the unknown extension of `extension_type`, or adds it behind the others.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the type is one of the specification's own, or the header would no
    /// longer fit in its cluster. The header is then as it was.
    pub fn set_unknown_extension(&mut self, extension_type: u32, data: Vec<u8>) -> Result<()> {
        let extension = HeaderExtension::unknown(extension_type, data)?;
        let mut header = self.clone();
        match header.extensions.iter_mut().find(|other| other.extension_type() == extension_type) {
            Some(place) => *place = extension,
            None => header.extensions.push(extension),
        }
        self.become_rewritten(header)
    }

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

    /// Size of the disk the guest sees, in bytes.
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

    /// The backing file's format, as in `raw`.
    #[must_use]
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            HeaderExtension::BackingFormat(format) => Some(format.as_slice()),
            _ => None,
        })
    }

    /// The external data file's name as stored.
    #[must_use]
    pub fn external_data_file(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            HeaderExtension::ExternalDataFile(name) => Some(name.as_slice()),
            _ => None,
        })
    }

    /// Becomes `header`, if that can be written.
    fn become_rewritten(&mut self, mut header: Self) -> Result<()> {
        header.autoclear.0 &= !header.autoclear.unknown();
        // A header that does not fit is better known now than at the write.
        header.encode()?;
        *self = header;
        Ok(())
    }

    /// Rules that tie feature bits to each other and to extensions.
    fn check_feature_bits(&self) -> Result<()> {
        let autoclear = self.autoclear.0;
        let raw_external = self.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA);
        let external = self.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE);
        let has = |found: fn(&HeaderExtension) -> bool| self.extensions.iter().any(found);
        if raw_external && !external {
            let violation = Violation::RawExternalDataAlone;
            return Err(corrupt("autoclear_features", autoclear, 88, violation));
        }
        if raw_external && self.backing_file.is_some() {
            let violation = Violation::RawExternalDataWithBacking;
            return Err(corrupt("autoclear_features", autoclear, 88, violation));
        }
        if external && self.nb_snapshots > 0 {
            let snapshots = self.nb_snapshots.into();
            let violation = Violation::SnapshotsWithExternalData;
            return Err(corrupt("nb_snapshots", snapshots, 60, violation));
        }
        if self.autoclear.contains(AutoclearFeatures::BITMAPS)
            && !has(|extension| matches!(extension, HeaderExtension::Bitmaps(_)))
        {
            return Err(corrupt("autoclear_features", autoclear, 88, Violation::BitmapsMissing));
        }
        if self.crypt_method == CryptMethod::Luks
            && !has(|extension| matches!(extension, HeaderExtension::EncryptionHeader(_)))
        {
            let method = self.crypt_method.to_u32().into();
            return Err(corrupt("crypt_method", method, 32, Violation::EncryptionHeaderMissing));
        }
        if self.geometry.extended_l2 && self.geometry.cluster_bits < ClusterBits::EXTENDED_L2_MIN {
            let bits = self.geometry.cluster_bits.to_u32().into();
            return Err(corrupt("cluster_bits", bits, 20, Violation::ClusterBitsForExtendedL2));
        }
        Ok(())
    }

    /// Rules on where the tables lie and how large they are.
    fn check_tables(&self, surroundings: Surroundings) -> Result<()> {
        let max_size = self.geometry.max_virtual_size();
        if self.virtual_size > max_size {
            let violation = Violation::VirtualSize { max: max_size };
            return Err(corrupt("size", self.virtual_size, 24, violation));
        }

        let l1_size = u64::from(self.l1_size);
        let max = L1_TABLE_MAX_BYTES / TABLE_ENTRY_BYTES;
        if l1_size > max {
            return Err(corrupt("l1_size", l1_size, 36, Violation::L1TooLarge { max }));
        }
        let needed = self.geometry.l1_entries(self.virtual_size);
        if l1_size < needed {
            return Err(corrupt("l1_size", l1_size, 36, Violation::L1TooSmall { needed }));
        }
        Table { field: "l1_table_offset", at: 40 }.check(
            self.l1_table_offset.to_u64(),
            l1_size * TABLE_ENTRY_BYTES,
            surroundings,
        )?;

        let cluster_size = self.geometry.cluster_bits.bytes();
        let clusters = u64::from(self.refcount_table_clusters);
        let max = REFCOUNT_TABLE_MAX_BYTES / cluster_size;
        if clusters == 0 {
            let violation = Violation::NoRefcountTable;
            return Err(corrupt("refcount_table_clusters", clusters, 56, violation));
        }
        if clusters > max {
            let violation = Violation::RefcountTableTooLarge { max };
            return Err(corrupt("refcount_table_clusters", clusters, 56, violation));
        }
        Table { field: "refcount_table_offset", at: 48 }.check(
            self.refcount_table_offset.to_u64(),
            clusters * cluster_size,
            surroundings,
        )?;

        let snapshots = u64::from(self.nb_snapshots);
        if self.nb_snapshots > SNAPSHOTS_MAX {
            return Err(corrupt("nb_snapshots", snapshots, 60, Violation::TooManySnapshots));
        }
        Table { field: "snapshots_offset", at: 64 }.check(
            self.snapshots_offset.to_u64(),
            snapshots * SNAPSHOT_ENTRY_MIN_BYTES,
            surroundings,
        )
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
        if offset < header_length {
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

#[cfg(test)]
mod tests;
