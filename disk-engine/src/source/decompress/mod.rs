//! A source's bytes, decompressed. The kind is told by the first bytes; each decoder owns the input.
//!
//! ```text
//! Input ──▶ plain · zstd · gzip · xz ──▶ the archive or the bare disk, in order, each byte once
//! ```
//!
//! All decoders keep one contract: [`Decoder::read`] fills what it is given, and gives less only
//! when the content has ended *and* every frame, checksum and byte of the source was verified. The one
//! that can jump, for reading headers only, verifies what it decodes.
//! What one thread decodes lands where the caller wants it; nothing is copied on the way. Caller:
//! `source::content`.

#[cfg(feature = "gzip")]
mod gzip;
#[cfg(feature = "xz")]
mod xz;
pub(crate) mod zstd;

use std::sync::Arc;

use crate::digest::Sha256Digest;
use crate::error::Result;
use crate::source::input::Input;
use crate::source::limits::{Defect, Limits};
use crate::source::probe::{self, Compression};
use crate::source::seekable::frames::FrameStore;

/// How the work is shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoding {
    /// Threads that may decode; 1 is the caller's own.
    pub(crate) threads: usize,
    /// Bytes worth handing to another thread.
    pub(crate) job: u64,
}

/// The decoder a source needs.
#[cfg_attr(
    not(any(feature = "gzip", feature = "xz")),
    expect(clippy::large_enum_variant, reason = "there is one, and it is not moved around")
)]
pub(crate) enum Decoder {
    Plain(Input),
    Zstd(zstd::Zstd),
    #[cfg(feature = "gzip")]
    Gzip(gzip::Gzip),
    #[cfg(feature = "xz")]
    Xz(xz::Xz),
    /// zstd with a seek table, read from anywhere.
    Framed(Framed),
}

/// A place in the content of a source with a seek table.
pub(crate) struct Framed {
    store: Arc<FrameStore>,
    at: u64,
}

impl Decoder {
    /// Looks at the first bytes of `input` and picks the decoder.
    pub(crate) fn new(mut input: Input, limits: &Limits, decoding: Decoding) -> Result<Self> {
        let start = input.peek(probe::PROBE_LENGTH)?;
        if start.is_empty() {
            return Err(Defect::corrupt("the source is empty").at(0, None));
        }
        match probe::compression(start).map_err(|defect| defect.at(0, None))? {
            Compression::None => Ok(Self::Plain(input)),
            Compression::Zstd => zstd::Zstd::new(input, limits, decoding).map(Self::Zstd),
            #[cfg(feature = "gzip")]
            Compression::Gzip => gzip::Gzip::new(input).map(Self::Gzip),
            #[cfg(feature = "xz")]
            Compression::Xz => xz::Xz::new(input, limits).map(Self::Xz),
            #[cfg(not(all(feature = "gzip", feature = "xz")))]
            kind => Err(Defect::unsupported(format!(
                "the source is compressed with {0}, and this build has no {0}",
                kind.as_str()
            ))
            .hint(format!("build with the feature {}", kind.as_str()))
            .at(0, None)),
        }
    }

    /// A decoder that can jump, at the start of what `store` holds.
    pub(crate) fn framed(store: Arc<FrameStore>) -> Self {
        Self::Framed(Framed { store, at: 0 })
    }

    /// Fills `out`. Fewer bytes mean that all there is was given and verified.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        match self {
            Self::Plain(input) => input.copy(out),
            Self::Zstd(zstd) => zstd.read(out),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.read(out),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.read(out),
            Self::Framed(Framed { store, at }) => {
                let count = store.read(out, *at)?;
                *at += count as u64;
                Ok(count)
            }
        }
    }

    /// Passes over `count` bytes without decoding them, where that can be done: `None` where it cannot,
    /// and how many there were.
    pub(crate) fn jump(&mut self, count: u64) -> Option<u64> {
        let Self::Framed(Framed { store, at }) = self else { return None };
        let count = count.min(store.size().saturating_sub(*at));
        *at += count;
        Some(count)
    }

    /// How the source is compressed.
    pub(crate) fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Zstd(_) | Self::Framed(_) => Compression::Zstd,
            #[cfg(feature = "gzip")]
            Self::Gzip(_) => Compression::Gzip,
            #[cfg(feature = "xz")]
            Self::Xz(_) => Compression::Xz,
        }
    }

    /// Bytes of the source that it took to decode what was read so far.
    pub(crate) fn position(&self) -> u64 {
        match self {
            Self::Plain(input) => input.position(),
            Self::Zstd(zstd) => zstd.position(),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.input().position(),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.input().position(),
            Self::Framed(Framed { store, at }) => store.position(*at),
        }
    }

    /// zstd frames that were met, skippable ones not counted, and threads that decoded.
    pub(crate) fn shares(&self) -> (u64, usize) {
        match self {
            Self::Zstd(zstd) => (zstd.frames(), zstd.threads()),
            _ => (0, 1),
        }
    }

    /// Length of the source in bytes, where it is known beforehand.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Plain(input) => input.length(),
            Self::Zstd(zstd) => zstd.input().length(),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.input().length(),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.input().length(),
            Self::Framed(Framed { store, .. }) => Some(store.length()),
        }
    }

    /// How many bytes the source has, and their digest if it was asked for. Call at the end.
    pub(crate) fn finish(self) -> Result<(u64, Option<Sha256Digest>)> {
        match self {
            Self::Plain(input) => input.finish(),
            Self::Zstd(zstd) => zstd.into_input().finish(),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.into_input().finish(),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.into_input().finish(),
            Self::Framed(Framed { store, .. }) => Ok((store.length(), None)),
        }
    }
}
