//! Compressed clusters on their way into the file.
//!
//! ```text
//! host clusters   │[payload 1][payload 2][payl│oad 3]      │     packed, each reference counted
//! ```
//!
//! A payload begins where the one before ended, in a host cluster that both count, and goes on into
//! the next one if that is handed out for it. What does not get smaller is stored as it is. Whole
//! clusters only: nothing is read back to be compressed with what is written.
//! Callers: disk-engine's `disk`.

use std::sync::{MutexGuard, PoisonError};

use crate::address::{GuestOffset, HostCluster, HostOffset};
use crate::compressed::{CompressedDescriptor, Encoder};
use crate::error::{Error, RequestError, Result};
use crate::image::write::WritableImage;
use crate::image::write::state::{Place, State};
use crate::io::{WriteAt, zeroed};
use crate::l2::{L2Entry, SubclusterBitmap};

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Writes `data` at `offset` as compressed clusters, replacing whatever they were. Only whole
    /// clusters can be written so, the disk's last one as far as it goes.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::write_over`]; [`RequestError::NotWholeClusters`],
    /// [`RequestError::CompressedWithDataFile`];
    /// [`Unsupported::CompressionLeftOut`](crate::error::Unsupported).
    pub fn write_compressed(&self, data: &[u8], offset: GuestOffset) -> Result<()> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let length = data.len() as u64;
        self.image.check_range(offset.0, length)?;
        if self.image.data.is_some() {
            return Err(RequestError::CompressedWithDataFile.into());
        }
        let end = offset.0.saturating_add(length);
        let whole = cluster_bits.is_aligned(end) || end == self.virtual_size();
        if !cluster_bits.is_aligned(offset.0) || !whole {
            let cluster_size = cluster_bits.bytes();
            let offset = offset.0;
            return Err(RequestError::NotWholeClusters { offset, length, cluster_size }.into());
        }
        self.lock().check_writable()?;
        let size = usize::try_from(cluster_bits.bytes()).unwrap_or(usize::MAX);
        let mut encoder = self.encoders().pop().unwrap_or_default();
        let mut payload = Vec::new();
        let mut guest = offset.0;
        let mut written = Ok(());
        for piece in data.chunks(size) {
            written = self.write_cluster(&mut encoder, piece, guest, &mut payload);
            if written.is_err() {
                break;
            }
            guest = guest.saturating_add(cluster_bits.bytes());
        }
        self.encoders().push(encoder);
        // What was written before a failure is followed up as well.
        let after = self.after_change();
        written?;
        after
    }

    /// Encoders that are not in use; at most as many as there were requests at once.
    fn encoders(&self) -> MutexGuard<'_, Vec<Encoder>> {
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_cluster(
        &self,
        encoder: &mut Encoder,
        piece: &[u8],
        guest: u64,
        payload: &mut Vec<u8>,
    ) -> Result<()> {
        let size = self.image.geometry().cluster_bits.bytes();
        let compression = self.image.header.compression_type();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let smaller = if piece.len() == size {
            encoder.encode(compression, piece, payload)?
        } else {
            let mut cluster = zeroed(size).map_err(Error::io("compress a cluster", guest))?;
            if let Some(start) = cluster.get_mut(..piece.len()) {
                start.copy_from_slice(piece);
            }
            encoder.encode(compression, &cluster, payload)?
        };
        if !smaller || !self.write_payload(payload, guest)? {
            let mut below = |part: &mut [u8], at| self.nothing_below(part, at);
            return self.write_pieces(piece, guest, &mut below).map(|_| ());
        }
        Ok(())
    }

    /// Has `payload` be the cluster at `guest`; says whether that could be.
    fn write_payload(&self, payload: &[u8], guest: u64) -> Result<bool> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let range = guest..guest.saturating_add(cluster_bits.bytes());
        let _flight = self.flights.enter();
        let length = payload.len() as u64;
        let host = {
            let mut state = self.lock_for(&range);
            self.begin(&mut state)?;
            let host = self.place_payload(&mut state, guest, length);
            let host = state.judge(&self.image.storage, host)?;
            state.busy.push(range.clone());
            host
        };
        let descriptor = CompressedDescriptor::new(host, length, cluster_bits);
        let written = match descriptor {
            None => Ok(()),
            Some(_) => self
                .image
                .storage
                .write_all_at(payload, host.0)
                .map_err(Error::io("write a compressed cluster", host.0)),
        };
        let mut state = self.lock();
        let linked = match (written, descriptor) {
            (Ok(()), Some(descriptor)) => self.link_payload(&mut state, guest, descriptor),
            (written, _) => written,
        };
        if linked.is_err() || descriptor.is_none() {
            let clusters = state.clusters_of(&(host.0..host.0.saturating_add(length)));
            // Nothing has referred to it yet, in memory or in the file.
            self.unlink(&mut state, Place::Clusters(clusters), false);
        }
        state.busy.retain(|busy| *busy != range);
        self.unlock_settled(state);
        linked.map(|()| descriptor.is_some())
    }

    fn place_payload(&self, state: &mut State, guest: u64, length: u64) -> Result<HostOffset> {
        let view = self.view(guest)?;
        let old = view.entry(guest)?;
        self.check_old(state, &view, guest, &old)?;
        self.own_table(state, guest)?;
        state.allocate_payload(&self.image.storage, length)
    }

    fn link_payload(
        &self,
        state: &mut State,
        guest: u64,
        descriptor: CompressedDescriptor,
    ) -> Result<()> {
        let cluster_bits = self.image.geometry().cluster_bits;
        let old = self.view(guest)?.entry(guest)?;
        // What was decoded from there before is something else's.
        self.image.payloads.forget(descriptor);
        let entry = L2Entry::compressed(descriptor.encode(cluster_bits));
        self.change_entries(state, guest, &[(entry, SubclusterBitmap(0))])?;
        self.unlink_old(state, &old, false);
        Ok(())
    }
}

impl State {
    /// Room for a payload of `length` bytes, less than a cluster; each cluster it touches has one
    /// reference more.
    fn allocate_payload(&mut self, storage: &impl WriteAt, length: u64) -> Result<HostOffset> {
        let cluster_bits = self.header.geometry().cluster_bits;
        let bytes = cluster_bits.bytes();
        // Behind the payload before, if its cluster is still there and counts one more.
        let mut behind = None;
        if let Some(end) = self.payload_end.filter(|end| !cluster_bits.is_aligned(*end)) {
            let cluster = HostCluster(end >> cluster_bits.to_u32());
            let refcount = self.counts.get(storage, cluster)?;
            if (1..self.counts.max()).contains(&refcount) {
                behind = Some((end, cluster, refcount));
            }
        }
        let host = match behind {
            Some((end, cluster, refcount))
                if cluster_bits.offset_in_cluster(end) + length <= bytes =>
            {
                self.before_counts_change(storage)?;
                self.counts.set(storage, cluster, refcount + 1)?;
                end
            }
            behind => {
                let room = self.allocate(storage, 1)?;
                match behind {
                    Some((end, cluster, _))
                        if cluster_bits.offset_of(HostCluster(cluster.0 + 1)) == room.host =>
                    {
                        let refcount = self.counts.get(storage, cluster)?;
                        self.counts.set(storage, cluster, refcount + 1)?;
                        end
                    }
                    _ => room.host.0,
                }
            }
        };
        self.payload_end = Some(host.saturating_add(length));
        Ok(HostOffset(host))
    }
}
