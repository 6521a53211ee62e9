//! How large a FAT image has to be, and how its clusters are counted.
//!
//! ```text
//! sector 0   1                1 + 2 f            1 + 2 f + r           whole clusters      n × 32
//! ┌──────┬── FAT, f sectors ×2 ┬─ root, r sectors ─┬─ clusters 2, 3, … ───────────────┬ rest ┐
//! └──────┴─────────────────────┴───────────────────┴──────────────────────────────────┴──────┘
//! ```
//!
//! How many clusters there are *is* how wide an entry of the FAT is: up to 4084 are FAT12, up to 65,524
//! FAT16. Drivers have been off by a few there, so the neighbourhood of both numbers is avoided.
//! Sectors come by tracks of 32, or mtools calls the disk broken. Caller: `config_disk`.

use crate::config_disk::tree::{NodeKind, Tree, limit};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Sectors of a track; the image is a multiple of it.
pub(super) const TRACK: u64 = 32;
/// Bytes of a folder's entry.
const ENTRY: u64 = 32;
/// Entries of the root folder, at least: what every other program makes.
const ROOT_ENTRIES: u64 = 512;
/// Most clusters of FAT12 and FAT16, and how far to stay away from them.
const FAT12_MOST: u64 = 4084;
const FAT16_MOST: u64 = 65_524;
const DISTANCE: u64 = 16;

/// The width of an allocation table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatType {
    /// 12 bits.
    Fat12,
    /// 16 bits.
    Fat16,
}

impl FatType {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fat12 => "FAT12",
            Self::Fat16 => "FAT16",
        }
    }

    fn bits(self) -> u64 {
        match self {
            Self::Fat12 => 12,
            Self::Fat16 => 16,
        }
    }

    /// How many clusters it may have here.
    fn holds(self, clusters: u64) -> bool {
        match self {
            Self::Fat12 => (1..=FAT12_MOST - DISTANCE).contains(&clusters),
            Self::Fat16 => (FAT12_MOST + DISTANCE..=FAT16_MOST - DISTANCE).contains(&clusters),
        }
    }
}

/// The sizes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) fat: FatType,
    /// Sectors of the image.
    pub(super) sectors: u64,
    pub(super) cluster_sectors: u64,
    pub(super) root_entries: u64,
    /// Sectors of one FAT.
    pub(super) fat_sectors: u64,
    /// Clusters that are taken.
    pub(super) taken: u64,
}

impl Geometry {
    /// The smallest image for `tree` that has `least_size` bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`]: it would have 2 GiB, or more entries in its root than FAT can count.
    pub(super) fn of(tree: &Tree<'_>, least_size: u64) -> Result<Self> {
        // The label takes one.
        let root_entries = (1 + tree.entries()).next_multiple_of(SECTOR / ENTRY).max(ROOT_ENTRIES);
        if u16::try_from(root_entries).is_err() {
            return Err(limit("more names in its top folder than FAT can count".into()));
        }
        let least_sectors = least_size.div_ceil(SECTOR).next_multiple_of(TRACK);
        for bits in 0..=6 {
            let cluster_sectors = 1 << bits;
            let needed = clusters(tree, cluster_sectors * SECTOR).max(1);
            for fat in [FatType::Fat12, FatType::Fat16] {
                let this = |sectors| Self::with(fat, sectors, cluster_sectors, root_entries);
                // From here on every step adds a track; the FATs are soon as long as they have to be.
                let data = root_entries * ENTRY / SECTOR + needed * cluster_sectors;
                let mut sectors = data.next_multiple_of(TRACK).max(least_sectors);
                while let Some((geometry, clusters)) = this(sectors) {
                    let enough = clusters >= needed;
                    if enough && fat.holds(clusters) {
                        return Ok(Self { taken: needed, ..geometry });
                    }
                    // Too many for this width, or for clusters of this size.
                    if clusters > FAT12_MOST && fat == FatType::Fat12 || clusters > FAT16_MOST {
                        break;
                    }
                    sectors += TRACK;
                }
            }
        }
        Err(Error::new(ErrorKind::Limit, "the config disk would have 2 GiB or more")
            .with_hint("such a disk is no config disk; make it with other tools"))
    }

    /// The image of so many sectors, and how many clusters it has. As `fatfs` counts them.
    fn with(
        fat: FatType,
        sectors: u64,
        cluster_sectors: u64,
        root_entries: u64,
    ) -> Option<(Self, u64)> {
        let root = root_entries * ENTRY / SECTOR;
        let rest = sectors.checked_sub(1 + root)?;
        let per_fat_sector = cluster_sectors * SECTOR * 8 / fat.bits() + 2;
        let fat_sectors = (rest + 2 * cluster_sectors).div_ceil(per_fat_sector);
        let clusters = rest.saturating_sub(2 * fat_sectors) / cluster_sectors;
        // 2^22 sectors are 2 GiB.
        let geometry = Self { fat, sectors, cluster_sectors, root_entries, fat_sectors, taken: 0 };
        (sectors < 1 << 22).then_some((geometry, clusters))
    }

    /// Bytes of the image.
    pub(super) fn size(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// Bytes of the image up to the last that is in use.
    pub(super) fn used(&self) -> u64 {
        self.root() + self.root_entries * ENTRY + self.taken * self.cluster_sectors * SECTOR
    }

    /// Where the root folder begins, in bytes.
    pub(super) fn root(&self) -> u64 {
        (1 + 2 * self.fat_sectors) * SECTOR
    }
}

/// Clusters that all files and folders take.
fn clusters(tree: &Tree<'_>, cluster: u64) -> u64 {
    let of = |node: &NodeKind<'_>| match node {
        NodeKind::File(content) => (content.len() as u64).div_ceil(cluster),
        NodeKind::Folder(inner) => {
            // Itself, its parent and, while it is made, the two that `shared` removes.
            let entries = (2 + inner.entries()).max(4);
            (entries * ENTRY).div_ceil(cluster) + clusters(inner, cluster)
        }
    };
    tree.nodes().map(|node| of(&node.kind)).sum()
}
