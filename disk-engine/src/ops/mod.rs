//! Operations: one file per verb, each from an options struct to a report.
//!
//! ```text
//! extract    archive or compressed image → sparse raw file
//! ```

pub mod extract;

pub use extract::{ExtractOptions, ExtractReport, extract};
