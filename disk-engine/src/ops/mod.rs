//! One file per verb: options in, one report out. The command line adds words to these.
//!
//! ```text
//! boot        a VM started from a disk, its serial port heard
//! boot_image  a small bootable disk, compiled in
//! prepare     one archive in, N VM disks out: the main job
//! extract     archive or compressed image → sparse raw file
//! pack        disk → sparse archive, compressed: the way back
//! create      a new qcow2 image
//! info        header, extensions, chain
//! ```

pub mod boot;
pub mod boot_image;
pub mod create;
pub mod extract;
pub mod info;
pub mod pack;
pub mod prepare;

pub use extract::{ExtractOptions, ExtractReport, extract};
pub use pack::{PackOptions, PackReport, pack};
