//! How large and how complex a source may be, whatever it claims.
//!
//! ```text
//! max_window      what a decoder may remember          128 MiB   zstd --long=27, xz dictionaries
//! max_extents     entries of one sparse map            200,000   a real 50 GiB disk has 39,000
//! max_metadata    pax records and long names           1 MiB     per member, maps not counted
//! max_image_size  the disk that comes out              64 TiB
//! max_members     headers of one archive               1,000,000
//! max_expansion   decompressed bytes per source byte   1,000     past 1 GiB, the disk's zeros not counted
//! ```
//!
//! Nothing is allocated because a header says so: these are ceilings for what really arrives.
//!
//! **Expansion.** No ratio tells a bomb from a disk that is mostly zeros: zstd makes both 32,768 times
//! smaller. What tells them apart is what becomes of the bytes. Zeros of the disk turn into holes, which
//! take no room, so whole blocks of them are not counted and an empty disk of any size passes (how large,
//! `max_image_size` says). Everything else counts: data, which real disks hold at ratios far below 1,000,
//! and all that is skipped, zeros included, so that no member is a bomb only because nobody wants it. The
//! first GiB is free: what is small does no harm. gzip ends at 1,032 to one by itself, xz near 7,000.
//!
//! Callers: every reader below `source`.

use crate::error::{Error, ErrorKind};

/// Ceilings for what a source may ask of us. Exceeding one is [`ErrorKind::Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest window of a decoder, in bytes. zstd rounds it down to a power of two.
    pub max_window: u64,
    /// Most entries in a member's sparse map.
    pub max_extents: usize,
    /// Most bytes of pax records and long names before one member, sparse maps not counted.
    pub max_metadata: u64,
    /// Largest disk, in bytes.
    pub max_image_size: u64,
    /// Most members of one archive.
    pub max_members: u64,
    /// Most decompressed bytes for each byte of the source, past [`EXPANSION_FREE`]. Whole blocks of
    /// zeros of the disk are not counted. Where threads decode, the source's bytes count by whole frames.
    pub max_expansion: u64,
}

/// Bytes a source may decompress to whatever its length.
pub const EXPANSION_FREE: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_window: 128 << 20,
            max_extents: 200_000,
            max_metadata: 1 << 20,
            max_image_size: 64 << 40,
            max_members: 1_000_000,
            max_expansion: 1000,
        }
    }
}

impl Limits {
    /// The largest window zstd may use, as the power of two it wants.
    pub(crate) fn window_log(&self) -> u32 {
        self.max_window.max(1).ilog2().clamp(10, 31)
    }

    /// Whether `decompressed` bytes, as they count, are too many to come out of `source` bytes.
    pub(crate) fn is_bomb(&self, decompressed: u64, source: u64) -> bool {
        decompressed > self.max_expansion.saturating_mul(source).saturating_add(EXPANSION_FREE)
    }
}

/// What is wrong with a source, before anybody knows where. [`Content`] adds the place.
///
/// [`Content`]: crate::source::content::Content
#[derive(Debug)]
pub(crate) struct Defect {
    kind: ErrorKind,
    message: String,
    field: Option<&'static str>,
    hint: Option<String>,
}

impl Defect {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None, hint: None }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// More than `option` of [`Limits`] allows.
    pub(crate) fn limit(message: impl Into<String>, option: &str) -> Self {
        Self::new(ErrorKind::Limit, message).hint(format!("raise the limit {option} to allow it"))
    }

    pub(crate) fn field(mut self, field: &'static str) -> Self {
        self.field.get_or_insert(field);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error, once it is known how far the source was read and where in the archive that is. A
    /// choice that came to nothing has no place: the whole archive was read for it.
    pub(crate) fn at(self, source_offset: u64, archive_offset: Option<u64>) -> Error {
        let placed = !matches!(self.kind, ErrorKind::NotFound | ErrorKind::InvalidInput);
        let archive_offset = archive_offset.filter(|_| placed);
        let message = match archive_offset {
            Some(offset) => format!("{} (byte {offset:#x} once decompressed)", self.message),
            None => self.message,
        };
        let mut error = Error::new(self.kind, message);
        if placed {
            error = error.with_offset(source_offset);
        }
        if let Some(field) = self.field {
            error = error.with_field(field);
        }
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}
