//! QEMU: its benchmark of images, and what makes, checks and tells them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::walk::Walk;

/// What a walk does to the disk.
#[derive(Clone, Copy, Debug)]
pub enum Doing {
    /// It is read.
    Read,
    /// It is written, with this byte.
    Write(u8),
    /// It is written, and flushed once at the end.
    WriteAndFlush(u8),
}

/// Has `qemu-img bench` go through `image`, a qcow2, and returns the time that it says it took: the
/// requests, neither opening the image nor closing it. As many requests are under way at once as the
/// walk has threads.
///
/// # Panics
///
/// It cannot; so in the other functions.
#[must_use]
pub fn bench(image: &Path, walk: &Walk, doing: Doing) -> Duration {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-f", "qcow2"]);
    command.args(["-c", &walk.count.to_string(), "-d", &walk.threads.to_string()]);
    command.args(["-s", &walk.block.to_string(), "-S", &walk.step().to_string()]);
    match doing {
        Doing::Read => {}
        Doing::Write(byte) => {
            command.args(["-w", &format!("--pattern={byte}")]);
        }
        Doing::WriteAndFlush(byte) => {
            let interval = format!("--flush-interval={}", walk.count);
            command.args(["-w", &format!("--pattern={byte}"), &interval]);
        }
    }
    let said = output(command.arg(image));
    let seconds = said.split_once("Run completed in ").map(|(_, behind)| behind);
    let seconds = seconds.and_then(|behind| behind.split(' ').next()?.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or_else(|| panic!("qemu-img bench: {said}")))
}

/// Runs qemu-img with these arguments.
///
/// # Panics
///
/// See [`bench()`].
pub fn img(arguments: &[&dyn AsRef<OsStr>]) -> String {
    output(Command::new("qemu-img").args(arguments))
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("qemu-img starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img: {}: {said}{error}", output.status);
    said
}
