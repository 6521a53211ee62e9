//! Reports and errors, as text for a person or as JSON for a program.
//!
//! Names come from images and archives: what would drive a terminal is escaped, in JSON too. Reports go to standard output, everything else to standard error. A closed pipe is a normal
//! ending: nobody is left to read, so nothing is said.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Where a command says what it did.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether reports and errors are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress may be drawn: a person is watching and no program is parsing.
    pub(crate) fn draws_progress(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Prints a report: `text` for a person, `value` as JSON.
    pub(crate) fn report(&self, value: &impl Serialize, text: &str) -> Result<()> {
        let line = self.render(value, text)?;
        let mut stdout = io::stdout().lock();
        match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io("write to", "standard output", error))
            }
            _ => Ok(()),
        }
    }

    /// As [`Output::report`], on standard error: for a command whose product takes standard output.
    pub(crate) fn report_aside(&self, value: &impl Serialize, text: &str) -> Result<()> {
        let line = self.render(value, text)?;
        // The product is out; that nobody hears of it is no failure.
        let _ = io::stderr().write_all(line.as_bytes());
        Ok(())
    }

    fn render(&self, value: &impl Serialize, text: &str) -> Result<String> {
        let mut line = if self.json {
            serde_json::to_string_pretty(value).map_err(|error| {
                Error::new(ErrorKind::Io, "render the report as JSON").with_source(error)
            })?
        } else {
            text.to_owned()
        };
        if self.json {
            line = escape_hidden(&line);
        }
        if !line.ends_with('\n') {
            line.push('\n');
        }
        Ok(line)
    }

    /// Prints an error and the chain of its causes to standard error.
    pub(crate) fn error(&self, error: &Error) {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        let text = if self.json {
            let value = serde_json::json!({
                "error": {
                    "code": error.kind().code(),
                    "message": error.message(),
                    "path": error.path().map(|path| path.to_string_lossy()),
                    "field": error.field(),
                    "offset": error.offset(),
                    "hint": error.hint(),
                    "errno": error.io_error().and_then(io::Error::raw_os_error),
                    "causes": causes,
                }
            });
            escape_hidden(&value.to_string())
        } else {
            std::iter::once(error.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
        };
        let prefix = if self.json { "" } else { "disk-engine: " };
        // In one write: others may be writing to the same terminal or log.
        let _ = io::stderr().write_all(format!("{prefix}{text}\n").as_bytes());
    }
}

/// Whether a letter shows nothing of itself: controls, and what turns the direction of text.
pub(crate) fn is_hidden(letter: char) -> bool {
    !matches!(letter, '"' | '\'' | '\\') && letter.escape_debug().len() > 1
}

/// JSON with every hidden letter escaped; outside of its strings there are none but newlines.
fn escape_hidden(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter != '\n' && is_hidden(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_letters_are_escaped_and_mean_the_same() {
        for name in [
            "a\u{7f}b",
            "\u{9b}31m",
            "\u{202e}gpj",
            "\u{e0001}x",
            "plain \"ü\" \\ 雪",
            "\n\t\u{1b}",
        ] {
            let json = escape_hidden(&serde_json::to_string(name).unwrap());
            assert!(!json.chars().any(is_hidden), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), name);
        }
    }
}
