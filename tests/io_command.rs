//! `disk-engine io` beside `qemu-io`: the same words in, the same words out.
//!
//! ```text
//! command line ─┬─▶ qemu-io ─────────▶ standard output, standard error, exit status ─┐
//!               └─▶ disk-engine io ──▶ standard output, standard error, exit status ─┴─▶ equal
//! ```
//!
//! Not compared is what `testkit::told` leaves out. What writes is the suite `io_write_command`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::qemu::img_in;
use testkit::told::Told;
use testkit::tool::{available, memory_folder};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// Runs both programs with the same options, image and commands.
fn both(folder: &Path, options: &[&str], image: &str, commands: &[&str]) -> (Told, Told) {
    let run = |program: &str, first: &[&str]| {
        Told::by(program, folder, &[first, options, &[image]].concat(), commands)
    };
    (run("qemu-io", &[]), run(ENGINE, &["io"]))
}

/// Panics unless both programs do the same. A reason that only ours gives may stand aside.
fn same(folder: &Path, options: &[&str], image: &str, commands: &[&str]) {
    let (theirs, mut ours) = both(folder, options, image, commands);
    if theirs.stdout.iter().any(|line| line.contains("failed: Operation not supported")) {
        ours.stderr.retain(|line| theirs.stderr.contains(line));
    }
    assert_eq!(ours, theirs, "{options:?} {image} {commands:?}");
}

