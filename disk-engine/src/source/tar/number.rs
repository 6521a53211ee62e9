//! Numbers in tar headers, read strictly.
//!
//! ```text
//! octal      spaces? digits (NUL|space)*              "00000001750\0"
//! base-256   80 00 00 00 00 00 00 02 00 00 00 00      first bit set, the rest big-endian
//!            ff …                                     negative: refused
//! decimal    digits                                   pax records, PAX sparse maps
//! ```
//!
//! Every number here is a length or an offset of a file, so none may exceed 2^63 - 1. Callers:
//! `tar::header`, `tar::pax`, `tar::sparse`.

/// The largest number accepted: file offsets are signed.
pub(crate) const MAX: u64 = i64::MAX as u64;

/// A numeric field of a header: octal, or base-256 where the first bit says so.
///
/// # Errors
///
/// What is wrong, as the end of the sentence "the field …".
pub(crate) fn field(bytes: &[u8]) -> Result<u64, &'static str> {
    match bytes {
        [first, rest @ ..] if first & 0x80 != 0 => base_256(*first, rest),
        _ => octal(bytes),
    }
}

fn base_256(first: u8, rest: &[u8]) -> Result<u64, &'static str> {
    if first & 0x40 != 0 {
        return Err("holds a negative number");
    }
    rest.iter().try_fold(u64::from(first & 0x3f), |value, byte| {
        value
            .checked_mul(256)
            .and_then(|value| value.checked_add(u64::from(*byte)))
            .filter(|value| *value <= MAX)
            .ok_or("holds a number over 2^63")
    })
}

/// Octal digits, after spaces and before spaces or NULs. All blank is zero, as writers of empty
/// members mean it.
pub(crate) fn octal(bytes: &[u8]) -> Result<u64, &'static str> {
    let digits = bytes.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, tail) = digits.split_at(end);
    if tail.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err("holds something after its number");
    }
    digits.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value
            .checked_mul(8)
            .map(|value| value | u64::from(byte - b'0'))
            .filter(|value| *value <= MAX)
            .ok_or("holds a number over 2^63"),
        _ => Err("is not an octal number"),
    })
}

/// One more decimal digit.
///
/// # Errors
///
/// Not a digit, or too large.
pub(crate) fn push_decimal(value: u64, digit: u8) -> Result<u64, &'static str> {
    if !digit.is_ascii_digit() {
        return Err("is not a decimal number");
    }
    value
        .checked_mul(10)
        .and_then(|value| value.checked_add(u64::from(digit - b'0')))
        .filter(|value| *value <= MAX)
        .ok_or("holds a number over 2^63")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_base_256_fields_are_read() {
        for (bytes, value) in [
            (&b"00000001750\0"[..], 0o1750),
            (b"   1750 \0\0\0\0", 0o1750),
            (b"777777777777", (1 << 36) - 1),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 8 << 30),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", MAX),
        ] {
            assert_eq!(field(bytes), Ok(value), "{bytes:x?}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for bytes in [
            &b"00000001758\0"[..],
            b"0000000 175\0",
            b"-0000001750\0",
            b"0x000000000\0",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xc0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\x80\0\0\x01\0\0\0\0\0\0\0\0",
            b"7777777777777777777777777777",
        ] {
            assert!(field(bytes).is_err(), "{bytes:x?}");
        }
        let decimal =
            |text: &[u8]| text.iter().try_fold(0, |value, byte| push_decimal(value, *byte));
        for text in [&b"-1"[..], b"+1", b" 1", b"1e3", b"9223372036854775808"] {
            assert!(decimal(text).is_err(), "{text:?}");
        }
        assert_eq!(decimal(b"9223372036854775807"), Ok(MAX));
    }
}
