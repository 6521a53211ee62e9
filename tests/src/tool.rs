//! Programs a suite needs and a fresh machine may not have.
//!
//! A suite that cannot run says so in one line and passes; it never says nothing. The probe starts the
//! program, so a broken installation counts as none.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Whether every program can be started; if not, says what is left out and for want of what.
#[must_use]
pub fn available(suite: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|program| !starts(program)).collect();
    if !missing.is_empty() {
        left_out(suite, &format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Says that something was not tested.
pub fn left_out(what: &str, why: &str) {
    tell(&format!("LEFT OUT: {what}: {why}"));
}

/// Prints a line past the test harness, which swallows what passing tests print through the macros.
pub fn tell(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

fn starts(program: &str) -> bool {
    // Every program asked for here ends by itself at this argument, whatever it thinks of it.
    let version = if program == "nasm" || program == "mke2fs" { "-v" } else { "--version" };
    Command::new(program)
        .arg(version)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// A folder for files that nobody needs to keep: in memory where the machine has that, since
/// `qemu-img` syncs every image it makes.
///
/// # Panics
///
/// No folder can be made.
#[must_use]
pub fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}
