//! New images: reserve a layout, then write it (spec: "Header", "Host cluster management").
//!
//! ```text
//! CreateOptions ──plan──▶ NewImage ──write_to──▶ storage
//!                         every offset known      length, tables, header last
//! ```
//!
//! The order of writes, so that a writer killed at any point leaves either no valid header or a
//! complete image:
//!
//! 1. the storage is emptied, if it held anything: no old tail survives;
//! 2. its length is set: tables that are all zero (the L1 table) are there, and take no space;
//! 3. refcount table and refcount blocks are written;
//! 4. the header is written;
//! 5. if clusters are to have their place from the start, the image is written to as any other.
//!
//! Feature names, `header_length`, extension order, defaults and places of all tables are
//! qemu-img's. Callers: disk-engine's `overlay` and `ops::create`.

mod behind;
mod counting;
mod data_file;
mod fill;
mod layout;
pub mod measure;
mod stream;
mod tables;

use crate::address::HostOffset;
use crate::error::{Error, OptionsError, RequestError, Result};
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::{ClusterBits, Geometry, RefcountOrder, TABLE_ENTRY_BYTES};
use crate::header::extension::{BACKING_FORMAT_MAX, FeatureNameTable, HeaderExtension};
use crate::header::{
    BACKING_NAME_MAX, CompressionType, CryptMethod, HEADER_LENGTH_V3, Header, Version,
};
use crate::image::{Durability, Preallocation, WritableImage, WriteOptions};
use crate::io::WriteAt;
use crate::refcount;
pub use data_file::DataFile;
pub use fill::ImageFiller;
pub use layout::Layout;
pub use stream::StreamedImage;

/// Disks are made of whole sectors of 512 bytes, as far as QEMU is concerned.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// QEMU writes the feature name table only where 4096 bytes of the first cluster are left for it,
/// which the header itself takes from a cluster of that size.
const FEATURE_NAMES_MIN_CLUSTER: u64 = 8192;
/// Pieces closer together than this are written in one call.
const MERGE_GAP: u64 = 4096;

/// The format of a backing file, as QEMU names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackingFormat {
    /// Guest bytes and nothing else.
    Raw,
    /// Another qcow2 image.
    Qcow2,
    /// Any other format QEMU knows; 1 to 15 bytes, no NUL.
    Other(Vec<u8>),
}

impl BackingFormat {
    /// The name in the backing format extension.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Raw => b"raw",
            Self::Qcow2 => b"qcow2",
            Self::Other(name) => name,
        }
    }

    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

/// The file a new image stands on. Its format is always written, so that nobody has to guess it
/// from content a guest may have chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFile {
    /// Its name: 1 to 1023 bytes, any but NUL, and nothing QEMU would take for a protocol. A
    /// relative name counts from the folder of the image.
    pub name: Vec<u8>,
    /// Its format.
    pub format: BackingFormat,
}

impl BackingFile {
    /// A backing file by name and format. Checked when an image is planned or rebased.
    pub fn new(name: impl Into<Vec<u8>>, format: BackingFormat) -> Self {
        Self { name: name.into(), format }
    }

    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let length = self.name.len();
        if length == 0 {
            return Err(OptionsError::BackingNameEmpty);
        }
        if length > BACKING_NAME_MAX {
            return Err(OptionsError::BackingNameTooLong { length });
        }
        if self.name.contains(&0) {
            return Err(OptionsError::Nul { what: "backing file name" });
        }
        if let Some(protocol) = protocol(&self.name) {
            return Err(OptionsError::BackingNameIsProtocol { protocol: protocol.to_vec() });
        }
        let format = self.format.as_bytes();
        if !(1..=BACKING_FORMAT_MAX).contains(&format.len()) {
            return Err(OptionsError::BackingFormatLength { length: format.len() });
        }
        if format.contains(&0) {
            return Err(OptionsError::Nul { what: "backing format" });
        }
        Ok(())
    }
}

/// What QEMU would take for a protocol in a file name: everything before a colon that comes before
/// any slash, as in `nbd:…` or `json:…`.
#[must_use]
pub fn protocol(name: &[u8]) -> Option<&[u8]> {
    let end = name.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    match name.get(end) {
        Some(b':') => name.get(..end),
        _ => None,
    }
}

