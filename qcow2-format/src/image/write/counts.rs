//! The refcounts of an image that is written: table in memory, blocks in cached pieces.
//!
//! ```text
//! refcount table   │ block 0 │ block 1 │  -  │ …      in memory, at most 8 MiB
//! block            [ piece ][ piece ] …              4 KiB each, those needed last
//! ```
//!
//! Changes stay in memory until they are written, in two steps between which a barrier may stand:
//! the blocks, then the table's entries for new blocks. A block lies among the clusters that it
//! counts, so that making one needs no other. Callers: `space`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::address::{HostCluster, HostOffset};
use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::{Geometry, TABLE_ENTRY_BYTES};
use crate::header::Header;
use crate::image::cache::hash::PlaceHash;
use crate::io::{ReadAt, WriteAt, read_table, zeroed};
use crate::refcount;

const PIECE_BYTES: u64 = 4096;
const TABLE_RESERVED: u64 = 0x1ff;

/// The first cluster from some place on that is not in use.
pub(super) enum Free {
    /// Its refcount is 0.
    Counted(HostCluster),
    /// No block counts it; the table has room for one.
    Uncounted(HostCluster),
    /// It lies past the last cluster that the table covers.
    Uncovered(HostCluster),
}

#[derive(Debug)]
pub(super) struct Counts {
    geometry: Geometry,
    table_offset: HostOffset,
    table: Vec<u64>,
    new_blocks: BTreeSet<usize>,
    pieces: HashMap<u64, Piece, PlaceHash>,
    /// The bytes of pieces that differ from the file.
    changed: BTreeMap<u64, Range<usize>>,
    capacity: usize,
    clock: u64,
}

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    used: u64,
}

/// Where a cluster's refcount lies.
struct Place {
    piece: u64,
    index: usize,
}

impl Counts {
    /// Reads the refcount table; `file_length` is the image's.
    pub(super) fn open(
        storage: &impl ReadAt,
        header: &Header,
        file_length: u64,
        cache_bytes: u64,
    ) -> Result<Self> {
        let geometry = header.geometry();
        let table_offset = header.refcount_table_offset();
        let cluster_bytes = geometry.cluster_bits.bytes();
        // The header's rules: at most 8 MiB, and inside the file.
        let count = u64::from(header.refcount_table_clusters()) * cluster_bytes / TABLE_ENTRY_BYTES;
        let table = read_table(storage, table_offset.0, count, "read the refcount table")?;
        let mut seen = BTreeSet::new();
        // Most entries of most tables name no block.
        for (index, block) in (0_u64..).zip(&table).filter(|(_, block)| **block != 0) {
            let block = *block;
            let violation = if block & TABLE_RESERVED != 0 {
                Some(Violation::ReservedBits { bits: block & TABLE_RESERVED })
            } else if !geometry.cluster_bits.is_aligned(block) {
                Some(Violation::Unaligned { cluster_size: cluster_bytes })
            } else if block >= file_length {
                Some(Violation::StartsBeyondFile { file_length })
            } else if !seen.insert(block) {
                Some(Violation::DuplicateRefcountBlock)
            } else {
                None
            };
            if let Some(violation) = violation {
                let field = "refcount table entry";
                let offset = table_offset.0.saturating_add(index * TABLE_ENTRY_BYTES);
                return Err(FieldError { field, value: block, offset, violation }.into());
            }
        }
        let capacity = usize::try_from(cache_bytes / PIECE_BYTES).unwrap_or(usize::MAX).max(2);
        Ok(Self {
            geometry,
            table_offset,
            table,
            new_blocks: BTreeSet::new(),
            pieces: HashMap::default(),
            changed: BTreeMap::new(),
            capacity,
            clock: 0,
        })
    }

    /// Where the refcount table lies, and how many bytes it has.
    pub(super) fn table_place(&self) -> (HostOffset, u64) {
        (self.table_offset, self.table.len() as u64 * TABLE_ENTRY_BYTES)
    }

    /// The blocks there are.
    pub(super) fn blocks(&self) -> impl Iterator<Item = HostOffset> {
        self.table.iter().filter(|block| **block != 0).map(|block| HostOffset(*block))
    }

    pub(super) fn max(&self) -> u64 {
        refcount::max(self.geometry.refcount_order)
    }

    /// Clusters that the table covers.
    pub(super) fn covered(&self) -> u64 {
        (self.table.len() as u64).saturating_mul(self.geometry.refcounts_per_block())
    }

