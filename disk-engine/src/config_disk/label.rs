//! A volume's label: what a guest finds the disk by.
//!
//! ```text
//! C O N F I G _ _ _ _ _     11 bytes, filled up with spaces; in the boot sector and, as an entry
//!                           of its own, in the root folder
//! ```
//!
//! Letters stay as they are given. `mkfs.fat` warns about lower case, since DOS shows it in upper
//! case only; but cloud-init's documentation asks for `cidata`, and programs on Linux compare bytes.
//! Caller: `config_disk`.

use crate::error::{Error, ErrorKind, Result};

/// Bytes of a label.
const LENGTH: usize = 11;

/// A label FAT can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label([u8; LENGTH]);

impl Label {
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`]: it is empty, too long, says that there is none, or holds a letter
    /// no label may have.
    pub(super) fn new(text: &str) -> Result<Self> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > LENGTH {
            return Err(wrong(text, "has not 1 to 11 letters"));
        }
        if !bytes.iter().all(|byte| is_allowed(*byte)) {
            let message = r#"holds a letter other than ASCII, or one of "*+,./:;<=>?[\]|"#;
            return Err(wrong(text, message));
        }
        if bytes.starts_with(b" ") || bytes.ends_with(b" ") {
            return Err(wrong(text, "begins or ends with a space"));
        }
        if bytes.eq_ignore_ascii_case(b"NO NAME") {
            return Err(wrong(text, "is what disks without a label have"));
        }
        let mut label = [b' '; LENGTH];
        label.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        Ok(Self(label))
    }

    pub(super) fn bytes(self) -> [u8; LENGTH] {
        self.0
    }
}

fn is_allowed(byte: u8) -> bool {
    (b' '..0x7f).contains(&byte) && !br#""*+,./:;<=>?[\]|"#.contains(&byte)
}

fn wrong(text: &str, what: &str) -> Error {
    let message = format!("the label \"{}\" {what}", text.escape_debug());
    Error::new(ErrorKind::InvalidInput, message).with_field("label")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kept_or_refused_as_they_are() {
        assert_eq!(Label::new("cidata").unwrap().bytes(), *b"cidata     ");
        assert_eq!(Label::new("ELEVEN BYTE").unwrap().bytes(), *b"ELEVEN BYTE");
        for bad in ["", "TWELVE BYTES", "A.B", "A/B", "Ä", " A", "A ", "no name", "A\n", "A\u{7f}"]
        {
            let error = Label::new(bad).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("label")));
        }
    }
}
