//! Geometry: the sizes every index computation starts from (spec: "Header", "Cluster mapping").
//!
//! ```text
//! cluster size         1 << cluster_bits                      512 B … 2 MiB
//! L2 entry             8 bytes, 16 with extended L2 entries
//! L2 table             one cluster of L2 entries
//! L1 entry covers      (cluster size / L2 entry) × cluster size   guest bytes
//! refcount block       one cluster of 1 << refcount_order bit wide counts
//! subcluster           cluster size / 32, with extended L2 entries only
//!
//! guest offset   [ l1_index ][ l2_index ][ offset in cluster ]
//! ```
//!
//! Callers: `header` (validation), `create` (layout), `l1`, `l2`, `image` (lookups).

use std::fmt;

use crate::address::{GuestCluster, GuestOffset, HostCluster, HostOffset};

/// Most bytes an active L1 table may take: QEMU's limit, 4,194,304 entries.
pub const L1_TABLE_MAX_BYTES: u64 = 32 << 20;
/// Most bytes a refcount table may take: QEMU's limit.
pub const REFCOUNT_TABLE_MAX_BYTES: u64 = 8 << 20;
/// Bytes of an entry of the L1 table and of the refcount table.
pub const TABLE_ENTRY_BYTES: u64 = 8;
/// Subclusters in a cluster, with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// A cluster size: a power of two from 512 bytes to 2 MiB, kept as its exponent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterBits(u32);

impl ClusterBits {
    /// 512 bytes, the least the specification allows.
    pub const MIN: Self = Self(9);
    /// 2 MiB, the most QEMU opens.
    pub const MAX: Self = Self(21);
    /// 64 KiB, what qemu-img chooses.
    pub const DEFAULT: Self = Self(16);
    /// 16 KiB, the least that extended L2 entries allow.
    pub const EXTENDED_L2_MIN: Self = Self(14);

    /// The size `1 << bits`; `None` outside 9 to 21.
    #[must_use]
    pub const fn new(bits: u32) -> Option<Self> {
        if Self::MIN.0 <= bits && bits <= Self::MAX.0 { Some(Self(bits)) } else { None }
    }

    /// The size of `bytes`; `None` unless a power of two from 512 to 2 MiB.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() { Self::new(bytes.trailing_zeros()) } else { None }
    }

    /// The exponent, as the header stores it.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// The cluster size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// Whether `offset` is a cluster boundary.
    #[must_use]
    pub const fn is_aligned(self, offset: u64) -> bool {
        offset & (self.bytes() - 1) == 0
    }

    /// Where `cluster` starts. Saturates far beyond what any file can hold.
    #[must_use]
    pub const fn offset_of(self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0.saturating_mul(self.bytes()))
    }

    /// How far `offset` lies behind the start of its cluster.
    #[must_use]
    pub const fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The cluster of the guest's disk that holds `offset`.
    #[must_use]
    pub const fn guest_cluster(self, offset: GuestOffset) -> GuestCluster {
        GuestCluster(offset.0 >> self.0)
    }

    /// How many clusters `length` bytes take, the last one perhaps in part.
    #[must_use]
    pub const fn clusters(self, length: u64) -> u64 {
        length.div_ceil(self.bytes())
    }
}

impl fmt::Debug for ClusterBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterBits({})", self.0)
    }
}

/// The width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits, kept as its exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefcountOrder(u32);

impl RefcountOrder {
    /// 16 bits: the only width of version 2, and the default of version 3.
    pub const DEFAULT: Self = Self(4);
    /// 64 bits.
    pub const MAX: Self = Self(6);

    /// The width `1 << order` bits; `None` above 6.
    #[must_use]
    pub const fn new(order: u32) -> Option<Self> {
        if order <= Self::MAX.0 { Some(Self(order)) } else { None }
    }

    /// The width of `bits`; `None` unless a power of two from 1 to 64.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits.is_power_of_two() { Self::new(bits.trailing_zeros()) } else { None }
    }

    /// The exponent, as the header stores it.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// The width in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        1 << self.0
    }
}

/// The three header fields that decide every table's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The cluster size.
    pub cluster_bits: ClusterBits,
    /// The refcount width.
    pub refcount_order: RefcountOrder,
    /// Whether L2 entries take 16 bytes and carry a subcluster bitmap.
    pub extended_l2: bool,
}

impl Geometry {
    /// Guest bytes that one L1 entry covers.
    #[must_use]
    pub const fn l1_entry_span(self) -> u64 {
        self.l2_entries() * self.cluster_bits.bytes()
    }

