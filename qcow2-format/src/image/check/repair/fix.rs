//! What a repair changes, one change at a time, in qemu-img's words where it has some.
//!
//! Callers: the other parts of `repair`, whoever prints.

use std::fmt;

use crate::address::GuestOffset;
use crate::l2::OFFSET;

/// A change. New kinds may be added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fix {
    /// An L1 entry that broke a rule.
    L1Entry {
        /// What it maps.
        guest: GuestOffset,
        /// Bytes of the guest's disk that it maps.
        length: u64,
        /// What it was.
        from: u64,
        /// What it becomes.
        to: u64,
        /// Whether what it maps could not be read, and now reads as if nothing had been written.
        lost: bool,
    },
    /// An L2 entry that broke a rule.
    L2Entry {
        /// What it maps.
        guest: GuestOffset,
        /// Bytes of the guest's disk that it maps.
        length: u64,
        /// What it was.
        from: u64,
        /// What it becomes.
        to: u64,
        /// Whether what it maps, or part of it, could not be read and now reads as zeros, as if nothing
        /// had been written, or as what lies where it should.
        lost: bool,
    },
    /// A refcount.
    Refcount {
        /// The host cluster.
        cluster: u64,
        /// What it was.
        from: u64,
        /// What it becomes: the number of references.
        to: u64,
    },
    /// The refcount table and all its blocks, written anew elsewhere.
    Rebuilt {
        /// The host cluster that the new structures start at.
        cluster: u64,
        /// How many clusters they take.
        clusters: u64,
    },
    /// The COPIED flag of an entry of the active L1 table.
    L1Copied {
        /// Which entry.
        index: u64,
        /// What it was.
        entry: u64,
        /// The refcount of the L2 table.
        refcount: u64,
    },
    /// The COPIED flag of an L2 entry.
    L2Copied {
        /// What it was.
        entry: u64,
        /// The refcount of the cluster.
        refcount: u64,
        /// What it maps.
        guest: GuestOffset,
    },
    /// The length of the active L1 table, which is said to reach into something else.
    L1Size {
        /// Entries before.
        from: u32,
        /// Entries that the disk needs.
        to: u32,
    },
    /// An active L1 table that maps nothing, in place of one past the end of the file.
    L1Table,
    /// The snapshot table, written anew with what its entries lacked.
    SnapshotTable {
        /// How many snapshots are kept.
        kept: u32,
    },
    /// A snapshot whose L1 table cannot be found: it is lost.
    SnapshotLost {
        /// Its id.
        id: Vec<u8>,
        /// Its name.
        name: Vec<u8>,
    },
    /// A bitmap that cannot be used: it is lost.
    BitmapLost {
        /// Its name.
        name: Vec<u8>,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The bitmap directory, written anew with those that can be used.
    BitmapDirectory {
        /// How many bitmaps are kept.
        kept: u32,
    },
    /// Bitmaps of which none can be used: they are lost, and the image no longer speaks of any.
    BitmapsLost {
        /// What is wrong with them.
        what: &'static str,
    },
    /// Autoclear bits of the header that the specification does not name: what they vouch for is
    /// not kept up.
    UnknownFeatures {
        /// Those bits.
        bits: u64,
    },
    /// The bits of the header that say that the image is dirty or corrupt.
    MarkedClean,
}

impl Fix {
    /// A word for what kind it is, which stays the same.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::L1Entry { .. } => "l1-entry",
            Self::L2Entry { .. } => "l2-entry",
            Self::Refcount { .. } => "refcount",
            Self::Rebuilt { .. } => "rebuilt",
            Self::L1Copied { .. } => "l1-copied",
            Self::L2Copied { .. } => "l2-copied",
            Self::L1Size { .. } => "l1-size",
            Self::L1Table => "l1-table",
            Self::SnapshotTable { .. } => "snapshot-table",
            Self::SnapshotLost { .. } => "snapshot-lost",
            Self::BitmapLost { .. } => "bitmap-lost",
            Self::BitmapDirectory { .. } => "bitmap-directory",
            Self::BitmapsLost { .. } => "bitmaps-lost",
            Self::UnknownFeatures { .. } => "unknown-features",
            Self::MarkedClean => "marked-clean",
        }
    }

    /// The part of the guest's disk that could not be read and now reads as what it may never have been,
    /// if there is one: where it starts, and how long it is.
    #[must_use]
    pub const fn lost(&self) -> Option<(GuestOffset, u64)> {
        match self {
            Self::L1Entry { guest, length, lost: true, .. }
            | Self::L2Entry { guest, length, lost: true, .. } => Some((*guest, *length)),
            _ => None,
        }
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L1Entry { guest, length, from, to, lost }
            | Self::L2Entry { guest, length, from, to, lost } => {
                let table = if matches!(self, Self::L1Entry { .. }) { "L1" } else { "L2" };
                let end = match lost {
                    true if to & OFFSET == 0 => ": what was there is lost",
                    true => ": what was there may be lost",
                    false => "",
                };
                write!(
                    f,
                    "Repairing {table} entry {from:x}, now {to:x}, of {length:#x} bytes at guest \
                     offset {guest}{end}"
                )
            }
            Self::Refcount { cluster, from, to } => {
                write!(f, "Repairing cluster {cluster} refcount={from} reference={to}")
            }
            Self::Rebuilt { cluster, clusters } => {
                let place = format_args!("{clusters} clusters from cluster {cluster} on");
                write!(f, "Rebuilding refcount structure: {place}")
            }
            Self::L1Copied { index, entry, refcount } => write!(
                f,
                "Repairing OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} \
                 refcount={refcount}"
            ),
            Self::L2Copied { entry, refcount, .. } => {
                let flag = "Repairing OFLAG_COPIED data cluster";
                write!(f, "{flag}: l2_entry={entry:x} refcount={refcount}")
            }
            Self::L1Size { from, to } => {
                write!(f, "Repairing l1_size {from}, now {to}: the table reaches into other data")
            }
            Self::L1Table => {
                f.write_str("Repairing the active L1 table, which lies past the end of the file")
            }
            Self::SnapshotTable { kept } => {
                write!(f, "Repairing snapshot table: {kept} snapshots are kept")
            }
            Self::SnapshotLost { id, name } => {
                let (id, name) = (id.escape_ascii(), name.escape_ascii());
                write!(f, "Discarding snapshot {id} ({name}): its L1 table cannot be found")
            }
            Self::BitmapLost { name, what } => {
                write!(f, "Discarding bitmap '{}': {what}", name.escape_ascii())
            }
            Self::BitmapDirectory { kept } => {
                write!(f, "Repairing bitmap directory: {kept} bitmaps are kept")
            }
            Self::BitmapsLost { what } => write!(f, "Discarding the bitmaps: {what}"),
            Self::UnknownFeatures { bits } => {
                write!(f, "Clearing autoclear bits that are not known: {bits:x}")
            }
            Self::MarkedClean => f.write_str("Clearing the dirty and corrupt bits"),
        }
    }
}
