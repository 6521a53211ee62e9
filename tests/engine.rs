//! The `disk-engine` command, for the suites that start it: cargo tells a suite only where the
//! programs of its own package lie.

use std::process::ExitCode;

fn main() -> ExitCode {
    disk_engine::cli::main()
}
