//! One compressed image archive in, any number of thin VM disks out.
#![deny(unsafe_code)]

pub mod attachment;
pub mod base;
pub mod cache;
#[cfg(feature = "cli")]
pub mod cli;
pub mod control;
pub mod digest;
pub mod disk;
pub mod error;
pub mod ops;
pub mod overlay;
pub mod sink;
pub mod source;
pub mod sys;
pub mod transfer;

pub use control::{CancelToken, Control, Event, Holder};
pub use digest::Sha256Digest;
pub use error::{Error, ErrorKind, Result};
