//! A new image written together with its content, front to back, by whoever has the disk in order.
//!
//! ```text
//! cluster  0        1 …                                                        end
//!          [ header ][ data ][ L2 ][ data, payloads ][ refcounts ][ data ] … [ L1 ][ refcounts ]
//!            last      ▲       ▲                       ▲                             and table
//!                      │       when its part of        when all that a block
//!                      in guest order   the disk is over   counts is decided
//! ```
//!
//! Nobody reads the image before it is whole, so nothing has to be whole in between: clusters are
//! handed out one after the other, each table is written once, and the header comes last. What is in
//! memory is one L2 table, the L1 table, the refcount table, and the refcount blocks that may still
//! change: one or two. The bytes follow from the calls alone.
//!
//! Callers: disk-engine's `sink::qcow2`.

mod finish;
mod payload;

use crate::address::{GuestOffset, HostCluster, HostOffset};
use crate::create::behind::WriteBehind;
use crate::create::counting::Counting;
use crate::create::tables::GuestTables;
use crate::create::{CreateOptions, SECTOR_BYTES};
use crate::error::{Error, OptionsError, RequestError, Result};
use crate::geometry::Geometry;
use crate::header::{Header, Version};
use crate::image::Preallocation;
use crate::io::{WriteAt, is_zero};
use crate::l2::{L2Entry, SubclusterBitmap};

/// Zeros are looked for in blocks of this many bytes, as file systems have them.
const BLOCK: usize = 4096;

/// A new image that is being filled: the guest's clusters, each at most once, in rising order.
///
/// Dropped before [`ImageFiller::finish`], the storage holds no header and so no image.
#[derive(Debug)]
pub struct ImageFiller<S> {
    storage: WriteBehind<S>,
    /// Where the guest's clusters lie, if not in the image.
    data: Option<S>,
    header: Header,
    preallocation: Preallocation,
    tables: GuestTables,
    counts: Counting,
    /// The first host cluster that is not handed out.
    next: u64,
    /// Where the last payload ended, if the next one may begin in the same cluster.
    payload_end: Option<u64>,
    /// Where the next cluster of the disk may be.
    guest: u64,
    /// Whether nothing was in the storages, so that what is not written reads as zeros.
    fresh: bool,
    /// How many zeros in one piece are left out of what is stored, if any are.
    hole: Option<usize>,
}

impl CreateOptions {
    /// Starts the image in `storage`, which is emptied. The preallocation is
    /// [`ImageFiller::reserve`]'s to make.
    ///
    /// # Errors
    ///
    /// As [`CreateOptions::plan`]; [`Error::Io`] from the storage;
    /// [`RequestError::DataFileNeeded`].
    pub fn fill<S: WriteAt>(&self, storage: S) -> Result<ImageFiller<S>> {
        self.fill_parts(storage, None)
    }

    /// Starts the image in `storage`, whose guest clusters go to `data`; both are emptied.
    ///
    /// # Errors
    ///
    /// As [`CreateOptions::fill`]; [`RequestError::DataFileUnexpected`].
    pub fn fill_with_data<S: WriteAt>(&self, storage: S, data: S) -> Result<ImageFiller<S>> {
        self.fill_parts(storage, Some(data))
    }

    fn fill_parts<S: WriteAt>(&self, storage: S, data: Option<S>) -> Result<ImageFiller<S>> {
        let plan = self.plan()?;
        let header = plan.header().clone();
        match (self.data_file.is_some(), data.is_some()) {
            (true, false) => return Err(RequestError::DataFileNeeded.into()),
            (false, true) => return Err(RequestError::DataFileUnexpected.into()),
            _ => {}
        }
        let mut fresh = true;
        for storage in std::iter::once(&storage).chain(&data) {
            let length =
                || storage.length().map_err(Error::io("read the length of the storage", 0));
            if length()? > 0 {
                storage.set_length(0).map_err(Error::io("empty the storage", 0))?;
                // A block device keeps its length, and what is on it.
                fresh &= length()? == 0;
            }
        }
        let geometry = header.geometry();
        let mut counts = Counting::new(geometry);
        // The header's cluster.
        counts.add(0, 1)?;
        Ok(ImageFiller {
            storage: WriteBehind::new(storage),
            data,
            preallocation: plan.preallocation,
            tables: GuestTables::new(geometry)?,
            counts,
            next: 1,
            payload_end: None,
            guest: 0,
            fresh,
            hole: None,
            header,
        })
    }
}

