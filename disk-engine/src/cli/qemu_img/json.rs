//! JSON as QEMU prints it, to the letter, and as it reads it from a command line.
//!
//! ```text
//! {                          four spaces a level; an empty list takes two lines
//!     "children": [
//!     ],                     fields in the order of QEMU's hash table
//!     "virtual-size": 512
//! }
//! ```
//!
//! Callers: the commands of `qemu_img`, and `image` for `json:` names.

use std::fmt::Write;

use serde_json::Value;

/// Buckets of QEMU's hash table for the fields of an object.
const BUCKETS: u32 = 512;

/// `value` over several lines.
pub(super) fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

/// `value` in one line.
pub(super) fn line(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let mut text = String::new();
                quote(&mut text, name);
                format!("{text}: {}", line(value))
            };
            let fields: Vec<_> = ordered(fields).into_iter().map(field).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(line).collect();
            format!("[{}]", items.join(", "))
        }
        plain => pretty(plain),
    }
}

fn write(text: &mut String, value: &Value, level: usize) {
    match value {
        Value::String(string) => quote(text, string),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                new_line(text, index > 0, level + 1);
                write(text, item, level + 1);
            }
            new_line(text, false, level);
            text.push(']');
        }
        Value::Object(fields) => {
            text.push('{');
            for (index, (name, value)) in ordered(fields).into_iter().enumerate() {
                new_line(text, index > 0, level + 1);
                quote(text, name);
                text.push_str(": ");
                write(text, value, level + 1);
            }
            new_line(text, false, level);
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(text, "{value}");
        }
    }
}

/// The fields of `value`, one a line, as `qemu-img info` shows what only a format has.
pub(super) fn outline(text: &mut String, value: &Value, level: usize) {
    let mut field = |name: &str, value: &Value| {
        let _ = write!(text, "{:width$}{name}:", "", width = level * 4);
        match value {
            Value::Object(_) | Value::Array(_) => {
                text.push('\n');
                outline(text, value, level + 1);
            }
            Value::String(string) => {
                let _ = writeln!(text, " {string}");
            }
            other => {
                let _ = writeln!(text, " {other}");
            }
        }
    };
    match value {
        Value::Object(fields) => {
            for (name, value) in ordered(fields) {
                field(&name.replace('-', " "), value);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                field(&format!("[{index}]"), item);
            }
        }
        _ => {}
    }
}

/// Fields in QEMU's order. Of a bucket's fields the newest comes first; in what is printed here that is
/// the one whose name comes last.
fn ordered(fields: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut ordered: Vec<_> = fields.iter().rev().collect();
    ordered.sort_by_key(|(name, _)| bucket(name));
    ordered
}

fn new_line(text: &mut String, comma: bool, level: usize) {
    if comma {
        text.push(',');
    }
    let _ = write!(text, "\n{:width$}", "", width = level * 4);
}

/// Where a field lies in QEMU's hash table: Trivial Database's hash of its name.
fn bucket(name: &str) -> u32 {
    // A field's name is short.
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mixed = name.bytes().zip(0_u32..).fold(
        0x238f_13af_u32.wrapping_mul(length),
        |sum, (byte, index)| {
            sum.wrapping_add(u32::from(byte).wrapping_shl(index.wrapping_mul(5) % 24))
        },
    );
    1_103_515_243_u32.wrapping_mul(mixed).wrapping_add(12_345) % BUCKETS
}

fn quote(text: &mut String, string: &str) {
    text.push('"');
    for letter in string.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(letter),
            _ => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04X}");
                }
            }
        }
    }
    text.push('"');
}

/// Reads JSON in which strings may stand between single quotes, as QEMU takes it.
///
/// # Errors
///
/// What is wrong with it, as far as QEMU has words for it.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Err("Expecting a JSON value".to_owned());
    }
    let plain = plain(text).ok_or("JSON parse error, premature EOI")?;
    let mut values = serde_json::Deserializer::from_str(&plain).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => match values.next() {
            None => Ok(value),
            Some(_) => Err("Expecting at most one JSON value".to_owned()),
        },
        None => Err("Expecting a JSON value".to_owned()),
        Some(Err(error)) if error.is_eof() => Err("JSON parse error, premature EOI".to_owned()),
        Some(Err(error)) => {
            // A word that is no value.
            let before = plain.get(..error.column().saturating_sub(1)).unwrap_or_default();
            let start =
                before.rfind(|letter: char| !letter.is_alphanumeric()).map_or(0, |at| at + 1);
            let word: String = plain
                .get(start..)
                .unwrap_or_default()
                .chars()
                .take_while(char::is_ascii_alphabetic)
                .collect();
            Err(if word.is_empty() {
                format!("JSON parse error, {error}")
            } else {
                format!("JSON parse error, invalid keyword '{word}'")
            })
        }
    }
}

/// The same with double quotes alone; `None` if a string does not end.
fn plain(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if !matches!(letter, '"' | '\'') {
            plain.push(letter);
            continue;
        }
        plain.push('"');
        loop {
            match letters.next()? {
                end if end == letter => break,
                '"' => plain.push_str("\\\""),
                '\\' => match letters.next()? {
                    '\'' => plain.push('\''),
                    other => plain.extend(['\\', other]),
                },
                other => plain.push(other),
            }
        }
        plain.push('"');
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_come_in_qemus_order() {
        let value = json!({"required": 1, "fully-allocated": 2, "bitmaps": 3});
        let expected =
            "{\n    \"bitmaps\": 3,\n    \"required\": 1,\n    \"fully-allocated\": 2\n}";
        assert_eq!(pretty(&value), expected);
        assert_eq!(
            pretty(&json!({"a": [], "b": {}})),
            "{\n    \"a\": [\n    ],\n    \"b\": {\n    }\n}"
        );
        assert_eq!(pretty(&json!("é\u{1}\"/\u{1f600}")), "\"\\u00E9\\u0001\\\"/\\uD83D\\uDE00\"");
    }

    #[test]
    fn single_quotes_are_quotes() {
        let expected = json!({"driver": "it's", "a": "say \"x\""});
        let text = "{'driver': \"it's\", 'a': 'say \"x\"'}";
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse("{'a': 'b\\'c'}"), Ok(json!({"a": "b'c"})));
        let wrong = |text: &str| parse(text).unwrap_err();
        assert_eq!(wrong("{'a"), "JSON parse error, premature EOI");
        assert_eq!(wrong("{"), "JSON parse error, premature EOI");
        assert_eq!(wrong(" "), "Expecting a JSON value");
        assert_eq!(wrong("{} 1"), "Expecting at most one JSON value");
        assert_eq!(wrong("{'a': x}"), "JSON parse error, invalid keyword 'x'");
        assert_eq!(wrong("nope"), "JSON parse error, invalid keyword 'nope'");
    }
}
