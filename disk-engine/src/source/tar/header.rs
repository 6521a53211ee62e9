//! One 512-byte header of a tar archive.
//!
//! ```text
//!   0 name       100    148 checksum  8     257 magic    6    345 prefix 155   POSIX
//! 124 size        12    156 typeflag  1     263 version  2    386 4 × (offset 12, numbytes 12)
//!                       157 linkname 100                      482 isextended, 483 realsize 12   GNU
//! magic  "ustar\0" "00" POSIX   "ustar " " \0" GNU   anything else: before POSIX
//! ```
//!
//! Fields are taken through tar-rs; numbers are read by `tar::number`, which is stricter. Caller:
//! `tar`.

use tar::Header as RawHeader;

use crate::source::content::{BLOCK, Block};
use crate::source::limits::Defect;
use crate::source::tar::number;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, stored whole or described by pax records.
    File,
    /// A regular file with GNU tar's own sparse map in the header.
    GnuSparse,
    /// A link, device or folder: nothing of it is stored.
    Special(&'static str),
    /// Something stored that is not a file of its own, such as a folder's listing.
    Opaque(&'static str),
    /// pax records for the next member.
    Pax,
    /// pax records for all following members.
    PaxGlobal,
    /// The next member's name (GNU `L`).
    LongName,
    /// The next member's link target (GNU `K`).
    LongLink,
}

impl Kind {
    /// What it is, with its article.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::GnuSparse => "a sparse file",
            Self::Special(what) | Self::Opaque(what) => what,
            Self::Pax | Self::PaxGlobal => "a pax header",
            Self::LongName | Self::LongLink => "a long name",
        }
    }
}

/// A header whose checksum is right.
pub(crate) struct Header(RawHeader);

impl Header {
    /// Whether a stream that begins with `head` is a tar archive. An archive without members is a
    /// run of zeros, and so is an empty disk: it is taken for the disk.
    ///
    /// # Errors
    ///
    /// It says it is one, or has the numbers of one, and its first header is damaged.
    pub(crate) fn probe(head: &[u8]) -> Result<bool, Defect> {
        let says_so = head.get(257..262) == Some(b"ustar") || has_numbers(head);
        match <&Block>::try_from(head) {
            Ok(block) if checksum_matches(block) => Ok(true),
            Ok(_) if says_so => Err(Defect::corrupt(
                "the source looks like a tar archive, but its first header does not match its checksum",
            )),
            Err(_) if says_so => {
                Err(Defect::corrupt("the source ends inside the archive's first header"))
            }
            _ => Ok(false),
        }
    }

    /// The header in `block`; `None` for a block of zeros, which ends the archive.
    ///
    /// # Errors
    ///
    /// The checksum does not match.
    pub(crate) fn parse(block: &Block) -> Result<Option<Self>, Defect> {
        if block == &[0; BLOCK] {
            return Ok(None);
        }
        if !checksum_matches(block) {
            return Err(Defect::corrupt("a tar header does not match its checksum"));
        }
        let mut raw = RawHeader::new_old();
        *raw.as_mut_bytes() = *block;
        Ok(Some(Self(raw)))
    }

    /// What the header announces.
    ///
    /// # Errors
    ///
    /// A kind that changes what other members mean, and that is not handled.
    pub(crate) fn kind(&self) -> Result<Kind, Defect> {
        let typeflag = self.0.entry_type().as_byte();
        Ok(match typeflag {
            b'0' | 0 | b'7' if self.name().ends_with(b"/") => Kind::Special("a folder"),
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::Special("a hard link"),
            b'2' => Kind::Special("a symbolic link"),
            b'3' => Kind::Special("a character device"),
            b'4' => Kind::Special("a block device"),
            b'5' => Kind::Special("a folder"),
            b'6' => Kind::Special("a FIFO"),
            b'S' if self.0.as_gnu().is_some() => Kind::GnuSparse,
            b'S' => {
                return Err(Defect::unsupported(
                    "the archive has a sparse file in a form that is not GNU tar's, such as star's",
                )
                .hint("repack it with GNU tar or bsdtar"));
            }
            b'M' => {
                return Err(Defect::unsupported(
                    "the archive continues a file of another volume (typeflag M)",
                )
                .hint("repack it as a single volume"));
            }
            b'N' => {
                return Err(Defect::unsupported("the archive has a GNU name table (typeflag N)")
                    .hint("repack it with a current tar"));
            }
            b'D' => Kind::Opaque("a folder's listing"),
            b'V' => Kind::Special("a volume label"),
            b'x' | b'X' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            _ => Kind::Opaque("of an unknown type"),
        })
    }

