//! The commands: names, words and what each needs.
//!
//! ```text
//! name  short   needs a disk, one that takes writes   how many words   words -- what it does
//! read  r       a disk                                 2 or more        [-bCqrv] … off len
//! ```
//!
//! Callers: `session`, `control`.

use std::fmt;

use crate::cli::io::outcome::Outcome;
use crate::cli::io::session::Session;
use crate::cli::io::{control, look, read, write};

/// A command.
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) short: Option<&'static str>,
    pub(super) needs: Needs,
    pub(super) words: Count,
    /// Its words, as a person is told of them.
    pub(super) arguments: &'static str,
    /// What it does, in half a line.
    pub(super) summary: &'static str,
    /// Its options, a line each.
    pub(super) options: &'static [(&'static str, &'static str)],
    /// Runs it, called by this name, with these words.
    pub(super) run: fn(&mut Session<'_>, &str, &[&str]) -> Outcome,
}

/// What has to be open for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    Disk,
    Writer,
}

impl Needs {
    pub(super) fn disk(self) -> bool {
        self != Self::Nothing
    }

    pub(super) fn writer(self) -> bool {
        self == Self::Writer
    }
}

/// How many words a command takes, options and their values among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    least: usize,
    most: Option<usize>,
}

impl Count {
    const fn exactly(count: usize) -> Self {
        Self { least: count, most: Some(count) }
    }

    const fn at_least(least: usize) -> Self {
        Self { least, most: None }
    }

    const fn between(least: usize, most: usize) -> Self {
        Self { least, most: Some(most) }
    }

    /// What was expected instead of `count`, if that is wrong.
    pub(super) fn wrong(self, count: usize) -> Option<String> {
        let right = count >= self.least && self.most.is_none_or(|most| count <= most);
        (!right).then(|| match self.most {
            Some(most) if most == self.least => format!("{most} arguments"),
            Some(most) => format!("between {} and {most} arguments", self.least),
            None => format!("at least {} arguments", self.least),
        })
    }
}

impl Command {
    /// The line a person is shown whose words were wrong.
    pub(super) fn line(&self) -> impl fmt::Display {
        let space = if self.arguments.is_empty() { "" } else { " " };
        format!("{}{space}{} -- {}", self.name, self.arguments, self.summary)
    }
}

/// The command of that name, long or short.
pub(super) fn named(name: &str) -> Option<&'static Command> {
    ALL.iter().find(|command| command.name == name || command.short == Some(name))
}

const TERSE: (&str, &str) = ("-C", "numbers for a program to read");
const QUIET: (&str, &str) = ("-q", "say nothing of what was done");
const NOTHING: (&str, &str) = ("-p, -r", "taken and ignored");
const FORCE: (&str, &str) = ("-f", "durable when it returns");

