//! `disk-engine io`: a disk's bytes, read and written by commands.
//!
//! ```text
//! io FILE -c COMMAND…        each in turn, whatever became of the one before
//! io FILE                    a prompt for a person; lines from a pipe, without one
//! ```
//!
//! Commands, what they print and how they fail are qemu-io's, so that scripts move over by changing
//! the program. What they do is ours.
//!
//! ```text
//! command   names, words, needs          words     options and operands      range   off len
//! session   one line run, failures told  number    sizes in and out          outcome how it fails
//! opening   files into disks             target    what commands work on
//! read, write, look, control: the commands     dump, timing: how bytes and times are shown
//! ```

mod command;
mod control;
mod dump;
mod look;
mod number;
mod opening;
mod outcome;
mod range;
mod read;
mod session;
mod target;
mod timing;
mod words;
mod write;

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Output;
use crate::cli::follow::Follow;
use crate::cli::overlay::Format;
use crate::error::{Error, Result};
use opening::{Cache, Discard, Mode, Opening};
use session::Session;

/// What a person is asked with.
const PROMPT: &str = "disk-engine> ";

/// Read and write a disk's bytes, with qemu-io's commands
///
/// Without -c, commands are read from standard input, a line each. Exits with 1 if any command
/// failed. 'disk-engine io -c help' tells the commands. Their words and what they print are
/// qemu-io's, also with --json.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The disk; without it a command has to open one
    file: Option<PathBuf>,
    /// Run this command; may be given again
    #[arg(long = "cmd", short = 'c', value_name = "COMMAND", allow_hyphen_values = true)]
    commands: Vec<String>,
    /// Only read it
    #[arg(long, short = 'r', requires = "file")]
    read_only: bool,
    /// With -r, even while others write to it; what is read may then be of no single moment
    #[arg(long, short = 'U', requires = "file")]
    force_share: bool,
    /// The image's format; without it a file that begins as qcow2 is taken for that
    #[arg(long, short = 'f', value_enum, requires = "file")]
    format: Option<Format>,
    /// What discard does; unmap if nothing is said
    #[arg(long, short = 'd', value_enum, value_name = "MODE", requires = "file")]
    discard: Option<Discard>,
    /// When what is written is durable; writethrough if nothing is said
    #[arg(
        long,
        short = 't',
        value_enum,
        value_name = "MODE",
        requires = "file",
        overrides_with = "nocache"
    )]
    cache: Option<Cache>,
    /// Short for -t none
    #[arg(long, short = 'n', requires = "file", overrides_with = "cache")]
    nocache: bool,
    #[command(flatten)]
    follow: Follow,
}

/// Returns the exit code: whether every command did what it should.
pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<ExitCode> {
    let mut opening = Opening {
        mode: Mode {
            read_only: arguments.read_only,
            shared: arguments.force_share,
            discard: arguments.discard.unwrap_or_default(),
            cache: if arguments.nocache {
                Cache::None
            } else {
                arguments.cache.unwrap_or_default()
            },
        },
        policy: arguments.follow.policy(),
        data_files: arguments.follow.data_files(),
    };
    let disk = match &arguments.file {
        Some(file) => Some(opening.open(file, arguments.format)?),
        None => None,
    };
    // How a disk is opened later is said where that is asked for.
    opening.mode = Mode::default();
    let mut session = Session::new(opening, output);
    session.disk = disk;
    if arguments.commands.is_empty() {
        converse(&mut session)?;
    }
    for command in &arguments.commands {
        if session.done {
            break;
        }
        session.execute(command);
    }
    Ok(if session.end()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the lines of standard input.
fn converse(session: &mut Session<'_>) -> Result<()> {
    let person = io::stdin().is_terminal();
    let mut stdin = io::stdin().lock();
    let mut line = Vec::new();
    while !session.done {
        if person {
            session.prompt(PROMPT);
        }
        line.clear();
        let count = stdin
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::io("read from", "standard input", error))?;
        if count == 0 {
            if person {
                session.prompt("\n");
            }
            break;
        }
        session.execute(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
    }
    Ok(())
}
