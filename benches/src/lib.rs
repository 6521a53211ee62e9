//! What the benchmarks and the comparison share: one image, and several ways to treat it.
//!
//! ```text
//! random        the same numbers on every machine
//! image         a disk shaped like a real one, packed as an archive
//! images        ways to read and write a disk image
//! overlays      four ways to make an overlay
//! conversions   two ways to convert a disk
//! packings      three ways to pack a disk
//! extractions   ways through an archive
//! preparations  ways to disks for many VMs
//! verifications ways to tell that a base is what it was
//! content       what a sparse file holds, and the space it takes
//! scratch       a folder on a real file system
//! ```
//!
//! Whatever fails here panics: a measurement that failed is none.

pub mod content;
pub mod conversions;
pub mod extractions;
pub mod image;
pub mod images;
pub mod overlays;
pub mod packings;
pub mod preparations;
pub mod random;
pub mod scratch;
pub mod verifications;
