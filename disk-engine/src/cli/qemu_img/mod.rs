//! The qemu-img door: this program answers qemu-img's own command line.
//!
//! ```text
//! qemu-img … (a link), or disk-engine qemu-img …
//!   getopt   words ─▶ options, one by one, as the C library takes them
//!   number   1.5G         opts   KEY=VALUE,…        json   QEMU's JSON, both ways
//!   image    a name, json: or KEY=VALUE,… ─▶ which file in which format
//!   one file per command: one call of the library, answered in qemu-img's words
//!   complaint  an error of ours in qemu-img's words, as far as it has some
//! ```
//!
//! Whoever calls qemu-img trusts the images as far as it does, so plain names in them are followed
//! wherever they lead. Not so: a backing file whose format its header does not state is not guessed, and
//! nothing but a plain file is ever opened because an image says so.
//!
//! What is not supported is said by name, on standard error, and ends as an error of qemu-img's does.
//! Callers: `cli`.

mod asked;
mod bitmaps;
mod check;
mod compare;
mod complaint;
mod convert;
mod create;
mod dd;
mod device;
mod first_block;
mod getopt;
mod help;
mod image;
mod info;
mod json;
mod map;
mod measure;
mod new_image;
mod number;
mod opts;
mod place;
mod progress;
mod snapshot;
mod stated;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::process::ExitCode;

use getopt::{Found, Known, Words};
use help::Help;

/// The program's name, as it calls itself.
pub(crate) const NAME: &str = "qemu-img";

/// Why a command ends before its end.
#[derive(Debug)]
struct Stop {
    /// What is said on standard error, without the program's name; nothing if empty.
    text: String,
    /// Whether the command's help is pointed to.
    tip: bool,
    /// Whether the command's name is part of the program's, as the C library has it.
    named: bool,
    code: u8,
}

impl Stop {
    /// An error in plain words.
    fn said(text: impl Into<String>) -> Self {
        Self { text: text.into(), tip: false, named: false, code: 1 }
    }

    /// A command line that is wrong, and where to learn more.
    fn usage(text: impl Into<String>) -> Self {
        Self { tip: true, ..Self::said(text) }
    }

    /// An end without words.
    fn silent(code: u8) -> Self {
        Self { code, ..Self::said("") }
    }

    fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Self::said(text)
    }
}

/// How a command ends: its exit code.
type Outcome<T = u8> = Result<T, Stop>;

/// A command, and what it does with the words behind its name.
struct Command {
    name: &'static str,
    run: fn(Vec<OsString>) -> Outcome,
    known: &'static [Known],
    help: &'static Help,
}

const fn command(
    name: &'static str,
    run: fn(Vec<OsString>) -> Outcome,
    known: &'static [Known],
    help: &'static Help,
) -> Command {
    Command { name, run, known, help }
}

const COMMANDS: &[Command] = &[
    command("check", check::run, check::KNOWN, &check::HELP),
    command("compare", compare::run, compare::KNOWN, &compare::HELP),
    command("convert", convert::run, asked::KNOWN, &convert::HELP),
    command("create", create::run, create::KNOWN, &create::HELP),
    command("dd", dd::run, dd::KNOWN, &dd::HELP),
    command("info", info::run, info::KNOWN, &info::HELP),
    command("map", map::run, map::KNOWN, &map::HELP),
    command("measure", measure::run, measure::KNOWN, &measure::HELP),
];

/// Commands of qemu-img that are not answered.
const OTHERS: &[&str] = &["amend", "bench", "bitmap", "commit", "rebase", "resize", "snapshot"];

const STANDARD: &[Known] =
    &[getopt::flag(b'h', "help"), getopt::flag(b'V', "version"), getopt::value(b'T', "trace")];

/// Whether the program was called by qemu-img's name.
pub(crate) fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.map(std::path::Path::new).and_then(std::path::Path::file_name);
    name.is_some_and(|name| name == NAME)
}

/// Answers the command line `words`, which begin behind the program's name, by which it was called.
pub(crate) fn main(called: Option<&OsStr>, words: Vec<OsString>) -> ExitCode {
    let (command, outcome) = answer(words);
    let code = match outcome {
        Ok(code) => code,
        Err(stop) => {
            let called = called.map_or(NAME.into(), OsStr::to_string_lossy);
            complain(&called, command, &stop);
            stop.code
        }
    };
    ExitCode::from(code)
}

