//! Ways to read and write a disk image, and the walks through it that are timed.
//!
//! ```text
//! files     a raw file ─▶ qemu-img ─▶ the images that everybody reads
//! walk      block by block, or in large steps     ─▶ Disk: read, write, bring_down, sync
//!                                                     └ ours · imago · raw
//!           the same walk, in a process           ─▶ qemu: `qemu-img bench`
//! ```
//!
//! Callers: the comparison's part `images`, and the criterion benchmark of that name.

pub mod files;
mod imago;
mod ours;
pub mod qemu;
mod raw;
pub mod walk;

pub use imago::Imago;
pub use ours::{OursRead, OursWritten};
pub use raw::Raw;

/// An open disk.
///
/// # Panics
///
/// In every method: it cannot be done.
pub trait Disk: Sync {
    /// Fills `buffer` with what is at `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64);

    /// Writes `data` at `offset`.
    fn write(&self, data: &[u8], offset: u64);

    /// Has everything that waits in memory go to the file, without a sync.
    fn bring_down(&self);

    /// Has everything that was written survive a power cut.
    fn sync(&self);
}
