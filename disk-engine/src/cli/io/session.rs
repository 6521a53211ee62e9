//! A session: one disk at a time, commands one after the other.
//!
//! ```text
//! "read -P 1 0 64k" ─▶ words ─▶ command ─▶ a disk open? ─▶ enough words? ─▶ may it write? ─▶ run
//!                                                                                           │
//! standard output ◀─ what it says                    failed, whatever comes after ◀─ failure ┘
//! ```
//!
//! Callers: `io`, the commands.

use std::io::{self, BufWriter, Stdout, Write};

use crate::cli::Output;
use crate::cli::io::command::{self, Command};
use crate::cli::io::opening::Opening;
use crate::cli::io::outcome::{Failure, Outcome, errno_text};
use crate::cli::io::target::{Target, Writer};
use crate::error::{Error, ErrorKind, Result};

/// What commands share.
pub(super) struct Session<'a> {
    pub(super) opening: Opening,
    pub(super) disk: Option<Box<dyn Target>>,
    /// Set by the last command.
    pub(super) done: bool,
    /// Whether any command failed.
    failed: bool,
    console: BufWriter<Stdout>,
    output: &'a Output,
}

impl<'a> Session<'a> {
    pub(super) fn new(opening: Opening, output: &'a Output) -> Self {
        let console = BufWriter::new(io::stdout());
        Self { opening, disk: None, done: false, failed: false, console, output }
    }

    /// Runs one line. A failure is told, and remembered for the end.
    pub(super) fn execute(&mut self, line: &str) {
        // As in qemu-io, nothing but spaces parts words, and quotes are letters.
        let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let Some((name, words)) = words.split_first() else { return };
        let outcome = match command::named(name) {
            Some(command) => self
                .admit(command, name, words.len())
                .and_then(|()| (command.run)(self, name, words))
                .map_err(|failure| (failure, Some(command))),
            None => Err((Failure::Told(format!("command \"{name}\" not found")), None)),
        };
        if let Err((failure, command)) = outcome {
            self.failed = true;
            self.tell(failure, command);
        }
        self.flush_console();
    }

    /// Ends the session: the disk is closed. Returns whether every command did what it should.
    pub(super) fn end(mut self) -> Result<bool> {
        self.close()?;
        self.flush_console();
        Ok(!self.failed)
    }

    /// Closes the disk that is open, if one is.
    pub(super) fn close(&mut self) -> Result<()> {
        self.disk.take().map_or(Ok(()), Target::close)
    }

    /// The disk that is open.
    pub(super) fn target(&self) -> Outcome<&dyn Target> {
        self.disk.as_deref().ok_or_else(none_open)
    }

    /// The disk that is open, as one that takes writes.
    pub(super) fn writer(&self) -> Outcome<&dyn Writer> {
        self.target()?.writer().ok_or_else(|| {
            let message = "Block node is read-only";
            Failure::Reported(Error::new(ErrorKind::PermissionDenied, message))
        })
    }

    /// Says a line on standard output.
    pub(super) fn say(&mut self, line: impl std::fmt::Display) {
        let written = writeln!(self.console, "{line}");
        self.heard(written);
    }

    /// As [`Session::say`], without an end of line, and at once.
    pub(super) fn prompt(&mut self, text: &str) {
        let written = write!(self.console, "{text}");
        self.heard(written);
        self.flush_console();
    }

    fn flush_console(&mut self) {
        let written = self.console.flush();
        self.heard(written);
    }

    fn heard(&mut self, written: io::Result<()>) {
        match written {
            // Nobody listens any more; what is asked for is done all the same.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => self.failed = true,
            Ok(()) => {}
        }
    }

    /// In qemu-io's order, so that the same complaint comes first.
    fn admit(&self, command: &Command, name: &str, count: usize) -> Outcome {
        if command.needs.disk() && self.disk.is_none() {
            return Err(none_open());
        }
        if let Some(expected) = command.words.wrong(count) {
            return Err(Failure::Told(format!(
                "bad argument count {count} to {name}, expected {expected}"
            )));
        }
        if command.needs.writer() {
            self.writer()?;
        }
        Ok(())
    }

    fn tell(&mut self, failure: Failure, command: Option<&Command>) {
        match failure {
            Failure::Said(sentence) => self.say(sentence),
            Failure::Told(sentence) => self.complain(&sentence),
            Failure::Reported(error) => {
                self.flush_console();
                self.output.error(&error);
            }
            Failure::OutOfRange { doing } => {
                self.say(format_args!(
                    "{doing} failed: {}",
                    errno_text(&Error::new(ErrorKind::Io, ""))
                ));
            }
            Failure::Storage { doing, error } => {
                self.say(format_args!("{doing} failed: {}", errno_text(&error)));
                self.flush_console();
                self.output.error(&error);
            }
            Failure::Usage { complaint } => {
                if let Some(complaint) = complaint {
                    self.complain(&complaint);
                }
                if let Some(command) = command {
                    self.say(command.line());
                }
            }
            Failure::Shown => {}
        }
    }

    fn complain(&mut self, sentence: &str) {
        self.flush_console();
        let _ = io::stderr().write_all(format!("{sentence}\n").as_bytes());
    }
}

fn none_open() -> Failure {
    Failure::Told("no file open, try 'help open'".to_owned())
}
