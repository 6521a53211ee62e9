//! Bytes as a person reads them.
//!
//! ```text
//! 00000200:  41 42 43 00 00 00 00 00 00 00 00 00 00 00 00 00  ABC.............
//! 00000210:  64 65  de
//! ```
//!
//! Callers: `read`.

use std::fmt::Write;

/// Bytes of one line.
const LINE: usize = 16;

/// The lines that show `bytes`, of which the first lies at `offset`.
pub(super) fn lines(bytes: &[u8], offset: u64) -> impl Iterator<Item = String> {
    let starts =
        (0..).map(move |line: u64| offset.saturating_add(line.saturating_mul(LINE as u64)));
    bytes.chunks(LINE).zip(starts).map(|(bytes, offset)| line(bytes, offset))
}

fn line(bytes: &[u8], offset: u64) -> String {
    let mut text = format!("{offset:08x}: ");
    for byte in bytes {
        let _ = write!(text, " {byte:02x}");
    }
    text.push_str("  ");
    let letter = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' };
    text.extend(bytes.iter().map(letter));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_offset_and_its_letters() {
        let bytes: Vec<u8> = b"ABC\0\x7f~ \xe9zzzzzzzzz".to_vec();
        let lines: Vec<_> = lines(&bytes, 0x1_2345_6788).collect();
        assert_eq!(
            lines,
            [
                "123456788:  41 42 43 00 7f 7e 20 e9 7a 7a 7a 7a 7a 7a 7a 7a  ABC.....zzzzzzzz",
                "123456798:  7a  z",
            ]
        );
    }
}
