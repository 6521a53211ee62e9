//! What signals make of the qemu-img door, beside what they make of the real one.
//!
//! ```text
//! SIGUSR1              asks how far it is: a line on standard error, and on it goes
//! SIGTERM, SIGINT …    the end, and nothing left of a new target
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::tool::{available, left_out, memory_folder};

/// A slow conversion of 16 MiB, in the middle.
fn converting(program: &Path, folder: &Path, words: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(["convert", "-r", "6M", "-f", "raw", "-O", "raw"]).args(words);
    command.current_dir(folder).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    child
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn place() -> tempfile::TempDir {
    let place = memory_folder();
    let noise = |at: usize| u8::try_from((at.wrapping_mul(2_654_435_761) >> 24) & 0xff).unwrap();
    fs::write(place.path().join("disk"), (0..16 << 20).map(noise).collect::<Vec<_>>()).unwrap();
    symlink(env!("CARGO_BIN_EXE_engine"), place.path().join("qemu-img")).unwrap();
    place
}

#[test]
fn sigusr1_asks_how_far_it_is() {
    if !available("signals of the door", &["qemu-img"]) {
        return;
    }
    let place = place();
    for program in [Path::new("qemu-img"), &place.path().join("qemu-img")] {
        let mut child = converting(program, place.path(), &["disk", "copy"]);
        // Before it listens, that signal is its end.
        let listens = || {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            mask(&status, "SigBlk:") | mask(&status, "SigCgt:")
        };
        for _ in 0..100 {
            if has(listens(), Signal::SIGUSR1) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        send(&child, Signal::SIGUSR1);
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        let percent = line.strip_prefix("    (").and_then(|line| line.strip_suffix("/100%)\n"));
        let percent: f64 = percent.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        assert!((0.0..=100.0).contains(&percent), "{line:?}");
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(fs::read(place.path().join("copy")).unwrap().len() == 16 << 20);
        fs::remove_file(place.path().join("copy")).unwrap();
    }
}

/// Whether children ignore `signal` as this process does: shells have it so for what runs behind them.
fn is_ignored(signal: Signal) -> bool {
    has(mask(&fs::read_to_string("/proc/self/status").unwrap(), "SigIgn:"), signal)
}

/// A set of signals, as the kernel shows it.
fn mask(status: &str, name: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap()
}

fn has(mask: u64, signal: Signal) -> bool {
    (mask >> (signal as i32 - 1)) & 1 == 1
}

#[test]
fn who_ends_it_finds_nothing_new() {
    if !available("signals of the door", &["qemu-img"]) {
        return;
    }
    let place = place();
    let door = place.path().join("qemu-img");
    let names = || {
        let entries = fs::read_dir(place.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for old in [None, Some(&b"what stood there"[..])] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGKILL] {
            if is_ignored(signal) {
                left_out(&format!("{signal} to the door"), "who started this has it ignored");
                continue;
            }
            if let Some(old) = old {
                fs::write(place.path().join("copy"), old).unwrap();
            }
            let before = names();
            let mut child = converting(&door, place.path(), &["disk", "copy"]);
            send(&child, signal);
            assert_eq!(child.wait().unwrap().signal(), Some(signal as i32));
            assert_eq!(names(), before, "{signal}");
            if let Some(old) = old {
                assert_eq!(fs::read(place.path().join("copy")).unwrap(), old, "{signal}");
            }
        }
    }
}
