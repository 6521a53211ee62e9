//! `disk-engine io` beside `qemu-io` where disks are written to: the same words in, the same words out,
//! the same disk afterwards.
//!
//! ```text
//! image ─┬─ copy ─▶ qemu-io ─────────▶ words, exit status ─┐          ┌─ content ─▶ qemu-img compare
//!        └─ copy ─▶ disk-engine io ──▶ words, exit status ─┴─▶ equal ─┴─ ours ────▶ qemu-img check
//! ```
//!
//! Where the two differ on purpose, [`DIFFERENT`] says so, and what each does instead. One more
//! difference shows in `map` only: what reads as zeros without a table entry gets none by `write -z`.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use testkit::io_lab::{IMAGES, Lab};
use testkit::qemu::{img, img_in};
use testkit::told::Told;
use testkit::tool::{available, memory_folder};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// What changes a disk, and what fails to.
const LINES: &[&str] = &[
    "write 0 512",
    "w 0 512",
    "write 0 0",
    "write 5 40",
    "write 0 64k",
    "write 60k 80k",
    "write 500k 100k",
    "write 0 1M",
    "write -P 0x55 1k 3k",
    "write -P 1 -P 2 0 512",
    "write -q 0 512",
    "write -C 0 512",
    "write -f 0 512",
    "write -r 0 512",
    "write -p 0 512",
    "write 0 512 -q",
    "write -s source 0 2000",
    "write -s source 70k 10",
    "write -s nothing 0 512",
    "write -s absent 0 512",
    "write -z 0 64k",
    "write -z 0 65k",
    "write -z 1k 1k",
    "write -z 30k 200k",
    "write -z 0 1M",
    "write -z 300k 1k",
    "write -zu 0 64k",
    "write -zu 0 65k",
    "write -zuq 100k 900k",
    "write -zfC 0 64k",
    "write -c 576k 64k",
    "write -c 320k 128k",
    "write -c 576k 0",
    "write -cP 3 704k 64k",
    "write -c 577k 64k",
    "write -c 576k 1k",
    "write -c 0 5",
    "write -c 1 512",
    "write -fc 0 64k",
    "write -b -z 0 512",
    "write -n 0 512",
    "write -u 0 512",
    "write -zP 1 0 512",
    "write -s source -P 1 0 512",
    "write 1M 512",
    "write 1023k 2k",
    "write -z 1M 512",
    "write -z 3M 0",
    "write -c 3M 64k",
    "write 9223372036854775807 1",
    "write 0 3G",
    "write -z 0 3G",
    "write",
    "write 0",
    "write 0 1 2",
    "write -x 0 512",
    "write -P 300 0 512",
    "write -P x 0 512",
    "write 0 x",
    "write x 5",
    "write -- -1 5",
    "writev 0 512",
    "writev 5 512 1k",
    "writev -P 3 0 5 6 7",
    "writev -q 0 5",
    "writev -C 0 5 6",
    "writev -f 0 5",
    "writev 0 0",
    "writev 3M 1",
    "writev -z 0 5",
    "writev 0 x",
    "writev 0",
    "discard 0 64k",
    "d 0 64k",
    "discard 0 65k",
    "discard 1k 1k",
    "discard 30k 300k",
    "discard 0 1M",
    "discard -q 0 64k",
    "discard -C 0 64k",
    "discard 0 0",
    "discard 1M 512",
    "discard 0 3G",
    "discard -x 0 64k",
    "discard 0",
    "discard x 5",
    "flush",
];

/// Zeros that are quick or not done, where a table entry can hold them.
const QUICK: &[&str] = &[
    "write -zn 0 64k",
    "write -znu 0 64k",
    "write -zn 512k 64k",
    "write -zn 701k 1k",
    "write -zn 1k 1k",
    "write -zn 3M 512",
    "write -zn 0 3G",
];

