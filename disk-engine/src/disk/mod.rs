//! An opened disk: the chain of images a guest reads through.
//!
//! ```text
//! policy    which of the names found inside an image may be opened at all
//! chain     an image and everything it stands on, top first
//! content   what a disk holds, read anywhere
//! pad       raw disks made even for direct I/O
//! raw       a raw image as such
//! ```

pub mod chain;
pub mod content;
pub mod pad;
pub mod policy;
pub mod raw;

pub use content::{ContentRun, DiskContent};
pub use pad::{PadOptions, PadReport, pad_for_direct_io};
pub use raw::RawDisk;
