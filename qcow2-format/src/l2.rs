//! L2 entries (spec: "L2 table entry", "Extended L2 Entries"): what one guest cluster is.
//!
//! ```text
//! bit  63      62          61 … 0
//!      COPIED  compressed  descriptor
//!
//!      standard, bit 62 clear:
//!      61 … 56   55 … 9                8 … 1     0
//!      reserved  host cluster offset   reserved  reads as zeros (version 3, 8-byte entries)
//!
//! an extended entry has 8 bytes more: bits 63 … 32 subcluster n reads as zeros,
//!                                     bits 31 … 0  subcluster n is allocated
//! ```
//!
//! Decoded once; afterwards nobody looks at masks. Callers: `image`.

use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::compressed::CompressedDescriptor;
use crate::error::{FieldError, Result, Violation};
use crate::geometry::{Geometry, SUBCLUSTERS};
use crate::header::Version;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const ZERO: u64 = 1;
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(crate) const RESERVED: u64 = !(COPIED | COMPRESSED | ZERO | OFFSET);

/// What a guest cluster is, or a subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// Read the backing file, or zeros where there is none.
    Unallocated {
        /// The place reserved for a subcluster by the others of its cluster.
        preallocated: Option<HostOffset>,
    },
    /// Reads as zeros.
    Zero {
        /// The place reserved for later writes.
        preallocated: Option<HostOffset>,
    },
    /// Stored as it is at `host`.
    Standard {
        /// Where, in the image or in its external data file.
        host: HostOffset,
    },
    /// Stored compressed.
    Compressed {
        /// Where, and how long.
        descriptor: CompressedDescriptor,
    },
}

/// The second half of an extended L2 entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubclusterBitmap(pub u64);

impl SubclusterBitmap {
    /// Whether subcluster `index` is stored in the cluster.
    #[must_use]
    pub const fn is_allocated(self, index: u32) -> bool {
        index < SUBCLUSTERS && self.0 >> index & 1 == 1
    }

    /// Whether subcluster `index` reads as zeros.
    #[must_use]
    pub const fn is_zero(self, index: u32) -> bool {
        index < SUBCLUSTERS && self.0 >> (index + SUBCLUSTERS) & 1 == 1
    }

    /// All subclusters read as zeros.
    pub(crate) const ALL_ZERO: Self = Self(0xffff_ffff_0000_0000);

    /// The subclusters in `indices` are stored, and no longer zeros.
    #[must_use]
    pub const fn with_allocated(self, indices: Range<u32>) -> Self {
        let bits = bits(indices);
        Self((self.0 | bits) & !(bits << SUBCLUSTERS))
    }

    /// The subclusters in `indices` read as zeros, and are no longer stored.
    #[must_use]
    pub const fn with_zero(self, indices: Range<u32>) -> Self {
        let bits = bits(indices);
        Self((self.0 & !bits) | bits << SUBCLUSTERS)
    }

    pub(crate) const fn allocated(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    pub(crate) const fn zero(self) -> u64 {
        self.0 >> 32
    }
}

/// The bits of `indices`, each at most 32.
const fn bits(indices: Range<u32>) -> u64 {
    ((1 << indices.end) - 1) & !((1 << indices.start) - 1)
}

/// An L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Entry {
    /// What the cluster is. With a bitmap only `Standard` and `Unallocated` leave anything to the
    /// subclusters.
    pub kind: ClusterKind,
    /// Which subclusters are what, if the entry is extended and not compressed.
    pub subclusters: Option<SubclusterBitmap>,
    /// Whether the cluster's refcount is exactly one.
    pub copied: bool,
}

/// What L2 entries mean in one image.
#[derive(Clone, Copy, Debug)]
pub struct L2Rules {
    /// Cluster size and kind of L2 entries.
    pub geometry: Geometry,
    /// The format's version.
    pub version: Version,
    /// Whether guest clusters lie in an external data file.
    pub external_data: bool,
}

