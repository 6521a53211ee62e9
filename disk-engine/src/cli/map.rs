//! `disk-engine map`: which part of a disk comes from which image.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::follow::Follow;
use crate::cli::output::is_hidden;
use crate::cli::overlay::Format;
use crate::cli::{Output, size};
use crate::disk::DiskOptions;
use crate::disk::chain::probe_top;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::map::{MapEntry, MapOptions, map};

/// Show which part of a disk comes from which image of its chain, as qemu-img map does
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image
    file: PathBuf,
    /// The image's format; without it a file that begins as qcow2 is taken for that
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// For a person, only what is stored as it is; for a program, everything (as with --json)
    #[arg(long = "output", value_enum, default_value = "human")]
    form: Form,
    /// Show this snapshot of the image, by id or name
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// Where on the disk to start
    #[arg(long, short = 's', value_name = "OFFSET", value_parser = size::parse, default_value = "0")]
    start_offset: u64,
    /// How much of the disk to show
    #[arg(long, short = 'l', value_name = "LENGTH", value_parser = size::parse)]
    max_length: Option<u64>,
    /// Even while others write to it; what is shown may then be of no single moment
    #[arg(long, short = 'U')]
    force_share: bool,
    #[command(flatten)]
    follow: Follow,
}

/// For whom the map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Human,
    Json,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let format = match arguments.format {
        Some(format) => format.into(),
        None => probe_top(&arguments.file)?,
    };
    let disk = arguments.follow.disk(arguments.force_share);
    let disk = DiskOptions { snapshot: arguments.snapshot, ..disk };
    let options = MapOptions { disk, start: arguments.start_offset, length: arguments.max_length };
    let form = if output.is_json() { Form::Json } else { arguments.form };
    let mut page = Page::new(io::stdout().lock(), form);
    let shown = map(&arguments.file, format, &options, |entry| page.entry(entry));
    // What was found before an error is shown, too.
    let ended = page.end(shown.is_ok());
    match shown.and(ended) {
        // Nobody is left to read.
        Err(error) if closed_pipe(&error) => Ok(()),
        other => other,
    }
}

/// What has no place that could be shown to a person.
#[derive(Debug, thiserror::Error)]
#[error("compressed clusters have no place of their own")]
pub(crate) struct Unmappable;

impl Unmappable {
    /// Whether that is why a map ended.
    pub(crate) fn caused(error: &Error) -> bool {
        std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<Self>)
    }
}

pub(crate) fn closed_pipe(error: &Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The map as it is written, entry by entry.
pub(crate) struct Page<W: Write> {
    to: BufWriter<W>,
    form: Form,
    started: bool,
}

impl<W: Write> Page<W> {
    pub(crate) fn new(to: W, form: Form) -> Self {
        Self { to: BufWriter::new(to), form, started: false }
    }

    pub(crate) fn entry(&mut self, entry: &MapEntry<'_>) -> Result<()> {
        self.start()?;
        let first = !std::mem::replace(&mut self.started, true);
        match self.form {
            Form::Json => self.object(entry, first),
            Form::Human if entry.data && entry.offset.is_none() => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "what is stored compressed has no place that could be shown",
                )
                .with_path(entry.filename)
                .with_source(Unmappable)
                .with_hint("--output json shows it"));
            }
            Form::Human if entry.data && !entry.zero => self.row(entry),
            Form::Human => Ok(()),
        }
        .map_err(not_written)
    }

    /// Ends the page: whole, or as far as it got.
    pub(crate) fn end(mut self, whole: bool) -> Result<()> {
        if whole {
            self.start()?;
        }
        let last = match self.form {
            Form::Json if whole => "]\n",
            Form::Json if self.started => "\n",
            _ => "",
        };
        self.to.write_all(last.as_bytes()).and_then(|()| self.to.flush()).map_err(not_written)
    }

    fn start(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        match self.form {
            Form::Json => write!(self.to, "["),
            Form::Human => {
                self.started = true;
                writeln!(self.to, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")
            }
        }
        .map_err(not_written)
    }

    fn object(&mut self, entry: &MapEntry<'_>, first: bool) -> io::Result<()> {
        let MapEntry { start, length, depth, present, zero, data, compressed, offset, .. } = *entry;
        let comma = if first { "" } else { ",\n" };
        write!(
            self.to,
            "{comma}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \
             \"present\": {present}, \"zero\": {zero}, \"data\": {data}, \
             \"compressed\": {compressed}"
        )?;
        if let Some(offset) = offset {
            write!(self.to, ", \"offset\": {offset}")?;
        }
        write!(self.to, "}}")
    }

    fn row(&mut self, entry: &MapEntry<'_>) -> io::Result<()> {
        // A name from an image must not drive the terminal.
        let name: String = entry
            .filename
            .to_string_lossy()
            .chars()
            .map(|letter| if is_hidden(letter) { '\u{fffd}' } else { letter })
            .collect();
        let (start, length) = (hexadecimal(entry.start), hexadecimal(entry.length));
        let offset = hexadecimal(entry.offset.unwrap_or(0));
        writeln!(self.to, "{start:<16}{length:<16}{offset:<16}{name}")
    }
}

/// As C writes it: zero has no prefix.
fn hexadecimal(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

fn not_written(error: io::Error) -> Error {
    Error::io("write to", "standard output", error)
}
