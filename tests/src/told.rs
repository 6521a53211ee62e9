//! What `qemu-io` and `disk-engine io` say, without what may differ: times, the programs' names, and
//! how each tells what its commands are for.
//!
//! ```text
//! wrote 512/512 bytes at offset 0            as it is
//! 512 bytes, 1 ops; 00.00 sec (…)            512 bytes, 1 ops
//! qemu-io: Block node is read-only           PROGRAM: Block node is read-only
//! write [-bcCfnqruz] … -- writes a number    how write is used
//! ```
//!
//! Callers: the suites `io_command`, `io_write_command`, `io_sessions`; `io_lab`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a program did, without what may differ.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Lines of its standard output.
    pub stdout: Vec<String>,
    /// Lines of its standard error.
    pub stderr: Vec<String>,
    /// Its exit status, if it has one.
    pub exit: Option<i32>,
}

impl Told {
    /// Runs `program` in `folder` with `arguments` and each of `commands` by a `-c` of its own.
    ///
    /// # Panics
    ///
    /// It does not start.
    #[must_use]
    pub fn by(program: &str, folder: &Path, arguments: &[&str], commands: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.current_dir(folder).args(arguments).stdin(Stdio::null());
        for line in commands {
            command.args(["-c", line]);
        }
        Self::of(&command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// What a program did that has ended.
    #[must_use]
    pub fn of(output: &Output) -> Self {
        let lines = |bytes: &[u8]| -> Vec<String> {
            String::from_utf8_lossy(bytes).lines().map(masked).collect()
        };
        Self {
            stdout: lines(&output.stdout),
            stderr: lines(&output.stderr),
            exit: output.status.code(),
        }
    }
}

/// A line without what may differ.
fn masked(line: &str) -> String {
    if let Some((amount, _)) = line.split_once(" ops; ") {
        return format!("{amount} ops");
    }
    let name = line.split(' ').next().unwrap_or_default();
    let usage = line.contains(" -- ") && name.bytes().all(|byte| byte.is_ascii_lowercase());
    if usage {
        return format!("how {name} is used");
    }
    let fields: Vec<_> = line.split(',').collect();
    if fields.len() == 5 && fields[2].starts_with("0:00:") {
        return format!("{},{}, for a program", fields[0], fields[1]);
    }
    let line = line.strip_prefix("qemu-io: ").or_else(|| line.strip_prefix("disk-engine: "));
    line.map_or_else(|| fields.join(","), |words| format!("PROGRAM: {words}"))
}
