//! Options as GNU `getopt_long` takes them: anywhere among the operands, clustered, abbreviated.
//!
//! ```text
//! -fqcow2   -f qcow2   -qU   --format=qcow2   --format qcow2   --form qcow2   --  operands only
//! ```
//!
//! They are handed out one by one, since a program acts on each before it looks at the next. Messages
//! are the C library's. Callers: the commands of `qemu_img`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its letter, if it has one.
    pub(super) short: Option<u8>,
    /// Its name; empty if it has none.
    pub(super) long: &'static str,
    /// Whether an argument follows.
    pub(super) takes: bool,
}

/// An option with a letter and a name.
pub(super) const fn flag(short: u8, long: &'static str) -> Known {
    Known { short: Some(short), long, takes: false }
}

/// An option with a letter, a name and an argument.
pub(super) const fn value(short: u8, long: &'static str) -> Known {
    Known { short: Some(short), long, takes: true }
}

/// An option with a letter alone.
pub(super) const fn letter(short: u8) -> Known {
    Known { short: Some(short), long: "", takes: false }
}

/// An option with a name alone.
pub(super) const fn long(long: &'static str) -> Known {
    Known { short: None, long, takes: false }
}

/// An option with a name and an argument.
pub(super) const fn long_value(long: &'static str) -> Known {
    Known { short: None, long, takes: true }
}

impl Known {
    /// What it is called where it is found: its letter, if it has no name.
    pub(super) fn name(self) -> &'static str {
        const LETTERS: [(u8, &str); 3] = [(b'c', "c"), (b'n', "n"), (b'p', "p")];
        match self.short {
            Some(short) if self.long.is_empty() => {
                LETTERS.iter().find(|(letter, _)| *letter == short).map_or("", |(_, name)| name)
            }
            _ => self.long,
        }
    }
}

/// An option found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name, or its letter if it has no name.
    pub(super) name: &'static str,
    /// Its argument; empty if it takes none.
    pub(super) argument: OsString,
}

impl Found {
    /// The argument as text; what is not UTF-8 is shown as �.
    pub(super) fn text(&self) -> String {
        self.argument.to_string_lossy().into_owned()
    }
}

/// The words of a command, as far as they are not taken yet.
#[derive(Debug)]
pub(super) struct Words<'a> {
    known: &'a [Known],
    left: VecDeque<OsString>,
    /// Letters of a cluster that are not taken yet.
    cluster: Vec<u8>,
    operands: Vec<OsString>,
}

impl<'a> Words<'a> {
    pub(super) fn new(words: impl IntoIterator<Item = OsString>, known: &'a [Known]) -> Self {
        Self { known, left: words.into_iter().collect(), cluster: Vec::new(), operands: Vec::new() }
    }

    /// The next option, or what is wrong with it; `None` once only operands are left.
    pub(super) fn next(&mut self) -> Option<Result<Found, String>> {
        if let Some(letter) = pop_first(&mut self.cluster) {
            return Some(self.short(letter));
        }
        loop {
            let word = self.left.pop_front()?;
            let bytes = word.as_bytes();
            if bytes == b"--" {
                self.operands.extend(self.left.drain(..));
                return None;
            }
            if let Some(name) = bytes.strip_prefix(b"--") {
                return Some(self.long(name));
            }
            match bytes.strip_prefix(b"-") {
                Some(letters) if !letters.is_empty() => {
                    self.cluster = letters.to_vec();
                    let letter = pop_first(&mut self.cluster)?;
                    return Some(self.short(letter));
                }
                _ => self.operands.push(word),
            }
        }
    }

    /// The words that are no options.
    pub(super) fn operands(self) -> Vec<OsString> {
        self.operands
    }

    fn short(&mut self, letter: u8) -> Result<Found, String> {
        let shown = char::from(letter);
        let Some(known) = self.known.iter().find(|known| known.short == Some(letter)) else {
            return Err(format!("invalid option -- '{shown}'"));
        };
        let argument = match known.takes {
            false => OsString::new(),
            true if !self.cluster.is_empty() => {
                OsString::from_vec(std::mem::take(&mut self.cluster))
            }
            true => self
                .left
                .pop_front()
                .ok_or_else(|| format!("option requires an argument -- '{shown}'"))?,
        };
        Ok(Found { name: known.name(), argument })
    }

