//! (ops)
pub mod boot;
pub mod boot_image;
