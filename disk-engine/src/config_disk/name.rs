//! Names FAT can hold, and which of them need no other.
//!
//! ```text
//! long    UTF-16, in entries of 13 letters       "Network settings.yaml"
//! short   8 and 3 letters of ASCII, upper case   "NETWOR~1.YAM"            one of them for each file
//! ```
//!
//! A name that is short already, but for its case, keeps that as its short one. Whoever writes must
//! give those out first: a short name made up for a long one could be somebody's real name. Caller:
//! `tree`.

/// Longest name, in bytes of UTF-8: `fatfs` takes no more, and no file system of Linux does.
const LONGEST: usize = 255;

/// Letters of a long name in one entry.
const PER_ENTRY: usize = 13;

/// What is wrong with a name, as the end of the sentence "the name …".
pub(super) fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if matches!(name, "." | "..") {
        return Err("is a folder's own or its parent's");
    }
    if name.len() > LONGEST {
        return Err("is longer than 255 bytes");
    }
    if name.chars().any(|letter| letter.is_ascii_control() || r#""*/:<>?\|"#.contains(letter)) {
        return Err(r#"holds a control character or one of "*/:<>?\|, which FAT cannot hold"#);
    }
    if name.chars().any(|letter| u32::from(letter) > 0xffff) {
        return Err("holds a letter beyond U+FFFF, which is not supported");
    }
    if name.ends_with(['.', ' ']) {
        return Err("ends with a dot or a space, which FAT drops");
    }
    Ok(())
}

/// What two names have in common that FAT takes for one.
pub(super) fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).collect()
}

/// Whether the name is a short one but for its case.
pub(super) fn is_short(name: &str) -> bool {
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    (1..=8).contains(&base.len()) && extension.len() <= 3 && is_plain(base) && is_plain(extension)
}

/// Whether the name, as a short one, would be an extension and nothing before it: `.env`.
pub(super) fn is_extension(name: &str) -> bool {
    let extension = name.strip_prefix('.');
    extension.is_some_and(|extension| extension.len() <= 3 && is_plain(extension))
}

fn is_plain(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'()-@^_`{}~".contains(&byte))
}

/// Entries of a folder that a name takes: its short one, and its long one in pieces.
pub(super) fn entries(name: &str) -> u64 {
    1 + name.encode_utf16().count().div_ceil(PER_ENTRY) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fat_cannot_hold_are_refused() {
        for good in ["a", "user-data", ".hidden", "a b", "a+b,c;d=e[f]", "Grüße", "雪.txt"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "n".repeat(256);
        for bad in
            ["", ".", "..", "a:b", "a\\b", "a?", "a\n", "a\u{7f}", "a.", "a ", "\u{1f600}", &long]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn case_folds_and_short_names_are_known() {
        assert_eq!(folded("Grüße"), folded("GRÜSSE"));
        for short in ["a", "readme.md", "EIGHT123.TXT", "LONGFI~1.TXT"] {
            assert!(is_short(short), "{short}");
        }
        for long in ["nine12345", "a.html", "a b", "ä", "a.b.c", "a+b", ".env"] {
            assert!(!is_short(long), "{long}");
        }
        for (name, expected) in
            [(".env", true), (".a", true), (".html", false), ("a.env", false), ("..a", false)]
        {
            assert_eq!(is_extension(name), expected, "{name}");
        }
        assert_eq!(entries("a"), 2);
        assert_eq!(entries(&"n".repeat(13)), 2);
        assert_eq!(entries(&"n".repeat(14)), 3);
    }
}
