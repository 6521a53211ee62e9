//! `read`, `readv`: bytes are read, compared and shown.
//!
//! ```text
//! read -P 0x41 -s 512 -l 1k 0 64k      0 ─────── 512 ═══ compared ═══ 1536 ─────── 64k
//! ```
//!
//! A difference fails the command, and what was read is shown all the same.

use std::time::Instant;

use crate::cli::io::outcome::{Failure, Outcome};
use crate::cli::io::range::{LENGTH_MAX, Range};
use crate::cli::io::session::Session;
use crate::cli::io::timing::Done;
use crate::cli::io::words::Words;
use crate::cli::io::{dump, number};
use crate::error::{Error, ErrorKind};

/// What the options say.
#[derive(Debug, Default)]
struct Options {
    saved_state: bool,
    terse: bool,
    quiet: bool,
    show: bool,
    pattern: Option<u8>,
    /// Where in the range comparing starts, and for how long.
    start: Option<u64>,
    length: Option<u64>,
}

pub(super) fn read(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let (options, operands) = options(Words::new(name, "bCl:pP:qrs:v", words))?;
    let range = Range::of(&operands, LENGTH_MAX, "")?;
    let compared = options.compared(range)?;
    if options.saved_state {
        range.whole_sectors()?;
        return Err(no_saved_state("read"));
    }
    run(session, &options, range, compared, "read")
}

pub(super) fn readv(session: &mut Session<'_>, name: &str, words: &[&str]) -> Outcome {
    let (options, operands) = options(Words::new(name, "CP:qrv", words))?;
    let range = Range::of_lengths(&operands)?;
    let compared = options.compared(range)?;
    run(session, &options, range, compared, "readv")
}

/// The failure of what works on the saved state of a VM.
pub(super) fn no_saved_state(doing: &'static str) -> Failure {
    let message = "the saved state of a VM is not supported";
    Failure::Storage { doing, error: Error::new(ErrorKind::Unsupported, message) }
}

fn options<'a>(mut words: Words<'a>) -> Outcome<(Options, Vec<&'a str>)> {
    let mut options = Options::default();
    while let Some((letter, value)) = words.option()? {
        match letter {
            'b' => options.saved_state = true,
            'C' => options.terse = true,
            'l' => options.length = Some(number::size(value)?),
            'P' => options.pattern = Some(number::pattern(value)?),
            'q' => options.quiet = true,
            's' => options.start = Some(number::size(value)?),
            'v' => options.show = true,
            // Where memory lies is not ours to say.
            _ => {}
        }
    }
    Ok((options, words.operands()))
}

impl Options {
    /// The part of what is read that is compared: its offset in it and its length.
    fn compared(&self, read: Range) -> Outcome<Range> {
        if self.pattern.is_none() && (self.start.is_some() || self.length.is_some()) {
            return Err(Failure::Usage { complaint: None });
        }
        let offset = self.start.unwrap_or(0);
        let length = self.length.unwrap_or(read.length.saturating_sub(offset));
        match offset.checked_add(length) {
            Some(end) if end <= read.length => Ok(Range { offset, length }),
            _ => Err(Failure::Said("pattern verification range exceeds end of read data".into())),
        }
    }
}

fn run(
    session: &mut Session<'_>,
    options: &Options,
    range: Range,
    compared: Range,
    doing: &'static str,
) -> Outcome {
    let target = session.target()?;
    range.on(target, doing)?;
    let mut bytes = range.buffer(0, doing)?;
    let start = Instant::now();
    target.read(&mut bytes, range.offset).map_err(|error| Failure::Storage { doing, error })?;
    let elapsed = start.elapsed();
    let same = options
        .pattern
        .is_none_or(|pattern| compared.of_bytes(&bytes).iter().all(|byte| *byte == pattern));
    if !same {
        session.say(format_args!(
            "Pattern verification failed at offset {}, {} bytes",
            range.offset.saturating_add(compared.offset),
            compared.length
        ));
    }
    if !options.quiet {
        if options.show {
            for line in dump::lines(&bytes, range.offset) {
                session.say(line);
            }
        }
        let (offset, length, terse) = (range.offset, range.length, options.terse);
        session.say(Done { verb: "read", offset, length, elapsed, terse });
    }
    if same { Ok(()) } else { Err(Failure::Shown) }
}
