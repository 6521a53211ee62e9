//! Numbers as qemu-img takes them: `1.5G`, `0x200`, `512`.
//!
//! ```text
//! digits [ . digits ] [ b k M G T P E ]      0x digits
//! ```
//!
//! A fraction needs a unit to be a fraction of, and is rounded. Callers: the commands of `qemu_img`.

use std::str::FromStr;

/// Why a word is no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It does not read as a number.
    Word,
    /// It is negative, or does not fit in 64 bits.
    Range,
}

/// The largest size of a file.
pub(super) const SIZE_MAX: u64 = i64::MAX.cast_unsigned();

/// Parses a size in bytes, or a count of what has no unit.
pub(super) fn parse(word: &str) -> Result<u64, Wrong> {
    let text = word.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    if let Some(rest) = text.strip_prefix('-') {
        let digits = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
        return Err(if digits.is_empty() && !rest.is_empty() { Wrong::Range } else { Wrong::Word });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Wrong::Word);
        }
        return u64::from_str_radix(digits, 16).map_err(|_| Wrong::Range);
    }
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        None => (None, rest),
        Some(behind) => {
            let (fraction, rest) = digits(behind);
            (Some(fraction), rest)
        }
    };
    if whole.is_empty() && fraction.is_none_or(str::is_empty) {
        return Err(Wrong::Word);
    }
    let whole = match u64::from_str(if whole.is_empty() { "0" } else { whole }) {
        Ok(whole) => whole,
        // A word that goes on is no number, whatever its size.
        Err(_) if rest.is_empty() => return Err(Wrong::Range),
        Err(_) => return Err(Wrong::Word),
    };
    let shift = match rest {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(Wrong::Word),
    };
    let (carry, part) = fixed(fraction.unwrap_or_default());
    let whole = whole.checked_add(carry).ok_or(Wrong::Range)?;
    if shift == 0 {
        return if part == 0 { Ok(whole) } else { Err(Wrong::Word) };
    }
    // Below 2^64 times at most 2^60, and a half.
    let scaled = (u128::from(whole) << shift) + (((u128::from(part) << shift) + (1 << 63)) >> 64);
    u64::try_from(scaled).map_err(|_| Wrong::Range)
}

/// The digits a text begins with, and the rest.
fn digits(text: &str) -> (&str, &str) {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    text.split_at(text.len() - rest.len())
}

/// What digits behind a point stand for, in units of 2^-64, by way of a `double` as in C; with a one
/// to carry if that is all of one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is below one")]
fn fixed(digits: &str) -> (u64, u64) {
    let fraction = f64::from_str(&format!("0.{digits}0")).unwrap_or_default();
    if fraction >= 1.0 {
        return (1, 0);
    }
    let part = (fraction * 2_f64.powi(64)) as u64;
    (0, if part == 0 && digits.bytes().any(|digit| digit != b'0') { 1 } else { part })
}

/// The number in `word`, which messages call `what`, if it is from `min` to `max`.
pub(super) fn bounded(word: &str, what: &str, min: u64, max: u64) -> Result<u64, String> {
    match parse(word) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) | Err(Wrong::Range) => {
            Err(format!("Invalid {what} specified. Must be between {min} and {max}."))
        }
        Err(Wrong::Word) => Err(format!("Invalid {what} specified: '{word}'.")),
    }
}

/// The count in `word`, which messages call `what`: a plain number, also octal or hexadecimal as in C.
pub(super) fn count(word: &str, what: &str) -> Result<u64, String> {
    let text = word.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("Invalid {what} specified: '{word}'."));
    }
    let number = u64::from_str_radix(digits, radix).ok();
    let number = number.filter(|number| *number <= SIZE_MAX && (!negative || *number == 0));
    number.ok_or_else(|| format!("Invalid {what} specified. Must be between 0 and {SIZE_MAX}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_qemu_img() {
        for (word, number) in [
            (" 1", Ok(1)),
            ("+1", Ok(1)),
            ("1.5k", Ok(1536)),
            ("0x10", Ok(16)),
            ("010", Ok(10)),
            ("1.", Ok(1)),
            ("1.k", Ok(1024)),
            (".5k", Ok(512)),
            ("7.99E", Ok(9_211_842_821_808_707_328)),
            ("1.0", Ok(1)),
            ("1e", Ok(1 << 60)),
            ("1B", Ok(1)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("0.00000000000000000001k", Ok(0)),
            ("-1", Err(Wrong::Range)),
            ("16E", Err(Wrong::Range)),
            ("18446744073709551616", Err(Wrong::Range)),
            ("1e3", Err(Wrong::Word)),
            ("1.5", Err(Wrong::Word)),
            ("0x10k", Err(Wrong::Word)),
            ("1kb", Err(Wrong::Word)),
            ("", Err(Wrong::Word)),
            (".", Err(Wrong::Word)),
            ("k", Err(Wrong::Word)),
            ("0x", Err(Wrong::Word)),
            ("1 ", Err(Wrong::Word)),
            ("-1k", Err(Wrong::Word)),
            ("1.5.k", Err(Wrong::Word)),
        ] {
            assert_eq!(parse(word), number, "{word:?}");
        }
    }
}