    /// The refcount of `cluster`.
    pub(super) fn get(&mut self, storage: &impl ReadAt, cluster: HostCluster) -> Result<u64> {
        let Some(place) = self.place(cluster) else { return Ok(0) };
        let order = self.geometry.refcount_order;
        let piece = self.piece(storage, place.piece)?;
        Ok(refcount::get(order, &piece.bytes, place.index))
    }

    /// Makes `count` the refcount of `cluster`, which a block counts.
    pub(super) fn set(
        &mut self,
        storage: &impl ReadAt,
        cluster: HostCluster,
        count: u64,
    ) -> Result<()> {
        let order = self.geometry.refcount_order;
        let Some(place) = self.place(cluster) else { return Ok(()) };
        let piece = self.piece(storage, place.piece)?;
        refcount::set(order, &mut piece.bytes, place.index, count);
        let bytes = refcount::bytes_of(order, place.index, place.index);
        let changed = self.changed.entry(place.piece).or_insert_with(|| bytes.clone());
        *changed = changed.start.min(bytes.start)..changed.end.max(bytes.end);
        Ok(())
    }

    /// The first cluster from `from` on that is not in use.
    pub(super) fn first_free(&mut self, storage: &impl ReadAt, from: u64) -> Result<Free> {
        let order = self.geometry.refcount_order;
        let per_piece = self.per_piece();
        let covered = self.covered();
        let mut cluster = from;
        while cluster < covered {
            let Some(place) = self.place(HostCluster(cluster)) else {
                return Ok(Free::Uncounted(HostCluster(cluster)));
            };
            let piece = self.piece(storage, place.piece)?;
            let rest = place.index..usize::try_from(per_piece).unwrap_or(usize::MAX);
            let found = rest.clone().find(|index| refcount::get(order, &piece.bytes, *index) == 0);
            if let Some(index) = found {
                // An index of the piece, behind the one that was looked for first.
                return Ok(Free::Counted(HostCluster(cluster + (index - place.index) as u64)));
            }
            cluster += rest.len() as u64;
        }
        Ok(Free::Uncovered(HostCluster(cluster)))
    }

    /// Has `cluster` be the block that counts it and its neighbours. What lay there reads as
    /// zeros.
    pub(super) fn add_block(&mut self, storage: &impl ReadAt, cluster: HostCluster) -> Result<()> {
        let index = cluster.0 / self.geometry.refcounts_per_block();
        let offset = self.geometry.cluster_bits.offset_of(cluster).0;
        self.place_block(index, offset);
        let counted = self.set(storage, cluster, 1);
        if counted.is_err() {
            // A block that is in use and not counted must not get into the table.
            self.take_back_block(index, offset);
        }
        counted
    }

