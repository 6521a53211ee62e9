//! What makes two requests ask for the same base: the policy says, the key is its digest.
//!
//! A key is the SHA-256 of this encoding, and in lower-case hexadecimal it is the base's file name:
//!
//! ```text
//! "disk-engine base\0"   17 bytes, so that no digest made for another purpose is ever a key
//! version                u32, 1
//! identity               u8: 1 digest, 2 name
//! length, identity       u64, then 32 bytes of digest or the name's UTF-8
//! member                 u8: 0 chosen by the source, 1 named by the caller
//! length, member         u64, then the name's UTF-8; absent with 0
//! ```
//!
//! The digest of a source is the same identity whether it was computed or stated, so a base asked
//! for by content and one asked for by its stated digest are one base. Integers are big-endian.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};

const DOMAIN: &[u8; 17] = b"disk-engine base\0";
const VERSION: u32 = 1;

/// How a source is identified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyPolicy {
    /// By the SHA-256 of its bytes, compressed as they are. The digest of a file is remembered, so
    /// only the first look reads it.
    #[default]
    Content,
    /// By a SHA-256 the caller states. If the base is there, the source is not even opened; if it
    /// is not, the source is verified while it is extracted, and a source with another digest
    /// leaves nothing behind.
    Stated(Sha256Digest),
    /// By a name the caller vouches for: that everybody who uses this name in this cache means the
    /// same content. Nothing checks it. Any text but the empty one.
    Named(String),
}

impl KeyPolicy {
    /// The word for the policy, as reports print it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Stated(_) => "sha256",
            Self::Named(_) => "name",
        }
    }
}

/// Parses `content`, `sha256:HEX` and `name:NAME`.
impl FromStr for KeyPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |message| Error::new(ErrorKind::InvalidInput, message).with_field("key");
        match text.split_once(':') {
            None if text == "content" => Ok(Self::Content),
            Some(("sha256", digest)) => digest.parse().map(Self::Stated),
            Some(("name", "")) => Err(wrong("a name of a base is not empty")),
            Some(("name", name)) => Ok(Self::Named(name.to_owned())),
            _ => Err(wrong("a key is content, sha256:HEX or name:NAME")),
        }
    }
}

/// What a policy comes down to once the digest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Digest(Sha256Digest),
    Name(String),
}

/// A base's key: its name in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    pub(crate) fn new(identity: &Identity, member: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(VERSION.to_be_bytes());
        let mut put = |kind: u8, bytes: &[u8]| {
            hash.update([kind]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        match identity {
            Identity::Digest(digest) => put(1, &digest.0),
            Identity::Name(name) => put(2, name.as_bytes()),
        }
        match member {
            None => hash.update([0]),
            Some(name) => put(1, name.as_bytes()),
        }
        Self(hash.finalize().into())
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key of a base's file, by the file's name: `KEY.img`, with `extension` for `img`.
    pub(crate) fn of_file(name: &OsStr, extension: &str) -> Option<Self> {
        let stem = name.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
        Self::of_name(stem)
    }

    /// The key that is written as `name`, in lower-case hexadecimal.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let key = Self(name.parse::<Sha256Digest>().ok()?.0);
        (key.to_string() == name).then_some(key)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_makes_another_key() {
        let digest = Identity::Digest(Sha256Digest([b'a'; 32]));
        let name = |name: &str| Identity::Name(name.to_owned());
        let keys = [
            CacheKey::new(&digest, None),
            CacheKey::new(&digest, Some("disk.img")),
            CacheKey::new(&digest, Some("")),
            CacheKey::new(&name(&"a".repeat(32)), None),
            CacheKey::new(&name("a"), None),
            CacheKey::new(&name("a"), Some("b")),
            CacheKey::new(&name("ab"), Some("")),
            CacheKey::new(&name("a\u{1}b"), None),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(key), "{at}");
        }
    }

    #[test]
    fn keys_are_the_same_in_every_later_version() {
        // Recompute only together with VERSION: a cache on disk is found by these.
        for (identity, member, key) in [
            (
                Identity::Digest(Sha256Digest([0; 32])),
                None,
                "f1565597c57cc0b2bb14e13981733144a53b3dd50fa9b10f9ec89f9c85ce03ae",
            ),
            (
                Identity::Name("guest".to_owned()),
                Some("disk.img"),
                "0ff70d13b896f7eded3ef82461ad8e15aa77282f42fa600e2271782118dee7f7",
            ),
        ] {
            assert_eq!(CacheKey::new(&identity, member).to_string(), key);
        }
    }

    #[test]
    fn policies_parse_as_they_are_typed() {
        let hex = "0f".repeat(32);
        for (text, policy) in [
            ("content", KeyPolicy::Content),
            (&*format!("sha256:{hex}"), KeyPolicy::Stated(Sha256Digest([0x0f; 32]))),
            ("name:a:b", KeyPolicy::Named("a:b".to_owned())),
        ] {
            assert_eq!(text.parse::<KeyPolicy>().unwrap(), policy);
        }
        for text in ["", "Content", "content:", "name", "name:", "sha256:00", "path:/x"] {
            let error = text.parse::<KeyPolicy>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
