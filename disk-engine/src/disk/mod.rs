//! An opened disk: the chain of images a guest reads through.
//!
//! ```text
//! policy    which of the names found inside an image may be opened at all
//! chain     an image and everything it stands on, top first
//! foreign   formats that are not read, told by their first bytes
//! inspect   what an image says of itself, and nothing else
//! content   what a disk holds, read anywhere
//! pad       raw disks made even for direct I/O
//! raw       a raw image as such
//! raw_write and as one that is written to
//! layer     an image of an opened chain, whatever its format
//! layers    the images of an opened chain as one disk
//! sectors   a disk counted in sectors
//! status    what QEMU says of a place on a disk
//! opening   from a chain to its layers
//! stated    what the caller says of the top image
//! opened    a disk that is read
//! writable  a disk that is read and written
//! map       which part of a disk comes from where
//! ```

pub mod chain;
pub mod content;
pub(crate) mod foreign;
pub mod inspect;
mod layer;
mod layers;
pub mod map;
pub mod opened;
pub(crate) mod opening;
pub mod pad;
pub mod policy;
pub mod raw;
mod raw_write;
pub mod sectors;
pub mod stated;
pub mod status;
pub mod writable;

pub use content::{ContentRun, DiskContent, StoredRun};
pub use inspect::inspect;
pub use layers::DiskImage;
pub use map::{DiskRun, DiskRuns};
pub use opened::{Disk, DiskFile, DiskOptions, PastEnd};
pub use pad::{PadOptions, PadReport, pad_for_direct_io};
pub use policy::DataFileNames;
pub use raw::RawDisk;
pub use stated::{RawPart, StatedBacking, StatedTop};
pub use status::BlockStatus;
pub use writable::{WritableDisk, WritableDiskOptions};

pub use crate::sys::image_lock::Locking;