impl L2Rules {
    /// The meaning of the entry `raw`, with `bitmap` if it is extended, that lies at `at` in the
    /// file and maps the cluster at `guest`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) names the rule the entry breaks.
    pub fn decode(
        &self,
        raw: u64,
        bitmap: SubclusterBitmap,
        guest: GuestOffset,
        at: HostOffset,
    ) -> Result<L2Entry> {
        let corrupt = |violation| {
            Err(FieldError { field: "L2 entry", value: raw, offset: at.0, violation }.into())
        };
        let copied = raw & COPIED != 0;
        if raw & COMPRESSED != 0 {
            if self.external_data {
                return corrupt(Violation::CompressedWithExternalData);
            }
            let descriptor = CompressedDescriptor::decode(raw, self.geometry.cluster_bits);
            let kind = ClusterKind::Compressed { descriptor };
            return Ok(L2Entry { kind, subclusters: None, copied });
        }
        if raw & RESERVED != 0 {
            return corrupt(Violation::ReservedBits { bits: raw & RESERVED });
        }
        let zero = raw & ZERO != 0;
        if zero && (self.version == Version::V2 || self.geometry.extended_l2) {
            return corrupt(Violation::ZeroBit);
        }
        let offset = raw & OFFSET;
        // The first cluster of an external data file lies at 0; COPIED tells it from no cluster.
        let host =
            (offset != 0 || self.external_data && copied && !zero).then_some(HostOffset(offset));
        if let Some(HostOffset(host)) = host {
            if !self.geometry.cluster_bits.is_aligned(host) {
                let cluster_size = self.geometry.cluster_bits.bytes();
                let guest = guest.0;
                return corrupt(Violation::ClusterUnaligned { guest, host, cluster_size });
            }
            if self.external_data && host != guest.0 {
                return corrupt(Violation::ExternalDataElsewhere { guest: guest.0 });
            }
        }
        let kind = match host {
            preallocated if zero => ClusterKind::Zero { preallocated },
            Some(host) => ClusterKind::Standard { host },
            None => ClusterKind::Unallocated { preallocated: None },
        };
        if !self.geometry.extended_l2 {
            return Ok(L2Entry { kind, subclusters: None, copied });
        }
        let violation = if bitmap.allocated() & bitmap.zero() != 0 {
            Some(Violation::SubclusterBothBits)
        } else if host.is_none() && bitmap.allocated() != 0 {
            Some(Violation::SubclusterWithoutCluster)
        } else {
            None
        };
        match violation {
            None => Ok(L2Entry { kind, subclusters: Some(bitmap), copied }),
            Some(violation) => Err(FieldError {
                field: "L2 entry's subcluster bitmap",
                value: bitmap.0,
                offset: at.0.saturating_add(8),
                violation,
            }
            .into()),
        }
    }
}

impl L2Entry {
    /// The entry of a cluster stored at `host`, to which there is no other reference.
    pub(crate) const fn standard(host: HostOffset) -> u64 {
        COPIED | host.0
    }

    /// The entry of a cluster that reads as zeros and has `host` to itself for later writes. Without
    /// subclusters only.
    pub(crate) const fn zero(host: Option<HostOffset>) -> u64 {
        match host {
            Some(host) => COPIED | host.0 | ZERO,
            None => ZERO,
        }
    }

    /// The entry of a compressed cluster.
    pub(crate) fn compressed(descriptor: u64) -> u64 {
        COMPRESSED | descriptor
    }

