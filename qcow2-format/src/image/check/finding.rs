//! What a check finds, one at a time.
//!
//! ```text
//! corruption   the image is dangerous to use, or part of it cannot be read
//! leak         space is counted that nothing uses
//! error        something could not be looked at
//! note         worth knowing, and allowed
//! ```
//!
//! Callers: the other parts of `check`, `repair`, whoever prints.

mod words;

use crate::address::{GuestOffset, HostOffset};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Severity {
    /// The image is dangerous to use, or part of it cannot be read.
    Corruption,
    /// Space is counted that nothing uses.
    Leak,
    /// Something could not be looked at.
    CheckError,
    /// Worth knowing, and nothing that the format forbids.
    Note,
}

/// Metadata that something else lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Metadata {
    /// The header, the first cluster.
    Header,
    /// The active L1 table.
    L1Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 table of a snapshot.
    SnapshotL1Table,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
    /// The header of encrypted data.
    EncryptionHeader,
    /// An L2 table.
    L2Table,
}

impl Metadata {
    const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "active L1 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::SnapshotL1Table => "L1 table of a snapshot",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "table of a bitmap",
            Self::EncryptionHeader => "encryption header",
            Self::L2Table => "L2 table",
        }
    }
}

/// Something found. New kinds may be added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A refcount higher than the number of references.
    Leaked {
        /// The host cluster.
        cluster: u64,
        /// What its refcount is.
        refcount: u64,
        /// How many references there are.
        references: u64,
    },
    /// A refcount lower than the number of references.
    TooLow {
        /// The host cluster.
        cluster: u64,
        /// What its refcount is.
        refcount: u64,
        /// How many references there are.
        references: u64,
    },
    /// Refcounts that cannot be read: their block is not where a block can be.
    RefcountUnknown {
        /// The first host cluster.
        cluster: u64,
        /// How many there are.
        count: u64,
    },
    /// More references than a refcount of this width counts.
    Overflow {
        /// Where the host cluster starts.
        offset: HostOffset,
    },
    /// A reference to what lies past the end of the file.
    BeyondFile {
        /// Where it starts in the file.
        offset: HostOffset,
        /// Its length in bytes.
        length: u64,
        /// The guest offset it is mapped from.
        guest: Option<GuestOffset>,
    },
    /// Reserved bits of an L1 entry that are set.
    L1Reserved {
        /// The entry.
        entry: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// An L2 table that is not on a cluster boundary.
    L2TableUnaligned {
        /// Where it starts in the file.
        offset: HostOffset,
        /// What it maps.
        guest: GuestOffset,
    },
    /// An L1 entry whose COPIED flag contradicts the refcount of the L2 table.
    L1Copied {
        /// Which entry of the active L1 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// The refcount of the L2 table.
        refcount: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// An L2 entry whose COPIED flag contradicts the refcount of the cluster.
    L2Copied {
        /// The entry.
        entry: u64,
        /// The refcount of the cluster.
        refcount: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// Reserved bits of an L2 entry that are set.
    L2Reserved {
        /// The entry.
        entry: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// A compressed cluster with the COPIED flag.
    CompressedCopied {
        /// Where it starts in the file.
        offset: HostOffset,
        /// What it is mapped from.
        guest: GuestOffset,
    },
    /// A compressed cluster beside an external data file.
    CompressedWithDataFile {
        /// Which entry of the L2 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// A compressed cluster with a subcluster bitmap.
    CompressedWithBitmap {
        /// Which entry of the L2 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// Subclusters that are said to be allocated and to read as zeros.
    SubclusterConflict {
        /// Where the cluster starts in the file.
        offset: HostOffset,
        /// What it is mapped from.
        guest: GuestOffset,
    },
    /// Subclusters that are said to be allocated in no cluster.
    SubclusterWithoutCluster {
        /// What the entry maps.
        guest: GuestOffset,
    },
    /// A cluster that is not on a cluster boundary.
    ClusterUnaligned {
        /// Where it starts in the file.
        offset: HostOffset,
        /// Whether anything is read from there.
        data: bool,
        /// What it is mapped from.
        guest: GuestOffset,
    },
    /// The zero bit of an L2 entry, in version 2 or in an extended entry.
    ZeroBit {
        /// The entry.
        entry: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// A cluster that lies elsewhere in the external data file than on the guest's disk.
    ExternalDataElsewhere {
        /// Where it starts in the data file.
        offset: HostOffset,
        /// What it is mapped from.
        guest: GuestOffset,
    },
    /// Snapshots beside an external data file.
    SnapshotsWithDataFile {
        /// How many.
        count: u32,
    },
    /// A snapshot's L1 table that is not on a cluster boundary.
    SnapshotL1Unaligned {
        /// The snapshot's id.
        id: Vec<u8>,
        /// The snapshot's name.
        name: Vec<u8>,
        /// Where the table starts in the file.
        offset: HostOffset,
    },
    /// A snapshot's L1 table that is too long.
    SnapshotL1TooLarge {
        /// The snapshot's id.
        id: Vec<u8>,
        /// The snapshot's name.
        name: Vec<u8>,
        /// Its number of entries.
        entries: u32,
    },
    /// An entry of the snapshot table that lacks what version 3 demands.
    SnapshotIncomplete {
        /// Which entry.
        index: u32,
    },
    /// A bitmap directory that is not one, and what is wrong with it.
    BitmapDirectory {
        /// The rule it breaks.
        what: &'static str,
    },
    /// A bitmap that breaks a rule: QEMU opens no image that has one.
    Bitmap {
        /// Its name.
        name: Vec<u8>,
        /// The rule it breaks.
        what: &'static str,
    },
    /// An entry of a bitmap's table that names no cluster.
    BitmapTableEntry {
        /// The entry.
        entry: u64,
    },
    /// Reserved bits of an entry of the refcount table that are set.
    RefcountTableReserved {
        /// Which entry.
        index: u64,
    },
    /// A refcount block that is not on a cluster boundary.
    RefcountBlockUnaligned {
        /// Which entry of the refcount table.
        index: u64,
    },
    /// A refcount block past the end of the file.
    RefcountBlockOutside {
        /// Which entry of the refcount table.
        index: u64,
    },
    /// A refcount block that something else uses as well.
    RefcountBlockShared {
        /// Which entry of the refcount table.
        index: u64,
        /// How many references there are.
        references: u64,
    },
    /// Two things in one cluster, one of them metadata. Refcounts say whether that is counted.
    Overlap {
        /// The host cluster.
        cluster: u64,
        /// What lies there.
        metadata: Metadata,
        /// The guest offset that is mapped there.
        guest: Option<GuestOffset>,
    },
}

impl Finding {
    /// How grave it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Leaked { .. } => Severity::Leak,
            Self::RefcountUnknown { .. } => Severity::CheckError,
            Self::Overlap { .. } => Severity::Note,
            _ => Severity::Corruption,
        }
    }

    /// A word for what kind it is, which stays the same.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Leaked { .. } => "leaked",
            Self::TooLow { .. } => "too-low",
            Self::RefcountUnknown { .. } => "refcount-unknown",
            Self::Overflow { .. } => "overflow",
            Self::BeyondFile { .. } => "beyond-file",
            Self::L1Reserved { .. } => "l1-reserved",
            Self::L2TableUnaligned { .. } => "l2-table-unaligned",
            Self::L1Copied { .. } => "l1-copied",
            Self::L2Copied { .. } => "l2-copied",
            Self::L2Reserved { .. } => "l2-reserved",
            Self::CompressedCopied { .. } => "compressed-copied",
            Self::CompressedWithDataFile { .. } => "compressed-with-data-file",
            Self::CompressedWithBitmap { .. } => "compressed-with-bitmap",
            Self::SubclusterConflict { .. } => "subcluster-conflict",
            Self::SubclusterWithoutCluster { .. } => "subcluster-without-cluster",
            Self::ClusterUnaligned { .. } => "cluster-unaligned",
            Self::ZeroBit { .. } => "zero-bit",
            Self::ExternalDataElsewhere { .. } => "external-data-elsewhere",
            Self::SnapshotsWithDataFile { .. } => "snapshots-with-data-file",
            Self::SnapshotL1Unaligned { .. } => "snapshot-l1-unaligned",
            Self::SnapshotL1TooLarge { .. } => "snapshot-l1-too-large",
            Self::SnapshotIncomplete { .. } => "snapshot-incomplete",
            Self::BitmapDirectory { .. } => "bitmap-directory",
            Self::Bitmap { .. } => "bitmap",
            Self::BitmapTableEntry { .. } => "bitmap-table-entry",
            Self::RefcountTableReserved { .. } => "refcount-table-reserved",
            Self::RefcountBlockUnaligned { .. } => "refcount-block-unaligned",
            Self::RefcountBlockOutside { .. } => "refcount-block-outside",
            Self::RefcountBlockShared { .. } => "refcount-block-shared",
            Self::Overlap { .. } => "overlap",
        }
    }

    /// The guest offset concerned, where there is one.
    #[must_use]
    pub const fn guest(&self) -> Option<GuestOffset> {
        match self {
            Self::BeyondFile { guest, .. } | Self::Overlap { guest, .. } => *guest,
            Self::L1Reserved { guest, .. }
            | Self::L2TableUnaligned { guest, .. }
            | Self::L1Copied { guest, .. }
            | Self::L2Copied { guest, .. }
            | Self::L2Reserved { guest, .. }
            | Self::CompressedCopied { guest, .. }
            | Self::CompressedWithDataFile { guest, .. }
            | Self::CompressedWithBitmap { guest, .. }
            | Self::SubclusterConflict { guest, .. }
            | Self::SubclusterWithoutCluster { guest }
            | Self::ClusterUnaligned { guest, .. }
            | Self::ZeroBit { guest, .. }
            | Self::ExternalDataElsewhere { guest, .. } => Some(*guest),
            _ => None,
        }
    }
}
