//! Compression type 1: zstd frames.
//!
//! ```text
//! [ frame of one cluster ][ what lies behind it in its last sector ]
//! ```
//!
//! Frames are measured, then decoded straight into the cluster, so that a window takes no memory
//! of its own, whatever a frame claims. Windows over QEMU's 128 MiB are refused. What is made is one
//! frame that states its content's size. Caller: `compressed`.

use zstd::bulk;
use zstd::zstd_safe;

use crate::compressed::resize;
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What zstd's decoder, and so QEMU, accepts by default.
const WINDOW_MAX: u64 = 128 << 20;

/// zstd's default level, and so QEMU's.
const LEVEL: i32 = 3;

pub(super) struct Decompressor(bulk::Decompressor<'static>);

impl Decompressor {
    pub(super) fn new() -> Result<Self> {
        bulk::Decompressor::new().map(Self).map_err(Error::io("prepare for zstd", 0))
    }

    /// Fills `cluster` from one frame or more, each of which ends inside it.
    pub(super) fn decode(
        &mut self,
        mut payload: &[u8],
        mut cluster: &mut [u8],
    ) -> Result<(), &'static str> {
        // Every frame takes bytes of the payload, so this ends.
        while !cluster.is_empty() {
            if window(payload) > WINDOW_MAX {
                return Err("its window is over 128 MiB");
            }
            let length = zstd_safe::find_frame_compressed_size(payload)
                .map_err(|_| "it is not a complete zstd frame")?;
            let (frame, behind) =
                payload.split_at_checked(length).ok_or("it is not a complete zstd frame")?;
            let count = self
                .0
                .decompress_to_buffer(frame, cluster)
                .map_err(|_| "a frame is damaged or longer than the cluster")?;
            cluster = std::mem::take(&mut cluster).get_mut(count..).unwrap_or_default();
            payload = behind;
        }
        Ok(())
    }
}

/// The window a frame claims in its header (RFC 8878, 3.1.1.1.2); 0 where it claims none.
fn window(frame: &[u8]) -> u64 {
    let [a, b, c, d, descriptor, window, ..] = *frame else { return 0 };
    let single_segment = descriptor & 0x20 != 0;
    if [a, b, c, d] != MAGIC || single_segment {
        return 0;
    }
    let base = 1_u64 << (10 + (window >> 3));
    base + base / 8 * u64::from(window & 7)
}

pub(super) struct Compressor(bulk::Compressor<'static>);

impl Compressor {
    pub(super) fn new() -> Result<Self> {
        bulk::Compressor::new(LEVEL).map(Self).map_err(Error::io("prepare for zstd", 0))
    }

    /// Leaves in `payload` the frame, however long.
    pub(super) fn encode(&mut self, cluster: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        // Room for any outcome, so that there is no error for want of it.
        resize(payload, zstd_safe::compress_bound(cluster.len()))?;
        let length = self
            .0
            .compress_to_buffer(cluster, payload.as_mut_slice())
            .map_err(Error::io("compress a cluster", 0))?;
        payload.truncate(length);
        Ok(())
    }
}
