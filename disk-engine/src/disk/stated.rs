//! What a caller says of a disk's top image, where it is to be read otherwise than it says itself.
//!
//! ```text
//! raw     bytes  [ …… [ part ] …… ]      backing  the image's own · none · another file · its format
//! ```
//!
//! Names given here are the caller's own words, so that no policy is asked. Callers: `opening`, `chain`.

use std::path::PathBuf;

use crate::base::BaseFormat;

/// What is said of the top image; nothing unless set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatedTop {
    /// What it stands on.
    pub backing: StatedBacking,
    /// Its external data file, instead of the one that it names.
    pub data_file: Option<PathBuf>,
    /// The part of a raw image that is the disk.
    pub part: Option<RawPart>,
}

/// What an image stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatedBacking {
    /// What it says itself.
    #[default]
    Own,
    /// Nothing: where it has no data it reads as zeros.
    Nothing,
    /// What it names itself, read in that format.
    Format(BaseFormat),
    /// Another file.
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its format.
        format: BaseFormat,
    },
}

/// A part of a raw image, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawPart {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; to the end unless given.
    pub size: Option<u64>,
}