/// What a new image is to be. The defaults are qemu-img's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    virtual_size: u64,
    version: Version,
    cluster_bits: ClusterBits,
    refcount_order: RefcountOrder,
    extended_l2: bool,
    lazy_refcounts: bool,
    compression_type: CompressionType,
    backing: Option<BackingFile>,
    data_file: Option<DataFile>,
    extensions: Vec<(u32, Vec<u8>)>,
    preallocation: Preallocation,
}

impl CreateOptions {
    /// An image of `virtual_size` bytes, rounded up to whole sectors of 512 as qemu-img does.
    #[must_use]
    pub fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            version: Version::V3,
            cluster_bits: ClusterBits::DEFAULT,
            refcount_order: RefcountOrder::DEFAULT,
            extended_l2: false,
            lazy_refcounts: false,
            compression_type: CompressionType::Zlib,
            backing: None,
            data_file: None,
            extensions: Vec::new(),
            preallocation: Preallocation::Off,
        }
    }

    /// Another virtual size, in bytes.
    #[must_use]
    pub fn virtual_size(mut self, virtual_size: u64) -> Self {
        self.virtual_size = virtual_size;
        self
    }

    /// The format's version; 3 unless said otherwise.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The cluster size; 64 KiB unless said otherwise.
    #[must_use]
    pub fn cluster_bits(mut self, cluster_bits: ClusterBits) -> Self {
        self.cluster_bits = cluster_bits;
        self
    }

    /// The refcount width; 16 bits unless said otherwise.
    #[must_use]
    pub fn refcount_order(mut self, refcount_order: RefcountOrder) -> Self {
        self.refcount_order = refcount_order;
        self
    }

    /// L2 entries of 16 bytes with subclusters.
    #[must_use]
    pub fn extended_l2(mut self, extended_l2: bool) -> Self {
        self.extended_l2 = extended_l2;
        self
    }

    /// Lets writers postpone refcount updates.
    #[must_use]
    pub fn lazy_refcounts(mut self, lazy_refcounts: bool) -> Self {
        self.lazy_refcounts = lazy_refcounts;
        self
    }

    /// How compressed clusters will be compressed; deflate unless said otherwise.
    #[must_use]
    pub fn compression_type(mut self, compression_type: CompressionType) -> Self {
        self.compression_type = compression_type;
        self
    }

    /// How much space is taken at once; none unless said otherwise.
    #[must_use]
    pub fn preallocation(mut self, preallocation: Preallocation) -> Self {
        self.preallocation = preallocation;
        self
    }

    /// How much space is to be taken at once.
    #[must_use]
    pub fn wanted_preallocation(&self) -> Preallocation {
        self.preallocation
    }

    /// The file to stand on.
    #[must_use]
    pub fn backing(mut self, backing: BackingFile) -> Self {
        self.backing = Some(backing);
        self
    }

    /// A file of their own for the guest's clusters.
    #[must_use]
    pub fn data_file(mut self, data_file: DataFile) -> Self {
        self.data_file = Some(data_file);
        self
    }

    /// Whether the guest's clusters are to have a file of their own.
    #[must_use]
    pub fn has_data_file(&self) -> bool {
        self.data_file.is_some()
    }

    /// An extension of the caller's own; programs that do not know its type keep it. A second one
    /// of the same type replaces the first.
    #[must_use]
    pub fn unknown_extension(mut self, extension_type: u32, data: Vec<u8>) -> Self {
        self.extensions.retain(|(other, _)| *other != extension_type);
        self.extensions.push((extension_type, data));
        self
    }

    /// Checks the options and decides every byte of the new image.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] names the option that no image can have.
    pub fn plan(&self) -> Result<NewImage> {
        let geometry = self.check()?;
        let too_large = || OptionsError::VirtualSize {
            size: self.virtual_size,
            max: geometry.max_virtual_size(),
        };
        let virtual_size =
            self.virtual_size.checked_next_multiple_of(SECTOR_BYTES).ok_or_else(too_large)?;
        if virtual_size > geometry.max_virtual_size() {
            return Err(too_large().into());
        }
        let layout = Layout::reserve(geometry, geometry.l1_entries(virtual_size));
        let header = self.header(geometry, virtual_size, &layout)?;
        let header_bytes = header.encode()?;
        let raw = self.data_file.as_ref().is_some_and(|data| data.raw);
        let preallocation = match self.preallocation {
            // Read by itself the file has all clusters, so the image has to name them all.
            Preallocation::Off if raw => Preallocation::Metadata,
            other => other,
        };
        Ok(NewImage { header, layout, header_bytes, preallocation })
    }

    fn check(&self) -> Result<Geometry, OptionsError> {
        if self.version == Version::V2 {
            let needs_v3 = [
                (self.lazy_refcounts, "lazy_refcounts"),
                (self.refcount_order != RefcountOrder::DEFAULT, "refcount_bits other than 16"),
                (self.extended_l2, "extended_l2"),
                (self.compression_type != CompressionType::Zlib, "compression_type"),
                (self.data_file.is_some(), "data_file"),
            ];
            if let Some((_, option)) = needs_v3.into_iter().find(|(asked, _)| *asked) {
                return Err(OptionsError::NeedsVersion3 { option });
            }
        }
        if self.extended_l2 && self.cluster_bits < ClusterBits::EXTENDED_L2_MIN {
            let cluster_size = self.cluster_bits.bytes();
            return Err(OptionsError::ExtendedL2ClusterSize { cluster_size });
        }
        let raw = self.data_file.as_ref().is_some_and(|data| data.raw);
        if let Some(data) = &self.data_file {
            data.check()?;
        }
        if let Some(backing) = &self.backing {
            backing.check()?;
            if raw {
                return Err(OptionsError::BackingWithRawExternalData);
            }
            if self.preallocation != Preallocation::Off && !self.extended_l2 {
                return Err(OptionsError::PreallocationOverBacking);
            }
        }
        Ok(Geometry {
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.extended_l2,
        })
    }

    fn header(&self, geometry: Geometry, virtual_size: u64, layout: &Layout) -> Result<Header> {
        let zstd = self.compression_type == CompressionType::Zstd;
        let mut extensions = Vec::new();
        if let Some(backing) = &self.backing {
            extensions.push(HeaderExtension::BackingFormat(backing.format.to_vec()));
        }
        if let Some(data) = &self.data_file {
            extensions.push(HeaderExtension::ExternalDataFile(data.name.clone()));
        }
        if self.version == Version::V3 && self.cluster_bits.bytes() >= FEATURE_NAMES_MIN_CLUSTER {
            extensions.push(HeaderExtension::FeatureNameTable(FeatureNameTable::standard()));
        }
        for (extension_type, data) in &self.extensions {
            extensions.push(HeaderExtension::unknown(*extension_type, data.clone())?);
        }
        let additional = match self.version {
            Version::V2 => Vec::new(),
            Version::V3 => {
                let mut bytes = vec![0; HEADER_LENGTH_V3 - 104];
                if let Some(compression_type) = bytes.first_mut() {
                    *compression_type = u8::from(zstd);
                }
                bytes
            }
        };
        Ok(Header {
            version: self.version,
            geometry,
            virtual_size,
            crypt_method: CryptMethod::None,
            // The L1 table has at most 2^22 entries, the refcount table fewer clusters.
            l1_size: u32::try_from(layout.l1_size).unwrap_or(u32::MAX),
            l1_table_offset: layout.l1_table_offset,
            refcount_table_offset: layout.refcount_table_offset,
            refcount_table_clusters: u32::try_from(layout.refcount_table_clusters)
                .unwrap_or(u32::MAX),
            nb_snapshots: 0,
            snapshots_offset: HostOffset(0),
            incompatible: IncompatibleFeatures::default()
                .with(IncompatibleFeatures::EXTERNAL_DATA_FILE, self.data_file.is_some())
                .with(IncompatibleFeatures::COMPRESSION_TYPE, zstd)
                .with(IncompatibleFeatures::EXTENDED_L2, self.extended_l2),
            compatible: CompatibleFeatures::default()
                .with(CompatibleFeatures::LAZY_REFCOUNTS, self.lazy_refcounts),
            autoclear: AutoclearFeatures::default().with(
                AutoclearFeatures::RAW_EXTERNAL_DATA,
                self.data_file.as_ref().is_some_and(|data| data.raw),
            ),
            compression_type: self.compression_type,
            additional,
            extensions,
            backing_file: self.backing.as_ref().map(|backing| backing.name.clone()),
        })
    }
}

