//! The few fields of a qcow2 header that say what a disk stands on (spec: "Header", "Header
//! extensions").
//!
//! ```text
//! 0   u32 magic "QFI\xfb"        20  u32 cluster_bits        72  u64 incompatible_features (v3)
//! 4   u32 version                32  u32 crypt_method        100 u32 header_length (v3)
//! 8   u64 backing_file_offset                                72 or header_length: extensions
//! 16  u32 backing_file_size                                  (u32 type, u32 length, data, pad to 8)*
//! ```
//!
//! Everything read lies in the first cluster; nothing outside it is looked at.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::is_protocol;
use crate::base::BaseFormat;
use crate::error::{Error, ErrorKind, Result};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const HEADER_LENGTH_V2: u64 = 72;
const BACKING_NAME_MAX: u32 = 1023;
const INCOMPATIBLE_EXTERNAL_DATA_FILE: u64 = 1 << 2;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Whether a file begins as every qcow2 image does.
pub(super) fn has_magic(file: &File) -> Result<bool> {
    Ok(prefix(file, MAGIC.len() as u64)? == MAGIC)
}

/// The name of the backing file as it stands in the header, and its stated format.
pub(super) fn overlay_backing(file: &File) -> Result<Option<(PathBuf, BaseFormat)>> {
    let fixed = prefix(file, HEADER_LENGTH_V2)?;
    if !fixed.starts_with(&MAGIC) {
        return Err(Error::new(ErrorKind::Corrupt, "not a qcow2 image").with_field("magic"));
    }
    let version = u32_at(&fixed, 4)?;
    if !matches!(version, 2 | 3) {
        return Err(Error::new(ErrorKind::Unsupported, format!("qcow2 version {version}"))
            .with_field("version"));
    }
    let cluster_bits = u32_at(&fixed, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Error::new(ErrorKind::Corrupt, format!("clusters of 2^{cluster_bits} bytes"))
            .with_field("cluster_bits"));
    }
    if u32_at(&fixed, 32)? != 0 {
        return Err(
            Error::new(ErrorKind::Unsupported, "the image is encrypted").with_field("crypt_method")
        );
    }
    let cluster = prefix(file, 1 << cluster_bits)?;
    let mut extensions = HEADER_LENGTH_V2;
    if version == 3 {
        extensions = u64::from(u32_at(&cluster, 100)?);
        if u64_at(&cluster, 72)? & INCOMPATIBLE_EXTERNAL_DATA_FILE != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "the data lies in another file")
                .with_field("incompatible_features"));
        }
    }
    let offset = u64_at(&cluster, 8)?;
    let length = u32_at(&cluster, 16)?;
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > BACKING_NAME_MAX {
        return Err(Error::new(ErrorKind::Corrupt, format!("a backing name of {length} bytes"))
            .with_field("backing_file_size"));
    }
    let name = OsString::from_vec(bytes_at(&cluster, offset, u64::from(length))?.to_vec());
    if is_protocol(&name) {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("the backing file {name:?} is named by a protocol, not by a path"),
        ));
    }
    // Extensions end where the name begins, whether or not an end marker says so.
    match backing_format(&cluster, extensions, offset)? {
        Some(b"raw") => Ok(Some((name.into(), BaseFormat::Raw))),
        Some(b"qcow2") => Ok(Some((name.into(), BaseFormat::Qcow2))),
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the backing format \"{}\"", other.escape_ascii()),
        )),
        None => Err(Error::new(
            ErrorKind::Refused,
            "the backing file's format is not stated, and guessing it is not safe",
        )
        .with_hint("state it with: qemu-img rebase -u -b BASE -F raw FILE")),
    }
}