/// All of them, by name.
pub(super) const ALL: &[Command] = &[
    Command {
        name: "alloc",
        short: Some("a"),
        needs: Needs::Disk,
        words: Count::between(1, 2),
        arguments: "offset [count]",
        summary: "how much of a range the image itself holds",
        options: &[],
        run: look::alloc,
    },
    Command {
        name: "close",
        short: Some("c"),
        needs: Needs::Disk,
        words: Count::exactly(0),
        arguments: "",
        summary: "close the disk",
        options: &[],
        run: control::close,
    },
    Command {
        name: "discard",
        short: Some("d"),
        needs: Needs::Writer,
        words: Count::at_least(2),
        arguments: "[-Cq] off len",
        summary: "give a range back",
        options: &[TERSE, QUIET],
        run: write::discard,
    },
    Command {
        name: "flush",
        short: Some("f"),
        needs: Needs::Disk,
        words: Count::exactly(0),
        arguments: "",
        summary: "make durable what was written",
        options: &[],
        run: write::flush,
    },
    Command {
        name: "help",
        short: Some("?"),
        needs: Needs::Nothing,
        words: Count::between(0, 1),
        arguments: "[command]",
        summary: "what the commands do, or one of them",
        options: &[],
        run: control::help,
    },
    Command {
        name: "length",
        short: Some("l"),
        needs: Needs::Disk,
        words: Count::exactly(0),
        arguments: "",
        summary: "size of the disk",
        options: &[],
        run: look::length,
    },
    Command {
        name: "map",
        short: None,
        needs: Needs::Disk,
        words: Count::exactly(0),
        arguments: "",
        summary: "which ranges the image itself holds",
        options: &[],
        run: look::map,
    },
    Command {
        name: "open",
        short: Some("o"),
        needs: Needs::Nothing,
        words: Count::at_least(1),
        arguments: "[-nrU] [-t cache] [-d discard] [-o options] path",
        summary: "open a disk",
        options: &[
            ("-d ignore|unmap", "what discard does; unmap if nothing is said"),
            ("-n", "short for -t none"),
            ("-o driver=FORMAT", "its format: raw or qcow2"),
            ("-r", "only to be read"),
            ("-t writethrough|directsync", "durable with each write; so if nothing is said"),
            ("-t writeback|none", "durable once flushed or closed"),
            ("-t unsafe", "never made durable"),
            ("-U", "with -r, even while others write to it"),
        ],
        run: control::open,
    },
    Command {
        name: "quit",
        short: Some("q"),
        needs: Needs::Nothing,
        words: Count::at_least(0),
        arguments: "",
        summary: "end the session",
        options: &[],
        run: control::quit,
    },
    Command {
        name: "read",
        short: Some("r"),
        needs: Needs::Disk,
        words: Count::at_least(2),
        arguments: "[-bCqrv] [-P pattern [-s off] [-l len]] off len",
        summary: "read a range",
        options: &[
            ("-b", "from the saved state of a VM; not supported"),
            TERSE,
            ("-l len", "how much to compare, with -P"),
            ("-P pattern", "compare with this byte"),
            NOTHING,
            QUIET,
            ("-s off", "where in the range to start comparing, with -P"),
            ("-v", "show the bytes"),
        ],
        run: read::read,
    },
    Command {
        name: "readv",
        short: None,
        needs: Needs::Disk,
        words: Count::at_least(2),
        arguments: "[-Cqrv] [-P pattern] off len [len..]",
        summary: "read a range that several lengths add up to",
        options: &[
            TERSE,
            ("-P pattern", "compare with this byte"),
            QUIET,
            ("-v", "show the bytes"),
        ],
        run: read::readv,
    },
    Command {
        name: "sleep",
        short: None,
        needs: Needs::Nothing,
        words: Count::exactly(1),
        arguments: "milliseconds",
        summary: "wait",
        options: &[],
        run: control::sleep,
    },
    Command {
        name: "truncate",
        short: Some("t"),
        needs: Needs::Writer,
        words: Count::between(1, 3),
        arguments: "[-m prealloc_mode] off",
        summary: "change the disk's size; not supported yet",
        options: &[],
        run: control::truncate,
    },
    Command {
        name: "write",
        short: Some("w"),
        needs: Needs::Writer,
        words: Count::at_least(2),
        arguments: "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        summary: "write a range",
        options: &[
            ("-b", "into the saved state of a VM; not supported"),
            ("-c", "compressed; whole clusters, whatever they held"),
            TERSE,
            FORCE,
            (
                "-n",
                "with -z, only if that is sure to be quick: never in raw files, nor in version 2",
            ),
            ("-P pattern", "this byte instead of 0xcd"),
            NOTHING,
            QUIET,
            ("-s source_file", "what this file holds, over and over"),
            ("-u", "with -z, give back what becomes zeros"),
            ("-z", "zeros"),
        ],
        run: write::write,
    },
    Command {
        name: "writev",
        short: None,
        needs: Needs::Writer,
        words: Count::at_least(2),
        arguments: "[-Cfqr] [-P pattern] off len [len..]",
        summary: "write a range that several lengths add up to",
        options: &[TERSE, FORCE, ("-P pattern", "this byte instead of 0xcd"), QUIET],
        run: write::writev,
    },
];
