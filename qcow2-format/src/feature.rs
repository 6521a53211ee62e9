//! The three feature bit fields of version 3 (spec: "Header", bytes 72 to 95).
//!
//! ```text
//! incompatible   an unknown bit forbids opening     0 dirty  1 corrupt  2 external data file
//!                                                   3 compression type  4 extended L2 entries
//! compatible     an unknown bit may be ignored      0 lazy refcounts
//! autoclear      an unknown bit is cleared by       0 bitmaps  1 raw external data
//!                whoever writes to the image
//! ```
//!
//! Callers: `header` (which bits are set), `header::extension` (the name table of a new image).

use std::fmt;

/// Which of the three bit fields a feature belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureType {
    /// An unknown bit forbids opening the image.
    Incompatible,
    /// An unknown bit may be ignored.
    Compatible,
    /// An unknown bit must be cleared before the first write.
    Autoclear,
}

impl FeatureType {
    /// The header field's name in the specification.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Incompatible => "incompatible_features",
            Self::Compatible => "compatible_features",
            Self::Autoclear => "autoclear_features",
        }
    }

    /// The number the feature name table knows the type by.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }
}

/// A feature of the specification: its place and the name QEMU gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feature {
    /// Which bit field.
    pub feature_type: FeatureType,
    /// Which bit, 0 to 63.
    pub bit: u8,
    /// The name in a feature name table.
    pub name: &'static str,
}

impl Feature {
    const fn new(feature_type: FeatureType, bit: u8, name: &'static str) -> Self {
        Self { feature_type, bit, name }
    }

    const fn mask(self) -> u64 {
        1 << self.bit
    }

    /// Every feature of the specification, in the order QEMU writes their names.
    pub const ALL: [Self; 8] = [
        Self::new(FeatureType::Incompatible, 0, "dirty bit"),
        Self::new(FeatureType::Incompatible, 1, "corrupt bit"),
        Self::new(FeatureType::Incompatible, 2, "external data file"),
        Self::new(FeatureType::Incompatible, 3, "compression type"),
        Self::new(FeatureType::Incompatible, 4, "extended L2 entries"),
        Self::new(FeatureType::Compatible, 0, "lazy refcounts"),
        Self::new(FeatureType::Autoclear, 0, "bitmaps"),
        Self::new(FeatureType::Autoclear, 1, "raw external data"),
    ];
}

macro_rules! bit_field {
    ($(#[$doc:meta])* $name:ident, $kind:expr, $($(#[$bit_doc:meta])* $constant:ident = $bit:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $constant: Self = Self(1 << $bit);)*

            /// Whether every bit of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These bits with those of `other` set, or cleared.
            #[must_use]
            pub const fn with(self, other: Self, set: bool) -> Self {
                if set { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
            }

            /// The bits the specification does not name.
            #[must_use]
            pub const fn unknown(self) -> u64 {
                self.0 & !(0 $(| (1 << $bit))*)
            }

            /// The names of the set bits that the specification names.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Feature::ALL
                    .into_iter()
                    .filter(move |f| f.feature_type == $kind && self.0 & f.mask() != 0)
                    .map(|feature| feature.name)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

bit_field! {
    /// Features that forbid opening the image to whoever does not know them.
    IncompatibleFeatures, FeatureType::Incompatible,
    /// Refcounts may be wrong; whoever writes recounts first.
    DIRTY = 0;
    /// Any structure may be wrong; nothing may be written but repairs.
    CORRUPT = 1;
    /// Guest clusters lie in another file.
    EXTERNAL_DATA_FILE = 2;
    /// Compressed clusters are not deflate; the `compression_type` field tells.
    COMPRESSION_TYPE = 3;
    /// L2 entries take 16 bytes and carry a subcluster bitmap.
    EXTENDED_L2 = 4;
}

bit_field! {
    /// Features that may be ignored.
    CompatibleFeatures, FeatureType::Compatible,
    /// Refcount updates may be postponed while the dirty bit is set.
    LAZY_REFCOUNTS = 0;
}

bit_field! {
    /// Features that vouch for something a writer who does not know them would spoil.
    AutoclearFeatures, FeatureType::Autoclear,
    /// The bitmaps extension is consistent.
    BITMAPS = 0;
    /// The external data file is a raw image of the whole disk.
    RAW_EXTERNAL_DATA = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_its_name_and_the_rest_is_unknown() {
        let bits = IncompatibleFeatures(0b1_1111 | 1 << 63);
        assert_eq!(bits.unknown(), 1 << 63);
        assert_eq!(
            bits.names().collect::<Vec<_>>(),
            [
                "dirty bit",
                "corrupt bit",
                "external data file",
                "compression type",
                "extended L2 entries"
            ]
        );
        assert_eq!(CompatibleFeatures::LAZY_REFCOUNTS.names().next(), Some("lazy refcounts"));
        assert_eq!(AutoclearFeatures(2).names().next(), Some("raw external data"));
    }
}
