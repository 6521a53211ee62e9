//! What a check tells, line by line, as far as anybody reads it.
//!
//! ```text
//! finding, finding, … ─▶ the first 1000 lines ─▶ standard error
//!                    └─▶ the rest, counted by kind ─▶ a line for each kind; JSON
//! ```
//!
//! Callers: `check`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use crate::ops::check::CheckEvent;

/// Lines, unless others are asked for.
pub(crate) const LINES: u64 = 1000;

/// How many lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    All,
    First(u64),
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::First(most) => write!(f, "{most}"),
        }
    }
}

impl FromStr for Lines {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::First)
                .map_err(|_| format!("'{}' is neither a number nor 'all'", text.escape_debug())),
        }
    }
}

/// What was told, and what only counted.
#[derive(Debug)]
pub(crate) struct Listing {
    lines: Lines,
    written: u64,
    unlisted: BTreeMap<&'static str, u64>,
}

impl Listing {
    pub(crate) fn new(lines: Lines) -> Self {
        Self { lines, written: 0, unlisted: BTreeMap::new() }
    }

    /// Whether the event is written; else it is counted.
    pub(crate) fn takes(&mut self, event: &CheckEvent<'_>) -> bool {
        if matches!(self.lines, Lines::First(most) if self.written >= most) {
            let (kind, times) = match event {
                CheckEvent::Found(finding, times) => (finding.kind(), *times),
                CheckEvent::Fixing(fix) => (fix.kind(), 1),
            };
            let count = self.unlisted.entry(kind).or_default();
            *count = count.saturating_add(times);
            return false;
        }
        self.written = self.written.saturating_add(1);
        true
    }

    /// What was not written: how often, by kind.
    pub(crate) fn unlisted(&self) -> &BTreeMap<&'static str, u64> {
        &self.unlisted
    }

    /// Says what was not written.
    pub(crate) fn end(&self, lines: &mut impl Write) -> io::Result<()> {
        if self.unlisted.is_empty() {
            return Ok(());
        }
        writeln!(lines, "Behind the first {} lines, not listed (--list all does):", self.written)?;
        self.unlisted.iter().try_for_each(|(kind, count)| writeln!(lines, "  {count} × {kind}"))
    }
}

/// Writes the line of an event.
pub(crate) fn line(lines: &mut impl Write, event: &CheckEvent<'_>) -> io::Result<()> {
    match event {
        CheckEvent::Found(finding, 1) => writeln!(lines, "{finding}"),
        CheckEvent::Found(finding, times) => writeln!(lines, "{finding} ({times} times)"),
        CheckEvent::Fixing(fix) => {
            let lost = fix.lost().map(|(guest, length)| {
                let end = guest.to_u64().saturating_add(length);
                format!(" [lost: {guest} to {end:#x}]")
            });
            writeln!(lines, "{fix}{}", lost.unwrap_or_default())
        }
    }
}
