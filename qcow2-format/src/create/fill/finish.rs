//! The end of an image that was filled: the last tables, and refcounts that count themselves.
//!
//! Caller: `create::fill`, for whoever fills.

use super::ImageFiller;
use crate::address::HostOffset;
use crate::error::{Error, RequestError, Result};
use crate::geometry::{REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::header::Header;
use crate::io::WriteAt;

impl<S: WriteAt> ImageFiller<S> {
    /// Writes what is left: tables, refcounts, and then the header. Nothing is flushed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage, which holds no image then; [`RequestError::Full`].
    pub fn finish(mut self) -> Result<(Header, S)> {
        let geometry = self.geometry();
        self.end_table()?;
        self.payload_end = None;
        let l1 = self.tables.l1_bytes(self.header.l1_size());
        let clusters = geometry.cluster_bits.clusters(l1.len() as u64);
        let at = self.take(clusters)?;
        if clusters > 0 {
            self.storage.write(&l1, at.0).map_err(Error::io("write the L1 table", at.0))?;
            self.header.l1_table_offset = at;
        }
        self.write_counts()?;
        self.finish_counts()?;
        let length = self.length();
        let storage = self.storage.finish().map_err(Error::io("write the image", length))?;
        storage.set_length(length).map_err(Error::io("set the image's length", length))?;
        if let Some(data) = &self.data {
            let size = self.header.virtual_size();
            data.set_length(size).map_err(Error::io("set the data file's length", size))?;
        }
        let bytes = self.header.encode()?;
        storage.write_all_at(&bytes, 0).map_err(Error::io("write the header", 0))?;
        Ok((self.header, storage))
    }

    /// The blocks that are left count themselves and the refcount table.
    fn finish_counts(&mut self) -> Result<()> {
        let geometry = self.geometry();
        let per_block = geometry.refcounts_per_block();
        let placed = self.counts.placed();
        let (mut blocks, mut table) = (0, 0);
        loop {
            let end = self.next.saturating_add(blocks).saturating_add(table);
            let all = end.div_ceil(per_block);
            let wanted = (
                all.saturating_sub(placed),
                geometry.cluster_bits.clusters(all.saturating_mul(TABLE_ENTRY_BYTES)),
            );
            if wanted == (blocks, table) {
                break;
            }
            // Both only ever grow, and stop growing where they count themselves.
            (blocks, table) = wanted;
        }
        if table.saturating_mul(geometry.cluster_bits.bytes()) > REFCOUNT_TABLE_MAX_BYTES {
            return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
        }
        let first = self.take(blocks)?;
        let table_at = self.take(table)?;
        let mut at = first.0;
        let decided = self.next.next_multiple_of(per_block);
        while let Some((index, block)) = self.counts.take_below(decided) {
            self.storage.write(&block, at).map_err(Error::io("write a refcount block", at))?;
            self.counts.set_place(index, HostOffset(at))?;
            at = at.saturating_add(geometry.cluster_bits.bytes());
        }
        let bytes = self.counts.table_bytes();
        self.storage
            .write(&bytes, table_at.0)
            .map_err(Error::io("write the refcount table", table_at.0))?;
        self.header.refcount_table_offset = table_at;
        self.header.refcount_table_clusters = u32::try_from(table).unwrap_or(u32::MAX);
        Ok(())
    }
}
