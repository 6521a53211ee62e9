//! A new image's external data file: the guest's clusters in a file of their own.
//!
//! ```text
//! image   header ─ extension 0x44415441: name ─ tables ─▶ host offset = guest offset
//! data    0 ──────────────── the guest's bytes ──────────────── virtual size
//!         raw: reads like the disk by itself, so that all of it is allocated at once
//! ```
//!
//! Spec: "Additional fields (version 3 and higher)", incompatible bit 2, autoclear bit 1. Callers:
//! `create`.

use crate::create::protocol;
use crate::error::OptionsError;

/// The external data file of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Its name: not empty, any bytes but NUL, and nothing QEMU would take for a protocol. A relative
    /// name counts from the folder of the image.
    pub name: Vec<u8>,
    /// Whether the file by itself reads like the disk, as a raw image.
    pub raw: bool,
}

impl DataFile {
    /// A data file by name. Checked when an image is planned.
    pub fn new(name: impl Into<Vec<u8>>, raw: bool) -> Self {
        Self { name: name.into(), raw }
    }

    pub(super) fn check(&self) -> Result<(), OptionsError> {
        if self.name.is_empty() {
            return Err(OptionsError::DataFileNameEmpty);
        }
        if self.name.contains(&0) {
            return Err(OptionsError::Nul { what: "data file name" });
        }
        match protocol(&self.name) {
            Some(protocol) => {
                Err(OptionsError::DataFileNameIsProtocol { protocol: protocol.to_vec() })
            }
            None => Ok(()),
        }
    }
}
