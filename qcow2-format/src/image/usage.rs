//! How many host clusters an image counts as used (spec: "Host cluster management").
//!
//! ```text
//! refcount table ─▶ block ─▶ counts that are not 0 ─▶ enough? then no more is read
//! ```
//!
//! A file that takes far less space than its used clusters would was preallocated, and its data may
//! be holes. Callers: disk-engine's `disk`.

use crate::error::{Error, FieldError, Result, Violation};
use crate::geometry::TABLE_ENTRY_BYTES;
use crate::image::Image;
use crate::io::{ReadAt, read_table, zeroed};
use crate::refcount;

/// Bits of an entry of the refcount table that are the block's place.
const OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Entries of the refcount table that are read at once.
const ENTRIES: u64 = 4096;

impl<S: ReadAt> Image<S> {
    /// Whether at least `clusters` clusters of the file have a refcount that is not 0. What lies past
    /// the end of the file is not asked.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage; [`Error::Corrupt`] for a refcount block inside a cluster.
    pub fn uses_clusters(&self, clusters: u64) -> Result<bool> {
        let bits = self.geometry().cluster_bits;
        let length = self.storage.length().map_err(Error::io("read the image's length", 0))?;
        let mut left = bits.clusters(length);
        if left < clusters {
            return Ok(false);
        }
        let cluster_bytes = bits.bytes();
        let per_block = self.geometry().refcounts_per_block();
        let table = self.header.refcount_table_offset().to_u64();
        let entries = u64::from(self.header.refcount_table_clusters())
            .saturating_mul(cluster_bytes / TABLE_ENTRY_BYTES);
        // A cluster has at most 2 MiB.
        let size = usize::try_from(cluster_bytes).unwrap_or(usize::MAX);
        let mut block = zeroed(size).map_err(Error::io("read a refcount block", 0))?;
        let (mut used, mut index) = (0_u64, 0);
        while index < entries && left > 0 {
            let at = table.saturating_add(index * TABLE_ENTRY_BYTES);
            let count = ENTRIES.min(entries - index);
            for word in read_table(&self.storage, at, count, "read the refcount table")? {
                let counts = left.min(per_block);
                let place = word & OFFSET;
                if place != 0 {
                    used = used.saturating_add(self.used_in(&mut block, place, counts)?);
                }
                left -= counts;
                if used >= clusters || left == 0 {
                    return Ok(used >= clusters);
                }
            }
            index += count;
        }
        Ok(used >= clusters)
    }

    /// How many of the first `counts` refcounts of the block at `place` are not 0.
    fn used_in(&self, block: &mut [u8], place: u64, counts: u64) -> Result<u64> {
        let bits = self.geometry().cluster_bits;
        if bits.offset_in_cluster(place) != 0 {
            let violation = Violation::Unaligned { cluster_size: bits.bytes() };
            let (field, offset) = ("refcount_table entry", self.header.refcount_table_offset().0);
            return Err(FieldError { field, value: place, offset, violation }.into());
        }
        let doing = "read a refcount block";
        let read = self.storage.read_full_at(block, place).map_err(Error::io(doing, place))?;
        if let Some(rest) = block.get_mut(read..) {
            rest.fill(0);
        }
        let order = self.geometry().refcount_order;
        // At most the 16 Mi counts of a block.
        let counts = usize::try_from(counts).unwrap_or(usize::MAX);
        Ok((0..counts).filter(|index| refcount::get(order, block, *index) != 0).count() as u64)
    }
}
