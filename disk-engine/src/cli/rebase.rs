//! `disk-engine rebase`: an overlay learns its base's new place.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Output;
use crate::cli::overlay::{Format, open_base};
use crate::error::Result;
use crate::overlay::{RebaseOptions, rebase};

/// Name a moved base in an overlay, in place
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The overlay
    file: PathBuf,
    /// Where its base lies now
    base: PathBuf,
    /// The base's format; raw unless given, and never guessed
    #[arg(long, short = 'F', value_enum)]
    format: Option<Format>,
    /// Name the base relative to the overlay's folder
    #[arg(long)]
    relative: bool,
    /// Accept a base other than the one the overlay was made for
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    filename: String,
    previous_backing_filename: Option<String>,
    backing_filename: String,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let base = open_base(&arguments.base, arguments.format)?;
    let options = RebaseOptions {
        relative: arguments.relative,
        force: arguments.force,
        ..RebaseOptions::default()
    };
    let done = rebase(&arguments.file, &base, &options)?;
    let lossy = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let report = Report {
        filename: arguments.file.to_string_lossy().into_owned(),
        previous_backing_filename: done.previous.as_ref().map(lossy),
        backing_filename: lossy(&done.current),
    };
    let text = format!("{:?}: now over {:?}", arguments.file, report.backing_filename);
    output.report(&report, &text)
}
