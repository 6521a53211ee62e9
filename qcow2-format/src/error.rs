//! Three kinds of trouble, told apart: the storage failed; the image contradicts the
//! specification; the image is fine and this library does not speak that feature. A fourth is the
//! caller's: options no image can have.
//!
//! A field's error holds the field's name in the specification, the value found, where it lies,
//! and which rule it breaks, so that a report alone is enough to redo the check by hand.

use std::io;

use thiserror::Error;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. New kinds may be added.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage failed.
    #[error("{doing} at offset {offset:#x}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where, in bytes from the start of the image.
        offset: u64,
        /// What the storage said.
        source: io::Error,
    },
    /// The image contradicts the specification.
    #[error("the image is corrupt: {0}")]
    Corrupt(#[from] FieldError),
    /// The image is valid and needs something this library does not do.
    #[error("the image needs what is not supported: {0}")]
    Unsupported(#[from] Unsupported),
    /// No image can be made from these options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The caller asked an image for something that it does not have.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Error {
    pub(crate) fn io(doing: &'static str, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, offset, source }
    }
}

/// A field of the header or of a table that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} at offset {offset:#x} is {value:#x}: {violation}")]
pub struct FieldError {
    /// The field's name in the specification.
    pub field: &'static str,
    /// The value found.
    pub value: u64,
    /// Where the field lies, in bytes from the start of the image.
    pub offset: u64,
    /// The rule it breaks.
    pub violation: Violation,
}

/// The rules an image can break, one by one. New rules may be added.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The file does not begin as a qcow2 image.
    #[error("a qcow2 image begins with 0x514649fb")]
    Magic,
    /// The file, or its first cluster, ends inside a structure.
    #[error("the structure needs {needed} bytes and {available} are there")]
    Truncated {
        /// Bytes the structure takes from its start.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// `cluster_bits` outside 9 to 21.
    #[error("cluster sizes go from 9 bits (512 bytes) to 21 bits (2 MiB)")]
    ClusterBits,
    /// Extended L2 entries with clusters under 16 KiB.
    #[error("extended L2 entries need clusters of at least 14 bits (16 KiB)")]
    ClusterBitsForExtendedL2,
    /// A virtual size that no L1 table of legal length maps.
    #[error("with these clusters a disk has at most {max:#x} bytes")]
    VirtualSize {
        /// The largest virtual size in bytes.
        max: u64,
    },
    /// `crypt_method` above 2.
    #[error("encryption methods are 0 (none), 1 (AES) and 2 (LUKS)")]
    CryptMethod,
    /// An L1 table over 32 MiB.
    #[error("an L1 table has at most {max} entries")]
    L1TooLarge {
        /// The most entries.
        max: u64,
    },
    /// An L1 table too short for the virtual size.
    #[error("the virtual size needs {needed} L1 entries")]
    L1TooSmall {
        /// Entries the virtual size needs.
        needed: u64,
    },
    /// A table that starts inside a cluster.
    #[error("a table starts on a cluster boundary, here a multiple of {cluster_size:#x}")]
    Unaligned {
        /// The image's cluster size in bytes.
        cluster_size: u64,
    },
    /// A table in cluster 0.
    #[error("the first cluster holds the header and no table")]
    OverlapsHeader,
    /// A table that ends after the file.
    #[error("the table takes {length:#x} bytes and the file ends at {file_length:#x}")]
    BeyondFile {
        /// Bytes the table takes.
        length: u64,
        /// Length of the file in bytes.
        file_length: u64,
    },
    /// An image without a refcount table.
    #[error("an image has a refcount table of at least one cluster")]
    NoRefcountTable,
    /// A refcount table over 8 MiB.
    #[error("a refcount table has at most {max} clusters of this size")]
    RefcountTableTooLarge {
        /// The most clusters.
        max: u64,
    },
    /// More than 65,536 snapshots.
    #[error("an image has at most 65536 snapshots")]
    TooManySnapshots,
    /// `refcount_order` above 6.
    #[error("refcounts are at most 1 << 6 bits wide")]
    RefcountOrder,
    /// `header_length` under 104.
    #[error("a version 3 header has at least 104 bytes")]
    HeaderLengthTooShort,
    /// `header_length` not a multiple of 8.
    #[error("the header's length is a multiple of 8")]
    HeaderLengthUnaligned,
    /// A header longer than the first cluster.
    #[error("the header fits in the first cluster of {cluster_size:#x} bytes")]
    HeaderLengthBeyondCluster {
        /// The image's cluster size in bytes.
        cluster_size: u64,
    },
    /// The compression type bit without a compression type.
    #[error("the compression type bit is set and the field says deflate, or is absent")]
    CompressionTypeMissing,
    /// A compression type without its bit.
    #[error("a compression type other than 0 needs the compression type bit")]
    CompressionTypeUnannounced,
    /// A backing file name that starts inside the header.
    #[error("the backing file name lies behind the header, which has {header_length} bytes")]
    BackingNameInHeader {
        /// Length of the header in bytes.
        header_length: u64,
    },
    /// A backing file name that ends after the first cluster.
    #[error("the backing file name ends before the first cluster does, at {cluster_size:#x}")]
    BackingNameBeyondCluster {
        /// The image's cluster size in bytes.
        cluster_size: u64,
    },
    /// A backing file name over 1023 bytes.
    #[error("a backing file name has at most 1023 bytes")]
    BackingNameTooLong,
    /// A string with a NUL byte in it, which other programs would read as a shorter one.
    #[error("the name holds a NUL byte")]
    NameWithNul,
    /// The raw external data bit without the external data file bit.
    #[error("the raw external data bit needs the external data file bit")]
    RawExternalDataAlone,
    /// Internal snapshots beside an external data file.
    #[error("an image with an external data file has no internal snapshots")]
    SnapshotsWithExternalData,
    /// A header extension that ends after the area it lies in.
    #[error("the extension is {length} bytes long and its area has {available} left")]
    ExtensionTooLong {
        /// Bytes the extension's data takes.
        length: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// A backing format name over 15 bytes.
    #[error("a backing format name has at most 15 bytes")]
    BackingFormatTooLong,
    /// An extension of fixed length with another length.
    #[error("the extension has {expected} bytes")]
    ExtensionLength {
        /// The length the specification gives.
        expected: u64,
    },
    /// No bitmaps, or more than 65,535.
    #[error("the bitmaps extension names 1 to 65535 bitmaps")]
    BitmapCount,
    /// A field that is reserved and not zero.
    #[error("the field is reserved and must be zero")]
    Reserved,
    /// A bitmap directory over 64 MiB, or too small for its entries.
    #[error("the directory of {bitmaps} bitmaps takes {min} bytes to 64 MiB")]
    BitmapDirectorySize {
        /// Number of bitmaps.
        bitmaps: u64,
        /// The least bytes that many entries take.
        min: u64,
    },
    /// A LUKS image without its header pointer.
    #[error("a LUKS image has a full disk encryption header pointer")]
    EncryptionHeaderMissing,
    /// A full disk encryption header pointer in an image that is not LUKS.
    #[error("only a LUKS image has a full disk encryption header pointer")]
    EncryptionHeaderUnexpected,
    /// Reserved bits of a table entry that are set.
    #[error("the bits {bits:#x} are reserved and must be zero")]
    ReservedBits {
        /// Those of the reserved bits that are set.
        bits: u64,
    },
    /// A mapping to a place inside a host cluster.
    #[error(
        "guest offset {guest:#x} is mapped to {host:#x}, which is not a multiple of {cluster_size:#x}"
    )]
    ClusterUnaligned {
        /// The guest offset.
        guest: u64,
        /// Where it is mapped to.
        host: u64,
        /// The image's cluster size in bytes.
        cluster_size: u64,
    },
    /// The zero bit of an L2 entry, in version 2 or in an extended entry.
    #[error("only standard L2 entries of version 3 have the zero bit")]
    ZeroBit,
    /// A subcluster that is said to be allocated and to read as zeros.
    #[error("a subcluster is either allocated or zero, not both")]
    SubclusterBothBits,
    /// A subcluster that is said to be allocated in no cluster.
    #[error("a subcluster is allocated only in an allocated cluster")]
    SubclusterWithoutCluster,
    /// A compressed cluster beside an external data file.
    #[error("an image with an external data file has no compressed clusters")]
    CompressedWithExternalData,
    /// A cluster that lies elsewhere in the external data file than on the guest's disk.
    #[error("in an external data file guest offset {guest:#x} lies at that offset")]
    ExternalDataElsewhere {
        /// The guest offset.
        guest: u64,
    },
    /// Compressed data that does not give one cluster.
    #[error("the {compression} data of guest offset {guest:#x} does not give one cluster: {what}")]
    CompressedData {
        /// What qemu-img calls the compression.
        compression: &'static str,
        /// Where the cluster starts on the guest's disk.
        guest: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A snapshot table over 64 MiB.
    #[error("a snapshot table takes at most 64 MiB")]
    SnapshotTableTooLarge,
    /// A write that would destroy metadata.
    #[error("it would overwrite the {what}")]
    Overlap {
        /// What lies there.
        what: &'static str,
    },
    /// A reference that says it is the only one, and the refcount says otherwise.
    #[error(
        "it says that it is the only reference, and the refcount of what it names is {refcount}"
    )]
    NotTheOnlyReference {
        /// The refcount of the cluster that is referred to.
        refcount: u64,
    },
    /// A cluster in use whose refcount is zero.
    #[error("what it names is in use and has a refcount of 0")]
    UnusedInUse,
    /// An L2 table that two entries of the active L1 table name.
    #[error("another entry of the L1 table names the same L2 table")]
    SharedL2Table,
    /// A refcount that its width cannot count any further.
    #[error("refcounts of {bits} bits do not count any further")]
    RefcountOverflow {
        /// Their width in bits.
        bits: u32,
    },
    /// Two entries of the refcount table that name the same block.
    #[error("another entry names the same refcount block")]
    DuplicateRefcountBlock,
    /// A structure that starts after the end of the file.
    #[error("it starts at or after the end of the file, {file_length:#x}")]
    StartsBeyondFile {
        /// Length of the file in bytes.
        file_length: u64,
    },
    /// A bitmap directory whose entries do not fill it.
    #[error("the entries of the bitmap directory do not end where it does")]
    BitmapDirectory,
    /// A LUKS header that is none, or of another version.
    #[error("a LUKS header begins with its magic number, and has version 1")]
    LuksHeader,
    /// What keeps references from being counted.
    #[error("references cannot be counted: {finding}")]
    Inconsistent {
        /// What a check says of it.
        finding: String,
    },
    /// More than 1024 bytes of extra data in a snapshot table entry.
    #[error("a snapshot has at most 1024 bytes of extra data")]
    SnapshotExtraData,
}

