//! Feature bits that a repair changes.
//!
//! ```text
//! first   autoclear bits nobody knows   cleared: what they vouch for a repair would not keep
//! last    dirty, corrupt                cleared, if nothing is wrong any more
//! ```
//!
//! Callers: `repair`.

use crate::error::{Error, Result};
use crate::feature::IncompatibleFeatures;
use crate::header::{Header, Version};
use crate::image::check::repair::area::AUTOCLEAR_OFFSET;
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Fixes, Mender};
use crate::image::check::report::CheckReport;
use crate::io::WriteAt;

/// Where `incompatible_features` lies in the header.
const INCOMPATIBLE_OFFSET: u64 = 72;

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// Clears the autoclear bits that the specification does not name, before anything else is written;
    /// as in QEMU, also if nothing is.
    pub(super) fn forget_unknown(&mut self, fixes: &mut Fixes<'_>) -> Result<()> {
        let header = &mut self.subject.header;
        let unknown = header.autoclear.unknown();
        if header.version == Version::V2 || unknown == 0 {
            return Ok(());
        }
        fixes.tell(&Fix::UnknownFeatures { bits: unknown });
        header.autoclear.0 &= !unknown;
        let bytes = header.autoclear.0.to_be_bytes();
        let at = AUTOCLEAR_OFFSET as u64;
        self.subject.storage.write_all_at(&bytes, at).map_err(Error::io("write the header", at))?;
        self.barrier()
    }

    /// Clears the bits that say that something is wrong, if nothing is.
    pub(super) fn mark_clean(&self, after: &CheckReport, fixes: &mut Fixes<'_>) -> Result<()> {
        let header: &Header = &self.subject.header;
        let wrong = IncompatibleFeatures::DIRTY.with(IncompatibleFeatures::CORRUPT, true);
        let clean = header.incompatible.with(wrong, false);
        if !after.is_sound() || header.version == Version::V2 || clean == header.incompatible {
            return Ok(());
        }
        fixes.tell(&Fix::MarkedClean);
        let failed = Error::io("write the header", INCOMPATIBLE_OFFSET);
        let bytes = clean.0.to_be_bytes();
        self.subject.storage.write_all_at(&bytes, INCOMPATIBLE_OFFSET).map_err(failed)?;
        self.barrier()
    }
}
