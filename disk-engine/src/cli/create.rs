//! The `create` command.

use crate::cli::Output;
use crate::error::Result;

/// Placeholder until the operation exists.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments, _output: &Output) -> Result<()> {
    Ok(())
}