/// Something an image was asked for and does not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The caller wanted long work to stop.
    #[error("the caller cancelled the work")]
    Cancelled,
    /// No snapshot has this id or name.
    #[error("the image has no snapshot with the id or name \"{}\"", name.escape_ascii())]
    NoSuchSnapshot {
        /// What was looked for.
        name: Vec<u8>,
    },
    /// The guest's clusters lie in a file that was not given.
    #[error("the guest's data lies in an external data file, which was not given")]
    DataFileNeeded,
    /// A data file was given, and the image holds its clusters itself.
    #[error("the image has no external data file")]
    DataFileUnexpected,
    /// The image cannot be written to.
    #[error("the image cannot be written to: {why}")]
    ReadOnly {
        /// What keeps it from that.
        why: &'static str,
    },
    /// A compressed write that does not take whole clusters.
    #[error(
        "compressed clusters are written as a whole: {length} bytes at offset {offset:#x} are not clusters of {cluster_size}"
    )]
    NotWholeClusters {
        /// Where the range starts.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// The image's cluster size in bytes.
        cluster_size: u64,
    },
    /// A compressed write to an image with an external data file.
    #[error("an external data file holds no compressed clusters")]
    CompressedWithDataFile,
    /// No refcount table of legal size counts another cluster.
    #[error("the image is full: its refcount table cannot grow past {max} bytes")]
    Full {
        /// The most bytes a refcount table may take.
        max: u64,
    },
    /// What is asked for is the backing file's, or has to be kept from it.
    #[error("what lies at offset {offset:#x} is left to the backing file, which was not given")]
    BackingFileNeeded {
        /// Where, on the guest's disk.
        offset: u64,
    },
    /// A range that is not on the disk.
    #[error("{length} bytes at offset {offset:#x} are not in a disk of {size} bytes")]
    OutOfRange {
        /// Where the range starts.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
}

