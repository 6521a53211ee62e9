//! The `disk-engine` command. Everything it does is a call of the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    disk_engine::cli::main()
}
