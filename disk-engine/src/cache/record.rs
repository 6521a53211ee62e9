//! How the cache's small files are framed: the manifest and the remembered digest.
//!
//! ```text
//!         0        4        8
//! 0x00    │ magic, eight letters of ASCII             │
//! 0x08    │ version u32     │ CRC-32 of all the rest  │
//! 0x10    │ body …                                    │
//! ```
//!
//! Integers are big-endian. The CRC covers every byte of the file but its own four, so any single
//! damaged byte is noticed. A record is never longer than its file and its stated limit, whatever
//! its counts claim: parsing allocates nothing that a field alone decides.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use byteorder::{BigEndian, ByteOrder};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{host, open};

/// What a kind of record begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
    /// The longest record of this kind anybody writes or reads, in bytes.
    pub(crate) limit: u64,
}

/// Puts the frame around a body.
pub(crate) fn seal(kind: Kind, body: &[u8]) -> Vec<u8> {
    let version = kind.version.to_be_bytes();
    let crc = checksum(&[&kind.magic, &version, body]).to_be_bytes();
    [&kind.magic, version.as_slice(), &crc, body].concat()
}

/// Takes the frame off, once it is intact.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`]: it is another kind of file, of another version, or damaged.
pub(crate) fn unseal(kind: Kind, bytes: &[u8]) -> Result<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    let magic = reader.take("magic", 8)?;
    if magic != kind.magic {
        return Err(corrupt("the file begins with another magic").with_field("magic"));
    }
    let version = reader.u32("version")?;
    if version != kind.version {
        return Err(corrupt(format!("version {version} is not ours, {}", kind.version))
            .with_field("version"));
    }
    let stored = reader.u32("crc32")?;
    let computed = checksum(&[magic, &version.to_be_bytes(), reader.rest]);
    if stored != computed {
        return Err(corrupt(format!("the CRC-32 is {computed:#010x}, not {stored:#010x}"))
            .with_field("crc32"));
    }
    Ok(reader)
}

/// Reads a whole record file; `None` where there is none.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] if what stands there cannot be a record of ours: no regular file, another
/// user's, writable, too long. Otherwise what the system says.
pub(crate) fn read_file(kind: Kind, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match open::existing(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if untrusted(&error) => {
            return Err(corrupt("no readable file of ours").with_path(path).with_source(error));
        }
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if !metadata.is_file()
        || metadata.uid() != host::effective_user()
        || metadata.permissions().mode() & 0o222 != 0
        || metadata.len() > kind.limit
    {
        return Err(corrupt("no read-only file of ours and of possible length").with_path(path));
    }
    let mut bytes = Vec::new();
    usize::try_from(metadata.len())
        .ok()
        .and_then(|length| bytes.try_reserve_exact(length).ok())
        .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for the file").with_path(path))?;
    file.take(kind.limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    Ok(Some(bytes))
}

/// Whether an open failed because of what stands there, not because the system is in trouble.
pub(crate) fn untrusted(error: &std::io::Error) -> bool {
    open::is_misplaced(error) || error.kind() == std::io::ErrorKind::PermissionDenied
}

/// Walks a record, field by field.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.wrong(field, "the record ends before the field does"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let taken = self.take(field, N)?;
        taken.try_into().map_err(|_| self.wrong(field, "the record ends before the field does"))
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8> {
        self.array(field).map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32> {
        self.take(field, 4).map(BigEndian::read_u32)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64> {
        self.take(field, 8).map(BigEndian::read_u64)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64> {
        self.take(field, 8).map(BigEndian::read_i64)
    }

    /// A text whose length in bytes was read before.
    pub(crate) fn text(&mut self, field: &'static str, length: u32) -> Result<String> {
        let length = usize::try_from(length).map_err(|_| self.wrong(field, "too long"))?;
        let bytes = self.take(field, length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.wrong(field, "the text is not UTF-8"))
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`]: something follows the last field.
    pub(crate) fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.wrong("end", "something follows the last field"))
    }

    /// An error about `field`, which ends where the reader stands.
    pub(crate) fn wrong(&self, field: &'static str, message: &'static str) -> Error {
        let offset = u64::try_from(self.length.saturating_sub(self.rest.len()));
        corrupt(message).with_field(field).with_offset(offset.unwrap_or(u64::MAX))
    }
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn corrupt(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"TESTTEST", version: 3, limit: 64 };

    #[test]
    fn a_frame_comes_off_only_as_it_was_put_on() {
        let sealed = seal(KIND, b"body");
        assert_eq!(sealed.len(), 0x10 + 4);
        assert_eq!(unseal(KIND, &sealed).unwrap().take("body", 4).unwrap(), b"body");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 0x40;
            assert_eq!(unseal(KIND, &damaged).unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
            assert_eq!(unseal(KIND, &sealed[..at]).unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
        }
    }

    #[test]
    fn fields_end_where_the_record_ends() {
        let bytes = [0, 0, 0, 2, b'h', b'i', 0xff];
        let mut reader = Reader::new(&bytes);
        let length = reader.u32("length").unwrap();
        assert_eq!(reader.text("text", length).unwrap(), "hi");
        assert_eq!(reader.u64("more").unwrap_err().offset(), Some(6));
        assert_eq!(reader.text("text", 1).unwrap_err().field(), Some("text"));
        assert!(reader.finish().is_ok());
    }
}