    /// What subcluster `index` is, each `subcluster_bytes` long. Without a bitmap the whole cluster
    /// is subcluster 0.
    #[must_use]
    pub fn subcluster(&self, index: u32, subcluster_bytes: u64) -> ClusterKind {
        let Some(bitmap) = self.subclusters else { return self.kind };
        let cluster = match self.kind {
            ClusterKind::Standard { host } => Some(host),
            _ => None,
        };
        // At most 32 × 64 KiB behind an offset of 56 bits.
        let place = cluster
            .map(|host| HostOffset(host.0.saturating_add(u64::from(index) * subcluster_bytes)));
        match place {
            preallocated if bitmap.is_zero(index) => ClusterKind::Zero { preallocated },
            Some(host) if bitmap.is_allocated(index) => ClusterKind::Standard { host },
            preallocated => ClusterKind::Unallocated { preallocated },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::geometry::{ClusterBits, RefcountOrder};
    use ClusterKind as K;

    const AT: HostOffset = HostOffset(0x40_0010);
    const GUEST: GuestOffset = GuestOffset(0x50_0000);

    fn rules(version: Version, extended_l2: bool, external_data: bool) -> L2Rules {
        let geometry = Geometry {
            cluster_bits: ClusterBits::DEFAULT,
            refcount_order: RefcountOrder::DEFAULT,
            extended_l2,
        };
        L2Rules { geometry, version, external_data }
    }

    fn standard() -> L2Rules {
        rules(Version::V3, false, false)
    }

    fn violation(result: Result<L2Entry>) -> (&'static str, u64, Violation) {
        match result {
            Err(Error::Corrupt(field)) => (field.field, field.offset, field.violation),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_standard_entry_is_one_of_four_words() {
        let kind = |raw| standard().decode(raw, SubclusterBitmap(0), GUEST, AT).unwrap().kind;
        let place = HostOffset(0x7_0000);
        assert_eq!(kind(0), K::Unallocated { preallocated: None });
        assert_eq!(kind(COPIED), K::Unallocated { preallocated: None });
        assert_eq!(kind(1), K::Zero { preallocated: None });
        assert_eq!(kind(0x7_0001), K::Zero { preallocated: Some(place) });
        assert_eq!(kind(COPIED | 0x7_0000), K::Standard { host: place });
        assert!(matches!(kind(COMPRESSED | 0x1234), K::Compressed { .. }));
    }

    #[test]
    fn every_bit_a_standard_entry_may_not_have_is_refused() {
        for bit in 0..62 {
            let raw = 0x7_0000 | 1 << bit;
            let result = standard().decode(raw, SubclusterBitmap(0), GUEST, AT);
            let expected = match bit {
                0 | 16..=55 => {
                    assert!(result.is_ok(), "bit {bit}");
                    continue;
                }
                9..=15 => Violation::ClusterUnaligned {
                    guest: GUEST.0,
                    host: 0x7_0000 | 1 << bit,
                    cluster_size: 65_536,
                },
                _ => Violation::ReservedBits { bits: 1 << bit },
            };
            assert_eq!(violation(result), ("L2 entry", AT.0, expected), "bit {bit}");
        }
    }

    #[test]
    fn the_zero_bit_belongs_to_standard_entries_of_version_3() {
        for rules in [rules(Version::V2, false, false), rules(Version::V3, true, false)] {
            let result = rules.decode(1, SubclusterBitmap(0), GUEST, AT);
            assert_eq!(violation(result), ("L2 entry", AT.0, Violation::ZeroBit));
        }
    }

    #[test]
    fn external_data_lies_where_the_guest_has_it() {
        let rules = rules(Version::V3, false, true);
        let decode = |raw, guest| rules.decode(raw, SubclusterBitmap(0), GuestOffset(guest), AT);
        let kind = |raw, guest| decode(raw, guest).unwrap().kind;
        assert_eq!(kind(COPIED | 0x5_0000, 0x5_0000), K::Standard { host: HostOffset(0x5_0000) });
        assert_eq!(kind(COPIED, 0), K::Standard { host: HostOffset(0) });
        assert_eq!(kind(0, 0), K::Unallocated { preallocated: None });
        assert_eq!(kind(1, 0), K::Zero { preallocated: None });
        let elsewhere = Violation::ExternalDataElsewhere { guest: 0x6_0000 };
        assert_eq!(violation(decode(0x5_0000, 0x6_0000)).2, elsewhere);
        let compressed = decode(COMPRESSED | 0x5_0000, 0x5_0000);
        assert_eq!(violation(compressed).2, Violation::CompressedWithExternalData);
    }

    #[test]
    fn all_states_of_all_subclusters() {
        let rules = rules(Version::V3, true, false);
        for index in 0..32 {
            let (allocated, zero) = (1_u64 << index, 1_u64 << (index + 32));
            let kind = |raw, bitmap| {
                let entry = rules.decode(raw, SubclusterBitmap(bitmap), GUEST, AT).unwrap();
                // The neighbours are not concerned.
                let other = entry.subcluster((index + 1) % 32, 2048);
                assert!(matches!(other, K::Unallocated { .. }));
                entry.subcluster(index, 2048)
            };
            let host = HostOffset(0x7_0000 + u64::from(index) * 2048);
            assert_eq!(kind(0x7_0000, 0), K::Unallocated { preallocated: Some(host) });
            assert_eq!(kind(0x7_0000, allocated), K::Standard { host });
            assert_eq!(kind(0x7_0000, zero), K::Zero { preallocated: Some(host) });
            assert_eq!(kind(0, zero), K::Zero { preallocated: None });
            assert_eq!(kind(0, 0), K::Unallocated { preallocated: None });
            for (raw, bitmap, expected) in [
                (0x7_0000, allocated | zero, Violation::SubclusterBothBits),
                (0, allocated | zero, Violation::SubclusterBothBits),
                (0, allocated, Violation::SubclusterWithoutCluster),
            ] {
                let result = rules.decode(raw, SubclusterBitmap(bitmap), GUEST, AT);
                let field = "L2 entry's subcluster bitmap";
                assert_eq!(violation(result), (field, AT.0 + 8, expected));
            }
        }
        // A compressed cluster has no subclusters, whatever the bitmap says.
        let entry = rules.decode(COMPRESSED, SubclusterBitmap(u64::MAX), GUEST, AT).unwrap();
        assert!(matches!(entry.subcluster(0, 2048), K::Compressed { .. }));
    }
}
