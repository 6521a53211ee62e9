//! QEMU as oracle and as machine: `qemu-img` and `qemu-io` with their words kept, VMs that are heard
//! and killed.
//!
//! ```text
//! Vm ── stdin ───▶ QEMU                      the monitor, where a suite asks for one
//!    ◀─ stdout ─── a thread, line by line    the serial port
//!    ◀─ stderr ─── a thread                  shown when something is wrong
//! ```
//!
//! No VM outlives its value, whatever panics.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The emulator every suite starts.
pub const SYSTEM: &str = "qemu-system-x86_64";

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Captured {
    /// The program and its arguments.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Captured {
    /// The standard output of a program that succeeded.
    ///
    /// # Panics
    ///
    /// It did not; the panic shows everything it said.
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// Runs `qemu-img`.
pub fn img(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Captured {
    run("qemu-img", arguments)
}

/// Runs `qemu-img` in `folder`, for relative names; panics with its words if it fails.
pub fn img_in(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").current_dir(folder).args(arguments).output();
    let output = output.expect("qemu-img starts; the test script installs it");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).expect("qemu-img prints UTF-8")
}

/// Runs `qemu-io`.
pub fn io(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Captured {
    run("qemu-io", arguments)
}

fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Captured {
    captured(Command::new(program).args(arguments))
}

/// Runs a program to its end, with nothing to read.
pub(crate) fn captured(command: &mut Command) -> Captured {
    command.stdin(Stdio::null());
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Captured {
        command: format!("{command:?}"),
        status,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// A running virtual machine.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    lines: Receiver<String>,
    /// Everything heard so far, for the message when the awaited line does not come.
    heard: String,
    complaints: Arc<Mutex<Vec<u8>>>,
}

impl Vm {
    /// Starts QEMU with software emulation, no devices but those in `arguments`, and no screen.
    /// What the arguments connect to standard output is read line by line.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut child = Command::new(SYSTEM)
            .args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (mut stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&complaints));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                kept.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, lines, heard: String::new(), complaints }
    }

    /// As [`Vm::start`], with the serial port on standard output, stopped at a reset instead of
    /// starting again.
    pub fn boot(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let fixed = ["-serial", "stdio", "-monitor", "none", "-no-reboot"].map(OsString::from);
        Self::start(fixed.into_iter().chain(arguments))
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that holds `marker`, from the marker on: firmware and kernels write to the same
    /// line what they like.
    ///
    /// # Panics
    ///
    /// It does not come in time; the panic shows all that came.
    pub fn line(&mut self, marker: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let _ = writeln!(self.heard, "{line}");
                    if let Some(at) = line.find(marker) {
                        return line[at..].to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line with {marker:?} in {timeout:?}\n{}", self.told())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    // The pipe closes a moment before the process ends and its last words are read.
                    let status = self.wait_status(Duration::from_secs(5));
                    panic!("QEMU ended ({status:?}) before {marker:?}\n{}", self.told())
                }
            }
        }
    }

    /// Types a line into QEMU's standard input.
    pub fn say(&mut self, line: &str) {
        let mut stdin = self.child.stdin.as_ref().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for QEMU to end by itself.
    ///
    /// # Panics
    ///
    /// It does not, in time.
    pub fn wait(mut self, timeout: Duration) -> ExitStatus {
        self.wait_status(timeout)
            .unwrap_or_else(|| panic!("QEMU runs longer than {timeout:?}\n{}", self.told()))
    }

    /// SIGKILL: nothing is flushed, nothing is closed, as when the host kills a VM. The VM must be
    /// alive until then, or the test tests nothing.
    pub fn kill(mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "QEMU had ended already: {ended:?}\n{}", self.told());
        // On Unix, `Child::kill` is SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait_status(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                status => return status,
            }
        }
    }

    fn told(&self) -> String {
        let complaints = self.complaints.lock().unwrap();
        format!("-- heard:\n{}-- stderr:\n{}", self.heard, String::from_utf8_lossy(&complaints))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both do nothing to a child that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