/// Several commands at one disk.
const SESSIONS: &[&[&str]] = &[
    &["write -P 1 0 64k", "read -P 1 0 64k", "discard 0 64k", "read -P 0 0 64k"],
    &["write -P 1 60k 8k", "write -z 62k 4k", "write -P 2 63k 1k", "read -v 65530 12", "flush"],
    &["write -zu 0 192k", "write -P 3 100k 1k", "discard 64k 64k", "read -P 0 64k 64k"],
    &["write 0 x", "write 0 512", "read -P 0 0 512", "length"],
    &["write -P 4 0 512", "close", "write 0 512", "flush", "discard 0 512"],
    &["write -P 4 0 512", "quit", "write -P 5 0 512"],
    &["write -c -P 4 640k 64k", "write -P 5 650k 1k", "read -P 4 640k 10k", "read -P 5 650k 1k"],
];

/// What each program does where they differ on purpose.
struct Difference {
    image: &'static str,
    line: &'static str,
    /// The first line each says on standard output.
    theirs: &'static str,
    ours: &'static str,
    /// Reads that show what ours has left behind.
    left: &'static [&'static str],
}

const FAILED: &str = "write failed: Input/output error";
const NOT_SUPPORTED: &str = "write failed: Operation not supported";

const DIFFERENT: &[Difference] = &[
    // Compressed clusters replace whatever was there.
    Difference {
        image: "plain",
        line: "write -c -P 8 64k 64k",
        theirs: FAILED,
        ours: "wrote 65536/65536 bytes at offset 65536",
        left: &["read -P 0x41 0 64k", "read -P 8 64k 64k"],
    },
    Difference {
        image: "plain",
        line: "write -c -P 8 256k 64k",
        theirs: FAILED,
        ours: "wrote 65536/65536 bytes at offset 262144",
        left: &["read -P 8 256k 64k"],
    },
    // Zeros that cannot all be quick are not written at all.
    Difference {
        image: "plain",
        line: "write -zn 0 65k",
        theirs: NOT_SUPPORTED,
        ours: NOT_SUPPORTED,
        left: &["read -P 0x41 0 128k"],
    },
    // Nobody knows beforehand what a file system does.
    Difference {
        image: "raw",
        line: "write -zn 0 64k",
        theirs: "wrote 65536/65536 bytes at offset 0",
        ours: NOT_SUPPORTED,
        left: &["read -P 7 0 64k"],
    },
    // The saved state of a VM is not ours to write.
    Difference {
        image: "plain",
        line: "write -b 0 512",
        theirs: "wrote 512/512 bytes at offset 0",
        ours: NOT_SUPPORTED,
        left: &["read -P 0x41 0 128k"],
    },
    // Bytes are not dropped, nor does a disk grow by being written to.
    Difference {
        image: "odd",
        line: "write 0 1k",
        theirs: "wrote 1024/1024 bytes at offset 0",
        ours: FAILED,
        left: &["read -P 7 0 1000", "read -P 0 1000 24"],
    },
    Difference {
        image: "odd",
        line: "write 1000 24",
        theirs: "wrote 24/24 bytes at offset 1000",
        ours: FAILED,
        left: &["read -P 7 0 1000"],
    },
];

