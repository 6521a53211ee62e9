//! A source's bytes, decompressed. The kind is told by the first bytes; each decoder owns the input.
//!
//! ```text
//! Input ──▶ plain · zstd · gzip · xz ──▶ the archive or the bare disk, in order, each byte once
//! ```
//!
//! All decoders keep one contract: [`Decoder::read`] fills what it is given, and gives less only
//! when the content has ended *and* every frame, checksum and byte of the source was verified.
//! What one thread decodes lands where the caller wants it; nothing is copied on the way. Caller:
//! `source::content`.

#[cfg(feature = "gzip")]
mod gzip;
#[cfg(feature = "xz")]
mod xz;
pub(crate) mod zstd;

use crate::error::Result;
use crate::source::input::Input;
use crate::source::limits::{Defect, Limits};
use crate::source::probe::{self, Compression};

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
            Compression::Gzip => Ok(Self::Gzip(gzip::Gzip::new(input))),
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

    /// Fills `out`. Fewer bytes mean that all there is was given and verified.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        match self {
            Self::Plain(input) => input.copy(out),
            Self::Zstd(zstd) => zstd.read(out),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.read(out),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.read(out),
        }
    }

    /// How the source is compressed.
    pub(crate) fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Zstd(_) => Compression::Zstd,
            #[cfg(feature = "gzip")]
            Self::Gzip(_) => Compression::Gzip,
            #[cfg(feature = "xz")]
            Self::Xz(_) => Compression::Xz,
        }
    }

    /// Bytes of the source that it took to decode what was read so far.
    pub(crate) fn position(&self) -> u64 {
        match self {
            Self::Zstd(zstd) => zstd.position(),
            other => other.input().position(),
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
        self.input().length()
    }

    fn input(&self) -> &Input {
        match self {
            Self::Plain(input) => input,
            Self::Zstd(zstd) => zstd.input(),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.input(),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.input(),
        }
    }

    /// The compressed bytes, when decoding is over.
    pub(crate) fn into_input(self) -> Input {
        match self {
            Self::Plain(input) => input,
            Self::Zstd(zstd) => zstd.into_input(),
            #[cfg(feature = "gzip")]
            Self::Gzip(gzip) => gzip.into_input(),
            #[cfg(feature = "xz")]
            Self::Xz(xz) => xz.into_input(),
        }
    }
}
