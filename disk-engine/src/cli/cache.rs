//! The `cache` command: what can be done with a cache as a whole.

use crate::cli::{Output, cache_verify};
use crate::error::Result;

/// Look after a cache
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(cache_verify::Arguments),
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    match arguments.command {
        Command::Verify(arguments) => cache_verify::run(arguments, output),
    }
}