fn answer(mut words: Vec<OsString>) -> (Option<&'static str>, Outcome) {
    // The first word that is no option names the command; what follows is the command's.
    let mut index = 0;
    while let Some(word) = words.get(index) {
        let word = word.as_encoded_bytes();
        if word == b"--" || !word.starts_with(b"-") || word == b"-" {
            break;
        }
        let separate = word == b"-T" || word.len() > 3 && b"--trace".starts_with(word);
        index += if separate { 2 } else { 1 };
    }
    let mut rest = words.split_off(index.min(words.len()));
    if let Err(stop) = standard(words) {
        return (None, Err(stop));
    }
    if rest.first().is_some_and(|word| word == "--") {
        rest.remove(0);
    }
    if rest.is_empty() {
        return (None, Err(Stop::usage("Not enough arguments")));
    }
    let name = rest.remove(0);
    if let Some(command) = COMMANDS.iter().find(|command| name == command.name) {
        return (Some(command.name), (command.run)(rest));
    }
    let shown = name.to_string_lossy();
    if OTHERS.iter().any(|other| name == *other) {
        let text = format!("the command '{shown}' is not supported by this program");
        return (None, Err(Stop::usage(text)));
    }
    (None, Err(Stop::usage(format!("Command not found: {shown}"))))
}

/// The options before the command.
fn standard(words: Vec<OsString>) -> Outcome<()> {
    let mut words = Words::new(words, STANDARD);
    while let Some(found) = words.next() {
        let found = found.map_err(|text| Stop { named: true, ..Stop::usage(text) })?;
        match found.name {
            "help" => {
                let commands = COMMANDS.iter().map(|command| (command.name, command.help));
                print(&help::general(STANDARD, commands));
                return Err(Stop::silent(0));
            }
            "version" => {
                print(&help::version());
                return Err(Stop::silent(0));
            }
            _ => trace(&found.text())?,
        }
    }
    Ok(())
}

/// `-T [enable=]PATTERN`: there are no trace events, and a name that is no pattern should be one.
fn trace(list: &str) -> Outcome<()> {
    let mut enabled = None;
    for (index, part) in opts::split(list).into_iter().enumerate() {
        match part.split_once('=') {
            Some(("enable", name)) => enabled = Some(name.to_owned()),
            Some(("events" | "file", _)) => {}
            None if index == 0 => enabled = Some(part),
            Some((name, _)) => return Err(Stop::said(format!("Invalid parameter '{name}'"))),
            None => return Err(Stop::said(format!("Invalid parameter '{part}'"))),
        }
    }
    let Some(name) = enabled else { return Ok(()) };
    let name = name.strip_prefix('-').unwrap_or(&name);
    if name == "help" {
        return Err(Stop::silent(0));
    }
    if !name.is_empty() && !name.contains('*') {
        warn(&format!("trace event '{name}' does not exist"));
    }
    Ok(())
}

fn complain(called: &str, command: Option<&str>, stop: &Stop) {
    if stop.text.is_empty() {
        return;
    }
    let command = command.map(|command| format!(" {command}")).unwrap_or_default();
    let program = if stop.named { format!("{called}{command}") } else { NAME.to_owned() };
    let tip = if stop.tip {
        format!("Try '{called}{command} --help' for more info\n")
    } else {
        String::new()
    };
    tell(&format!("{program}: {}\n{tip}", stop.text));
}

/// The next option of a command; its help ends it.
fn next_option(command: &'static str, words: &mut Words<'_>) -> Outcome<Option<Found>> {
    match words.next() {
        None => Ok(None),
        Some(Err(text)) => Err(Stop { named: true, ..Stop::usage(text) }),
        Some(Ok(found)) if found.name == "help" => {
            if let Some(found) = COMMANDS.iter().find(|known| known.name == command) {
                print(&help::command(found.name, found.help, found.known));
            }
            Err(Stop::silent(0))
        }
        Some(Ok(found)) => Ok(Some(found)),
    }
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Human,
    Json,
}

impl Form {
    fn parse(found: &Found) -> Outcome<Self> {
        match found.text().as_str() {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(Stop::usage(format!("--output expects 'human' or 'json' not '{other}'"))),
        }
    }
}

/// Writes to standard output. Whoever closes it does not want to hear more.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes to standard error.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Says something on standard error that stops nothing.
fn warn(text: &str) {
    tell(&format!("{NAME}: warning: {text}\n"));
}
