//! Compressed clusters (spec: "Compressed Clusters Descriptor").
//!
//! ```text
//! x = 62 - (cluster_bits - 8)
//!
//! bit  61 … x                      x-1 … 0
//!      sectors of 512 bytes, - 1   byte offset in the file, on no boundary at all
//!
//! file  ──┬─────────┬─────────┬─────────┬──   the sector the payload starts in is counted in
//!         │    [payload of one  ]··│    │     full; behind the payload lies what lies there
//! ```
//!
//! A payload may straddle host clusters, share them with others, and end anywhere in its last
//! sector. It is decoded into exactly one cluster and no further: what would give more costs no
//! more, what gives less is an error. A payload that is made is smaller than its cluster, as
//! QEMU's are, or is none. Callers: `l2` (descriptor), `image` (decoding and encoding).

#[cfg(feature = "deflate")]
mod deflate;
#[cfg(feature = "zstd")]
mod zstd;

use std::fmt;
#[cfg(any(feature = "deflate", feature = "zstd"))]
use std::io;

use crate::address::{GuestOffset, HostOffset};
use crate::error::{Error, FieldError, Result, Unsupported, Violation};
use crate::geometry::ClusterBits;
use crate::header::CompressionType;
use crate::io::{ReadAt, zeroed};

const SECTOR: u64 = 512;

/// Where a compressed cluster lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressedDescriptor {
    host: HostOffset,
    sectors: u32,
}

impl CompressedDescriptor {
    /// What names a payload of `length` bytes at `host`; `None` if there is no such descriptor:
    /// the offset is too high, the payload empty or of more sectors than a descriptor counts.
    /// Every payload smaller than a cluster has few enough, wherever it starts.
    #[must_use]
    pub fn new(host: HostOffset, length: u64, cluster_bits: ClusterBits) -> Option<Self> {
        let shift = offset_bits(cluster_bits);
        if host.0 >> shift != 0 {
            return None;
        }
        // Below 2^62, since the offset is.
        let last = host.0.checked_add(length.checked_sub(1)?)?;
        let additional = last / SECTOR - host.0 / SECTOR;
        if additional >> (62 - shift) != 0 {
            return None;
        }
        Some(Self { host, sectors: u32::try_from(additional).ok()?.checked_add(1)? })
    }

    /// Bits 0 to 61 of the L2 entry, what [`CompressedDescriptor::decode`] takes. Bit 62, which
    /// says that they are a descriptor, is not set.
    #[must_use]
    pub fn encode(self, cluster_bits: ClusterBits) -> u64 {
        u64::from(self.sectors.saturating_sub(1)) << offset_bits(cluster_bits) | self.host.0
    }

    /// The meaning of bits 0 to 61 of `raw`.
    #[must_use]
    pub fn decode(raw: u64, cluster_bits: ClusterBits) -> Self {
        let shift = offset_bits(cluster_bits);
        let additional = (raw & 0x3fff_ffff_ffff_ffff) >> shift;
        let host = HostOffset(raw & ((1 << shift) - 1));
        // At most 13 bits.
        Self { host, sectors: u32::try_from(additional).unwrap_or(u32::MAX).saturating_add(1) }
    }

    /// Where the payload starts.
    #[must_use]
    pub const fn host(self) -> HostOffset {
        self.host
    }

    /// Sectors of 512 bytes that hold the payload, the first and the last perhaps in part.
    #[must_use]
    pub const fn sectors(self) -> u32 {
        self.sectors
    }

    /// Bytes from the payload's start to the end of its last sector: at most twice a cluster.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.sectors as u64 * SECTOR - self.host.0 % SECTOR
    }
}

/// How many bits of a descriptor are the offset: `x` in the picture above.
fn offset_bits(cluster_bits: ClusterBits) -> u32 {
    62 - (cluster_bits.to_u32() - 8)
}

impl fmt::Debug for CompressedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompressedDescriptor({:#x}, {} sectors)", self.host.0, self.sectors)
    }
}

/// Decodes cluster after cluster, keeping what that takes from one to the next.
#[derive(Default)]
pub(crate) struct Decoder {
    payload: Vec<u8>,
    #[cfg(feature = "deflate")]
    deflate: Option<deflate::Inflater>,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::Decompressor>,
}

