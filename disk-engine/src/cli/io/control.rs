//! `open`, `close`, `sleep`, `help`, `quit`, and `truncate`, which is still to come.

use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;

use crate::cli::io::command::{self, ALL};
use crate::cli::io::number;
use crate::cli::io::opening::{Cache, Discard};
use crate::cli::io::outcome::{Failure, Outcome};
use crate::cli::io::session::Session;
use crate::cli::io::words::Words;
use crate::cli::overlay::Format;
use crate::error::{Error, ErrorKind};

pub(super) fn open(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let mut words = Words::new(name, "d:no:rt:U", words);
    let mut opening = session.opening.clone();
    let mut format = None;
    while let Some((letter, value)) = words.option()? {
        match letter {
            'd' => {
                let mode = Discard::from_str(value, false);
                opening.mode.discard =
                    mode.map_err(|_| wrong(format!("Invalid discard option: {value}")))?;
            }
            'n' => opening.mode.cache = Cache::None,
            'o' => format = Some(driver(value)?),
            't' => {
                let mode = Cache::from_str(value, false);
                opening.mode.cache =
                    mode.map_err(|_| wrong(format!("Invalid cache option: {value}")))?;
            }
            'U' => opening.mode.shared = true,
            _ => opening.mode.read_only = true,
        }
    }
    let operands = words.operands();
    let &[path] = operands.as_slice() else { return Err(Failure::Usage { complaint: None }) };
    if session.disk.is_some() {
        return Err(wrong("file open already, try 'help close'".to_owned()));
    }
    let disk = opening.open(Path::new(path), format).map_err(Failure::Reported)?;
    session.disk = Some(disk);
    Ok(())
}

pub(super) fn close(session: &mut Session<'_>, _: &str, _: &[&str]) -> Outcome {
    session.close().map_err(Failure::Reported)
}

pub(super) fn quit(session: &mut Session<'_>, _: &str, _: &[&str]) -> Outcome {
    session.done = true;
    Ok(())
}

pub(super) fn sleep(_: &mut Session<'_>, _: &str, words: &[&str]) -> Outcome {
    for word in words {
        thread::sleep(Duration::from_millis(number::milliseconds(word)?));
    }
    Ok(())
}

pub(super) fn truncate(_: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let mut words = Words::new(name, "m:", words);
    while words.option()?.is_some() {}
    for word in words.operands() {
        number::size(word)?;
    }
    let message = "truncate is not supported yet: the disk keeps its size";
    Err(Failure::Reported(Error::new(ErrorKind::Unsupported, message)))
}

pub(super) fn help(session: &mut Session<'_>, _: &str, words: &[&str]) -> Outcome {
    let Some(name) = words.first() else {
        for command in ALL {
            session.say(command.line());
        }
        session.say("\nUse 'help commandname' for extended help.");
        return Ok(());
    };
    let Some(command) = command::named(name) else {
        return Err(Failure::Said(format!("command {name} not found")));
    };
    session.say(command.line());
    if let Some(short) = command.short {
        session.say(format_args!("\n {short} is short for it"));
    }
    if !command.options.is_empty() {
        session.say("");
    }
    for (option, meaning) in command.options {
        session.say(format_args!(" {option} -- {meaning}"));
    }
    Ok(())
}

fn driver(options: &str) -> Outcome<Format> {
    let Some(driver) = options.strip_prefix("driver=") else {
        return Err(wrong(format!("Invalid option: {options}")));
    };
    Format::from_str(driver, false).map_err(|_| wrong(format!("Unknown driver '{driver}'")))
}

fn wrong(message: String) -> Failure {
    Failure::Reported(Error::new(ErrorKind::InvalidInput, message))
}
