//! What a check finds, one at a time, in qemu-img's words where it has some.
//!
//! ```text
//! corruption   the image is dangerous to use, or part of it cannot be read
//! leak         space is counted that nothing uses
//! error        something could not be looked at
//! note         worth knowing, and allowed
//! ```
//!
//! Callers: the other parts of `check`, `repair`, whoever prints.

use std::fmt;

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

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked { cluster, refcount, references } => {
                write!(f, "Leaked cluster {cluster} refcount={refcount} reference={references}")
            }
            Self::TooLow { cluster, refcount, references } => {
                write!(f, "ERROR cluster {cluster} refcount={refcount} reference={references}")
            }
            Self::RefcountUnknown { cluster, count: 1 } => {
                write!(f, "Can't get refcount for cluster {cluster}: Input/output error")
            }
            Self::RefcountUnknown { cluster, count } => {
                let last = cluster.saturating_add(count.saturating_sub(1));
                write!(f, "Can't get refcount for clusters {cluster} to {last}: Input/output error")
            }
            Self::Overflow { offset } => write!(f, "ERROR: overflow cluster offset={offset}"),
            Self::BeyondFile { offset, length, .. } => write!(
                f,
                "ERROR: counting reference for region exceeding the end of the file by one \
                 cluster or more: offset {offset} size {length:#x}"
            ),
            Self::L1Reserved { entry, .. } => {
                write!(f, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Self::L2TableUnaligned { offset, .. } => write!(
                f,
                "ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                offset.0
            ),
            Self::L1Copied { index, entry, refcount, .. } => write!(
                f,
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} \
                 refcount={refcount}"
            ),
            Self::L2Copied { entry, refcount, .. } => {
                let flag = "ERROR OFLAG_COPIED data cluster";
                write!(f, "{flag}: l2_entry={entry:x} refcount={refcount}")
            }
            Self::L2Reserved { entry, .. } => {
                write!(f, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Self::CompressedCopied { offset, .. } => write!(
                f,
                "ERROR: coffset={offset}: copied flag must never be set for compressed clusters"
            ),
            Self::CompressedWithDataFile { index, entry, .. } => {
                write!(f, "ERROR compressed cluster {index} with data file, entry={entry:#x}")
            }
            Self::CompressedWithBitmap { index, entry, .. } => write!(
                f,
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, \
                 entry={entry:#x}"
            ),
            Self::SubclusterConflict { offset, .. } => write!(
                f,
                "ERROR offset={:x}: Allocated cluster has corrupted subcluster allocation bitmap",
                offset.0
            ),
            Self::SubclusterWithoutCluster { .. } => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Self::ClusterUnaligned { offset, data, .. } => {
                let what = if *data { "Data" } else { "Preallocated" };
                let rest = "cluster is not properly aligned; L2 entry corrupted.";
                write!(f, "ERROR offset={:x}: {what} {rest}", offset.0)
            }
            Self::ZeroBit { entry, guest } => write!(
                f,
                "ERROR guest offset {guest}: zero bit in an entry that has none: {entry:x}"
            ),
            Self::ExternalDataElsewhere { offset, guest } => {
                write!(f, "ERROR guest offset {guest} lies at {offset} in the external data file")
            }
            Self::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in image with data file")
            }
            Self::SnapshotL1Unaligned { id, name, offset } => write!(
                f,
                "ERROR snapshot {} ({}) l1_offset={offset}: L1 table is not cluster aligned; \
                 snapshot table entry corrupted",
                id.escape_ascii(),
                name.escape_ascii()
            ),
            Self::SnapshotL1TooLarge { id, name, entries } => write!(
                f,
                "ERROR snapshot {} ({}) l1_size={entries:#x}: L1 table is too large; snapshot \
                 table entry corrupted",
                id.escape_ascii(),
                name.escape_ascii()
            ),
            Self::SnapshotIncomplete { index } => {
                write!(f, "ERROR snapshot table entry {index} is incomplete")
            }
            Self::BitmapDirectory { what } => write!(f, "ERROR bitmap directory: {what}"),
            Self::BitmapTableEntry { entry } => {
                write!(f, "ERROR bitmap table entry {entry:x} names no cluster")
            }
            Self::RefcountTableReserved { index } => {
                write!(f, "ERROR refcount table entry {index} has reserved bits set")
            }
            Self::RefcountBlockUnaligned { index } => write!(
                f,
                "ERROR refcount block {index} is not cluster aligned; refcount table entry \
                 corrupted"
            ),
            Self::RefcountBlockOutside { index } => {
                write!(f, "ERROR refcount block {index} is outside image")
            }
            Self::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
            Self::Overlap { cluster, metadata, guest } => {
                write!(f, "Note: cluster {cluster} is the {}", metadata.name())?;
                match guest {
                    Some(guest) => write!(f, " and mapped from guest offset {guest}"),
                    None => f.write_str(" and other metadata"),
                }
            }
        }
    }
}
