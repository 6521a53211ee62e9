//! SHA-256 digests: how an archive is identified, and how they are written down.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// A SHA-256 digest. Written and parsed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest(pub [u8; 32]);

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256Digest({self})")
    }
}

impl FromStr for Sha256Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(ErrorKind::InvalidInput, "a SHA-256 digest is 64 hexadecimal digits")
                .with_field("sha256")
        };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            let pair = text.get(2 * index..2 * index + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip_and_bad_ones_are_refused() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<Sha256Digest>().unwrap().to_string(), text);
        for bad in ["", "00", &"zz".repeat(32), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Sha256Digest>().unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
