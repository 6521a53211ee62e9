//! The command line: words in, one library call, words out.
//!
//! ```text
//! mod       parse, run, exit code
//! output    reports as text or JSON, errors as one sentence with their causes
//! progress  long work, drawn for a person
//! size      "50G", "1.5T", "4096"
//! duration  "7d", "12h"
//! qemu_img  qemu-img's own command line, answered
//! one file per command: fill options, call one operation, render one report
//! ```
//!
//! With `--json` every error is JSON, wrong words included (code `invalid-input`).
//!
//! Exit codes: 0 done; 1 failed; 2 the command line was wrong; 3 the input is corrupt or does not
//! match; 4 no space; 5 someone else has it: timed out waiting, or an image is in
//! use. `check` has qemu-img's instead.

mod attach;
mod base;
mod cache;
mod cache_list;
mod cache_prune;
mod cache_verify;
mod check;
mod check_listing;
mod check_report;
mod compare;
mod config_disk;
mod convert;
mod create;
mod duration;
mod extract;
mod follow;
mod info;
mod io;
mod map;
mod measure;
mod options;
mod output;
mod overlay;
mod pack;
mod prepare;
mod progress;
mod qemu_img;
mod rebase;
mod size;
mod source;
mod stdout;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, ErrorKind};
use crate::sys::signal;
pub(crate) use output::Output;

/// What clap does not know: the door has a command line of its own.
const AFTER_HELP: &str = "Called by the name qemu-img, or as disk-engine qemu-img …, this program answers \
    qemu-img's command line.";

/// As documented above and in the README.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 the command line was wrong; 3 the input is \
    corrupt or does not match; 4 no space; 5 someone else has it: timed out waiting, or an image is \
    in use. The command check has qemu-img's: see its help.";

/// One compressed image archive in, any number of thin VM disks out.
#[derive(Debug, Parser)]
#[command(name = "disk-engine", version, about, max_term_width = 100, after_help = format!("{EXIT_CODES}\n\n{AFTER_HELP}"))]
struct Arguments {
    /// Print the report (and any error) as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Prepare(prepare::Arguments),
    Extract(extract::Arguments),
    Convert(convert::Arguments),
    Pack(pack::Arguments),
    Base(base::Arguments),
    Cache(cache::Arguments),
    Overlay(overlay::Arguments),
    Rebase(rebase::Arguments),
    Create(create::Arguments),
    ConfigDisk(config_disk::Arguments),
    Check(check::Arguments),
    Info(info::Arguments),
    Map(map::Arguments),
    Measure(measure::Arguments),
    Compare(compare::Arguments),
    Io(io::Arguments),
    Attach(attach::Arguments),
    Usage(usage::Arguments),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    signal::survive_file_size_limit();
    let mut words = std::env::args_os();
    let program = words.next();
    if qemu_img::is_called(program.as_deref()) {
        return qemu_img::main(program.as_deref(), words.collect());
    }
    if words.next().is_some_and(|word| word == qemu_img::NAME) {
        return qemu_img::main(None, words.collect());
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() && json_wanted() => {
            Output::new(true).error(&usage(&error));
            return ExitCode::from(wrong_words());
        }
        Err(error) => {
            // Printing help into a closed pipe is a normal ending.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { wrong_words() } else { 0 });
        }
    };
    let output = Output::new(arguments.json);
    let outcome = match arguments.command {
        Command::Prepare(arguments) => prepare::run(arguments, &output),
        Command::Extract(arguments) => extract::run(arguments, &output),
        Command::Convert(arguments) => convert::run(arguments, &output),
        Command::Pack(arguments) => pack::run(arguments, &output),
        Command::Base(arguments) => base::run(arguments, &output),
        Command::Cache(arguments) => cache::run(arguments, &output),
        Command::Overlay(arguments) => overlay::run(arguments, &output),
        Command::Rebase(arguments) => rebase::run(arguments, &output),
        Command::Create(arguments) => create::run(arguments, &output),
        Command::ConfigDisk(arguments) => config_disk::run(arguments, &output),
        Command::Check(arguments) => return ExitCode::from(check::run(&arguments, &output)),
        Command::Info(arguments) => info::run(arguments, &output),
        Command::Map(arguments) => map::run(arguments, &output),
        Command::Measure(arguments) => measure::run(arguments, &output),
        Command::Compare(arguments) => match compare::run(arguments, &output) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Io(arguments) => match io::run(arguments, &output) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Attach(arguments) => attach::run(arguments, &output),
        Command::Usage(arguments) => usage::run(arguments, &output),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(match error.kind() {
                ErrorKind::InvalidInput => 2,
                ErrorKind::Corrupt | ErrorKind::Mismatch => 3,
                ErrorKind::NoSpace => 4,
                ErrorKind::Busy => 5,
                _ => 1,
            })
        }
    }
}

/// Whether the command line asks for JSON, as far as one can tell that is wrong.
fn json_wanted() -> bool {
    std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json")
}

/// The exit code of a wrong command line: 2, which means something else where codes are qemu-img's.
fn wrong_words() -> u8 {
    let command = std::env::args_os().skip(1).find(|word| word != "--json");
    if command.is_some_and(|command| command == "check") { 1 } else { 2 }
}

/// What is wrong with the command line: the parser's own words up to its hints.
fn usage(error: &clap::Error) -> Error {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::new(ErrorKind::InvalidInput, "no command is given");
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines = text.lines().map(str::trim).take_while(|line| {
        !["Usage:", "tip:", "For more information"].iter().any(|start| line.starts_with(start))
    });
    let message: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    Error::new(ErrorKind::InvalidInput, message.join(" "))
}
