//! Helpers shared by every suite of the workspace.

pub mod checker;
pub mod convert_lab;
pub mod damage;
pub mod device;
pub mod disks;
pub mod door;
pub mod faults;
pub mod faulty;
pub mod io_lab;
pub mod model;
pub mod mounts;
pub mod program;
pub mod qemu;
pub mod random;
pub mod recording;
pub mod sparse;
pub mod sweep;
pub mod tar;
pub mod told;
pub mod tool;
pub mod verdict;
