//! A command's words: options and operands in any order, as getopt of the GNU C library tells them
//! apart.
//!
//! ```text
//! read -qP 0x41 0 -v 512 -- -5
//!       │└────┘   │      │
//!       │ value   flag   only operands from here on
//! ```
//!
//! Callers: the commands that take options.

use crate::cli::io::outcome::Failure;

/// The options of a command, one by one, and what is no option.
#[derive(Debug)]
pub(super) struct Words<'a> {
    command: &'a str,
    /// Letters of the options; a colon behind one that has a value.
    known: &'static str,
    words: std::slice::Iter<'a, &'a str>,
    /// What is left of a word of several options.
    letters: &'a str,
    operands: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// The words behind the name `command`, of which those in `known` are options.
    pub(super) fn new(command: &'a str, known: &'static str, words: &'a [&'a str]) -> Self {
        Self { command, known, words: words.iter(), letters: "", operands: Vec::new() }
    }

    /// The next option, with its value if it has one: nothing once all are told.
    ///
    /// # Errors
    ///
    /// The command has no such option, or its value is missing.
    pub(super) fn option(&mut self) -> Result<Option<(char, &'a str)>, Failure> {
        while self.letters.is_empty() {
            match self.words.next() {
                None => return Ok(None),
                Some(&"--") => self.operands.extend(self.words.by_ref()),
                Some(word) => match word.strip_prefix('-') {
                    Some(letters) if !letters.is_empty() => self.letters = letters,
                    _ => self.operands.push(word),
                },
            }
        }
        let mut letters = self.letters.chars();
        let Some(letter) = letters.next() else { return Ok(None) };
        let rest = letters.as_str();
        self.letters = "";
        let Some(behind) = self.known.split_once(letter).filter(|_| letter != ':') else {
            return Err(self.wrong(&format!("invalid option -- '{letter}'")));
        };
        if !behind.1.starts_with(':') {
            self.letters = rest;
            return Ok(Some((letter, "")));
        }
        let value = if rest.is_empty() { self.words.next().copied() } else { Some(rest) };
        match value {
            Some(value) => Ok(Some((letter, value))),
            None => Err(self.wrong(&format!("option requires an argument -- '{letter}'"))),
        }
    }

    /// What was no option.
    pub(super) fn operands(self) -> Vec<&'a str> {
        self.operands
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::Usage { complaint: Some(format!("{}: {what}", self.command)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options as they are told, and operands; or what is complained about.
    fn told(words: &[&str]) -> Result<(String, Vec<String>), String> {
        let mut words = Words::new("read", "bP:qs:v", words);
        let mut options = String::new();
        loop {
            match words.option() {
                Ok(Some((letter, value))) => options.push_str(&format!("{letter}[{value}]")),
                Ok(None) => break,
                Err(Failure::Usage { complaint }) => return Err(complaint.unwrap()),
                Err(other) => panic!("{other:?}"),
            }
        }
        Ok((options, words.operands().into_iter().map(str::to_owned).collect()))
    }

    #[test]
    fn options_stand_anywhere_and_together() {
        for (words, options, operands) in [
            (&["0", "512"][..], "", &["0", "512"][..]),
            (&["-qP", "1", "0", "-v", "512"], "q[]P[1]v[]", &["0", "512"]),
            (&["-qP1", "0"], "q[]P[1]", &["0"]),
            (&["-P", "-1", "0"], "P[-1]", &["0"]),
            (&["0", "--", "-q"], "", &["0", "-q"]),
            (&["-", "-q"], "q[]", &["-"]),
            (&["-P", "--", "0"], "P[--]", &["0"]),
        ] {
            let operands = operands.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(told(words), Ok((options.to_owned(), operands)), "{words:?}");
        }
    }

    #[test]
    fn what_is_no_option_is_named() {
        assert_eq!(told(&["-x"]).unwrap_err(), "read: invalid option -- 'x'");
        assert_eq!(told(&["-:"]).unwrap_err(), "read: invalid option -- ':'");
        assert_eq!(told(&["0", "-é"]).unwrap_err(), "read: invalid option -- 'é'");
        assert_eq!(told(&["0", "-qs"]).unwrap_err(), "read: option requires an argument -- 's'");
    }
}
