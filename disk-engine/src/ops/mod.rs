//! One file per verb: options in, one report out. The command line adds words to these.
//!
//! ```text
//! boot        a VM started from a disk, its serial port heard
//! boot_image  a small bootable disk, compiled in
//! prepare     one archive in, N VM disks out: the main job
//! config_disk a FAT image with a label, from a few files
//! convert     a disk in any form into any other
//! extract     archive or compressed image → sparse raw file
//! pack        disk → sparse archive, compressed: the way back
//! create      a new qcow2 image
//! check       whether an image is consistent, and repairing it
//! info        header, extensions, chain
//! compare     whether two disks hold the same
//! measure     how long the file of a new image gets
//! map         which part of a disk comes from which image
//! usage       what disks take, how they have grown, what is left
//! ```

pub mod boot;
pub mod boot_image;
pub mod check;
pub mod compare;
pub mod config_disk;
pub mod convert;
pub mod create;
pub mod extract;
pub mod info;
pub mod map;
pub mod measure;
pub(crate) mod names;
pub mod pack;
pub mod prepare;
pub mod usage;

pub use compare::{CompareOptions, CompareReport, compare};
pub use convert::{ConvertOptions, ConvertReport, convert};
pub use extract::{ExtractOptions, ExtractReport, extract};
pub use measure::{MeasureReport, MeasureTarget, measure, measure_size};
pub use pack::{PackOptions, PackReport, pack};
