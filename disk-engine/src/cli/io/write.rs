//! `write`, `writev`, `discard`, `flush`: what changes the disk.
//!
//! ```text
//! write 0 64k          0xcd, or -P PATTERN, or what the file -s holds, over and over
//! write -c 0 64k       the same, stored compressed
//! write -z [-u] 0 64k  zeros, without a byte being sent
//! discard 0 64k        whatever, and no storage
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

use crate::cli::io::number;
use crate::cli::io::outcome::{Failure, Outcome, system_text};
use crate::cli::io::range::{LENGTH_MAX, Range};
use crate::cli::io::read::no_saved_state;
use crate::cli::io::session::Session;
use crate::cli::io::target::Writer;
use crate::cli::io::timing::Done;
use crate::cli::io::words::Words;
use crate::error::{Error, ErrorKind, Result};

/// What is written if nothing is said.
const PATTERN: u8 = 0xcd;

/// What the options say.
#[derive(Debug, Default)]
struct Options<'a> {
    saved_state: bool,
    compressed: bool,
    terse: bool,
    durable: bool,
    quick: bool,
    quiet: bool,
    unmap: bool,
    zeros: bool,
    pattern: Option<u8>,
    source: Option<&'a str>,
}

pub(super) fn write(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let (options, operands) = options(Words::new(name, "bcCfnpP:qrs:uz", words))?;
    if operands.len() != 2 {
        return Err(Failure::Usage { complaint: None });
    }
    if let Some(sentence) = options.contradiction() {
        return Err(Failure::Said(sentence.to_owned()));
    }
    let limit = if options.quick { u64::MAX } else { LENGTH_MAX };
    let range = Range::of(&operands, limit, " without -n")?;
    if options.saved_state || options.compressed {
        range.whole_sectors()?;
    }
    let bytes = if options.zeros { Vec::new() } else { options.bytes(range, "write")? };
    if options.saved_state {
        return Err(no_saved_state("write"));
    }
    let change = |writer: &dyn Writer| {
        if options.quick && !writer.zeroes_are_quick(range.offset, range.length)? {
            Err(Error::new(ErrorKind::Unsupported, "zeros there are not sure to be quick"))
        } else if options.zeros {
            writer.write_zeroes(range.offset, range.length, options.unmap)
        } else if options.compressed {
            writer.write_compressed(&bytes, range.offset)
        } else {
            writer.write(&bytes, range.offset)
        }
    };
    run(session, &options, range, Verb { doing: "write", done: "wrote" }, change)
}

pub(super) fn writev(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let (options, operands) = options(Words::new(name, "CfP:qr", words))?;
    let range = Range::of_lengths(&operands)?;
    let bytes = options.bytes(range, "writev")?;
    run(session, &options, range, Verb { doing: "writev", done: "wrote" }, |writer| {
        writer.write(&bytes, range.offset)
    })
}

pub(super) fn discard(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let (options, operands) = options(Words::new(name, "Cq", words))?;
    let range = Range::of(&operands, LENGTH_MAX, "")?;
    run(session, &options, range, Verb { doing: "discard", done: "discard" }, |writer| {
        writer.discard(range.offset, range.length)
    })
}

pub(super) fn flush(session: &mut Session<'_>, _: &str, _: &[&str]) -> Outcome {
    // A disk that is only read has nothing to make durable.
    session.target()?.writer().map_or(Ok(()), Writer::flush).map_err(Failure::Reported)
}

fn options<'a>(mut words: Words<'a>) -> Outcome<(Options<'a>, Vec<&'a str>)> {
    let mut options = Options::default();
    while let Some((letter, value)) = words.option()? {
        match letter {
            'b' => options.saved_state = true,
            'c' => options.compressed = true,
            'C' => options.terse = true,
            'f' => options.durable = true,
            'n' => options.quick = true,
            'P' => options.pattern = Some(number::pattern(value)?),
            'q' => options.quiet = true,
            's' => options.source = Some(value),
            'u' => options.unmap = true,
            'z' => options.zeros = true,
            // Where memory lies is not ours to say.
            _ => {}
        }
    }
    Ok((options, words.operands()))
}

impl Options<'_> {
    /// What cannot be meant, in the order in which qemu-io looks.
    fn contradiction(&self) -> Option<&'static str> {
        let contents = [self.zeros, self.pattern.is_some(), self.source.is_some()];
        [
            (self.saved_state && self.zeros, "-b and -z cannot be specified at the same time"),
            (
                self.durable && (self.saved_state || self.compressed),
                "-f and -b or -c cannot be specified at the same time",
            ),
            (self.quick && !self.zeros, "-n requires -z to be specified"),
            (self.unmap && !self.zeros, "-u requires -z to be specified"),
            (
                contents.into_iter().filter(|content| *content).count() > 1,
                "Only one of -z, -P, and -s can be specified at the same time",
            ),
        ]
        .into_iter()
        .find_map(|(wrong, sentence)| wrong.then_some(sentence))
    }

    /// What is written.
    fn bytes(&self, range: Range, doing: &'static str) -> Outcome<Vec<u8>> {
        let Some(source) = self.source else {
            return range.buffer(self.pattern.unwrap_or(PATTERN), doing);
        };
        let mut bytes = range.buffer(0, doing)?;
        let told = |error: &io::Error| {
            let reason = error.raw_os_error().map_or_else(|| error.to_string(), system_text);
            Failure::Told(format!("{source}: {reason}"))
        };
        let mut found = Vec::new();
        File::open(source)
            .and_then(|file| file.take(range.length).read_to_end(&mut found))
            .map_err(|error| told(&error))?;
        if found.is_empty() {
            return Err(Failure::Told(format!("{source}: file is empty")));
        }
        for (byte, source) in bytes.iter_mut().zip(found.iter().cycle()) {
            *byte = *source;
        }
        Ok(bytes)
    }
}

/// How a change is called before and after.
struct Verb {
    doing: &'static str,
    done: &'static str,
}

fn run(
    session: &mut Session<'_>,
    options: &Options<'_>,
    range: Range,
    verb: Verb,
    change: impl FnOnce(&dyn Writer) -> Result<()>,
) -> Outcome {
    let failed = |error: Error| Failure::Storage { doing: verb.doing, error };
    range.on(session.target()?, verb.doing)?;
    let writer = session.writer()?;
    let start = Instant::now();
    change(writer).map_err(failed)?;
    if options.durable {
        writer.flush().map_err(failed)?;
    }
    let elapsed = start.elapsed();
    if !options.quiet {
        let Range { offset, length } = range;
        session.say(Done { verb: verb.done, offset, length, elapsed, terse: options.terse });
    }
    Ok(())
}
