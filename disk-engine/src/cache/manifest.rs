//! What stands beside each base: what it is, where it came from, and how to tell it is intact.
//!
//! A [record] with this body; integers are big-endian, offsets count from the
//! file's first byte:
//!
//! ```text
//!         0                 8
//! 0x010   │ key, 32 bytes                                     the base's name in the cache
//! 0x030   │ virtual size    │ written bytes   │               of the base; holes not written
//! 0x040   │ base's mtime    │                                 seconds since 1970, no fraction
//! 0x048   │ boot id, 16 bytes                 │               zeros: the base was synced
//! 0x058   │ SHA-256 of the source, 32 bytes                   zeros unless flag 1
//! 0x078   │ source length   │ extents         │               bytes; 20-byte entries at the end
//! 0x088   │ policy u8 │ flags u8 │ u16 zero │ label length u32 │
//! 0x090   │ name length u32 │ member length u32 │
//! 0x098   │ base's inode    │ base's ctime    │               seconds; zero unless flag 8
//! 0x0a8   │ ctime's nanoseconds u32 │ root length u32 │
//! 0x0b0   │ label │ name │ member │ root │                     UTF-8; the root as it is
//!         │ extents: offset u64, length u64, CRC-32 u32        ascending, disjoint, inside the disk
//! ```
//!
//! Policy: 1 digest, 2 name. Flags: 1 the digest is known, 2 the source length is known, 4 the
//! caller named the member, 8 the base's change time is known. Label and name are information for a
//! person, cut to 4096 bytes. The root is the cache's folder when the base was made: overlays name
//! the base below it.
//!
//! A base that was not synced may have lost data if the machine went down since; its manifest names
//! the boot it was made in, and in another one the base is not trusted. A base's modification time
//! is set to a whole second when it is made, and compared when it is found: it tells of a write
//! that changed no length. Inode and change time tell whether it is the file that was published,
//! untouched since; they are known to change for harmless reasons too (a copied or restored cache, a
//! `chmod`), so only `verify` looks at them, and takes them for a reason to read the base. A base has its
//! change time only once it has its name, so its manifest is published a second time then.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::cache::key::CacheKey;
use crate::cache::record::{self, Kind, Reader};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::ExtentSum;
use crate::sys::host::BootId;

pub(crate) const KIND: Kind = Kind {
    magic: *b"DISKBASE",
    version: 2,
    // Three million extents: 39,000 is a lot, and most of those are merged.
    limit: 64 << 20,
};

const DIGEST_KNOWN: u8 = 1;
const LENGTH_KNOWN: u8 = 2;
const MEMBER_NAMED: u8 = 4;
const CHANGE_KNOWN: u8 = 8;

/// Longest label and name kept, in bytes.
const TEXT_MAX: usize = 4096;

/// Bytes an extent takes.
const EXTENT: usize = 20;

