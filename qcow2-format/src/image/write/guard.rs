//! What lies where in the file that no guest data may overwrite.
//!
//! ```text
//! cluster   0       1        2       3      4 …
//!           header  table    block   L1     L2 …       one bit for each kind, in a map
//! ```
//!
//! Asked before each write, as QEMU does: an image whose tables lie, by accident or by intent, gets
//! an error and its corrupt bit, and keeps its metadata. The L2 tables of snapshots are not known
//! here; their refcounts protect them. Callers: `write`.

use std::collections::HashMap;

use crate::address::HostCluster;
use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::ClusterBits;
use crate::image::cache::hash::PlaceHash;

/// A kind of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header,
    L1Table,
    L2Table,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    SnapshotL1Table,
    BitmapDirectory,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Header,
        Self::L1Table,
        Self::L2Table,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::SnapshotTable,
        Self::SnapshotL1Table,
        Self::BitmapDirectory,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "active L1 table",
            Self::L2Table => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::SnapshotL1Table => "L1 table of a snapshot",
            Self::BitmapDirectory => "bitmap directory",
        }
    }
}

#[derive(Debug)]
pub(super) struct Guard {
    cluster_bits: ClusterBits,
    clusters: HashMap<u64, u8, PlaceHash>,
    /// First and last cluster of each snapshot's L1 table, in order: there may be many, and long
    /// ones.
    snapshots: Vec<(u64, u64)>,
}

impl Guard {
    pub(super) fn new(cluster_bits: ClusterBits) -> Self {
        let mut clusters = HashMap::default();
        clusters.insert(0, Kind::Header.bit());
        Self { cluster_bits, clusters, snapshots: Vec::new() }
    }

    /// Makes room for `count` clusters more: one by one it would be made over and over.
    pub(super) fn reserve(&mut self, count: usize) -> Result<()> {
        self.clusters.try_reserve(count).map_err(|_| {
            let error = std::io::ErrorKind::OutOfMemory.into();
            Error::io("remember where the tables lie", 0)(error)
        })
    }

    /// `length` bytes from `offset` on are of that kind.
    pub(super) fn add(&mut self, kind: Kind, offset: u64, length: u64) -> Result<()> {
        let clusters = self.clusters_of(offset, length);
        let count = usize::try_from(clusters.end - clusters.start).unwrap_or(usize::MAX);
        self.reserve(count)?;
        for cluster in clusters {
            *self.clusters.entry(cluster).or_default() |= kind.bit();
        }
        Ok(())
    }

    /// `length` bytes from `offset` on are the L1 table of a snapshot.
    pub(super) fn add_snapshot_l1(&mut self, offset: u64, length: u64) {
        let clusters = self.clusters_of(offset, length);
        if let Some(last) = clusters.end.checked_sub(1).filter(|last| *last >= clusters.start) {
            self.snapshots.push((clusters.start, last));
        }
    }

    /// That no two snapshots share an L1 table, which would have to be counted and copied over and
    /// over.
    pub(super) fn check_snapshots(&mut self) -> Result<()> {
        self.snapshots.sort_unstable();
        for pair in self.snapshots.windows(2) {
            if let [(_, last), (first, _)] = pair
                && last >= first
            {
                let value = self.cluster_bits.offset_of(HostCluster(*first)).0;
                let violation = Violation::Overlap { what: Kind::SnapshotL1Table.name() };
                let field = "snapshot's l1_table_offset";
                return Err(FieldError { field, value, offset: value, violation }.into());
            }
        }
        Ok(())
    }

    fn is_snapshot_l1(&self, cluster: u64) -> bool {
        let behind = self.snapshots.partition_point(|(first, _)| *first <= cluster);
        let before = behind.checked_sub(1).and_then(|index| self.snapshots.get(index));
        before.is_some_and(|(_, last)| *last >= cluster)
    }

    /// They are no longer of that kind.
    pub(super) fn remove(&mut self, kind: Kind, offset: u64, length: u64) {
        for cluster in self.clusters_of(offset, length) {
            if let Some(kinds) = self.clusters.get_mut(&cluster) {
                *kinds &= !kind.bit();
                if *kinds == 0 {
                    self.clusters.remove(&cluster);
                }
            }
        }
    }

    /// That a write of `length` bytes at `offset` touches no metadata, but for some of kind `own`.
    /// `named_by` is the field that leads there, its value and its place.
    pub(super) fn check(
        &self,
        offset: u64,
        length: u64,
        own: Option<Kind>,
        named_by: (&'static str, u64, u64),
    ) -> Result<()> {
        let own = own.map_or(0, Kind::bit);
        for cluster in self.clusters_of(offset, length) {
            let mut others = self.clusters.get(&cluster).copied().unwrap_or_default() & !own;
            if !self.snapshots.is_empty() && self.is_snapshot_l1(cluster) {
                others |= Kind::SnapshotL1Table.bit();
            }
            if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.bit() & others != 0) {
                let (field, value, at) = named_by;
                let violation = Violation::Overlap { what: kind.name() };
                return Err(FieldError { field, value, offset: at, violation }.into());
            }
        }
        Ok(())
    }

    fn clusters_of(&self, offset: u64, length: u64) -> std::ops::Range<u64> {
        let bits = self.cluster_bits.to_u32();
        let end = self.cluster_bits.clusters(offset.saturating_add(length));
        offset >> bits..if length == 0 { offset >> bits } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_another_kind_is_in_the_way() {
        let mut guard = Guard::new(ClusterBits::MIN);
        guard.add(Kind::L2Table, 1024, 512).unwrap();
        guard.add(Kind::RefcountBlock, 1536, 513).unwrap();
        let what = |guard: &Guard, offset, length, own| match guard.check(
            offset,
            length,
            own,
            ("f", 1, 2),
        ) {
            Ok(()) => None,
            Err(Error::Corrupt(FieldError { violation: Violation::Overlap { what }, .. })) => {
                Some(what)
            }
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(what(&guard, 512, 512, None), None);
        assert_eq!(what(&guard, 511, 1, None), Some("header"));
        assert_eq!(what(&guard, 512, 513, None), Some("active L2 table"));
        assert_eq!(what(&guard, 1024, 512, Some(Kind::L2Table)), None);
        assert_eq!(what(&guard, 1024, 513, Some(Kind::L2Table)), Some("refcount block"));
        assert_eq!(what(&guard, 2048, 1, None), Some("refcount block"));
        guard.remove(Kind::RefcountBlock, 1536, 513);
        assert_eq!(what(&guard, 2048, 1, None), None);
    }
}