/// A planned image: nothing is written yet and nothing is left to decide.
#[derive(Clone, Debug)]
pub struct NewImage {
    header: Header,
    layout: Layout,
    header_bytes: Vec<u8>,
    preallocation: Preallocation,
}

impl NewImage {
    /// The new image's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where its tables lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Writes the image, in the order this module's documentation gives. Nothing is flushed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage, which then holds no valid header, or, where space was to be
    /// taken, an image that has less of it; [`RequestError::DataFileNeeded`].
    pub fn write_to(&self, storage: &(impl WriteAt + Sync + ?Sized)) -> Result<()> {
        if self.header.external_data_file().is_some() {
            return Err(RequestError::DataFileNeeded.into());
        }
        self.write_image(storage)?;
        self.preallocate(|options| WritableImage::open(storage, options))
    }

    /// Writes the image, and makes `data`, which is emptied, its external data file.
    ///
    /// # Errors
    ///
    /// As [`NewImage::write_to`], for both storages; [`RequestError::DataFileUnexpected`].
    pub fn write_with_data<S: WriteAt + Sync + ?Sized>(&self, storage: &S, data: &S) -> Result<()> {
        if self.header.external_data_file().is_none() {
            return Err(RequestError::DataFileUnexpected.into());
        }
        let size = self.header.virtual_size();
        let failed = Error::io("set the data file's length", size);
        data.set_length(0).and_then(|()| data.set_length(size)).map_err(failed)?;
        self.write_image(storage)?;
        self.preallocate(|options| WritableImage::open_with_data(storage, data, options))
    }

