//! What a stream of bytes is, told by its first bytes and never by a name.
//!
//! ```text
//! offset  bytes                        kind
//! 0       28 b5 2f fd                  zstd frame
//! 0       5x 2a 4d 18                  zstd skippable frame, x any digit
//! 0       1f 8b                        gzip
//! 0       fd 37 7a 58 5a 00            xz
//! 0       42 5a 68 3x, 04 22 4d 18 …   known, and refused by name
//! 0       51 46 49 fb ("QFI\xfb") …    a disk image of another format, refused by name
//! 257     "ustar", or a valid sum      tar (`tar::header` decides)
//! ```
//!
//! Anything else is the bare disk. Callers: `source::decompress` for the outside,
//! `source::bare` and `source::tar` for the disk within.

use crate::disk::chain::QCOW2_MAGIC;
use crate::disk::foreign::foreign_format;
use crate::source::limits::Defect;

/// How a source is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    None,
    /// Zstandard frames (RFC 8878).
    Zstd,
    /// gzip members (RFC 1952).
    Gzip,
    /// xz streams.
    Xz,
}

impl Compression {
    /// Its usual name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
        }
    }
}

/// Enough bytes to tell every kind apart.
pub(crate) const PROBE_LENGTH: usize = 512;

/// How a stream that begins with `start` is compressed.
///
/// # Errors
///
/// A kind that is known and not handled, by its name.
pub(crate) fn compression(start: &[u8]) -> Result<Compression, Defect> {
    let kind = match start {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Compression::Zstd,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Compression::Xz,
        _ => return refuse_foreign(start).map(|()| Compression::None),
    };
    Ok(kind)
}

/// Refuses what is certainly not the bytes of a disk: a compressed file or an image format. Used
/// for the content of archives and streams, where nothing is decoded a second time.
pub(crate) fn refuse_encoded(start: &[u8]) -> Result<(), Defect> {
    match compression(start)? {
        Compression::None => Ok(()),
        kind => Err(foreign(
            &format!("{}-compressed data inside the source", kind.as_str()),
            "decompress the inner file first",
        )),
    }
}

fn refuse_foreign(start: &[u8]) -> Result<(), Defect> {
    const DECOMPRESS: &str = "zstd, gzip and xz are handled; recompress it";
    const UNPACK: &str = "tar is handled; repack it";
    const CONVERT: &str = "convert it to raw, as with qemu-img convert -O raw";
    const KINDS: [(&[u8], &str, &str); 13] = [
        (b"\x04\x22\x4d\x18", "lz4", DECOMPRESS),
        (b"\x02\x21\x4c\x18", "lz4 (legacy)", DECOMPRESS),
        (b"LZIP\x01", "lzip", DECOMPRESS),
        (b"\x89LZO\0\r\n\x1a\n", "lzop", DECOMPRESS),
        (b"\x1f\x9d\x90", "compress (.Z)", DECOMPRESS),
        (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff", "lzma (before xz)", DECOMPRESS),
        (b"PK\x03\x04", "zip", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "7z", UNPACK),
        (b"Rar!\x1a\x07", "rar", UNPACK),
        (b"070701", "cpio", UNPACK),
        (b"070707", "cpio", UNPACK),
        (b"!<arch>\n", "ar", UNPACK),
        (&QCOW2_MAGIC, "qcow2", CONVERT),
    ];
    if let Some(name) = foreign_format(start) {
        return Err(foreign(name, CONVERT));
    }
    match start {
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] if rest.starts_with(b"1AY&SY") => {
            return Err(foreign("bzip2", DECOMPRESS));
        }
        [0x22..=0x27, 0xb5, 0x2f, 0xfd, ..] => {
            return Err(foreign("zstd older than version 1.0", DECOMPRESS));
        }
        _ => {}
    }
    match KINDS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        Some((_, name, hint)) => Err(foreign(name, hint)),
        None => Ok(()),
    }
}

fn foreign(name: &str, hint: &str) -> Defect {
    Defect::unsupported(format!("the source is of a kind that is not handled: {name}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        for (start, kind) in [
            (&b"\x28\xb5\x2f\xfd"[..], Compression::Zstd),
            (b"\x50\x2a\x4d\x18", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18", Compression::Zstd),
            (b"\x1f\x8b\x08", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x60\x2a\x4d\x18", Compression::None),
            (b"BZhello", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(compression(start).unwrap(), kind, "{start:x?}");
        }
    }

    #[test]
    fn kinds_that_are_known_and_not_handled_are_refused_by_name() {
        for (start, name) in [
            (&b"BZh91AY&SY"[..], "bzip2"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"\x27\xb5\x2f\xfd", "zstd older"),
            (b"QFI\xfb\0\0\0\x03", "qcow2"),
            (b"PK\x03\x04", "zip"),
        ] {
            let error = compression(start).unwrap_err().at(0, None);
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            assert!(error.message().contains(name), "{error}");
        }
        assert!(refuse_encoded(b"\x28\xb5\x2f\xfd").is_err());
        assert!(refuse_encoded(b"plain").is_ok());
    }
}