    fn long(&mut self, word: &[u8]) -> Result<Found, String> {
        let mut parts = word.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let given = parts.next();
        let named = |known: &&Known| !known.long.is_empty();
        let exact = self.known.iter().filter(named).find(|known| known.long.as_bytes() == name);
        let known = match exact {
            Some(known) => known,
            None => {
                let begins = |known: &&Known| known.long.as_bytes().starts_with(name);
                let mut candidates = self.known.iter().filter(named).filter(begins);
                match (candidates.next(), candidates.next()) {
                    (None, _) => {
                        let word = String::from_utf8_lossy(word);
                        return Err(format!("unrecognized option '--{word}'"));
                    }
                    (Some(known), None) => known,
                    (Some(_), Some(_)) => {
                        let all = self.known.iter().filter(named).filter(begins);
                        let names: String =
                            all.map(|known| format!(" '--{}'", known.long)).collect();
                        let word = String::from_utf8_lossy(word);
                        return Err(format!(
                            "option '--{word}' is ambiguous; possibilities:{names}"
                        ));
                    }
                }
            }
        };
        let argument = match (known.takes, given) {
            (true, Some(given)) => OsStr::from_bytes(given).to_os_string(),
            (true, None) => self
                .left
                .pop_front()
                .ok_or_else(|| format!("option '--{}' requires an argument", known.long))?,
            (false, None) => OsString::new(),
            (false, Some(_)) => {
                return Err(format!("option '--{}' doesn't allow an argument", known.long));
            }
        };
        Ok(Found { name: known.long, argument })
    }
}

fn pop_first(letters: &mut Vec<u8>) -> Option<u8> {
    (!letters.is_empty()).then(|| letters.remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Known] = &[
        flag(b'q', "quiet"),
        value(b'f', "format"),
        long("image-opts"),
        long_value("output"),
        long_value("object"),
    ];

    type Parsed = (Vec<(String, String)>, Vec<OsString>);

    fn parse(words: &[&str]) -> Result<Parsed, String> {
        let mut words = Words::new(words.iter().map(OsString::from), KNOWN);
        let mut found = Vec::new();
        while let Some(option) = words.next() {
            let option = option?;
            found.push((option.name.to_owned(), option.text()));
        }
        Ok((found, words.operands()))
    }

    #[test]
    fn options_stand_anywhere() {
        for words in [
            &["a", "-q", "-f", "raw", "b"][..],
            &["-qfraw", "a", "b"],
            &["a", "b", "--quiet", "--format=raw"],
            &["--qu", "--form", "raw", "a", "--", "b"],
        ] {
            let (options, operands) = parse(words).unwrap();
            let options: Vec<_> = options.iter().map(|(n, a)| (n.as_str(), a.as_str())).collect();
            assert_eq!(options, [("quiet", ""), ("format", "raw")], "{words:?}");
            assert_eq!(operands, ["a", "b"], "{words:?}");
        }
        assert_eq!(parse(&["--", "-q", "-"]).unwrap().1, ["-q", "-"]);
    }

    #[test]
    fn what_is_wrong_is_said_as_the_c_library_says_it() {
        for (words, message) in [
            (&["-x"][..], "invalid option -- 'x'"),
            (&["-qx"], "invalid option -- 'x'"),
            (&["-f"], "option requires an argument -- 'f'"),
            (&["--nope"], "unrecognized option '--nope'"),
            (&["--nope=1"], "unrecognized option '--nope=1'"),
            (&["--format"], "option '--format' requires an argument"),
            (&["--quiet=1"], "option '--quiet' doesn't allow an argument"),
            (&["--o=1"], "option '--o=1' is ambiguous; possibilities: '--output' '--object'"),
        ] {
            assert_eq!(parse(words).unwrap_err(), message, "{words:?}");
        }
    }
}
