//! Boots a VM from a disk and listens to its serial port: the proof that a disk is one.
//!
//! ```text
//!            -serial stdio            stderr
//! QEMU ───────────▶ reader ──▶ serial   └──▶ reader ──▶ the error, if it is one
//!   │ ends itself (isa-debug-exit), powers off, resets (-no-reboot), or is killed at the timeout
//!   └──▶ BootExit
//! ```
//!
//! Software emulation by default: it is there on every machine, and a boot sector needs no more.

use std::ffi::OsString;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::attachment::{Disk, qemu};
use crate::control::CancelToken;
use crate::error::{Error, ErrorKind, Result};

const QEMU: &str = "qemu-system-x86_64";

/// Serial output kept, in bytes. A guest that prints more is listened to and not recorded.
const SERIAL_MAX: usize = 64 << 10;

/// How often the child is looked at. A boot takes a tenth of a second or more.
const POLL: Duration = Duration::from_millis(5);

/// How to boot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BootOptions {
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// When to give up and kill the VM.
    pub timeout: Duration,
    /// QEMU's accelerator: `tcg`, `kvm`, …
    pub accelerator: String,
    /// The form in which the disk is described to QEMU.
    pub form: qemu::Form,
    /// Stops the boot; the VM is killed.
    pub cancel: CancelToken,
}

impl Default for BootOptions {
    /// 64 MiB, 60 seconds, software emulation.
    fn default() -> Self {
        Self {
            memory_mib: 64,
            timeout: Duration::from_secs(60),
            accelerator: "tcg".to_owned(),
            form: qemu::Form::default(),
            cancel: CancelToken::new(),
        }
    }
}

/// What a boot came to.
#[derive(Clone, Debug)]
pub struct BootReport {
    /// What the guest wrote to its serial port, at most 64 KiB; bytes that are not UTF-8 replaced.
    pub serial: String,
    /// How long the VM ran.
    pub duration: Duration,
    /// How it ended.
    pub exit: BootExit,
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootExit {
    /// The guest powered off or reset.
    PoweredOff,
    /// The guest wrote this value to the exit port, 0xf4. By convention 0 is success.
    Wrote(u8),
    /// It was still running at the timeout, and was killed.
    TimedOut,
}

/// Boots from `disk` with a BIOS and waits for the end.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if QEMU is not installed; [`ErrorKind::Cancelled`]; [`ErrorKind::Io`] with
/// QEMU's own words if it fails; otherwise as [`Disk::check`]. Whatever happens, no process is left.
pub fn boot(disk: &Disk, options: &BootOptions) -> Result<BootReport> {
    let arguments = arguments(disk, options)?;
    let started = Instant::now();
    let mut child = Running(
        Command::new(QEMU)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot_start)?,
    );
    let serial = listen(child.0.stdout.take())?;
    let complaints = listen(child.0.stderr.take())?;
    let status = child.wait(started + options.timeout, &options.cancel)?;
    // The pipes are closed now, so the readers end.
    let serial = serial.join().unwrap_or_default();
    let complaints = complaints.join().unwrap_or_default();
    let exit = match status.map(|status| status.code()) {
        None => BootExit::TimedOut,
        Some(Some(0)) => BootExit::PoweredOff,
        // isa-debug-exit: status = value × 2 + 1. A QEMU that cannot start says 1 too, and why; no
        // guest has said anything then.
        Some(Some(code))
            if code & 1 == 1 && (code != 1 || complaints.is_empty() || !serial.is_empty()) =>
        {
            BootExit::Wrote(u8::try_from(code >> 1).unwrap_or(u8::MAX))
        }
        Some(_) => {
            let complaints = String::from_utf8_lossy(&complaints).trim().to_owned();
            return Err(Error::new(ErrorKind::Io, format!("{QEMU} failed"))
                .with_path(disk.path())
                .with_source(io::Error::other(complaints)));
        }
    };
    Ok(BootReport {
        serial: String::from_utf8_lossy(&serial).into_owned(),
        duration: started.elapsed(),
        exit,
    })
}

fn arguments(disk: &Disk, options: &BootOptions) -> Result<Vec<OsString>> {
    let memory = options.memory_mib.to_string();
    let mut arguments: Vec<OsString> = [
        "-accel",
        &options.accelerator,
        "-m",
        &memory,
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x04",
    ]
    .map(OsString::from)
    .into();
    arguments.extend(qemu::arguments(std::slice::from_ref(disk), options.form)?);
    Ok(arguments)
}

fn cannot_start(error: io::Error) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io("start", QEMU, error);
    if missing { error.with_hint("install QEMU: apt install qemu-system-x86") } else { error }
}

/// Reads to the end on a thread of its own, so that the child never waits for a reader.
fn listen(stream: Option<impl Read + Send + 'static>) -> Result<thread::JoinHandle<Vec<u8>>> {
    let listening = thread::Builder::new().name("listener".into()).spawn(move || {
        let mut kept = Vec::new();
        let Some(mut stream) = stream else { return kept };
        // A broken pipe is the end, too.
        let _ = stream.by_ref().take(SERIAL_MAX as u64).read_to_end(&mut kept);
        let _ = io::copy(&mut stream, &mut io::sink());
        kept
    });
    listening.map_err(|error| Error::io("start a thread for", QEMU, error))
}

/// A child that does not outlive its owner.
struct Running(Child);

impl Running {
    /// The child's status, or `None` if it had to be killed at the deadline.
    fn wait(&mut self, deadline: Instant, cancel: &CancelToken) -> Result<Option<ExitStatus>> {
        let wait = |error| Error::io("wait for", QEMU, error);
        loop {
            if let Some(status) = self.0.try_wait().map_err(wait)? {
                return Ok(Some(status));
            }
            cancel.check()?;
            if Instant::now() >= deadline {
                self.0.kill().map_err(wait)?;
                self.0.wait().map_err(wait)?;
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing to a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