impl<S: WriteAt> ImageFiller<S> {
    /// The image's header, but for where its tables lie.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The storage that [`ImageFiller::place`] has made room in, for who writes there: the external
    /// data file, else the image.
    #[must_use]
    pub fn data_storage(&self) -> &S {
        self.data.as_ref().unwrap_or(self.storage.storage())
    }

    /// From now on blocks of 4096 zeros are left out of the clusters that are stored, where there are at
    /// least `least` bytes of them in one piece and QEMU leaves them out, too: with extended L2 entries, and
    /// in images whose metadata alone is preallocated. Whoever reads them finds the same, in less space.
    pub fn leave_holes(&mut self, least: usize) {
        let leaves = match self.preallocation {
            Preallocation::Off => self.geometry().extended_l2,
            Preallocation::Metadata => true,
            Preallocation::Falloc | Preallocation::Full => false,
        };
        self.hole = (leaves && self.fresh).then_some(least.max(BLOCK));
    }

    /// How much space the image takes from its storage at once.
    #[must_use]
    pub fn preallocation(&self) -> Preallocation {
        self.preallocation
    }

    /// Length of the storage so far, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.next.saturating_mul(self.geometry().cluster_bits.bytes())
    }

    /// Makes the disk `virtual_size` bytes long, rounded up to whole sectors of 512.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if no image can be that large; [`RequestError::OutOfRange`] if a cluster
    /// behind it was given something.
    pub fn set_virtual_size(&mut self, virtual_size: u64) -> Result<()> {
        let geometry = self.geometry();
        let max = geometry.max_virtual_size();
        let size = virtual_size.checked_next_multiple_of(SECTOR_BYTES).filter(|size| *size <= max);
        let size = size.ok_or(OptionsError::VirtualSize { size: virtual_size, max })?;
        if geometry.cluster_bits.clusters(size) < self.guest {
            let length = self.guest.saturating_mul(geometry.cluster_bits.bytes());
            return Err(RequestError::OutOfRange { offset: 0, length, size }.into());
        }
        self.header.virtual_size = size;
        // At most 2^22 entries.
        self.header.l1_size = u32::try_from(geometry.l1_entries(size)).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Gives `clusters` clusters of the disk from `guest` on a place in one piece, and says where; the
    /// caller writes them. What is not written reads as zeros. With an external data file that is
    /// where they lie in it.
    ///
    /// # Errors
    ///
    /// [`RequestError::OutOfRange`] if `guest` is no cluster of the disk that lies behind all
    /// before it; [`RequestError::Full`]; [`Error::Io`] from the storage.
    pub fn place(&mut self, guest: GuestOffset, clusters: u64) -> Result<HostOffset> {
        let bitmap = SubclusterBitmap(0).with_allocated(0..32);
        self.place_with(guest, clusters, bitmap)
    }

    /// Stores `bytes`, whole clusters, as they are.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`].
    pub fn write(&mut self, guest: GuestOffset, bytes: &[u8]) -> Result<()> {
        let cluster_bits = self.geometry().cluster_bits;
        let host = self.place(guest, cluster_bits.clusters(bytes.len() as u64))?;
        self.write_data(bytes, host)
    }

    /// As [`ImageFiller::write`], of one cluster with extended L2 entries, of which `bitmap` says what
    /// is stored and what reads as zeros.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`].
    pub fn write_subclusters(
        &mut self,
        guest: GuestOffset,
        bytes: &[u8],
        bitmap: SubclusterBitmap,
    ) -> Result<()> {
        let host = self.place_with(guest, 1, bitmap)?;
        if self.hole.is_none() {
            return self.write_data(bytes, host);
        }
        let size = bytes.len() / 32;
        let mut index = 0;
        while index < 32 {
            let is = |index: u32| bitmap.is_allocated(index);
            let end = (index..32).find(|other| is(*other) != is(index)).unwrap_or(32);
            if is(index) {
                let range = index as usize * size..end as usize * size;
                let at = HostOffset(host.0.saturating_add(range.start as u64));
                self.write_data(bytes.get(range).unwrap_or_default(), at)?;
            }
            index = end;
        }
        Ok(())
    }

    /// Has `clusters` clusters from `guest` on read as zeros, whatever lies below. Version 2 has no
    /// other way than to store them.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`].
    pub fn zero(&mut self, guest: GuestOffset, clusters: u64) -> Result<()> {
        if self.header.version() == Version::V2 {
            return self.place(guest, clusters).map(drop);
        }
        self.check(guest, clusters)?;
        let (entry, bitmap) = match self.geometry().extended_l2 {
            true => (0, SubclusterBitmap::ALL_ZERO),
            false => (L2Entry::zero(None), SubclusterBitmap(0)),
        };
        self.map_all(guest, clusters, |_| entry, bitmap)
    }

    /// Has the subclusters of the cluster at `guest` that `bitmap` says read as zeros, and leaves the
    /// others to what lies below. Nothing of it is stored. With extended L2 entries only.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`].
    pub fn zero_subclusters(&mut self, guest: GuestOffset, bitmap: SubclusterBitmap) -> Result<()> {
        self.check(guest, 1)?;
        self.map_all(guest, 1, |_| 0, bitmap)
    }

    /// Takes space for `clusters` clusters from `guest` on as the image's preallocation says; they
    /// read as zeros.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`].
    pub fn reserve(&mut self, guest: GuestOffset, clusters: u64) -> Result<()> {
        let length = clusters.saturating_mul(self.geometry().cluster_bits.bytes());
        let host = self.place(guest, clusters)?;
        let length = match self.data {
            Some(_) => length.min(self.data_end().saturating_sub(host.0)),
            None => length,
        };
        let storage = self.data_storage();
        match self.preallocation {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            Preallocation::Falloc => storage.allocate_at(host.0, length),
            Preallocation::Full => storage.write_all_zeros_at(host.0, length),
        }
        .map_err(Error::io("take space for the image", host.0))
    }

    /// Gives the storage back, which holds no image, and the data file's.
    #[must_use]
    pub fn into_storage(self) -> (S, Option<S>) {
        (self.storage.into_storage(), self.data)
    }

    fn geometry(&self) -> Geometry {
        self.header.geometry()
    }

    /// Writes what of `bytes` is not left out.
    fn write_data(&mut self, bytes: &[u8], host: HostOffset) -> Result<()> {
        let Some(hole) = self.hole else { return self.write_piece(bytes, host) };
        // Zeros that end at `at` may be a hole; what lies before them from `start` on is to be written.
        let (mut start, mut zeros, mut at) = (0, 0, 0_usize);
        for block in bytes.chunks(BLOCK).chain([&[][..]]) {
            if !block.is_empty() && is_zero(block) {
                zeros += block.len();
            } else {
                if zeros >= hole {
                    let piece = bytes.get(start..at - zeros).unwrap_or_default();
                    self.write_piece(piece, HostOffset(host.0.saturating_add(start as u64)))?;
                    start = at;
                }
                zeros = 0;
            }
            at += block.len();
        }
        let piece = bytes.get(start..).unwrap_or_default();
        self.write_piece(piece, HostOffset(host.0.saturating_add(start as u64)))
    }

    fn write_piece(&mut self, bytes: &[u8], host: HostOffset) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match &self.data {
            Some(data) => data.write_all_at(bytes, host.0),
            None => self.storage.write(bytes, host.0),
        }
        .map_err(Error::io("write guest data", host.0))
    }

    /// Where the data file ends: with the disk, or, as QEMU has it, with its last subcluster or
    /// cluster if all have their place.
    fn data_end(&self) -> u64 {
        let size = self.header.virtual_size();
        match self.preallocation {
            Preallocation::Off => size,
            _ => size.next_multiple_of(self.geometry().subcluster_bytes()),
        }
    }

    fn check(&self, guest: GuestOffset, clusters: u64) -> Result<()> {
        let cluster_bits = self.geometry().cluster_bits;
        let size = self.header.virtual_size();
        let last = cluster_bits.clusters(size);
        let first = guest.0 >> cluster_bits.to_u32();
        let inside = first.checked_add(clusters).is_some_and(|end| end <= last);
        if cluster_bits.is_aligned(guest.0) && inside && first >= self.guest {
            return Ok(());
        }
        let length = clusters.saturating_mul(cluster_bits.bytes());
        Err(RequestError::OutOfRange { offset: guest.0, length, size }.into())
    }

    /// All clusters before the end of these are decided.
    fn pass(&mut self, guest: GuestOffset, clusters: u64) {
        let first = guest.0 >> self.geometry().cluster_bits.to_u32();
        self.guest = first.saturating_add(clusters);
    }

    fn place_with(
        &mut self,
        guest: GuestOffset,
        clusters: u64,
        bitmap: SubclusterBitmap,
    ) -> Result<HostOffset> {
        self.check(guest, clusters)?;
        let bytes = self.geometry().cluster_bits.bytes();
        let host = match self.data {
            Some(_) => HostOffset(guest.0),
            None => self.take(clusters)?,
        };
        let entry = |index: u64| {
            L2Entry::standard(HostOffset(host.0.saturating_add(index.saturating_mul(bytes))))
        };
        self.map_all(guest, clusters, entry, bitmap)?;
        Ok(host)
    }

    fn map_all(
        &mut self,
        guest: GuestOffset,
        clusters: u64,
        entry: impl Fn(u64) -> u64,
        bitmap: SubclusterBitmap,
    ) -> Result<()> {
        let bytes = self.geometry().cluster_bits.bytes();
        for index in 0..clusters {
            let at = GuestOffset(guest.0.saturating_add(index.saturating_mul(bytes)));
            self.map(at, entry(index), bitmap)?;
        }
        self.pass(guest, clusters);
        self.write_counts()
    }

    /// Sets one entry; the table before is written if this one lies in the next.
    fn map(&mut self, guest: GuestOffset, entry: u64, bitmap: SubclusterBitmap) -> Result<()> {
        if !self.tables.holds(guest) {
            self.end_table()?;
        }
        self.tables.set(guest, entry, bitmap);
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
        let Some((index, bytes)) = self.tables.take() else { return Ok(()) };
        let at = self.take(1)?;
        self.storage.write(&bytes, at.0).map_err(Error::io("write an L2 table", at.0))?;
        self.tables.link(index, at, bytes);
        Ok(())
    }

    /// Hands out clusters, each counted once.
    fn take(&mut self, clusters: u64) -> Result<HostOffset> {
        let first = self.next;
        self.counts.add(first, clusters)?;
        self.next = first.saturating_add(clusters);
        Ok(self.geometry().cluster_bits.offset_of(HostCluster(first)))
    }

    /// Writes the refcount blocks whose clusters are all decided.
    fn write_counts(&mut self) -> Result<()> {
        let cluster_bits = self.geometry().cluster_bits;
        let open = self.payload_end.filter(|end| !cluster_bits.is_aligned(*end));
        let decided = open.map_or(self.next, |end| end >> cluster_bits.to_u32());
        while let Some((index, block)) = self.counts.take_below(decided) {
            let at = self.take(1)?;
            self.storage.write(&block, at.0).map_err(Error::io("write a refcount block", at.0))?;
            self.counts.set_place(index, at)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
