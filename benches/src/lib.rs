//! What the benchmarks and the comparison share: one image, and several ways to treat it.
//!
//! ```text
//! random        the same numbers on every machine
//! image         a disk shaped like a real one, packed as an archive
//! overlays      four ways to make an overlay
//! extractions   four ways through an archive
//! preparations  five ways to disks for many VMs
//! content       what a sparse file holds, and the space it takes
//! scratch       a folder on a real file system
//! ```
//!
//! Whatever fails here panics: a measurement that failed is none.

pub mod content;
pub mod extractions;
pub mod image;
pub mod overlays;
pub mod preparations;
pub mod random;
pub mod scratch;