/// When a file's inode last changed: `ctime`, which no ordinary call can set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeTime {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl ChangeTime {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            seconds: metadata.ctime(),
            nanoseconds: u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
        }
    }
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) key: CacheKey,
    pub(crate) virtual_size: u64,
    pub(crate) written_bytes: u64,
    /// The base's modification time in seconds.
    pub(crate) modified: i64,
    /// The boot in which the base is good; `None`: it was synced and is good in all.
    pub(crate) boot: Option<BootId>,
    pub(crate) source_sha256: Option<Sha256Digest>,
    /// Bytes of the source, compressed as it is.
    pub(crate) source_length: Option<u64>,
    pub(crate) source_label: String,
    /// The name the caller vouched for, where that was the policy.
    pub(crate) name: Option<String>,
    pub(crate) member: Option<String>,
    /// The inode number of the published base.
    pub(crate) inode: u64,
    /// The change time of the published base; `None`: its publisher was killed before it knew.
    pub(crate) changed: Option<ChangeTime>,
    /// The cache's folder when the base was made.
    pub(crate) root: PathBuf,
    pub(crate) extents: Vec<ExtentSum>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let label = cut(&self.source_label);
        let name = self.name.as_deref().map(cut);
        // A member's name is whole: it is part of the key, and a tar header bounds it.
        let member = self.member.as_deref();
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let mut body = Vec::new();
        body.extend(self.key.as_bytes());
        body.extend(self.virtual_size.to_be_bytes());
        body.extend(self.written_bytes.to_be_bytes());
        body.extend(self.modified.to_be_bytes());
        body.extend(self.boot.map_or([0; 16], |boot| boot.0));
        body.extend(self.source_sha256.map_or([0; 32], |digest| digest.0));
        body.extend(self.source_length.unwrap_or(0).to_be_bytes());
        body.extend((self.extents.len() as u64).to_be_bytes());
        body.push(if name.is_some() { 2 } else { 1 });
        body.push(
            flag(self.source_sha256.is_some(), DIGEST_KNOWN)
                | flag(self.source_length.is_some(), LENGTH_KNOWN)
                | flag(member.is_some(), MEMBER_NAMED)
                | flag(self.changed.is_some(), CHANGE_KNOWN),
        );
        body.extend([0; 2]);
        for text in [Some(label), name, member] {
            // A longer member makes a record that does not parse, so no base is ever served by it.
            let length = u32::try_from(text.unwrap_or("").len()).unwrap_or(u32::MAX);
            body.extend(length.to_be_bytes());
        }
        let changed = self.changed.unwrap_or(ChangeTime { seconds: 0, nanoseconds: 0 });
        let root = self.root.as_os_str().as_bytes();
        body.extend(self.inode.to_be_bytes());
        body.extend(changed.seconds.to_be_bytes());
        body.extend(changed.nanoseconds.to_be_bytes());
        body.extend(u32::try_from(root.len()).unwrap_or(u32::MAX).to_be_bytes());
        for text in [Some(label), name, member] {
            body.extend(text.unwrap_or("").as_bytes());
        }
        body.extend(root);
        for extent in &self.extents {
            body.extend(extent.offset.to_be_bytes());
            body.extend(extent.length.to_be_bytes());
            body.extend(extent.crc32.to_be_bytes());
        }
        record::seal(KIND, &body)
    }

    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`]: it is not a manifest of this version, damaged or not.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = record::unseal(KIND, bytes)?;
        let key = CacheKey::from_bytes(reader.array("key")?);
        let virtual_size = reader.u64("virtual size")?;
        let written_bytes = reader.u64("written bytes")?;
        let modified = reader.i64("modification time")?;
        let boot: [u8; 16] = reader.array("boot id")?;
        let digest = Sha256Digest(reader.array("source digest")?);
        let length = reader.u64("source length")?;
        let extent_count = reader.u64("extents")?;
        let policy = reader.u8("policy")?;
        if !matches!(policy, 1 | 2) {
            return Err(reader.wrong("policy", "the policy is neither 1 nor 2"));
        }
        let flags = reader.u8("flags")?;
        if flags & !(DIGEST_KNOWN | LENGTH_KNOWN | MEMBER_NAMED | CHANGE_KNOWN) != 0 {
            return Err(reader.wrong("flags", "an unknown flag is set"));
        }
        if reader.array("zero")? != [0; 2] {
            return Err(reader.wrong("zero", "what is reserved is not zero"));
        }
        let [label_length, name_length, member_length] =
            [reader.u32("label length")?, reader.u32("name length")?, reader.u32("member length")?];
        let inode = reader.u64("inode")?;
        let changed = ChangeTime {
            seconds: reader.i64("change time")?,
            nanoseconds: reader.u32("change time's nanoseconds")?,
        };
        let root_length = reader.u32("root length")?;
        let source_label = reader.text("label", label_length)?;
        let name = reader.text("name", name_length)?;
        let member = reader.text("member", member_length)?;
        let root_length =
            usize::try_from(root_length).map_err(|_| reader.wrong("root", "too long"))?;
        let root = OsString::from_vec(reader.take("root", root_length)?.to_vec());
        let extents = parse_extents(&mut reader, extent_count, virtual_size)?;
        reader.finish()?;
        Ok(Self {
            key,
            virtual_size,
            written_bytes,
            modified,
            boot: (boot != [0; 16]).then_some(BootId(boot)),
            source_sha256: (flags & DIGEST_KNOWN != 0).then_some(digest),
            source_length: (flags & LENGTH_KNOWN != 0).then_some(length),
            source_label,
            name: (policy == 2).then_some(name),
            member: (flags & MEMBER_NAMED != 0).then_some(member),
            inode,
            changed: (flags & CHANGE_KNOWN != 0).then_some(changed),
            root: root.into(),
            extents,
        })
    }
}

fn parse_extents(reader: &mut Reader<'_>, count: u64, size: u64) -> Result<Vec<ExtentSum>> {
    let count = usize::try_from(count)
        .ok()
        .filter(|count| count.checked_mul(EXTENT) == Some(reader.remaining()))
        .ok_or_else(|| reader.wrong("extents", "the count is not that of the entries there"))?;
    let mut extents = Vec::new();
    // As many as the file really holds: see the check above.
    extents
        .try_reserve_exact(count)
        .map_err(|_| Error::new(ErrorKind::Limit, "no memory for the manifest's extents"))?;
    let mut end = 0;
    for _ in 0..count {
        let offset = reader.u64("extent offset")?;
        let length = reader.u64("extent length")?;
        let crc32 = reader.u32("extent CRC-32")?;
        end = offset
            .checked_add(length)
            .filter(|&past| offset >= end && past <= size)
            .ok_or_else(|| reader.wrong("extent", "the extents overlap or leave the disk"))?;
        extents.push(ExtentSum { offset, length, crc32 });
    }
    Ok(extents)
}

/// The text's first [`TEXT_MAX`] bytes, cut between characters.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_MAX)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key::Identity;

    fn example() -> Manifest {
        let digest = Sha256Digest([7; 32]);
        Manifest {
            key: CacheKey::new(&Identity::Digest(digest), Some("disk.img")),
            virtual_size: 1 << 20,
            written_bytes: 8192,
            modified: 1_700_000_000,
            boot: Some(BootId([1; 16])),
            source_sha256: Some(digest),
            source_length: Some(4711),
            source_label: "/images/disk-img.tar.zst".to_owned(),
            name: None,
            member: Some("disk.img".to_owned()),
            inode: 0x0102_0304,
            changed: Some(ChangeTime { seconds: 1_700_000_001, nanoseconds: 999_999_999 }),
            root: OsString::from_vec(b"/var/tmp/b\xffses".to_vec()).into(),
            extents: vec![
                ExtentSum { offset: 0, length: 4096, crc32: 1 },
                ExtentSum { offset: 4096, length: 100, crc32: 2 },
                ExtentSum { offset: (1 << 20) - 1, length: 1, crc32: 3 },
            ],
        }
    }

    #[test]
    fn manifests_round_trip() {
        let full = example();
        let bare = Manifest {
            boot: None,
            source_sha256: None,
            source_length: None,
            source_label: String::new(),
            name: Some("guest".to_owned()),
            member: None,
            inode: 0,
            changed: None,
            root: PathBuf::new(),
            extents: Vec::new(),
            virtual_size: 0,
            ..example()
        };
        for manifest in [full, bare] {
            assert_eq!(Manifest::parse(&manifest.encode()).unwrap(), manifest);
        }
    }

    #[test]
    fn the_fields_lie_where_the_drawing_says() {
        let manifest = example();
        let bytes = manifest.encode();
        assert_eq!(&bytes[..0x0c], b"DISKBASE\0\0\0\x02");
        assert_eq!(&bytes[0x10..0x30], manifest.key.as_bytes());
        assert_eq!(&bytes[0x30..0x38], (1_u64 << 20).to_be_bytes());
        assert_eq!(&bytes[0x40..0x48], 1_700_000_000_i64.to_be_bytes());
        assert_eq!(&bytes[0x78..0x80], 4711_u64.to_be_bytes());
        assert_eq!(&bytes[0x80..0x88], 3_u64.to_be_bytes());
        assert_eq!(&bytes[0x88..0x8c], [1, 15, 0, 0]);
        assert_eq!(&bytes[0x98..0xa0], 0x0102_0304_u64.to_be_bytes());
        assert_eq!(&bytes[0xa0..0xa8], 1_700_000_001_i64.to_be_bytes());
        assert_eq!(&bytes[0xa8..0xac], 999_999_999_u32.to_be_bytes());
        assert_eq!(&bytes[0xac..0xb0], 14_u32.to_be_bytes());
        assert_eq!(&bytes[0xb0..0xc8], b"/images/disk-img.tar.zst");
        assert_eq!(&bytes[0xd0..0xde], b"/var/tmp/b\xffses");
        assert_eq!(bytes.len(), 0xde + 3 * EXTENT);
    }

    #[test]
    fn any_damaged_byte_and_any_cut_is_noticed() {
        let bytes = example().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let error = Manifest::parse(&damaged).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit} of byte {at}");
            }
            assert!(Manifest::parse(&bytes[..at]).is_err(), "cut to {at}");
        }
    }

    #[test]
    fn an_intact_frame_does_not_make_its_claims_true() {
        let body = |edit: fn(&mut Vec<u8>)| {
            let mut body = example().encode().split_off(0x10);
            edit(&mut body);
            Manifest::parse(&record::seal(KIND, &body)).unwrap_err()
        };
        for (edit, field) in [
            (
                (|body| body[0x70..0x78].copy_from_slice(&u64::MAX.to_be_bytes()))
                    as fn(&mut Vec<u8>),
                "extents",
            ),
            (|body| body[0x78] = 3, "policy"),
            (|body| body[0x79] |= 0x80, "flags"),
            (|body| body[0x7a] = 1, "zero"),
            (|body| body[0x7c] = 0xff, "label"),
            (|body| body[0xa0] = 0xff, "label"),
            (|body| body[0x9c] = 0xff, "root"),
            (|body| body.push(0), "extents"),
            (|body| body[0x20..0x28].fill(0), "extent"),
            (|body| body[0xcf] = 0xff, "extent"),
            (
                |body| {
                    let second = body.len() - 2 * EXTENT;
                    body[second..second + 8].fill(0);
                },
                "extent",
            ),
        ] {
            let error = body(edit);
            assert_eq!((error.kind(), error.field()), (ErrorKind::Corrupt, Some(field)), "{error}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let manifest = Manifest { source_label: "é".repeat(3000), ..example() };
        let label = Manifest::parse(&manifest.encode()).unwrap().source_label;
        assert_eq!(label, "é".repeat(TEXT_MAX / 2));
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = Manifest::parse(&record::seal(KIND, &body));
        }
    }
}
