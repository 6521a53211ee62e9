//! One file per verb: options in, one report out. The command line adds words to these.
//!
//! ```text
//! prepare     one archive in, N VM disks out: the main job
//! extract     archive or compressed image → sparse raw file
//! create      a new qcow2 image
//! info        header, extensions, chain
//! ```

pub mod create;
pub mod extract;
pub mod info;

pub use extract::{ExtractOptions, ExtractReport, extract};
