//! Rules that tie header fields to each other, to the extensions and to the file's length.
//!
//! Caller: `header::parse`.

use crate::error::{Result, Violation};
use crate::feature::{AutoclearFeatures, IncompatibleFeatures};
use crate::geometry::{
    ClusterBits, L1_TABLE_MAX_BYTES, REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES,
};
use crate::header::extension::{HeaderExtension, Surroundings, Table, corrupt};
use crate::header::{CryptMethod, Header, SNAPSHOTS_MAX};

/// The fixed part of a snapshot table entry (spec: "Snapshots").
const SNAPSHOT_ENTRY_MIN_BYTES: u64 = 40;

impl Header {
    /// Rules that tie feature bits to each other and to extensions. Autoclear bits have none: what they
    /// vouch for may be gone, and they are cleared then.
    pub(super) fn check_feature_bits(&self) -> Result<()> {
        let external = self.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE);
        let has = |found: fn(&HeaderExtension) -> bool| self.extensions.iter().any(found);
        if external && self.nb_snapshots > 0 {
            let snapshots = self.nb_snapshots.into();
            let violation = Violation::SnapshotsWithExternalData;
            return Err(corrupt("nb_snapshots", snapshots, 60, violation));
        }
        if self.crypt_method == CryptMethod::Luks
            && !has(|extension| matches!(extension, HeaderExtension::EncryptionHeader(_)))
        {
            let method = self.crypt_method.to_u32().into();
            return Err(corrupt("crypt_method", method, 32, Violation::EncryptionHeaderMissing));
        }
        if self.geometry.extended_l2 && self.geometry.cluster_bits < ClusterBits::EXTENDED_L2_MIN {
            let bits = self.geometry.cluster_bits.to_u32().into();
            return Err(corrupt("cluster_bits", bits, 20, Violation::ClusterBitsForExtendedL2));
        }
        Ok(())
    }

    /// That nothing is said of a data file that there is none of. Of the header alone nobody minds; QEMU
    /// opens no such disk.
    pub(crate) fn check_data_file(&self) -> Result<()> {
        let external = self.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE);
        if external || !self.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA) {
            return Ok(());
        }
        let violation = Violation::RawExternalDataAlone;
        Err(corrupt("autoclear_features", self.autoclear.0, 88, violation))
    }

    /// The autoclear bits that vouch for something: that the specification names, and that is there.
    pub(crate) fn upheld_autoclear(&self) -> AutoclearFeatures {
        let external = self.incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE);
        let bitmaps =
            self.extensions.iter().any(|found| matches!(found, HeaderExtension::Bitmaps(_)));
        let mut upheld = AutoclearFeatures(self.autoclear.0 & !self.autoclear.unknown());
        if !external {
            upheld = upheld.with(AutoclearFeatures::RAW_EXTERNAL_DATA, false);
        }
        if !bitmaps {
            upheld = upheld.with(AutoclearFeatures::BITMAPS, false);
        }
        upheld
    }

    /// Rules on where the tables lie and how large they are.
    pub(super) fn check_tables(&self, surroundings: Surroundings) -> Result<()> {
        let max_size = self.geometry.max_virtual_size();
        if self.virtual_size > max_size {
            let violation = Violation::VirtualSize { max: max_size };
            return Err(corrupt("size", self.virtual_size, 24, violation));
        }

        let l1_size = u64::from(self.l1_size);
        let max = L1_TABLE_MAX_BYTES / TABLE_ENTRY_BYTES;
        if l1_size > max {
            return Err(corrupt("l1_size", l1_size, 36, Violation::L1TooLarge { max }));
        }
        let needed = self.geometry.l1_entries(self.virtual_size);
        if l1_size < needed {
            return Err(corrupt("l1_size", l1_size, 36, Violation::L1TooSmall { needed }));
        }
        Table { field: "l1_table_offset", at: 40 }.check(
            self.l1_table_offset.to_u64(),
            l1_size * TABLE_ENTRY_BYTES,
            surroundings,
        )?;

        let cluster_size = self.geometry.cluster_bits.bytes();
        let clusters = u64::from(self.refcount_table_clusters);
        let max = REFCOUNT_TABLE_MAX_BYTES / cluster_size;
        if clusters == 0 {
            let violation = Violation::NoRefcountTable;
            return Err(corrupt("refcount_table_clusters", clusters, 56, violation));
        }
        if clusters > max {
            let violation = Violation::RefcountTableTooLarge { max };
            return Err(corrupt("refcount_table_clusters", clusters, 56, violation));
        }
        Table { field: "refcount_table_offset", at: 48 }.check(
            self.refcount_table_offset.to_u64(),
            clusters * cluster_size,
            surroundings,
        )?;

        let snapshots = u64::from(self.nb_snapshots);
        if self.nb_snapshots > SNAPSHOTS_MAX {
            return Err(corrupt("nb_snapshots", snapshots, 60, Violation::TooManySnapshots));
        }
        Table { field: "snapshots_offset", at: 64 }.check(
            self.snapshots_offset.to_u64(),
            snapshots * SNAPSHOT_ENTRY_MIN_BYTES,
            surroundings,
        )
    }
}
