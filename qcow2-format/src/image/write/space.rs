//! Host clusters: handed out, and taken back.
//!
//! ```text
//! counts    1 1 1 0 0 1 │ 1 1 0 0 …          first free run from `next` on
//!                 └─┘ handed out: 1 1 in memory at once, in the file before anything refers to it
//! ```
//!
//! A missing refcount block is made of the first cluster it would count. A refcount table that is
//! too short moves: blocks and a longer table are written behind everything else, then the header
//! names the new table, then the old one is released. Callers: the other parts of `write`.

use crate::address::{HostCluster, HostOffset};
use crate::error::{Error, RequestError, Result};
use crate::geometry::{REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::image::write::counts::Free;
use crate::image::write::guard::Kind;
use crate::image::write::state::{Place, State, Unlinked};
use crate::io::WriteAt;

/// Where `refcount_table_offset` lies in the header, with `refcount_table_clusters` behind it.
const TABLE_FIELDS_OFFSET: u64 = 48;
/// Offsets in table entries have 56 bits.
const HOST_END: u64 = 1 << 56;

/// Clusters handed out, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) host: HostOffset,
    pub(super) clusters: u64,
    /// Whether they read as zeros: nothing was ever written there.
    pub(super) fresh: bool,
}

impl State {
    /// Hands out 1 to `wanted` clusters, one behind the other.
    pub(super) fn allocate(&mut self, storage: &impl WriteAt, wanted: u64) -> Result<Room> {
        let result = self.try_allocate(storage, wanted);
        self.judge(storage, result)
    }

    fn try_allocate(&mut self, storage: &impl WriteAt, wanted: u64) -> Result<Room> {
        self.before_counts_change(storage)?;
        let cluster_bits = self.header.geometry().cluster_bits;
        let bytes = cluster_bits.bytes();
        loop {
            match self.counts.first_free(storage, self.next)? {
                Free::Uncovered(cluster) => {
                    self.grow_table(storage, cluster)?;
                    self.next = cluster.0;
                }
                Free::Uncounted(cluster) => {
                    let offset = self.check_free(cluster, 1)?;
                    write_zeros(storage, offset, bytes)?;
                    self.counts.add_block(storage, cluster)?;
                    self.guard.add(Kind::RefcountBlock, offset, bytes)?;
                    self.taken(cluster.0 + 1);
                }
                Free::Counted(first) => {
                    let fresh_cluster = self.fresh >> cluster_bits.to_u32();
                    let fresh = first.0 >= fresh_cluster;
                    let mut end = first.0 + 1;
                    let covered = self.counts.covered();
                    while end - first.0 < wanted
                        && end < covered
                        && (fresh || end < fresh_cluster)
                        && self.is_free(storage, end)?
                    {
                        end += 1;
                    }
                    let offset = self.check_free(first, end - first.0)?;
                    for cluster in first.0..end {
                        self.counts.set(storage, HostCluster(cluster), 1)?;
                    }
                    self.taken(end);
                    let host = HostOffset(offset);
                    return Ok(Room { host, clusters: end - first.0, fresh });
                }
            }
        }
    }

    /// Takes back what was handed out and never referred to.
    pub(super) fn give_back(&mut self, storage: &impl WriteAt, room: Room) -> Result<()> {
        let first = room.host.0 >> self.header.geometry().cluster_bits.to_u32();
        for cluster in first..first.saturating_add(room.clusters) {
            self.drop_reference(storage, cluster)?;
        }
        Ok(())
    }

    /// Counts one reference less to `cluster`; says whether that was the last.
    pub(super) fn drop_reference(&mut self, storage: &impl WriteAt, cluster: u64) -> Result<bool> {
        let refcount = self.counts.get(storage, HostCluster(cluster))?;
        if refcount == 0 {
            return Ok(false);
        }
        self.before_counts_change(storage)?;
        self.counts.set(storage, HostCluster(cluster), refcount - 1)?;
        if refcount > 1 {
            return Ok(false);
        }
        self.next = self.next.min(cluster);
        let bits = self.header.geometry().cluster_bits.to_u32();
        if self.payload_end.is_some_and(|end| end.saturating_sub(1) >> bits == cluster) {
            self.payload_end = None;
        }
        Ok(true)
    }

    fn is_free(&mut self, storage: &impl WriteAt, cluster: u64) -> Result<bool> {
        match self.counts.first_free(storage, cluster)? {
            Free::Counted(found) => Ok(found.0 == cluster),
            Free::Uncounted(_) | Free::Uncovered(_) => Ok(false),
        }
    }

    /// Where `count` clusters lie that are said to be free, if that can be.
    fn check_free(&self, first: HostCluster, count: u64) -> Result<u64> {
        let cluster_bits = self.header.geometry().cluster_bits;
        let offset = cluster_bits.offset_of(first).0;
        let length = count.saturating_mul(cluster_bits.bytes());
        if offset.checked_add(length).is_none_or(|end| end > HOST_END) {
            return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
        }
        self.guard.check(offset, length, None, ("refcount", 0, offset))?;
        Ok(offset)
    }

    /// The clusters before `end` are taken as far as whoever looks for the next one is concerned.
    fn taken(&mut self, end: u64) {
        self.next = end;
        let bytes = self.header.geometry().cluster_bits.bytes();
        self.fresh = self.fresh.max(end.saturating_mul(bytes));
    }