/// Something valid that this library does not do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A version other than 2 and 3.
    #[error("version {version} of the format, at offset 0x4 (versions 2 and 3 are known)")]
    Version {
        /// The version the header states.
        version: u32,
    },
    /// Incompatible features that the specification does not name.
    #[error("incompatible_features at offset 0x48 is {value:#x}: {}", names.join(", "))]
    IncompatibleFeatures {
        /// The whole bit field.
        value: u64,
        /// What the image's own feature name table calls the unknown bits, else their numbers.
        names: Vec<String>,
    },
    /// A compression type other than deflate and zstd.
    #[error("compression_type at offset 0x68 is {value} (0, zlib, and 1, zstd, are known)")]
    CompressionType {
        /// The type the header states.
        value: u8,
    },
    /// Encrypted guest data.
    #[error("crypt_method at offset 0x20: the guest's data is encrypted with {method}")]
    Encryption {
        /// What qemu-img calls the method.
        method: &'static str,
    },
    /// A compressed cluster, and the library was built without its compression.
    #[error("compressed clusters of type {name}, which this build leaves out")]
    CompressionLeftOut {
        /// What qemu-img calls the compression.
        name: &'static str,
    },
}

/// Options that no image can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The virtual size needs an L1 table over 32 MiB.
    #[error("a disk of {size} bytes is too large: with these clusters at most {max} bytes")]
    VirtualSize {
        /// The size asked for, in bytes.
        size: u64,
        /// The largest size in bytes.
        max: u64,
    },
    /// An option that version 2 (compat=0.10) does not have.
    #[error("{option} needs version 3 (compat=1.1)")]
    NeedsVersion3 {
        /// The option's name, as qemu-img calls it.
        option: &'static str,
    },
    /// Extended L2 entries with clusters under 16 KiB.
    #[error("extended_l2 needs clusters of at least 16 KiB, these have {cluster_size} bytes")]
    ExtendedL2ClusterSize {
        /// The cluster size asked for, in bytes.
        cluster_size: u64,
    },
    /// A backing file name that is empty.
    #[error("the backing file name is empty")]
    BackingNameEmpty,
    /// A backing file name over 1023 bytes.
    #[error("the backing file name has {length} bytes, at most 1023 are possible")]
    BackingNameTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A name that other programs would read as a shorter one.
    #[error("the {what} holds a NUL byte")]
    Nul {
        /// Which name.
        what: &'static str,
    },
    /// A backing file name that QEMU would take for a protocol and its argument.
    #[error(
        "QEMU reads the backing file name as the protocol \"{}\": write an absolute path, or ./ before it",
        protocol.escape_ascii()
    )]
    BackingNameIsProtocol {
        /// What stands before the colon.
        protocol: Vec<u8>,
    },
    /// A data file name that is empty.
    #[error("the data file name is empty")]
    DataFileNameEmpty,
    /// A data file name that QEMU would take for a protocol and its argument.
    #[error(
        "QEMU reads the data file name as the protocol \"{}\": write an absolute path, or ./ before it",
        protocol.escape_ascii()
    )]
    DataFileNameIsProtocol {
        /// What stands before the colon.
        protocol: Vec<u8>,
    },
    /// A backing format that is empty or over 15 bytes.
    #[error("a backing format name has 1 to 15 bytes, this one has {length}")]
    BackingFormatLength {
        /// Its length in bytes.
        length: usize,
    },
    /// Preallocation over a backing file, without subclusters to tell what is still the backing
    /// file's.
    #[error("preallocation over a backing file needs extended_l2")]
    PreallocationOverBacking,
    /// A backing file for an image whose external data file is raw.
    #[error("an image whose external data file is raw cannot have a backing file")]
    BackingWithRawExternalData,
    /// An extension of one's own under a type that the specification uses.
    #[error("header extension type {extension_type:#010x} is the specification's own")]
    ExtensionTypeTaken {
        /// The type asked for.
        extension_type: u32,
    },
    /// A header that does not fit in its cluster.
    #[error(
        "the header with its extensions and backing file name takes {needed} bytes, a cluster has {cluster_size}"
    )]
    HeaderTooLarge {
        /// Bytes it takes.
        needed: u64,
        /// The cluster size in bytes.
        cluster_size: u64,
    },
}
