//! Decoded clusters: a cache of them, and the decoders that are not in use.
//!
//! Callers: `read`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::address::GuestOffset;
use crate::compressed::{CompressedDescriptor, Decoder};
use crate::error::{Error, Result};
use crate::geometry::{ClusterBits, Geometry};
use crate::header::CompressionType;
use crate::image::cache::Cache;
use crate::image::options::ReadOptions;
use crate::io::{ReadAt, zeroed};

/// Decoders kept for the next reader.
const IDLE_MAX: usize = 8;

pub(super) struct Payloads {
    compression: CompressionType,
    cluster_bits: ClusterBits,
    clusters: Cache<CompressedDescriptor, Arc<[u8]>>,
    /// The most clusters of a request that are kept though wanted whole.
    kept_max: usize,
    idle: Mutex<Vec<Decoder>>,
}

/// A part of a compressed cluster that someone wants.
pub(super) struct Wanted<'a> {
    pub(super) descriptor: CompressedDescriptor,
    /// Where the cluster starts on the guest's disk.
    pub(super) guest: GuestOffset,
    /// Bytes of the cluster before the wanted ones.
    pub(super) skip: usize,
    /// Where they go.
    pub(super) into: &'a mut [u8],
}

impl Payloads {
    pub(super) fn new(
        compression: CompressionType,
        geometry: Geometry,
        options: &ReadOptions,
    ) -> Self {
        let cluster_bits = geometry.cluster_bits;
        let capacity = usize::try_from(options.cluster_cache / cluster_bits.bytes());
        let capacity = capacity.unwrap_or(usize::MAX);
        Self {
            compression,
            cluster_bits,
            clusters: Cache::new(capacity),
            kept_max: capacity / 8,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Forgets what was decoded from `descriptor`.
    pub(super) fn forget(&self, descriptor: CompressedDescriptor) {
        self.clusters.forget(descriptor);
    }

    /// A decoder, to be given back with [`Payloads::give_back`].
    pub(super) fn decoder(&self) -> Decoder {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, decoder: Decoder) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(decoder);
        }
    }

    /// Whether what is decoded for a request of `clusters` is kept: not if it is so long that it
    /// would drive out much of the rest, as when everything is read once.
    pub(super) fn keeps(&self, clusters: usize) -> bool {
        clusters <= self.kept_max
    }

    /// Fills what is wanted. A cluster wanted in part is kept, and a whole one if `keep` says so.
    pub(super) fn read(
        &self,
        storage: &impl ReadAt,
        decoder: &mut Decoder,
        wanted: Wanted<'_>,
        keep: bool,
    ) -> Result<()> {
        let Wanted { descriptor, guest, skip, into } = wanted;
        let size = usize::try_from(self.cluster_bits.bytes()).unwrap_or(usize::MAX);
        let cluster = match self.clusters.get(descriptor) {
            Some(cluster) => cluster,
            None if into.len() == size => {
                decoder.read(storage, self.compression, descriptor, guest, into)?;
                if keep {
                    self.clusters.put(descriptor, Arc::from(&*into));
                }
                return Ok(());
            }
            None => {
                let failed = Error::io("decode a compressed cluster", descriptor.host().to_u64());
                let mut cluster = zeroed(size).map_err(failed)?;
                decoder.read(storage, self.compression, descriptor, guest, &mut cluster)?;
                let cluster: Arc<[u8]> = cluster.into();
                self.clusters.put(descriptor, Arc::clone(&cluster));
                cluster
            }
        };
        // The wanted part lies in one cluster.
        if let Some(part) = cluster.get(skip..).and_then(|rest| rest.get(..into.len())) {
            into.copy_from_slice(part);
        }
        Ok(())
    }
}

impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payloads").field("clusters", &self.clusters).finish_non_exhaustive()
    }
}