    /// Bytes of an L2 entry.
    #[must_use]
    pub const fn l2_entry_bytes(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    #[must_use]
    pub const fn l2_entries(self) -> u64 {
        self.cluster_bits.bytes() / self.l2_entry_bytes()
    }

    /// Which entry of the L1 table covers `offset`.
    #[must_use]
    pub const fn l1_index(self, offset: GuestOffset) -> u64 {
        offset.0 / self.l1_entry_span()
    }

    /// Which entry of its L2 table maps `offset`.
    #[must_use]
    pub const fn l2_index(self, offset: GuestOffset) -> u64 {
        self.cluster_bits.guest_cluster(offset).0 % self.l2_entries()
    }

    /// Bytes that are mapped as one: a subcluster with extended L2 entries, else a cluster.
    #[must_use]
    pub const fn subcluster_bytes(self) -> u64 {
        if self.extended_l2 {
            self.cluster_bits.bytes() / SUBCLUSTERS as u64
        } else {
            self.cluster_bits.bytes()
        }
    }

    /// Which subcluster of its cluster holds `offset`; 0 without extended L2 entries.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the quotient is below 32")]
    pub const fn subcluster_index(self, offset: GuestOffset) -> u32 {
        // Below 32, whatever the offset.
        (self.cluster_bits.offset_in_cluster(offset.0) / self.subcluster_bytes()) as u32
    }

    /// L1 entries a disk of `virtual_size` bytes needs.
    #[must_use]
    pub const fn l1_entries(self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l1_entry_span())
    }

    /// The largest virtual size in bytes whose L1 table QEMU still accepts.
    #[must_use]
    pub const fn max_virtual_size(self) -> u64 {
        // At most 2^22 entries of at most 2^39 bytes: 2^61.
        (L1_TABLE_MAX_BYTES / TABLE_ENTRY_BYTES) * self.l1_entry_span()
    }

    /// Host clusters that one refcount block counts.
    #[must_use]
    pub const fn refcounts_per_block(self) -> u64 {
        self.cluster_bits.bytes() * 8 / (1 << self.refcount_order.0)
    }

    /// Entries that one cluster of the refcount table holds.
    #[must_use]
    pub const fn refcount_table_entries_per_cluster(self) -> u64 {
        self.cluster_bits.bytes() / TABLE_ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Geometry {
        Geometry {
            cluster_bits: ClusterBits::new(cluster_bits).unwrap(),
            refcount_order: RefcountOrder::new(refcount_order).unwrap(),
            extended_l2,
        }
    }

    #[test]
    fn the_limits_are_the_specifications() {
        assert_eq!(geometry(9, 4, false).max_virtual_size(), 128 << 30);
        assert_eq!(geometry(21, 4, false).max_virtual_size(), 2 << 60);
        assert_eq!(geometry(16, 4, false).l1_entry_span(), 512 << 20);
        assert_eq!(geometry(16, 4, true).l1_entry_span(), 256 << 20);
        assert_eq!(geometry(16, 4, false).refcounts_per_block(), 32768);
        assert_eq!(geometry(9, 6, false).refcounts_per_block(), 64);
        assert_eq!(geometry(21, 0, false).refcounts_per_block(), 1 << 24);
    }

    #[test]
    fn a_guest_offset_falls_into_its_indices() {
        let offset = GuestOffset((512 << 20) * 3 + 65_536 * 7 + 2049);
        let standard = geometry(16, 4, false);
        assert_eq!((standard.l1_index(offset), standard.l2_index(offset)), (3, 7));
        assert_eq!((standard.subcluster_bytes(), standard.subcluster_index(offset)), (65_536, 0));
        let extended = geometry(16, 4, true);
        assert_eq!((extended.l1_index(offset), extended.l2_index(offset)), (6, 7));
        assert_eq!((extended.subcluster_bytes(), extended.subcluster_index(offset)), (2048, 1));
        assert_eq!(extended.subcluster_index(GuestOffset(65_535)), 31);
        assert_eq!(geometry(9, 4, false).l2_index(GuestOffset(u64::MAX)), 63);
    }

    #[test]
    fn only_legal_sizes_exist() {
        assert_eq!(ClusterBits::new(8), None);
        assert_eq!(ClusterBits::new(22), None);
        assert_eq!(ClusterBits::from_bytes(65537), None);
        assert_eq!(ClusterBits::from_bytes(0), None);
        assert_eq!(RefcountOrder::from_bits(3), None);
        assert_eq!(RefcountOrder::from_bits(128), None);
        assert_eq!(RefcountOrder::from_bits(0), None);
    }
}
