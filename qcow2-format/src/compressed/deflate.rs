//! Compression type 0: a raw deflate stream, which QEMU makes with a window of 4 KiB.
//!
//! Any window of deflate is accepted: the cluster itself is the window. Caller: `compressed`.

use flate2::{Decompress, FlushDecompress};

pub(super) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

impl Inflater {
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