/// Images to be read, all of them in one folder.
fn images() -> tempfile::TempDir {
    let place = memory_folder();
    let folder = place.path();
    let letters: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    fs::write(folder.join("raw"), &letters).unwrap();
    fs::write(folder.join("odd"), &letters[..1000]).unwrap();
    for (name, size, more) in [
        ("plain", "1M", &[][..]),
        ("base", "1M", &[]),
        ("top", "2M", &["-b", "base", "-F", "qcow2"]),
        ("empty", "0", &[]),
        ("uneven", "1000", &["-o", "cluster_size=512"]),
        ("over-odd", "4k", &["-o", "cluster_size=512", "-b", "odd", "-F", "raw"]),
        ("large", "1P", &["-o", "cluster_size=2M"]),
        ("sub", "1M", &["-o", "extended_l2=on", "-b", "raw", "-F", "raw"]),
    ] {
        let create = [&["create", "-q", "-f", "qcow2"], more, &[name, size]].concat();
        img_in(folder, &create);
    }
    for (name, commands) in [
        ("plain", &["write -P 0x41 0 64k", "write -z 192k 64k", "write -P 1 1000k 24k"][..]),
        ("base", &["write -P 7 0 128k", "write -z 192k 64k", "write -c -P 9 256k 64k"]),
        ("top", &["write -P 5 512k 64k", "write -z 64k 64k", "write -P 6 1984k 64k"]),
        ("uneven", &["write -P 3 512 512"]),
        ("large", &["write -P 3 0 1", "write -P 4 1000000G 512"]),
        ("sub", &["write -P 3 2k 2k", "write -z 8k 2k"]),
    ] {
        let mut command = Command::new("qemu-io");
        command.current_dir(folder).args(["-f", "qcow2", name]);
        for line in commands {
            command.args(["-c", line]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    place
}

/// What reads bytes, and compares them.
const TRANSFERS: &[&str] = &[
    "read 0 512",
    "r 0 512",
    "read 0 0",
    "read 0 1",
    "read 5 40",
    "read -v 5 40",
    "read -v 0 0",
    "read -v 0 300",
    "read -vv 0 17",
    "read -q 0 512",
    "read -qv 0 16",
    "read -C 0 512",
    "read -qC 0 512",
    "read -r 0 512",
    "read -p 0 512",
    "read 0 512 -q",
    "read 0 512 -- -q",
    "read 0 -- 5",
    "read -- 0 5",
    "read 0  512 ",
    " read 0 512",
    "read 0 1.5k",
    "read 0 .5k",
    "read 0 0x200",
    "read 0x10 1b",
    "read 1M 512",
    "read 1M 0",
    "read 1048000 1k",
    "read 2M 512",
    "read 3M 0",
    "read 0 2147483137",
    "read 0 2G",
    "read 0 1e",
    "read 9223372036854775807 1",
    "read 9223372036854775807 0",
    "read 500 500",
    "read 0 1000",
    "read 0 1024",
    "read 1000 24",
    "read 1023 1",
    "read 1024 0",
    "read -v 990 34",
    "read 69999 1",
    "read -v 69990 138",
    "readv 0 512",
    "readv 0 512 1k",
    "readv -v 0 3 4",
    "readv -qv 0 3 4",
    "readv -C 0 5 6",
    "readv 0 0 0",
    "readv 3M 1",
    "read -P 0 0 512",
    "read -P 0x41 0 512",
    "read -qP 0x41 0 1k",
    "read -qP0x42 0 1k",
    "read -P 65 -s 5 0 512",
    "read -P 1 -s 5 -l 6 8 512",
    "read -P 1 -s 512 0 512",
    "read -P 1 -s 0 -l 0 0 512",
    "read -P 1 -l 10 -v 0 20",
    "read -P 1 -P 65 0 5",
    "read -P 65 -s 300 -s 5 -l 4 -l 5 -P 1 0 10",
    "read -P 5 512k 64k",
    "read -P 5 512k 65k",
    "readv -P 1 0 5 5",
    "readv -P 65 0 5 5",
];

/// Words that are wrong, in which way and order ever.
const WRONG: &[&str] = &[
    "read",
    "read 0",
    "read 0 512 3",
    "read -x 0 512",
    "r -x 0 512",
    "read -z 0 512",
    "read -P",
    "read -P 0",
    "read -P 0 0",
    "read -P 0 -s",
    "read 0 1 -P",
    "r 0 1 -s",
    "read -P 256 0 512",
    "read -P -1 0 512",
    "read -P 08 0 512",
    "read -P abc 0 512",
    "read -P 1k 0 512",
    "read -P 300 -x 0 512",
    "read -x -P 300 0 512",
    "read -P 300 0 512 5",
    "read -P 300 x y",
    "read -s 1 0 512",
    "read -l 1 0 512",
    "read -s 1 x y",
    "read -s 1 0 3G",
    "read -s x x y",
    "read -P 0 -s x 0 512",
    "read -P 0 -l x 0 512",
    "read -P 0 -s -1 0 512",
    "read -P 0 -l 9E 0 5",
    "read -P 0 -l 3G 0 5",
    "read -P 0 -s 3G 0 5",
    "read -P 0 -s 600 0 512",
    "read -P 0 -s 1 -l 1k 0 512",
    "read -P 0 -l 513 0 512",
    "read -P 0 -l 513 x 512",
    "read -P 0 -l 513 3M 512",
    "read -P 0 -s 512 -l 1 0 512",
    "read -P 0 -l 5 0 3G",
    "read x 512",
    "read 0 x",
    "read x y",
    "read -1 512",
    "read 0 -1",
    "read - 5",
    "read -- -1 512",
    "read -- -1k 512",
    "read 0 9e",
    "read 0 1kk",
    "read 0 1x",
    "read 1.5 1",
    "read 1e3 1",
    "read 0x1k 1",
    "read . 1",
    "readv",
    "readv 0",
    "readv -x 0 1",
    "readv -q 0",
    "readv -b 0 5",
    "readv -P x 0 5",
    "readv -P 300 x y",
    "readv 0 x",
    "readv x 5",
    "readv 0 5 x",
    "readv 0 5 3G",
    "readv 0 2G",
    "readv 0 1G 1G",
    "readv 0 1G 1G x",
    "readv 0 -1",
];

/// What asks for no bytes.
const LOOKS: &[&str] = &[
    "map",
    "length",
    "l",
    "alloc 0",
    "a 0",
    "alloc 100 512",
    "alloc 0 64k",
    "alloc 0 1M",
    "alloc 512k 1M",
    "alloc 192k 64k",
    "alloc 0 8M",
    "alloc 1M",
    "alloc 2M",
    "alloc 999",
    "alloc 1000",
    "alloc 1000 4k",
    "alloc 0 0",
    "alloc 1.333M 1k",
    "alloc 9223372036854775807",
    "alloc 9E",
    "alloc 0 9E",
    "alloc x",
    "alloc 0 x",
    "alloc -1",
    "alloc -x 0",
    "alloc",
    "alloc 0 512 3",
    "map x",
    "length x",
];

/// Everything else.
const OTHERS: &[&str] = &[
    "flush",
    "f",
    "flush x",
    "sleep 1",
    "sleep 0x1",
    "sleep 01",
    "sleep",
    "sleep x",
    "sleep 1 2",
    "sleep -1",
    "sleep 1x",
    "sleep 1k",
    "quit",
    "q",
    "quit 1 2",
    "close",
    "c",
    "close x",
    "open",
    "o",
    "open x",
    "open -x y",
    "open a b",
    "open -o",
    "open -d bad x",
    "help read x",
    "help foo",
    "help sleep",
    "? foo",
    "foo",
    "READ 0 512",
    "rea 0 512",
    "# comment",
    "\"read\" 0 512",
    "read\t0\t512",
    "",
    "   ",
];

/// What a disk that is only to be read does not take.
const WRITES: &[&str] = &[
    "write 0 512",
    "w 0 512",
    "write",
    "write 0",
    "write -x 0 0",
    "write -z 0 512",
    "write -c 0 64k",
    "write 3M 512",
    "write 0 0",
    "writev 0 512",
    "writev",
    "discard 0 64k",
    "d 0",
    "discard",
    "truncate 2M",
    "truncate",
    "truncate 1 2 3 4",
];

#[test]
fn commands_that_read_do_and_say_what_they_do_in_qemu_io() {
    if !available("disk-engine io beside qemu-io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = images();
    let folder = place.path();
    for line in [TRANSFERS, WRONG, LOOKS, OTHERS, WRITES].into_iter().flatten() {
        same(folder, &["-r", "-f", "qcow2"], "plain", &[line]);
    }
    let looks = [TRANSFERS, LOOKS].concat();
    for image in ["top", "empty", "uneven", "over-odd", "large", "sub"] {
        same(folder, &["-r", "-f", "qcow2"], image, &looks);
    }
    for image in ["raw", "odd", "top"] {
        same(folder, &["-r", "-f", "raw"], image, &looks);
    }
    for line in ["read -b 0 512", "read -b 1 512", "read -b 0 5", "read -b x y", "read -bv 0 512"] {
        same(folder, &["-r", "-f", "raw"], "raw", &[line]);
    }
}

#[test]
fn failures_are_remembered_and_nothing_but_quit_ends_a_session() {
    if !available("sessions of disk-engine io beside qemu-io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = images();
    let folder = place.path();
    for commands in [
        &["read -P 1 0 512", "read 0 512"][..],
        &["foo", "length"],
        &["length", "foo"],
        &["foo", "quit", "length"],
        &["quit", "foo"],
        &["read 0 x", "length", "read 0 512"],
        &["close", "length"],
        &["close", "close", "read", "foo", "map", "write 0 1", "sleep 1", "flush", "help sleep"],
        &["close", "open -r plain", "length", "write 0 512", "read 0 512"],
        &["close", "open -r -o driver=raw plain", "read -v 0 4"],
        &["close", "open -r -d ignore -o driver=qcow2 top", "map", "open -r plain", "length"],
        &["close", "open -o driver=foo plain", "open -d bad plain", "length"],
    ] {
        let (mut theirs, mut ours) = both(folder, &["-r", "-f", "qcow2"], "plain", commands);
        // What is wrong with a file each says in its own words.
        for told in [&mut theirs, &mut ours] {
            for line in told.stderr.iter_mut().filter(|line| line.contains("river")) {
                "PROGRAM: no such driver".clone_into(line);
            }
        }
        assert_eq!(ours, theirs, "{commands:?}");
    }
    let (theirs, ours) = both(folder, &["-f", "raw"], "absent", &["length"]);
    assert_eq!((ours.exit, ours.stdout), (theirs.exit, theirs.stdout));
}

#[test]
fn lines_from_a_pipe_are_commands() {
    if !available("lines of disk-engine io beside qemu-io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = images();
    for lines in [
        &b"read 0 512\nfoo\nlength\n"[..],
        b"length",
        b"",
        b"\n\n  \nlength\n",
        b"foo\nquit\nlength\n",
        b"quit\nfoo\n",
        b"read -P 1 0 512\nlength\n",
        b"read  -v  0  8 \nlength",
    ] {
        let run = |program: &str, first: &[&str]| {
            let mut child = Command::new(program)
                .current_dir(place.path())
                .args(first)
                .args(["-r", "-f", "qcow2", "plain"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // A session that quits leaves the rest unread.
            let _ = child.stdin.take().unwrap().write_all(lines);
            child.wait_with_output().unwrap()
        };
        let mut theirs = run("qemu-io", &[]);
        // Ours prompts nobody but a person.
        let unprompted = String::from_utf8(theirs.stdout).unwrap().replace("qemu-io> ", "");
        theirs.stdout = unprompted.into_bytes();
        let ours = run(ENGINE, &["io"]);
        let shown = lines.escape_ascii();
        assert_eq!(Told::of(&ours), Told::of(&theirs), "{shown}");
    }
}
