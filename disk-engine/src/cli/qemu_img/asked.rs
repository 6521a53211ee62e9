//! The words of `qemu-img convert`, and what does not go together.
//!
//! Callers: `convert`.

use std::ffi::OsString;
use std::num::NonZeroU64;

use super::getopt::{Found, Known, flag, letter, long, long_value, value};
use super::image::Naming;
use super::number::{self, SIZE_MAX};
use super::opts;
use super::snapshot;
use super::{Outcome, Stop};
use crate::disk::sectors::SECTOR;

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    flag(b'q', "quiet"),
    long_value("object"),
    long("source-image-opts"),
    long("image-opts"),
    value(b'f', "source-format"),
    value(b'T', "source-cache"),
    value(b'l', "snapshot"),
    value(b'S', "sparse-size"),
    value(b'O', "output-format"),
    long("target-image-opts"),
    value(b'o', "options"),
    value(b't', "output-cache"),
    value(b'B', "backing"),
    value(b'F', "backing-format"),
    long("target-is-zero"),
    long("salvage"),
    long("bitmaps"),
    long("skip-broken-bitmaps"),
    flag(b'U', "force-share"),
    value(b'r', "rate"),
    value(b'm', "parallel"),
    flag(b'W', "oob-writes"),
    flag(b'C', "copy-range-offloading"),
    // These have no names in this release.
    letter(b'c'),
    letter(b'n'),
    letter(b'p'),
];

/// Most bytes in a row that qemu-img looks at for zeros.
const SPARSE_MAX: u64 = 16 << 20;
/// Most requests at once that qemu-img can be asked for.
const PARALLEL_MAX: u64 = 16;

/// What the words ask for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) naming: Naming,
    pub(super) snapshot: Option<snapshot::Asked>,
    /// The id or name of it, once the source was looked at.
    pub(super) found: Option<String>,
    pub(super) source_cache: Option<String>,
    pub(super) format: Option<String>,
    pub(super) target_image_opts: bool,
    pub(super) list: Option<String>,
    pub(super) compress: bool,
    pub(super) target_cache: Option<String>,
    pub(super) backing: Option<OsString>,
    pub(super) backing_format: Option<String>,
    pub(super) into_existing: bool,
    pub(super) target_is_zero: bool,
    pub(super) sparse: Option<u64>,
    pub(super) bitmaps: bool,
    pub(super) skip_broken: bool,
    pub(super) progress: bool,
    pub(super) quiet: bool,
    pub(super) rate: Option<NonZeroU64>,
    pub(super) offload: bool,
    pub(super) salvage: bool,
}

impl Asked {
    pub(super) fn set(&mut self, found: Found) -> Outcome<()> {
        let text = found.text();
        match found.name {
            "quiet" => self.quiet = true,
            "source-format" => self.naming.format = Some(text),
            "source-image-opts" | "image-opts" => self.naming.image_opts = true,
            "snapshot" => {
                self.snapshot = Some(snapshot::Asked::parse(&text)?);
            }
            "source-cache" => self.source_cache = Some(text),
            "output-format" => self.format = Some(text),
            "target-image-opts" => self.target_image_opts = true,
            "options" => opts::add(&mut self.list, &text)?,
            "c" => self.compress = true,
            "output-cache" => self.target_cache = Some(text),
            "backing" => self.backing = Some(found.argument),
            "backing-format" => self.backing_format = Some(text),
            "n" => self.into_existing = true,
            "target-is-zero" => self.target_is_zero = true,
            "sparse-size" => self.sparse = Some(sparse(&text)?),
            "bitmaps" => self.bitmaps = true,
            "skip-broken-bitmaps" => self.skip_broken = true,
            "force-share" => self.naming.force_share = true,
            "p" => self.progress = true,
            "rate" => {
                self.rate = NonZeroU64::new(number::bounded(&text, "rate limit", 0, SIZE_MAX)?);
            }
            "parallel" => {
                number::bounded(&text, "number of coroutines", 1, PARALLEL_MAX)?;
            }
            "copy-range-offloading" => self.offload = true,
            "salvage" => self.salvage = true,
            // Writes in whatever order; keys that nothing here asks for.
            _ => {}
        }
        Ok(())
    }

    /// What does not go together.
    pub(super) fn object(&self) -> Outcome<()> {
        let created = !self.into_existing;
        for (wrong, text) in [
            (
                self.into_existing && self.list.is_some(),
                "-o has no effect when skipping image creation",
            ),
            (self.offload && self.compress, "Cannot enable copy offloading when -c is used"),
            (
                self.offload && self.sparse.is_some(),
                "Cannot enable copy offloading when -S is used",
            ),
            (self.offload && self.salvage, "Cannot use copy offloading in salvaging mode"),
            (self.target_image_opts && created, "--target-image-opts requires use of -n flag"),
            (self.target_is_zero && created, "--target-is-zero requires use of -n flag"),
        ] {
            if wrong {
                return Err(Stop::said(text));
            }
        }
        Ok(())
    }
}

/// How many zeros in a row are left out.
fn sparse(word: &str) -> Outcome<u64> {
    let size = number::bounded(word, "buffer size for sparse output", 0, SIZE_MAX)?;
    if !size.is_multiple_of(SECTOR) || size > SPARSE_MAX {
        return Err(Stop::said(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of {SECTOR} up \
             to {SPARSE_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(size)
}
