//! Ranges the guest has no more use for.
//!
//! ```text
//! range     ┊part │ whole clusters                                  │part┊
//!            stays  read as zeros; their space goes back once        stays
//!                   nothing in the file refers to it
//! ```
//!
//! Callers: disk-engine's `disk`.

use crate::address::GuestOffset;
use crate::error::Result;
use crate::image::write::zero::Otherwise;
use crate::image::write::{Discard, WritableImage, ZeroMode};
use crate::io::WriteAt;

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Gives back the space of the whole clusters in `length` bytes from `offset` on, which read as
    /// zeros afterwards. Version 2 cannot say that over a disk below, and keeps those as they are.
    ///
    /// # Errors
    ///
    /// As [`WritableImage::write_over`].
    pub fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        self.image.check_range(offset.0, length)?;
        if self.options.discard == Discard::Ignore {
            return self.lock().check_writable();
        }
        let bytes = self.image.geometry().cluster_bits.bytes();
        let end = offset.0.saturating_add(length);
        let end = match end >= self.virtual_size() {
            true => self.clusters_end(),
            false => end / bytes * bytes,
        };
        let mut at = offset.0.div_ceil(bytes).saturating_mul(bytes);
        let mut discarded = Ok(());
        while at < end && discarded.is_ok() {
            let unmap = ZeroMode::Unmap;
            let mut below = |part: &mut [u8], at| self.nothing_below(part, at);
            match self.zero_whole(at..end, unmap, Otherwise::Leave, &mut below) {
                Ok(next) => at = next,
                Err(error) => discarded = Err(error),
            }
        }
        // What was done before a failure is followed up as well.
        let after = self.after_change();
        discarded?;
        after
    }
}
