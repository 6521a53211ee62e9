//! Extract: one source into one sparse raw file of the caller's choosing.
//!
//! ```text
//! sweep left-overs ─▶ unnamed or temporary file ─▶ extract_into ─▶ publish under its name
//! ```
//!
//! The name appears once the source was read and verified to its last byte, or never. Callers: the
//! command line, and anybody who wants a disk without a cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::digest::Sha256Digest;
use crate::disk::pad;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::convert::READ_FROM;
use crate::source::Source;
use crate::sys::pending::{self, Durability, Existing, FileMode, PendingFile};
use crate::transfer::{TransferOptions, TransferReport, extract_into};

/// How to extract.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// What to do when the destination exists.
    pub existing: Existing,
    /// How hard to try to have the disk on the medium.
    pub durability: Durability,
    /// Permission bits of the file.
    pub mode: FileMode,
    /// What the source's bytes, as they are given, must hash to.
    pub expected_sha256: Option<Sha256Digest>,
    /// Pad the disk to whole units of 4096 bytes, as QEMU wants it for direct I/O; a disk with a
    /// GPT is refused, see [`pad`].
    pub pad: bool,
    /// Stops and watches the work.
    pub control: Control,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durability: Durability::None,
            mode: FileMode::Umask,
            expected_sha256: None,
            pad: false,
            control: Control::new(),
        }
    }
}

/// What was extracted, and how long it took.
#[derive(Clone, Debug)]
pub struct ExtractReport {
    /// The file that was made.
    pub destination: PathBuf,
    /// What is in it.
    pub transfer: TransferReport,
    /// Bytes of zeros added behind it.
    pub padding: u64,
    /// Wall time from the first byte to the published name.
    pub elapsed: Duration,
}

/// Extracts `source` to `destination`.
///
/// # Errors
///
/// [`ErrorKind::AlreadyExists`] unless told to replace; [`ErrorKind::InvalidInput`] if that would
/// replace the source itself, under whichever name; otherwise as [`extract_into`] and the
/// operating system say. Nothing is left behind, and what stood there still stands.
pub fn extract(
    source: Source,
    destination: &Path,
    options: &ExtractOptions,
) -> Result<ExtractReport> {
    let start = Instant::now();
    if options.existing == Existing::Refuse && fs::symlink_metadata(destination).is_ok() {
        // Publishing would find out too, after all the work.
        return Err(Error::new(ErrorKind::AlreadyExists, "the file exists and is left as it is")
            .with_path(destination));
    }
    if options.existing != Existing::Refuse && source.is_file(destination) {
        return Err(Error::new(ErrorKind::InvalidInput, READ_FROM)
            .with_path(destination)
            .with_hint("choose another destination"));
    }
    // A replacement that was killed may have left something, and what cannot be removed is in
    // nobody's way.
    let _ = pending::sweep(destination);
    let pending = PendingFile::create(destination, options.existing, options.mode)?;
    let transfer_options = TransferOptions {
        expected_sha256: options.expected_sha256,
        hash_source: false,
        control: options.control.clone(),
    };
    let transfer = extract_into(source, pending.file(), destination, &transfer_options)?;
    let padding = if options.pad {
        let padded = pad::pad_file(pending.file(), destination)?;
        padded.after.saturating_sub(padded.before)
    } else {
        0
    };
    options.control.check()?;
    pending.publish(options.durability)?;
    Ok(ExtractReport {
        destination: destination.to_path_buf(),
        transfer,
        padding,
        elapsed: start.elapsed(),
    })
}