/// The backing format extension's data, if there is one.
fn backing_format(cluster: &[u8], from: u64, to: u64) -> Result<Option<&[u8]>> {
    let mut at = from;
    while at.saturating_add(8) <= to {
        let kind = u32_at(cluster, at)?;
        let length = u64::from(u32_at(cluster, at + 4)?);
        match kind {
            EXTENSION_END => break,
            EXTENSION_BACKING_FORMAT => return bytes_at(cluster, at + 8, length).map(Some),
            // Both terms are small: the loop's bound and a 32-bit length.
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
    Ok(None)
}

/// The first `length` bytes, or as many as the file has.
fn prefix(file: &File, length: u64) -> Result<Vec<u8>> {
    let read = |error| Error::new(ErrorKind::of_io(&error), "read the header").with_source(error);
    let length = length.min(file.metadata().map_err(read)?.len());
    // At most a cluster of 2 MiB.
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0).map_err(read)?;
    Ok(bytes)
}

fn bytes_at(bytes: &[u8], offset: u64, length: u64) -> Result<&[u8]> {
    let start = usize::try_from(offset).ok();
    let end = offset.checked_add(length).and_then(|end| usize::try_from(end).ok());
    start.zip(end).and_then(|(start, end)| bytes.get(start..end)).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("{length} bytes of the header are not there"))
            .with_offset(offset)
    })
}

fn array_at<const N: usize>(bytes: &[u8], offset: u64) -> Result<[u8; N]> {
    let mut array = [0; N];
    array.copy_from_slice(bytes_at(bytes, offset, N as u64)?);
    Ok(array)
}

fn u32_at(bytes: &[u8], offset: u64) -> Result<u32> {
    Ok(u32::from_be_bytes(array_at(bytes, offset)?))
}

fn u64_at(bytes: &[u8], offset: u64) -> Result<u64> {
    Ok(u64::from_be_bytes(array_at(bytes, offset)?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A v3 header cluster of 512 bytes, with a backing name and format.
    pub(in crate::attachment) fn image(backing: Option<(&[u8], &[u8])>) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[7] = 3;
        bytes[23] = 9;
        bytes[103] = 112;
        if let Some((name, format)) = backing {
            // An unknown extension first: it must be stepped over, padding included.
            bytes[112..116].copy_from_slice(b"what");
            bytes[119] = 3;
            bytes[128..132].copy_from_slice(&EXTENSION_BACKING_FORMAT.to_be_bytes());
            bytes[135] = u8::try_from(format.len()).unwrap();
            bytes[136..136 + format.len()].copy_from_slice(format);
            bytes[15] = 160;
            bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            bytes[160..160 + name.len()].copy_from_slice(name);
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Option<(PathBuf, BaseFormat)>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        overlay_backing(&file)
    }

    #[test]
    fn a_backing_file_is_named_with_its_format() {
        let backing = parse(&image(Some((b"/base", b"raw")))).unwrap();
        assert_eq!(backing, Some((PathBuf::from("/base"), BaseFormat::Raw)));
        assert_eq!(parse(&image(None)).unwrap(), None);
    }

    #[test]
    fn one_changed_byte_names_what_is_wrong() {
        for (what, at, value, kind) in [
            ("magic", 0, 0, ErrorKind::Corrupt),
            ("version", 7, 4, ErrorKind::Unsupported),
            ("cluster_bits", 23, 64, ErrorKind::Corrupt),
            ("crypt_method", 35, 1, ErrorKind::Unsupported),
            ("external data file", 79, 4, ErrorKind::Unsupported),
            ("name past the cluster", 14, 2, ErrorKind::Corrupt),
            ("name too long", 18, 4, ErrorKind::Corrupt),
            ("protocol", 162, b':', ErrorKind::Refused),
            ("format unknown", 136, b'x', ErrorKind::Unsupported),
            ("format missing", 128, 0, ErrorKind::Refused),
            ("extension past the name", 116, 0xff, ErrorKind::Refused),
            ("format past the cluster", 132, 0xff, ErrorKind::Corrupt),
        ] {
            let mut bytes = image(Some((b"base", b"raw")));
            bytes[at] = value;
            assert_eq!(parse(&bytes).unwrap_err().kind(), kind, "{what}");
        }
    }

    #[test]
    fn no_truncation_panics() {
        let bytes = image(Some((b"base", b"raw")));
        for length in 0..164 {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}
