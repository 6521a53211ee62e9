//! Numbers as qemu-io reads and prints them.
//!
//! ```text
//! 65536  64k  0x10000  1.5M      sizes: letters b k M G T P E, fractions of a unit that has one
//! 0xcd  205  0315                pattern bytes and other whole numbers: C's three bases
//! 1.500 MiB                      how sizes are shown
//! ```
//!
//! Not `cli::size`: what is taken and what is shown differs in both directions. Callers: the commands.

/// The largest size that can be written down.
const MAX: u64 = i64::MAX.unsigned_abs();

/// A size or an offset.
///
/// # Errors
///
/// The sentence that says what is wrong with it.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match parse(text) {
        Some(Some(size)) => Ok(size),
        Some(None) => Err(format!("Parsing error: argument too large -- {text}")),
        None => Err(format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        )),
    }
}

/// The size `text` says; nothing in it if it is too large, or less than nothing.
fn parse(text: &str) -> Option<Option<u64>> {
    if let Some(digits) = text.strip_prefix('-') {
        return (!digits.is_empty() && all_digits(digits)).then_some(None);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        return Some(bounded(u128::from_str_radix(digits, 16).ok()));
    }
    let (number, unit) = match text.char_indices().last()? {
        (_, '0'..='9' | '.') => (text, None),
        (at, letter) => (text.get(..at)?, Some(shift(letter)?)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !all_digits(whole) || !all_digits(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let unit = 1_u128 << unit.unwrap_or(0);
    if unit == 1 && fraction.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let whole = if whole.is_empty() { Some(0) } else { whole.parse::<u128>().ok() };
    let bytes = whole.and_then(|whole| whole.checked_mul(unit));
    Some(bounded(bytes.and_then(|bytes| bytes.checked_add(part(fraction, unit)))))
}

/// The fraction of `unit` that the digits behind the point say, to the nearest byte.
fn part(digits: &str, unit: u128) -> u128 {
    // Digits behind the twentieth move nothing: the largest unit has 2^60 bytes.
    let (mut value, mut scale) = (0_u128, 1_u128);
    for digit in digits.bytes().take(20) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    // Below 10^20 and at most 2^60, so that the product may pass 2^126 and not 2^128.
    (value * unit + scale / 2) / scale
}

fn bounded(size: Option<u128>) -> Option<u64> {
    size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size <= MAX)
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn shift(letter: char) -> Option<u32> {
    Some(match letter.to_ascii_lowercase() {
        'b' => 0,
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => return None,
    })
}

/// A byte that fills a buffer.
///
/// # Errors
///
/// The sentence that says what is wrong with it.
pub(super) fn pattern(text: &str) -> Result<u8, String> {
    whole(text)
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// Milliseconds.
///
/// # Errors
///
/// The sentence that says what is wrong with them.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    whole(text).ok_or_else(|| format!("{text} is not a valid number"))
}

/// A whole number in the base that its first digits tell, as in C.
fn whole(text: &str) -> Option<u64> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, base) = match (hexadecimal, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        _ => (text, 10),
    };
    // The parser takes a sign of its own.
    let number =
        (!digits.starts_with('+')).then(|| u64::from_str_radix(digits, base).ok()).flatten()?;
    (!negative || number == 0).then_some(number)
}

/// Bytes as qemu-io shows them: up to three digits behind the point, or none.
pub(super) fn shown(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "few digits are shown")]
    rate(bytes as f64)
}

/// As [`shown`], for what need not be whole.
pub(super) fn rate(bytes: f64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes, UNITS[0]);
    for larger in UNITS.into_iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    let text = format!("{value:.3}");
    format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_qemu_io_parses_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1.", 1),
            ("1.0b", 1),
            ("+5", 5),
            ("00010", 10),
            ("0x1E", 30),
            (".5k", 512),
            ("+.5k", 512),
            ("1.0005k", 1025),
            ("1.0004k", 1024),
            ("0.99999999999999999999k", 1024),
            ("1.25M", 5 << 18),
            ("7e", 7 << 60),
            ("0x7fffffffffffffff", MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["-5", "-0", "8e", "0x8000000000000000", "9223372036854775808", "9e"] {
            assert!(size(text).unwrap_err().contains("argument too large"), "{text}");
        }
        for text in [
            "", ".", ".k", "-", "-x", "-1k", "0x", "0xg", "0x1k", "1.5", "1.5b", "1e3", "1x",
            "++5", "5+", "1 k", "1_0", "é", "nan", "-0x0", "1.5.5k",
        ] {
            assert!(size(text).unwrap_err().contains("non-numeric"), "{text}");
        }
    }

    #[test]
    fn patterns_have_the_bases_of_c() {
        for (text, byte) in [("0", 0), ("255", 255), ("0xcd", 0xcd), ("0XFF", 255), ("010", 8)] {
            assert_eq!(pattern(text), Ok(byte), "{text}");
        }
        for text in ["+5", "-0", "+0"] {
            assert!(pattern(text).is_ok(), "{text}");
        }
        for text in ["256", "-1", "", "0x", "08", "1k", "+", "++1", "0x+1", "0+1", "é"] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_qemu_io_shows_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1025, "1.001 KiB"),
            (1536, "1.500 KiB"),
            (1_048_575, "1023.999 KiB"),
            (1_048_577, "1 MiB"),
            (MAX, "8 EiB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
