//! Helpers shared by every suite of the workspace.

pub mod disks;
pub mod qemu;
pub mod tool;
