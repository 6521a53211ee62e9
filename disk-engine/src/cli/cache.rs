//! `disk-engine cache`: what a cache holds, whether it is intact, and making room in it.

use std::path::PathBuf;

use clap::Subcommand;

use crate::cache::{ImageCache, OverlayState, OverlayUse};
use crate::cli::{Output, cache_list, cache_prune};
use crate::error::Result;

/// Look at a cache of bases, verify it, make room in it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(cache_list::Arguments),
    Prune(cache_prune::Arguments),
}

/// The cache a command works on.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The cache's folder
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
}

impl Place {
    /// The cache, which must be there.
    pub(crate) fn open(&self) -> Result<ImageCache> {
        ImageCache::existing(&self.cache)
    }
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    match arguments.command {
        Command::Ls(arguments) => cache_list::run(&arguments, output),
        Command::Prune(arguments) => cache_prune::run(&arguments, output),
    }
}

/// An overlay as reports print it.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct OverlayReport {
    filename: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl OverlayReport {
    pub(crate) fn new(overlay: &OverlayUse) -> Self {
        let (state, reason) = match &overlay.state {
            OverlayState::Stands => ("stands", None),
            OverlayState::Gone => ("gone", None),
            OverlayState::Unknown(reason) => ("unknown", Some(reason.clone())),
        };
        Self { filename: overlay.path.to_string_lossy().into_owned(), state, reason }
    }

    /// One line for a person.
    pub(crate) fn text(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{:?} ({})", self.filename, reason.escape_debug()),
            None => format!("{:?}", self.filename),
        }
    }
}
