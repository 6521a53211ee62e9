//! An opened disk: the chain of images a guest reads through.
//!
//! ```text
//! policy    which of the names found inside an image may be opened at all
//! chain     an image and everything it stands on, top first
//! ```

pub mod chain;
pub mod policy;