#[test]
fn commands_that_write_do_and_say_and_leave_what_they_do_in_qemu_io() {
    if !available("disk-engine io writing beside qemu-io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    let plain = &IMAGES[0];
    for line in LINES {
        // Zeros may have an entry in theirs and none in ours.
        let after = if line.contains("-z") { "length" } else { "map" };
        lab.same(plain, &[], &[line, after]);
    }
    for image in IMAGES {
        for commands in SESSIONS {
            // A raw image has nothing compressed.
            lab.same(image, &[], commands);
        }
    }
    for image in IMAGES.iter().filter(|image| image.format == "qcow2") {
        for line in QUICK {
            lab.same(image, &[], &[line]);
        }
    }
    for image in &IMAGES[1..] {
        for line in LINES.iter().filter(|line| line.contains("k")) {
            lab.same(image, &[], &[line]);
        }
    }
}

#[test]
fn an_external_data_file_takes_writes_and_nothing_compressed() {
    if !available("disk-engine io writing to a data file", &["qemu-img", "qemu-io"]) {
        return;
    }
    for raw in ["on", "off"] {
        let place = memory_folder();
        let ran =
            [("qemu-io", &[][..]), (ENGINE, &["io", "--data-files"])].map(|(program, first)| {
                let options = format!("data_file=data,data_file_raw={raw}");
                img_in(
                    place.path(),
                    &["create", "-q", "-f", "qcow2", "-o", &options, "image", "1M"],
                );
                let commands = &[
                    "write -P 1 0 80k",
                    "write -c 64k 64k",
                    "write -z 1k 70k",
                    "write -zn 128k 1k",
                ];
                let arguments = [first, &["-f", "qcow2", "image"]].concat();
                let told = Told::by(program, place.path(), &arguments, commands);
                img_in(place.path(), &["check", "-q", "image"]);
                img_in(place.path(), &["convert", "-f", "qcow2", "-O", "raw", "image", "content"]);
                let content = fs::read(place.path().join("content")).unwrap();
                fs::remove_file(place.path().join("data")).unwrap();
                (told, content)
            });
        let [(theirs, their_content), (mut ours, our_content)] = ran;
        ours.stderr.clear();
        assert_eq!(ours, theirs, "data_file_raw={raw}");
        assert!(our_content == their_content, "data_file_raw={raw}");
    }
}

#[test]
fn differences_are_those_that_are_meant() {
    if !available("disk-engine io unlike qemu-io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    for Difference { image, line, theirs, ours, left } in DIFFERENT {
        let format = if ["raw", "odd"].contains(image) { "raw" } else { "qcow2" };
        let said = lab.both(format, image, &[], &[line]);
        let first = |told: &Told| told.stdout.first().cloned().unwrap_or_default();
        assert_eq!((first(&said.0), first(&said.1)), ((*theirs).into(), (*ours).into()), "{line}");
        let failed = i32::from(ours.contains("failed"));
        assert_eq!(said.1.exit, Some(failed), "{line}: {said:?}");
        lab.sound(format, image);
        let arguments = ["-r", "-f", format, image];
        let read = Told::by("qemu-io", &lab.folder("ours"), &arguments, left);
        assert_eq!(read.exit, Some(0), "{line}: {read:?}");
    }
}

#[test]
fn zeros_and_discards_end_where_the_disk_does() {
    if !available("disk-engine io at an incomplete sector", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    for line in ["write -z 512 512", "write -zu 0 1k", "write -z 1000 24", "discard 0 1k"] {
        let (theirs, ours) = lab.both("raw", "odd", &[], &[line, "read -P 0 512 512", "length"]);
        assert_eq!(ours, theirs, "{line}");
        assert_eq!(fs::metadata(lab.folder("ours").join("odd")).unwrap().len(), 1000, "{line}");
    }
}

#[test]
fn a_disk_taken_for_raw_does_not_become_a_qcow2_image() {
    if !available("disk-engine io at a disk of no said format", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    for folder in ["theirs", "ours"] {
        fs::write(lab.folder(folder).join("header"), b"QFI\xfb and more").unwrap();
    }
    let commands = &["write -s header 0 512", "write -s header 512 1k", "write -z 0 512"];
    let run = |program: &str, name: &str, first: &[&str]| {
        let folder = lab.folder(name);
        fs::copy(lab.folder("images").join("raw"), folder.join("raw")).unwrap();
        Told::by(program, &folder, first, commands)
    };
    let theirs = run("qemu-io", "theirs", &["raw"]);
    let ours = run(ENGINE, "ours", &["io", "raw"]);
    assert_eq!((&ours.stdout, ours.exit), (&theirs.stdout, theirs.exit));
    assert_eq!(ours.stdout[0], "write failed: Operation not permitted");
    let said = run(ENGINE, "ours", &["io", "-f", "raw", "raw"]);
    assert_eq!(said.exit, Some(0), "{said:?}");
    // Not bit by bit either.
    let bytes = ["write -P 0x51 0 1", "write -P 0x46 1 1", "write -P 0x49 2 1"];
    let ours = |lines: &[&str]| Told::by(ENGINE, &lab.folder("ours"), &["io", "raw"], lines);
    assert_eq!(ours(&bytes).exit, Some(0));
    assert_eq!(ours(&["write -P 0xfb 3 1"]).exit, Some(1));
    assert_eq!(ours(&["write -P 0xfa 3 1", "write -P 0xfb 4 1"]).exit, Some(0));
}

#[test]
fn modes_are_those_of_qemu_io() {
    if !available("modes of disk-engine io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    let commands = &["discard 0 64k", "read -P 0x41 0 64k", "write -P 1 5 5", "flush", "map"];
    for options in [
        &["-d", "ignore"][..],
        &["-d", "off"],
        &["-d", "unmap"],
        &["-d", "on"],
        &["-t", "writeback"],
        &["-t", "writethrough"],
        &["-t", "unsafe"],
        &["-t", "unsafe", "-d", "ignore"],
        &["-n", "-t", "writeback"],
    ] {
        lab.same(&IMAGES[0], options, commands);
    }
    for options in [
        "",
        "-d ignore",
        "-t writeback -d off",
        "-d unmap -t unsafe",
        "-o driver=qcow2 -t writethrough",
        "-t bad",
        "-d bad",
    ] {
        let open = format!("open {options} plain");
        let commands = ["close", &open, "discard 0 64k", "read -P 0x41 0 64k", "write 0 512"];
        // What was said of the first disk is not said of the next.
        lab.same(&IMAGES[0], &["-d", "ignore"], &commands);
    }
    // Not every file system does without the host's cache, so only ours is asked.
    for options in [&["-n"][..], &["-t", "none"], &["-t", "directsync"], &["-t", "unsafe", "-n"]] {
        let arguments = [&["io"], options, &["-f", "qcow2", "plain"]].concat();
        let told = Told::by(ENGINE, &lab.folder("ours"), &arguments, &["write -P 9 0 1k"]);
        assert_eq!((told.exit, told.stdout.len()), (Some(0), 2), "{options:?}: {told:?}");
    }
}

#[test]
fn zeros_keep_their_space_unless_u_is_said() {
    if !available("space of zeros of disk-engine io", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    for (line, kept) in [("write -z 0 64k", true), ("write -zu 0 64k", false)] {
        let told = lab.both("qcow2", "plain", &[], &[line]);
        assert_eq!(told.1, told.0, "{line}");
        for program in ["theirs", "ours"] {
            let map = ["map", "--output", "json", "-l", "64k", "plain"];
            let map = img_in(&lab.folder(program), &map);
            assert!(map.contains("\"zero\": true"), "{line} {program}: {map}");
            assert_eq!(map.contains("\"offset\""), kept, "{line} {program}: {map}");
        }
    }
}

#[test]
fn writes_come_through_a_pipe_as_well() {
    if !available("writes through a pipe", &["qemu-img", "qemu-io"]) {
        return;
    }
    let lab = Lab::new(ENGINE);
    for lines in [
        &b"write -P 1 0 64k\nread -P 1 0 64k\n"[..],
        b"write -P 1 0 64k",
        b"foo\nwrite -P 2 5 5\nquit\nwrite -P 3 5 5\n",
        b"write -P 3 0 1k\nclose\nwrite 0 1k\nopen plain\nwrite -P 4 1k 1k\nread -P 3 0 1k",
    ] {
        let run = |program: &str, name: &str, first: &[&str]| {
            let folder = lab.folder(name);
            fs::copy(lab.folder("images").join("plain"), folder.join("plain")).unwrap();
            let mut child = Command::new(program)
                .current_dir(&folder)
                .args(first)
                .args(["-f", "qcow2", "plain"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // A session that quits leaves the rest unread.
            let _ = child.stdin.take().unwrap().write_all(lines);
            let mut output = child.wait_with_output().unwrap();
            // Ours prompts nobody but a person.
            let unprompted = String::from_utf8(output.stdout).unwrap().replace("qemu-io> ", "");
            output.stdout = unprompted.into_bytes();
            Told::of(&output)
        };
        let (theirs, ours) = (run("qemu-io", "theirs", &[]), run(ENGINE, "ours", &["io"]));
        assert_eq!(ours, theirs, "{}", lines.escape_ascii());
        let name = |program| lab.folder(program).join("plain").to_str().unwrap().to_owned();
        let compared = img(["compare", &name("theirs"), &name("ours")]);
        assert!(compared.status.success(), "{}: {compared:?}", lines.escape_ascii());
        lab.sound("qcow2", "plain");
    }
}
