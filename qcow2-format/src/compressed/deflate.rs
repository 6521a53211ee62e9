//! Compression type 0: a raw deflate stream, which QEMU makes with a window of 4 KiB.
//!
//! Any window of deflate is accepted: the cluster itself is the window. What is made has QEMU's
//! window, since a reader need not know any other. Caller: `compressed`.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::compressed::resize;
use crate::error::{Error, Result};

/// A window of 4 KiB, as its exponent.
const WINDOW_BITS: u8 = 12;

/// More than either direction's state takes, in bytes.
const STATE_MAX: usize = 512 << 10;

/// Fails where there is no memory for a state: zlib-rs 0.6 panics there.
fn room() -> Result<()> {
    let failed = Error::io("take memory for deflate", 0);
    let mut state = Vec::<u8>::new();
    state.try_reserve_exact(STATE_MAX).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))
}

pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Result<Self> {
        room()?;
        Ok(Self(Decompress::new(false)))
    }

    /// Fills `cluster`. The stream may go on behind it, or be followed by anything.
    pub(super) fn decode(
        &mut self,
        payload: &[u8],
        cluster: &mut [u8],
    ) -> Result<(), &'static str> {
        self.0.reset(false);
        self.0
            .decompress(payload, cluster, FlushDecompress::Finish)
            .map_err(|_| "it is not a deflate stream")?;
        if self.0.total_out() == cluster.len() as u64 { Ok(()) } else { Err("it ends early") }
    }
}

pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Self> {
        room()?;
        Ok(Self(Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS)))
    }

    /// Leaves in `payload` the whole stream, or as many bytes as `cluster` has if it is not
    /// smaller.
    pub(super) fn encode(&mut self, cluster: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        resize(payload, cluster.len())?;
        self.0.reset();
        let status = self
            .0
            .compress(cluster, payload, FlushCompress::Finish)
            .map_err(io::Error::from)
            .map_err(Error::io("compress a cluster", 0))?;
        if status == Status::StreamEnd {
            payload.truncate(usize::try_from(self.0.total_out()).unwrap_or(usize::MAX));
        } else {
            // zlib-rs 0.6 keeps, over a reset, how far it has read its own buffer of what did not
            // fit, and panics when that buffer seems full.
            *self = Self::new()?;
        }
        Ok(())
    }
}
