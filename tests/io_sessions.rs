//! Sessions of `disk-engine io` that write: what others see of them, what is left when they are killed,
//! and what they wait for.
//!
//! ```text
//! commands ─▶ pipe ─▶ disk-engine io ─▶ answers ─▶ SIGKILL after any of them
//!                          │
//!                        image ─▶ qemu-img check: sound    qemu-io: what was answered is there
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use testkit::io_lab::Lab;
use testkit::qemu::img;
use testkit::random::Random;
use testkit::told::Told;
use testkit::tool::{available, left_out, tell};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// Commands that a session is given which is killed.
const CHANGES: usize = 80;

/// How many sessions are killed.
const ROUNDS: usize = 36;

/// A session that is told its commands through a pipe.
struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(ENGINE)
            .current_dir(folder)
            .arg("io")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, input, lines }
    }

    fn line(&self) -> Option<String> {
        self.lines.recv_timeout(Duration::from_secs(60)).ok()
    }

    /// Gives a command, and waits until it says `answer`.
    fn command(&mut self, command: &str, answer: &str) {
        writeln!(self.input, "{command}").unwrap();
        loop {
            let line = self.line().unwrap_or_else(|| panic!("{command}: no answer"));
            if line.contains(answer) {
                break;
            }
        }
    }

    /// Kills it. Returns what it said that was not heard yet.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

#[test]
fn what_others_see_and_a_killed_session_leaves_is_what_the_mode_says() {
    if !available("what others see of a session", &["qemu-img", "qemu-io"]) {
        return;
    }
    for (mode, seen) in [("writethrough", true), ("unsafe", true), ("writeback", false)] {
        let lab = Lab::new(ENGINE);
        let folder = lab.folder("images");
        let mut session = Session::start(&folder, &["-t", mode, "-f", "qcow2", "plain"]);
        session.command("write -P 3 512k 64k", "1 ops");
        let look = |share: &[&str], program: &str, first: &[&str]| {
            let arguments = [first, share, &["-f", "qcow2", "plain"]].concat();
            Told::by(program, &folder, &arguments, &["read -P 3 512k 64k"])
        };
        // Whoever minds others that write is kept out, and so are other writers.
        assert_eq!(look(&["-r"], ENGINE, &["io"]).exit, Some(5), "{mode}");
        assert_eq!(look(&[], ENGINE, &["io"]).exit, Some(5), "{mode}");
        assert_eq!(look(&["-r"], "qemu-io", &[]).exit, Some(1), "{mode}");
        let refused = look(&["-U"], ENGINE, &["io"]);
        assert_eq!((refused.exit, refused.stdout.len()), (Some(2), 0), "{mode}: {refused:?}");
        let told = look(&["-r", "-U"], ENGINE, &["io"]);
        // Metadata that is not flushed yet is still in memory, and lost with it.
        assert_eq!((told.exit == Some(0), &told.stderr[..]), (seen, &[][..]), "{mode}: {told:?}");
        assert_eq!(look(&["-r", "-U"], "qemu-io", &[]), told, "{mode}");
        for (share, code) in [(&[][..], 5), (&["-U"], 0)] {
            let map = [&["map", "--output", "json", "plain"], share].concat();
            assert_eq!(Told::by(ENGINE, &folder, &map, &[]).exit, Some(code), "{mode} {share:?}");
        }
        // A flush says nothing.
        session.command("flush\nlength", "1 MiB");
        assert_eq!(look(&["-r", "-U"], ENGINE, &["io"]).exit, Some(0), "{mode}");
        session.kill();
        assert_eq!(look(&["-r"], "qemu-io", &[]).exit, Some(0), "{mode}");
    }
}

#[test]
fn a_killed_session_leaves_a_sound_image_and_what_it_said_was_written() {
    if !available("sessions of disk-engine io that are killed", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    let folder = lab.folder("images");
    let mut random = Random(4);
    let mut cut = 0;
    for round in 0..ROUNDS {
        let mode = ["writethrough", "writeback", "unsafe"][round % 3];
        let image = ["top", "sub", "plain"][round / 3 % 3];
        let mut session = Session::start(&folder, &["-t", mode, "-f", "qcow2", image]);
        // Every second command gives back what lies in the upper half.
        let changes: Vec<_> = (0..CHANGES)
            .map(|index| match index % 4 {
                0 | 2 => format!("-P {} {}k 5k", 1 + (round + index) % 200, index * 5),
                1 => format!("discard {}k 64k", 512 + random.below(448)),
                _ => format!("write -P 9 {}k 7k", 512 + random.below(448)),
            })
            .collect();
        for change in &changes {
            let name = if change.starts_with('-') { "write " } else { "" };
            writeln!(session.input, "{name}{change}").unwrap();
        }
        let done = |line: &String| usize::from(line.contains(" 1 ops;"));
        let (stop, mut count) = (1 + random.below(CHANGES - 1), 0);
        while count < stop {
            count += done(&session.line().expect("an answer"));
        }
        let lines = session.kill();
        count += lines.iter().map(done).sum::<usize>();
        assert!(count >= stop);
        cut += usize::from(count < CHANGES);
        let check = img(["check", "-f", "qcow2", folder.join(image).to_str().unwrap()]);
        // 3: nothing but clusters that nobody uses.
        assert!([Some(0), Some(3)].contains(&check.status.code()), "{round}: {check:?}");
        if mode != "writeback" {
            let reads: Vec<_> = changes[..count]
                .iter()
                .filter(|change| change.starts_with('-'))
                .map(|change| format!("read {change}"))
                .collect();
            let reads: Vec<_> = reads.iter().map(String::as_str).collect();
            let read = Told::by("qemu-io", &folder, &["-r", "-f", "qcow2", image], &reads);
            assert_eq!(read.exit, Some(0), "{round}, {count} of {CHANGES}: {read:?}");
        }
    }
    // Some were done before they could be killed, but not all.
    assert!(cut > 0);
    tell(&format!("io: {cut} of {ROUNDS} sessions killed before their end"));
}

#[test]
fn what_is_synced_is_what_the_mode_says() {
    if !available("syncs of disk-engine io", &["qemu-img", "qemu-io", "strace"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    let (folder, log) = (lab.folder("images"), lab.folder("log"));
    let log = log.to_str().unwrap();
    let first = ["-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", log];
    if !Command::new("strace").args(first).arg("true").status().unwrap().success() {
        return left_out("syncs of disk-engine io", "strace may trace nothing here");
    }
    let syncs = |mode: &[&str], commands: &[&str]| {
        let arguments = [&first[..], &[ENGINE, "io", "-f", "raw"], mode, &["raw"]].concat();
        let told = Told::by("strace", &folder, &arguments, commands);
        assert_eq!(told.exit, Some(0), "{told:?}");
        fs::read_to_string(log).unwrap().matches("sync(").count()
    };
    let writes = ["write 0 512", "write -z 4k 8k", "discard 16k 4k"];
    for (mode, expected) in [
        // The last one is that of closing.
        (&[][..], 4),
        (&["-t", "writethrough"], 4),
        (&["-t", "directsync"], 4),
        (&["-t", "writeback"], 1),
        (&["-t", "none"], 1),
        (&["-n"], 1),
        (&["-t", "unsafe"], 0),
    ] {
        assert_eq!(syncs(mode, &writes), expected, "{mode:?}");
    }
    assert_eq!(syncs(&["-t", "writeback"], &["write -f 0 512", "write 0 512", "flush"]), 3);
    assert_eq!(syncs(&["-t", "unsafe"], &["write -f 0 512", "flush"]), 0);
}
