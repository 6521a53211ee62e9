//! Addresses: where something lies in the image file, and on the disk the guest sees.
//!
//! ```text
//! HostOffset    bytes from the start of the file
//! HostCluster   whole clusters from the start of the file (spec: "host cluster")
//! GuestOffset   bytes from the start of the guest's disk
//! GuestCluster  whole clusters from the start of the guest's disk (spec: "guest cluster")
//! ```
//!
//! Offset minus offset is a length, cluster plus count is a cluster; no other sums exist.
//! Callers: `geometry` (conversions), `header` (table places), `create` (layout), `l1`, `l2`, `image`.

use std::fmt;

/// A byte offset into the image file.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

impl HostOffset {
    /// The offset in bytes.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The offset `length` bytes further on; `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, length: u64) -> Option<Self> {
        match self.0.checked_add(length) {
            Some(offset) => Some(Self(offset)),
            None => None,
        }
    }
}

impl fmt::Debug for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostOffset({:#x})", self.0)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of a cluster of the image file; cluster 0 holds the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

impl HostCluster {
    /// The cluster's number.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

/// A byte offset into the disk the guest sees.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

impl GuestOffset {
    /// The offset in bytes.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The offset `length` bytes further on; `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, length: u64) -> Option<Self> {
        match self.0.checked_add(length) {
            Some(offset) => Some(Self(offset)),
            None => None,
        }
    }
}

impl fmt::Debug for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestOffset({:#x})", self.0)
    }
}

impl fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of a cluster of the guest's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestCluster(pub u64);

impl GuestCluster {
    /// The cluster's number.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}