    /// Moves the refcount table to where it can be longer: to `first` or behind it.
    fn grow_table(&mut self, storage: &impl WriteAt, first: HostCluster) -> Result<()> {
        let geometry = self.header.geometry();
        let cluster_bytes = geometry.cluster_bits.bytes();
        let per_block = geometry.refcounts_per_block();
        let (old_offset, old_bytes) = self.counts.table_place();
        let first_block = first.0 / per_block;

        // So many clusters of table, and blocks for those and for themselves.
        let most = REFCOUNT_TABLE_MAX_BYTES / cluster_bytes;
        let mut table_clusters = (old_bytes + old_bytes / 2).div_ceil(cluster_bytes).min(most);
        let (blocks, table_clusters) = loop {
            let mut blocks = 1;
            let last_block = |blocks: u64| (first.0 + blocks + table_clusters - 1) / per_block;
            while last_block(blocks) - first_block + 1 > blocks {
                blocks += 1;
            }
            let entries = table_clusters * cluster_bytes / TABLE_ENTRY_BYTES;
            if first_block + blocks <= entries {
                break (blocks, table_clusters);
            }
            table_clusters += 1;
            if table_clusters * cluster_bytes > REFCOUNT_TABLE_MAX_BYTES {
                return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
            }
        };
        let new_bytes = table_clusters * cluster_bytes;
        if new_bytes > REFCOUNT_TABLE_MAX_BYTES {
            return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
        }
        let blocks_offset = self.check_free(first, blocks + table_clusters)?;
        let new_offset = HostOffset(blocks_offset + blocks * cluster_bytes);

        // The old table names every block that the new one does, so that either is whole.
        self.write_counts(storage)?;
        self.counts.extend_table(new_bytes)?;
        let moved = self.write_moved_table(storage, first, blocks, (new_offset, table_clusters));
        if let Err(error) = moved {
            self.counts.shorten_table(old_bytes);
            return Err(error);
        }
        self.counts.table_moved(new_offset);
        self.header.refcount_table_offset = new_offset;
        self.header.refcount_table_clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
        self.taken(first.0 + blocks + table_clusters);
        self.guard.add(Kind::RefcountBlock, blocks_offset, blocks * cluster_bytes)?;
        self.guard.add(Kind::RefcountTable, new_offset.0, new_bytes)?;
        self.guard.remove(Kind::RefcountTable, old_offset.0, old_bytes);
        let old = self.clusters_of(&(old_offset.0..old_offset.0.saturating_add(old_bytes)));
        // No request reads it, so that none needs to land.
        self.unlinked.push(Unlinked { epoch: 0, place: Place::Clusters(old), punch: false });
        Ok(())
    }

    /// Writes `blocks` refcount blocks from the cluster `first` on, the table behind them, and the
    /// header's fields.
    fn write_moved_table(
        &mut self,
        storage: &impl WriteAt,
        first: HostCluster,
        blocks: u64,
        (table, table_clusters): (HostOffset, u64),
    ) -> Result<()> {
        let geometry = self.header.geometry();
        let cluster_bytes = geometry.cluster_bits.bytes();
        let blocks_offset = geometry.cluster_bits.offset_of(first).0;
        write_zeros(storage, blocks_offset, blocks * cluster_bytes)?;
        for number in 0..blocks {
            let index = first.0 / geometry.refcounts_per_block() + number;
            self.counts.place_block(index, blocks_offset + number * cluster_bytes);
        }
        for cluster in first.0..first.0 + blocks + table_clusters {
            self.counts.set(storage, HostCluster(cluster), 1)?;
        }
        self.counts.write_blocks(storage, |_, _| Ok(()))?;
        let bytes = self.counts.encode_table(table_clusters * cluster_bytes)?;
        storage
            .write_all_at(&bytes, table.0)
            .map_err(Error::io("write the new refcount table", table.0))?;
        self.barrier(storage)?;
        let mut fields = table.0.to_be_bytes().to_vec();
        fields.extend_from_slice(&u32::try_from(table_clusters).unwrap_or(u32::MAX).to_be_bytes());
        let at = TABLE_FIELDS_OFFSET;
        storage.write_all_at(&fields, at).map_err(|error| {
            // The header may name either table now, and only the one is kept up to date.
            self.failed = Some("its header could not be written");
            Error::io("write the header", at)(error)
        })?;
        self.barrier(storage)
    }

    /// Writes the refcounts that changed, and which blocks are new. A barrier has to follow before
    /// anything that relies on them.
    pub(super) fn write_counts(&mut self, storage: &impl WriteAt) -> Result<()> {
        let Self { counts, guard, .. } = self;
        let own = Some(Kind::RefcountBlock);
        let written = counts.write_blocks(storage, |offset, length| {
            guard.check(offset, length, own, ("refcount block", offset, offset))
        });
        self.judge(storage, written)?;
        if self.counts.has_new_blocks() {
            self.barrier(storage)?;
            let (table, length) = self.counts.table_place();
            let own = Some(Kind::RefcountTable);
            let checked =
                self.guard.check(table.0, length, own, ("refcount_table_offset", table.0, 48));
            self.judge(storage, checked)?;
            self.counts.write_table(storage)?;
        }
        Ok(())
    }
}

pub(super) fn write_zeros(storage: &impl WriteAt, offset: u64, length: u64) -> Result<()> {
    storage.write_zeros_at(offset, length).map_err(Error::io("clear a new table", offset))
}
