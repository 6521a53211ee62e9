//! A new image for a pipe: what is stored is known before the first byte, so tables come first.
//!
//! ```text
//! [ header ][ refcount table ][ refcount blocks ][ L1 ][ L2 tables ][ data, in guest order ]
//!   └──────────────── made from the list of what is stored ───────┘   └── the caller's
//! ```
//!
//! A reader that goes through such an image front to back knows where each byte belongs before it comes.
//! Callers: disk-engine's `sink::qcow2`.

use std::io;
use std::ops::Range;

use crate::address::{GuestOffset, HostCluster, HostOffset};
use crate::create::CreateOptions;
use crate::create::tables::GuestTables;
use crate::error::{Error, RequestError, Result};
use crate::geometry::{Geometry, REFCOUNT_TABLE_MAX_BYTES, TABLE_ENTRY_BYTES};
use crate::header::Header;
use crate::io::zeroed;
use crate::l1;
use crate::l2::{L2Entry, SubclusterBitmap};
use crate::refcount;

/// A new image of which every offset is decided.
#[derive(Clone, Debug)]
pub struct StreamedImage {
    header: Header,
    /// What is stored, in clusters of the disk, ascending.
    stored: Vec<Range<u64>>,
    l1_entries: Vec<u64>,
    refcount_blocks: u64,
    /// All host clusters.
    clusters: u64,
    /// The first host cluster of data.
    data: u64,
}

impl CreateOptions {
    /// Lays out the image for a pipe. `stored` are the clusters of the disk, by number, that the
    /// caller writes behind the tables, in order; all others read as zeros or what lies below. The
    /// preallocation says nothing here.
    ///
    /// # Errors
    ///
    /// As [`CreateOptions::plan`]; [`RequestError::OutOfRange`] if `stored` is not ascending,
    /// disjoint and on the disk; [`RequestError::Full`].
    pub fn lay_out(&self, stored: Vec<Range<u64>>) -> Result<StreamedImage> {
        let mut header = self.plan()?.header().clone();
        let geometry = header.geometry();
        let bytes = geometry.cluster_bits.bytes();
        let mut at = 0;
        let mut count = 0_u64;
        for range in &stored {
            let end = geometry.cluster_bits.clusters(header.virtual_size());
            if range.start < at || range.end <= range.start || range.end > end {
                let length = range.end.saturating_sub(range.start).saturating_mul(bytes);
                let offset = range.start.saturating_mul(bytes);
                let size = header.virtual_size();
                return Err(RequestError::OutOfRange { offset, length, size }.into());
            }
            at = range.end;
            count = count.saturating_add(range.end - range.start);
        }
        let span = geometry.l2_entries();
        let mut tables: Vec<u64> = Vec::new();
        for range in &stored {
            let first = range.start / span;
            let next = tables.last().map_or(first, |last| first.max(last.saturating_add(1)));
            let last = range.end.saturating_sub(1) / span;
            tables.extend(next..last.saturating_add(1));
        }
        let l1_bytes = u64::from(header.l1_size()).saturating_mul(TABLE_ENTRY_BYTES);
        let l1_clusters = geometry.cluster_bits.clusters(l1_bytes);
        let fixed = 1_u64.saturating_add(l1_clusters).saturating_add(tables.len() as u64);
        let (blocks, table) = refcounts(geometry, fixed.saturating_add(count));
        if table.saturating_mul(bytes) > REFCOUNT_TABLE_MAX_BYTES {
            return Err(RequestError::Full { max: REFCOUNT_TABLE_MAX_BYTES }.into());
        }
        let place = |cluster| geometry.cluster_bits.offset_of(HostCluster(cluster));
        let l1_at = 1_u64.saturating_add(table).saturating_add(blocks);
        header.refcount_table_offset = place(1);
        header.refcount_table_clusters = u32::try_from(table).unwrap_or(u32::MAX);
        header.l1_table_offset = if l1_clusters > 0 { place(l1_at) } else { HostOffset(0) };
        let l2_at = l1_at.saturating_add(l1_clusters);
        let entries = usize::try_from(header.l1_size()).unwrap_or(usize::MAX);
        let mut l1_entries =
            zeroed(entries).map_err(Error::io("take memory for the L1 table", 0))?;
        for (number, index) in (l2_at..).zip(&tables) {
            let entry = usize::try_from(*index).ok().and_then(|index| l1_entries.get_mut(index));
            if let Some(entry) = entry {
                *entry = l1::COPIED | place(number).to_u64();
            }
        }
        let data = l2_at.saturating_add(tables.len() as u64);
        Ok(StreamedImage {
            header,
            stored,
            l1_entries,
            refcount_blocks: blocks,
            clusters: data.saturating_add(count),
            data,
        })
    }
}

