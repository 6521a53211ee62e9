//! What an overlay remembers of its base: an extension of ours in its header.
//!
//! ```text
//! byte 0         4          8              16                48
//!      [ version ][ reserved ][ base length ][ SHA-256 key     ]
//!        1          0           bytes          zeros: no key
//! ```
//!
//! Programs that do not know the extension's type keep it, QEMU among them. Reuse and rebase
//! compare it, so that a base that was swapped or cut is noticed before a guest reads it.

use qcow2_format::Header;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::BaseImage;
use crate::digest::Sha256Digest;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawIdentity {
    version: U32,
    reserved: U32,
    base_length: U64,
    key: [u8; 32],
}
const _: () = assert!(size_of::<RawIdentity>() == 48);

/// The base an overlay was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseIdentity {
    /// Size of the base's disk in bytes.
    pub base_length: u64,
    /// The base's key in the cache it came from.
    pub key: Option<Sha256Digest>,
}

impl BaseIdentity {
    /// The extension's type: `DEid`.
    pub const EXTENSION_TYPE: u32 = 0x4445_6964;
    const VERSION: u32 = 1;

    /// The identity of a base.
    #[must_use]
    pub fn of(base: &BaseImage) -> Self {
        Self { base_length: base.virtual_size(), key: base.key().and_then(|key| key.parse().ok()) }
    }

    /// The extension's data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawIdentity {
            version: Self::VERSION.into(),
            reserved: 0.into(),
            base_length: self.base_length.into(),
            key: self.key.map_or([0; 32], |key| key.0),
        };
        raw.as_bytes().to_vec()
    }

    /// Reads the extension's data; `None` if a later version wrote it, or it is not ours.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let raw = RawIdentity::read_from_bytes(data).ok()?;
        if raw.version.get() != Self::VERSION {
            return None;
        }
        let key = (raw.key != [0; 32]).then_some(Sha256Digest(raw.key));
        Some(Self { base_length: raw.base_length.get(), key })
    }

    /// The base `header` remembers.
    pub(crate) fn recorded(header: &Header) -> Option<Self> {
        header.unknown_extension(Self::EXTENSION_TYPE).and_then(Self::parse)
    }

    /// What keeps `base` from being the base `header` remembers; `None` if it remembers none.
    pub(super) fn recorded_difference(header: &Header, base: &BaseImage) -> Option<String> {
        Self::recorded(header)?.difference(base)
    }

    /// What keeps `base` from being the base this identity was taken of.
    pub(crate) fn difference(&self, base: &BaseImage) -> Option<String> {
        let now = Self::of(base);
        if self.base_length != now.base_length {
            return Some(format!(
                "was made over a base of {} bytes, and this one has {}",
                self.base_length, now.base_length
            ));
        }
        match (self.key, now.key) {
            (Some(then), Some(now)) if then != now => {
                Some(format!("was made over the base with key {then}, and this one's is {now}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip_and_others_are_not_ours() {
        for key in [None, Some(Sha256Digest([7; 32]))] {
            let identity = BaseIdentity { base_length: 50 << 30, key };
            assert_eq!(BaseIdentity::parse(&identity.encode()), Some(identity));
        }
        let mut later = BaseIdentity { base_length: 1, key: None }.encode();
        later[3] = 2;
        assert_eq!(BaseIdentity::parse(&later), None);
        assert_eq!(BaseIdentity::parse(&[0; 47]), None);
    }
}