    fn take_back_block(&mut self, index: u64, offset: u64) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(entry) = self.table.get_mut(index) {
            *entry = 0;
        }
        self.new_blocks.remove(&index);
        self.forget(offset);
    }

    /// Has the block `index` lie at `offset`, where the file holds zeros.
    pub(super) fn place_block(&mut self, index: u64, offset: u64) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(entry) = self.table.get_mut(index) {
            *entry = offset;
            self.new_blocks.insert(index);
        }
        self.forget(offset);
    }

    /// Whether there is a block number `index`.
    pub(super) fn has_block(&self, index: u64) -> bool {
        let block = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        block.is_some_and(|block| *block != 0)
    }

    /// Whether as much waits to be written as is kept in memory anyway.
    pub(super) fn is_crowded(&self) -> bool {
        self.changed.len() >= self.capacity
    }

    /// Whether blocks wait for their entries in the table.
    pub(super) fn has_new_blocks(&self) -> bool {
        !self.new_blocks.is_empty()
    }

    /// Writes the refcounts that changed. `check` is asked before each write.
    pub(super) fn write_blocks(
        &mut self,
        storage: &impl WriteAt,
        check: impl Fn(u64, u64) -> Result<()>,
    ) -> Result<()> {
        while let Some((at, bytes)) = self.changed.first_key_value() {
            let at = *at;
            let offset = at.saturating_add(bytes.start as u64);
            let piece = self.pieces.get(&at).and_then(|piece| piece.bytes.get(bytes.clone()));
            if let Some(piece) = piece {
                check(offset, piece.len() as u64)?;
                storage
                    .write_all_at(piece, offset)
                    .map_err(Error::io("write refcounts", offset))?;
            }
            self.changed.remove(&at);
        }
        Ok(())
    }

    /// Writes the table's entries for new blocks, which are written.
    pub(super) fn write_table(&mut self, storage: &impl WriteAt) -> Result<()> {
        while let Some(index) = self.new_blocks.first().copied() {
            let at = self.table_offset.0.saturating_add(index as u64 * TABLE_ENTRY_BYTES);
            let block = self.table.get(index).copied().unwrap_or_default();
            storage
                .write_all_at(&block.to_be_bytes(), at)
                .map_err(Error::io("write the refcount table", at))?;
            self.new_blocks.remove(&index);
        }
        Ok(())
    }

    /// The table's entries as they are now, followed by zeros up to `bytes`.
    pub(super) fn encode_table(&self, bytes: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut encoded = zeroed(length).map_err(Error::io("grow the refcount table", 0))?;
        for (place, block) in encoded.chunks_exact_mut(8).zip(&self.table) {
            place.copy_from_slice(&block.to_be_bytes());
        }
        Ok(encoded)
    }

    /// Makes the table longer, in memory alone.
    pub(super) fn extend_table(&mut self, bytes: u64) -> Result<()> {
        let length = usize::try_from(bytes / TABLE_ENTRY_BYTES).unwrap_or(usize::MAX);
        let more = length.saturating_sub(self.table.len());
        if self.table.try_reserve(more).is_err() {
            let error = std::io::ErrorKind::OutOfMemory.into();
            return Err(Error::io("grow the refcount table", 0)(error));
        }
        self.table.resize(length, 0);
        Ok(())
    }

    /// Takes back [`Counts::extend_table`], and blocks added since then.
    pub(super) fn shorten_table(&mut self, bytes: u64) {
        let length = usize::try_from(bytes / TABLE_ENTRY_BYTES).unwrap_or(usize::MAX);
        for block in self.table.split_off(length.min(self.table.len())) {
            if block != 0 {
                self.forget(block);
            }
        }
        self.new_blocks.split_off(&length);
    }

    /// The table lies elsewhere, with all its entries.
    pub(super) fn table_moved(&mut self, offset: HostOffset) {
        self.table_offset = offset;
        self.new_blocks.clear();
    }

    fn per_piece(&self) -> u64 {
        self.piece_bytes() * 8 / u64::from(self.geometry.refcount_order.bits())
    }

    fn piece_bytes(&self) -> u64 {
        PIECE_BYTES.min(self.geometry.cluster_bits.bytes())
    }

    /// Where the refcount of `cluster` lies, if a block counts it.
    fn place(&self, cluster: HostCluster) -> Option<Place> {
        let per_block = self.geometry.refcounts_per_block();
        let block = usize::try_from(cluster.0 / per_block).ok()?;
        let block = self.table.get(block).copied().filter(|block| *block != 0)?;
        let index = cluster.0 % per_block;
        let per_piece = self.per_piece();
        let piece = block.saturating_add(index / per_piece * self.piece_bytes());
        Some(Place { piece, index: usize::try_from(index % per_piece).ok()? })
    }

    /// Forgets the pieces of the block at `block`; what is there in the file counts, too.
    fn forget(&mut self, block: u64) {
        let end = block.saturating_add(self.geometry.cluster_bits.bytes());
        let mut at = block;
        while at < end {
            self.pieces.remove(&at);
            self.changed.remove(&at);
            at = at.saturating_add(self.piece_bytes());
        }
    }

    fn piece(&mut self, storage: &impl ReadAt, at: u64) -> Result<&mut Piece> {
        self.clock += 1;
        if !self.pieces.contains_key(&at) {
            let length = usize::try_from(self.piece_bytes()).unwrap_or(usize::MAX);
            let mut bytes = zeroed(length).map_err(Error::io("read refcounts", at))?;
            storage.read_full_at(&mut bytes, at).map_err(Error::io("read refcounts", at))?;
            self.make_room();
            self.pieces.insert(at, Piece { bytes, used: 0 });
        }
        let clock = self.clock;
        // It was there, or was put there just now.
        let piece = self.pieces.entry(at).or_insert_with(|| Piece { bytes: Vec::new(), used: 0 });
        piece.used = clock;
        Ok(piece)
    }

    /// Lets the piece go that was not used for longest and says what the file says.
    fn make_room(&mut self) {
        if self.pieces.len() < self.capacity {
            return;
        }
        let unchanged = self.pieces.iter().filter(|(at, _)| !self.changed.contains_key(at));
        if let Some(oldest) = unchanged.min_by_key(|(_, piece)| piece.used).map(|(at, _)| *at) {
            self.pieces.remove(&oldest);
        }
    }
}