    /// The name as the header has it; pax records and long names override it.
    pub(crate) fn name(&self) -> Vec<u8> {
        self.0.path_bytes().into_owned()
    }

    /// Stored bytes, as the header has it; a pax record overrides it for a file.
    ///
    /// # Errors
    ///
    /// The field is malformed.
    pub(crate) fn size(&self) -> Result<u64, Defect> {
        number_in("size", &self.0.as_old().size)
    }

    /// The first entries of a GNU sparse map, whether more follow, and the whole file's size.
    ///
    /// # Errors
    ///
    /// A field is malformed.
    pub(crate) fn gnu_sparse(&self) -> Result<Option<GnuSparse<'_>>, Defect> {
        let Some(gnu) = self.0.as_gnu() else { return Ok(None) };
        Ok(Some(GnuSparse {
            entries: self.0.as_bytes().get(386..482).unwrap_or_default(),
            extended: extended(gnu.isextended[0])?,
            real_size: number_in("realsize", &gnu.realsize)?,
        }))
    }
}

/// The sparse part of a GNU header.
pub(crate) struct GnuSparse<'a> {
    /// Entries of 24 bytes: offset and length, 12 bytes each.
    pub(crate) entries: &'a [u8],
    /// Whether an extension header follows.
    pub(crate) extended: bool,
    /// Size of the whole file.
    pub(crate) real_size: u64,
}

/// The flag that tells whether (another) extension header follows. The digit zero is refused: to GNU
/// tar it means yes, to other readers no.
pub(crate) fn extended(flag: u8) -> Result<bool, Defect> {
    match flag {
        0 => Ok(false),
        1 | b'1' => Ok(true),
        _ => Err(Defect::corrupt(format!("isextended is {flag:#x}, neither yes nor no"))
            .field("isextended")),
    }
}

/// A numeric field under its name in the specification.
pub(crate) fn number_in(name: &'static str, bytes: &[u8]) -> Result<u64, Defect> {
    number::field(bytes).map_err(|wrong| Defect::corrupt(format!("the field {wrong}")).field(name))
}

/// Whether octal digits stand where every header has its mode and its checksum: text in the
/// middle of binary that no disk has by chance, and no archive loses to one damaged byte elsewhere.
fn has_numbers(head: &[u8]) -> bool {
    [100..108, 148..156].into_iter().all(|place| {
        head.get(place).is_some_and(|field| {
            field.iter().any(u8::is_ascii_digit) && number::octal(field).is_ok()
        })
    })
}

/// The sum of all bytes, those of the checksum itself counted as spaces. Some old writers summed
/// signed bytes.
fn checksum_matches(block: &Block) -> bool {
    let (before, rest) = block.split_at(148);
    let (stored, after) = rest.split_at(8);
    if !stored.iter().any(u8::is_ascii_digit) {
        return false;
    }
    let Ok(stored) = number::octal(stored) else { return false };
    let bytes = || before.iter().chain(b"        ").chain(after);
    let unsigned: u64 = bytes().map(|byte| u64::from(*byte)).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stored == unsigned || u64::try_from(signed) == Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tar::build;

    #[test]
    fn a_header_is_known_by_its_checksum() {
        let block = build::header(b"disk.img", b'0', b"00000000000\0");
        assert!(Header::probe(&block).unwrap());
        let mut v7 = block;
        v7[257..265].fill(0);
        assert!(Header::probe(&v7).is_err());
        build::seal(&mut v7);
        assert!(Header::probe(&v7).unwrap());
        let mut damaged = block;
        damaged[0] ^= 1;
        assert!(Header::probe(&damaged).is_err());
        let mut magic = block;
        magic[258] ^= 1;
        assert!(Header::probe(&magic).is_err(), "a damaged magic is damage, too");
        assert!(Header::probe(&block[..300]).is_err());
        assert!(!Header::probe(&[0; 512]).unwrap());
        assert!(!Header::probe(&[0xeb; 512]).unwrap());
    }

    #[test]
    fn sums_of_signed_bytes_are_accepted() {
        let mut block = build::header(b"d\xc3\xa4.img", b'0', b"00000000000\0");
        let signed: i64 = block[..148]
            .iter()
            .chain(b"        ")
            .chain(&block[156..])
            .map(|byte| i64::from(byte.cast_signed()))
            .sum();
        block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert!(Header::parse(&block).unwrap().is_some());
    }

    #[test]
    fn kinds_that_would_change_other_members_are_refused() {
        for typeflag in [b'M', b'N', b'S'] {
            let block = build::header(b"a", typeflag, b"00000000000\0");
            let header = Header::parse(&block).unwrap().unwrap();
            assert!(header.kind().is_err(), "{}", char::from(typeflag));
        }
    }
}
