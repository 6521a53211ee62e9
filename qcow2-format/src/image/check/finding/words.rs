//! Findings in qemu-img's words, where it has some.
//!
//! ```text
//! Leaked cluster 12 refcount=3 reference=1
//! ERROR …                      corruptions
//! Note: …                      what qemu-img does not tell
//! ```
//!
//! Callers: whoever prints.

use std::fmt;

use super::Finding;

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
            Self::Bitmap { name, what } => {
                write!(f, "ERROR bitmap '{}': {what}", name.escape_ascii())
            }
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