    fn preallocate<S: WriteAt + Sync>(
        &self,
        open: impl FnOnce(&WriteOptions) -> Result<WritableImage<S>>,
    ) -> Result<()> {
        if self.preallocation == Preallocation::Off {
            return Ok(());
        }
        let image = open(&WriteOptions::new().durability(Durability::None))?;
        image.preallocate(self.preallocation)?;
        image.close()
    }

    fn write_image(&self, storage: &(impl WriteAt + ?Sized)) -> Result<()> {
        if storage.length().map_err(Error::io("read the length of the storage", 0))? > 0 {
            storage.set_length(0).map_err(Error::io("empty the storage", 0))?;
        }
        let length = self.layout.file_length;
        storage.set_length(length).map_err(Error::io("set the image's length", length))?;
        for (offset, bytes) in self.refcount_structures() {
            storage
                .write_all_at(&bytes, offset)
                .map_err(Error::io("write the refcount structures", offset))?;
        }
        storage.write_all_at(&self.header_bytes, 0).map_err(Error::io("write the header", 0))
    }

    /// Refcount table and blocks, in file order, neighbours joined.
    fn refcount_structures(&self) -> Vec<(u64, Vec<u8>)> {
        let geometry = self.header.geometry;
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let table = self.layout.refcount_blocks.iter().flat_map(|b| b.to_u64().to_be_bytes());
        pieces.push((self.layout.refcount_table_offset.to_u64(), table.collect()));
        // A block's counts are bytes of a cluster, so their number fits in memory.
        let per_block = usize::try_from(geometry.refcounts_per_block()).unwrap_or(usize::MAX);
        for (block, used) in
            self.layout.refcount_blocks.iter().zip(self.layout.used.chunks(per_block))
        {
            if block.to_u64() != 0 {
                let counts = refcount::encode_ones(geometry.refcount_order, used.iter().copied());
                pieces.push((block.to_u64(), counts));
            }
        }
        pieces.sort_unstable_by_key(|(offset, _)| *offset);
        pieces.dedup_by(|next, piece| {
            let end = piece.0 + piece.1.len() as u64;
            let gap = next.0 - end;
            let join = gap < MERGE_GAP;
            if join {
                // Below MERGE_GAP, and a sum of lengths in memory.
                let start = usize::try_from(next.0 - piece.0).unwrap_or(usize::MAX);
                piece.1.resize(start, 0);
                piece.1.append(&mut next.1);
            }
            join
        });
        pieces
    }
}

const _: () = assert!(TABLE_ENTRY_BYTES == size_of::<u64>() as u64);

#[cfg(test)]
mod tests;
