//! Sizes as qemu-img takes and prints them: powers of 1024, `b` or no letter for bytes, then
//! `k M G T P E`.

/// Parses `50G`, `1.5T`, `4096`. For clap's `value_parser`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "'{}' is not a size: write bytes or a number with k, M, G, T, P or E",
            text.escape_debug()
        )
    };
    let (number, shift) = match text.char_indices().last().ok_or_else(wrong)? {
        (_, last) if last.is_ascii_digit() => (text, 0),
        (at, last) => {
            let shift = match last.to_ascii_lowercase() {
                'b' => 0,
                'k' => 10,
                'm' => 20,
                'g' => 30,
                't' => 40,
                'p' => 50,
                'e' => 60,
                _ => return Err(wrong()),
            };
            (text.get(..at).ok_or_else(wrong)?, shift)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return Err(wrong());
    }
    let too_large = || format!("'{}' is more than 2^64 bytes", text.escape_debug());
    let unit = 1_u128 << shift;
    let bytes = whole.parse::<u128>().map_err(|_| too_large())?.checked_mul(unit);
    let part = match fraction {
        "" => 0,
        // At most 18 digits of at most 2^60 each: below 2^120.
        digits => {
            digits.parse::<u128>().map_err(|_| wrong())? * unit
                / 10_u128.pow(u32::try_from(digits.len()).map_err(|_| wrong())?)
        }
    };
    bytes
        .and_then(|bytes| bytes.checked_add(part))
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(too_large)
}

/// Renders bytes for a person, as qemu-img does: three significant digits and a binary unit.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    // A thousand of a unit is shown in the next one, as less than one of it.
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    let precision = match value {
        _ if unit == 0 => 0,
        value if value < 0.9995 => 3,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        value if value < 999.5 => 0,
        // As C writes a number that takes a fourth digit.
        _ => return format!("1e+03 {name}"),
    };
    let text = format!("{value:.precision$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_qemu_img_parses_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10b", 10),
            ("1k", 1024),
            ("1K", 1024),
            ("1.5G", 3 << 29),
            ("50G", 50 << 30),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "16E", "1.5.5G", "0x10", " 1", "1 G", ".5G", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_as_qemu_img_writes_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (196 * 1024, "196 KiB"),
            (1 << 30, "1 GiB"),
            (3 << 29, "1.5 GiB"),
            (50 << 30, "50 GiB"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023 << 10, "0.999 MiB"),
            ((1 << 20) - 256, "1 MiB"),
            (1023 * 1000 + 600, "1e+03 KiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