impl Decoder {
    /// Reads what `descriptor` names and fills `cluster`, the guest's at `guest`, with it.
    pub(crate) fn read(
        &mut self,
        storage: &(impl ReadAt + ?Sized),
        compression: CompressionType,
        descriptor: CompressedDescriptor,
        guest: GuestOffset,
        cluster: &mut [u8],
    ) -> Result<()> {
        let offset = descriptor.host.0;
        let failed = || Error::io("read a compressed cluster", offset);
        let length = usize::try_from(descriptor.length()).unwrap_or(usize::MAX);
        if self.payload.len() < length {
            self.payload = zeroed(length).map_err(failed())?;
        }
        let mut payload = std::mem::take(&mut self.payload);
        let bytes = payload.get_mut(..length).unwrap_or_default();
        let result = storage.read_full_at(bytes, offset).map_err(failed()).and_then(|count| {
            // The last sector may not be there in full.
            bytes.get_mut(count..).unwrap_or_default().fill(0);
            self.decode(compression, bytes, cluster)?.map_err(|what| {
                let violation = Violation::CompressedData {
                    compression: compression.as_str(),
                    guest: guest.0,
                    what,
                };
                let field = "compressed cluster";
                FieldError { field, value: descriptor.length(), offset, violation }.into()
            })
        });
        self.payload = payload;
        result
    }

    /// The inner error says what is wrong with the payload.
    #[cfg_attr(
        not(any(feature = "deflate", feature = "zstd")),
        expect(unused_variables, reason = "every compression is left out")
    )]
    fn decode(
        &mut self,
        compression: CompressionType,
        payload: &[u8],
        cluster: &mut [u8],
    ) -> Result<Result<(), &'static str>> {
        match compression {
            #[cfg(feature = "deflate")]
            CompressionType::Zlib => {
                let inflater = match self.deflate.take() {
                    Some(inflater) => inflater,
                    None => deflate::Inflater::new()?,
                };
                Ok(self.deflate.insert(inflater).decode(payload, cluster))
            }
            #[cfg(feature = "zstd")]
            CompressionType::Zstd => {
                let decompressor = match self.zstd.take() {
                    Some(decompressor) => decompressor,
                    None => zstd::Decompressor::new()?,
                };
                Ok(self.zstd.insert(decompressor).decode(payload, cluster))
            }
            #[allow(unreachable_patterns, reason = "with both features")]
            other => Err(left_out(other)),
        }
    }
}

/// Encodes cluster after cluster, keeping what that takes from one to the next.
///
/// The same cluster gives the same payload, whatever was encoded before it.
#[derive(Default)]
pub struct Encoder {
    #[cfg(feature = "deflate")]
    deflate: Option<deflate::Deflater>,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::Compressor>,
}

impl Encoder {
    /// Replaces what `payload` holds by `cluster`, compressed as QEMU compresses it: with deflate
    /// in a window of 4 KiB, or as one zstd frame, each at its library's default level. A cluster
    /// at the end of the disk is encoded in full, zeros behind the disk's end.
    ///
    /// `false` if that is not smaller than the cluster, which is then better stored as it is;
    /// `payload` means nothing in that case.
    ///
    /// # Errors
    ///
    /// [`Unsupported::CompressionLeftOut`]; [`Error::Io`] if there is no memory for it.
    #[cfg_attr(
        not(any(feature = "deflate", feature = "zstd")),
        expect(unused_variables, clippy::ptr_arg, reason = "every compression is left out")
    )]
    pub fn encode(
        &mut self,
        compression: CompressionType,
        cluster: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<bool> {
        match compression {
            #[cfg(feature = "deflate")]
            CompressionType::Zlib => {
                let deflater = match self.deflate.take() {
                    Some(deflater) => deflater,
                    None => deflate::Deflater::new()?,
                };
                self.deflate.insert(deflater).encode(cluster, payload)?;
                Ok(payload.len() < cluster.len())
            }
            #[cfg(feature = "zstd")]
            CompressionType::Zstd => {
                let compressor = match self.zstd.take() {
                    Some(compressor) => compressor,
                    None => zstd::Compressor::new()?,
                };
                self.zstd.insert(compressor).encode(cluster, payload)?;
                Ok(payload.len() < cluster.len())
            }
            #[allow(unreachable_patterns, reason = "with both features")]
            other => Err(left_out(other)),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

/// Makes `payload` a buffer of `length` bytes.
#[cfg(any(feature = "deflate", feature = "zstd"))]
fn resize(payload: &mut Vec<u8>, length: usize) -> Result<()> {
    payload.clear();
    let failed = Error::io("take memory for a compressed cluster", 0);
    payload.try_reserve(length).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    payload.resize(length, 0);
    Ok(())
}

#[allow(dead_code, reason = "with both features")]
fn left_out(compression: CompressionType) -> Error {
    Unsupported::CompressionLeftOut { name: compression.as_str() }.into()
}

#[cfg(test)]
mod tests;