/// How many refcount blocks, and clusters of their table, count `others` clusters and themselves.
fn refcounts(geometry: Geometry, others: u64) -> (u64, u64) {
    let (mut blocks, mut table) = (0, 0);
    loop {
        let all = others.saturating_add(blocks).saturating_add(table);
        let wanted = all.div_ceil(geometry.refcounts_per_block());
        let bytes = wanted.saturating_mul(TABLE_ENTRY_BYTES);
        let next = (wanted, geometry.cluster_bits.clusters(bytes));
        // Both only ever grow, and stop growing where they count themselves.
        if next == (blocks, table) {
            return next;
        }
        (blocks, table) = next;
    }
}

impl StreamedImage {
    /// The image's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is stored, in clusters of the disk.
    #[must_use]
    pub fn stored(&self) -> &[Range<u64>] {
        &self.stored
    }

    /// Length of the whole image in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.clusters.saturating_mul(self.header.geometry().cluster_bits.bytes())
    }

    /// Hands all that comes before the data to `write`, in order and in whole clusters.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with what `write` says.
    pub fn write_tables(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let geometry = self.header.geometry();
        let cluster = usize::try_from(geometry.cluster_bits.bytes()).unwrap_or(usize::MAX);
        let mut whole = |mut bytes: Vec<u8>| {
            bytes.resize(bytes.len().next_multiple_of(cluster), 0);
            write(&bytes).map_err(Error::io("write the image's tables", 0))
        };
        whole(self.header.encode()?)?;
        let first_block = 1_u64.saturating_add(self.header.refcount_table_clusters().into());
        let place = |cluster| geometry.cluster_bits.offset_of(HostCluster(cluster)).to_u64();
        let blocks = first_block..first_block.saturating_add(self.refcount_blocks);
        whole(blocks.flat_map(|block| place(block).to_be_bytes()).collect())?;
        let per_block = geometry.refcounts_per_block();
        let mut left = self.clusters;
        for _ in 0..self.refcount_blocks {
            let counted = usize::try_from(left.min(per_block)).unwrap_or(usize::MAX);
            let ones = std::iter::repeat_n(true, counted);
            let mut block = refcount::encode_ones(geometry.refcount_order, ones);
            block.resize(cluster, 0);
            whole(block)?;
            left = left.saturating_sub(per_block);
        }
        if !self.l1_entries.is_empty() {
            whole(self.l1_entries.iter().flat_map(|entry| entry.to_be_bytes()).collect())?;
        }
        let mut tables = GuestTables::new(geometry)?;
        let all = SubclusterBitmap(0).with_allocated(0..32);
        let mut host = self.data;
        for range in &self.stored {
            for guest in range.clone() {
                let guest = GuestOffset(place(guest));
                if !tables.holds(guest)
                    && let Some((index, bytes)) = tables.take()
                {
                    whole(bytes.clone())?;
                    tables.link(index, HostOffset(0), bytes);
                }
                tables.set(guest, L2Entry::standard(HostOffset(place(host))), all);
                host = host.saturating_add(1);
            }
        }
        match tables.take() {
            Some((_, bytes)) => whole(bytes),
            None => Ok(()),
        }
    }
}
