//! Compressed clusters of an image that is being filled: packed, each reference counted.
//!
//! ```text
//! host clusters   │[payload 1][payload 2][payl│oad 3]      │
//! ```
//!
//! Caller: `create::fill`, for whoever fills.

use super::ImageFiller;
use crate::address::{GuestOffset, HostCluster, HostOffset};
use crate::compressed::CompressedDescriptor;
use crate::error::{Error, RequestError, Result};
use crate::io::WriteAt;
use crate::l2::{L2Entry, SubclusterBitmap};

impl<S: WriteAt> ImageFiller<S> {
    /// Stores the cluster at `guest` as `payload`, what an
    /// [`Encoder`](crate::compressed::Encoder) made of it; `false` if that cannot be, and the
    /// cluster is still to be stored.
    ///
    /// # Errors
    ///
    /// As [`ImageFiller::place`]; [`RequestError::CompressedWithDataFile`].
    pub fn write_compressed(&mut self, guest: GuestOffset, payload: &[u8]) -> Result<bool> {
        if self.has_data_file() {
            return Err(RequestError::CompressedWithDataFile.into());
        }
        self.check(guest, 1)?;
        let cluster_bits = self.geometry().cluster_bits;
        let length = payload.len() as u64;
        let host = self.payload_place(length)?;
        let Some(descriptor) = CompressedDescriptor::new(host, length, cluster_bits) else {
            return Ok(false);
        };
        let last = host.0.saturating_add(length).saturating_sub(1) >> cluster_bits.to_u32();
        let first = host.0 >> cluster_bits.to_u32();
        self.next = self.next.max(last.saturating_add(1));
        self.counts.add(first, last.saturating_sub(first).saturating_add(1))?;
        self.payload_end = Some(host.0.saturating_add(length));
        self.storage
            .write(payload, host.0)
            .map_err(Error::io("write a compressed cluster", host.0))?;
        let entry = L2Entry::compressed(descriptor.encode(cluster_bits));
        self.map(guest, entry, SubclusterBitmap(0))?;
        self.pass(guest, 1);
        self.write_counts()?;
        Ok(true)
    }

    /// Where a payload of `length` bytes goes: behind the one before, if that leads to no gap and
    /// the shared cluster can count one more.
    fn payload_place(&self, length: u64) -> Result<HostOffset> {
        let cluster_bits = self.geometry().cluster_bits;
        let fresh = cluster_bits.offset_of(HostCluster(self.next));
        let Some(end) = self.payload_end.filter(|end| !cluster_bits.is_aligned(*end)) else {
            return Ok(fresh);
        };
        let cluster = end >> cluster_bits.to_u32();
        let fits = cluster_bits.offset_in_cluster(end) + length <= cluster_bits.bytes();
        let goes_on = fits || self.next == cluster.saturating_add(1);
        Ok(if goes_on && self.counts.may_add(cluster) { HostOffset(end) } else { fresh })
    }
}
