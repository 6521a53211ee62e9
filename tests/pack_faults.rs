//! Packing that goes wrong: killed, out of room, a disk that changes under it, a VM that has it open.
//! Whatever happens, there is no archive and nothing else either.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use disk_engine::control::{CancelToken, Control, Event};
use disk_engine::ops::pack::{PackOptions, pack};
use disk_engine::sys::{image_lock, signal};
use disk_engine::{BaseFormat, BaseImage, ErrorKind, Existing};

const SOURCE: &str = "PACK_FAULTS_SOURCE";
const DESTINATION: &str = "PACK_FAULTS_DESTINATION";
const FORCE: &str = "PACK_FAULTS_FORCE";

/// A folder with a disk of 42 MiB, most of it data that does not compress at first sight.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let file = File::create(place.disk()).unwrap();
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..6 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0] | 1
            })
            .collect();
        for part in 0..4 {
            file.write_all_at(&noise, part * (12 << 20)).unwrap();
        }
        place
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn archive(&self) -> PathBuf {
        self.folder.path().join("a.tar.zst")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// This very program, packing at the hardest level.
    fn child(&self, force: bool) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        self.equip(&mut command, force);
        command
    }

    fn equip(&self, command: &mut Command, force: bool) {
        command
            .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SOURCE, self.disk())
            .env(DESTINATION, self.archive())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if force {
            command.env(FORCE, "1");
        }
    }

    /// Packs, and calls `event` once, when the first data has gone out.
    fn pack_and(
        &self,
        frame_size: Option<u64>,
        event: impl Fn() + Send + Sync + 'static,
    ) -> disk_engine::Error {
        let called = AtomicBool::new(false);
        let control = Control::new().with_observer(move |seen| {
            if let Event::Progress { source_length: Some(_), .. } = seen
                && !called.swap(true, Ordering::SeqCst)
            {
                event();
            }
        });
        let options = PackOptions { control, frame_size, level: 1, ..PackOptions::default() };
        pack(&self.disk(), &self.archive(), &options).unwrap_err()
    }
}

/// Not a test: what the others start, limit and kill.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Some(source) = std::env::var_os(SOURCE) else { return };
    let destination = std::env::var_os(DESTINATION).unwrap();
    signal::survive_file_size_limit();
    let force = std::env::var_os(FORCE).is_some();
    let control = Control::new().with_observer(|event| {
        if let Event::Progress { source_length: Some(_), .. } = event {
            println!("\npacking");
        }
    });
    let options = PackOptions {
        level: 19,
        existing: if force { Existing::Replace } else { Existing::Refuse },
        control,
        ..PackOptions::default()
    };
    match pack(Path::new(&source), Path::new(&destination), &options) {
        Ok(_) => println!("\npacked"),
        Err(error) => println!("\n{}: {error}", error.kind().code()),
    }
}

#[test]
fn a_killed_pack_leaves_nothing_or_what_the_next_one_removes() {
    for force in [false, true] {
        let place = Place::new();
        if force {
            fs::write(place.archive(), b"before").unwrap();
        }
        let mut child = place.child(force).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map_while(Result::ok).find(|line| line == "packing" || line == "packed");
        assert_eq!(told.as_deref(), Some("packing"));
        child.kill().unwrap();
        child.wait().unwrap();
        if force {
            assert_eq!(fs::read(place.archive()).unwrap(), b"before");
            assert!(place.names().len() <= 3, "{:?}", place.names());
        } else {
            assert_eq!(place.names(), ["disk"]);
        }
        let options =
            PackOptions { existing: Existing::Replace, level: 1, ..PackOptions::default() };
        pack(&place.disk(), &place.archive(), &options).unwrap();
        assert_eq!(place.names(), ["a.tar.zst", "disk"]);
    }
}

#[test]
fn a_file_that_may_not_grow_so_far_is_an_error_and_is_gone() {
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 64; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    place.equip(&mut command, false);
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let error =
        said.lines().find(|line| line.starts_with("io: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(error.contains("write the archive") && error.contains("a.tar.zst"), "{error}");
    assert_eq!(place.names(), ["disk"]);
}

#[test]
fn a_disk_written_to_meanwhile_is_no_archive() {
    type Change = fn(&File);
    let changes: [(&str, Change); 4] = [
        ("data not packed yet", |disk| disk.write_all_at(b"other", 40 << 20).unwrap()),
        ("a hole", |disk| disk.write_all_at(b"data", (12 << 20) - 5000).unwrap()),
        ("a larger size", |disk| disk.set_len(50 << 20).unwrap()),
        ("a smaller size", |disk| disk.set_len(20 << 20).unwrap()),
    ];
    for (what, change) in changes {
        for frame_size in [None, Some(1 << 20)] {
            let place = Place::new();
            let disk = File::options().write(true).open(place.disk()).unwrap();
            let error = place.pack_and(frame_size, move || change(&disk));
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
            assert_eq!(error.message(), "the disk changed while it was packed");
            assert_eq!(error.path(), Some(place.disk().as_path()), "{what}");
            assert_eq!(place.names(), ["disk"], "{what}");
        }
    }
}

#[test]
fn another_disk_under_the_name_is_noticed() {
    let place = Place::new();
    let (disk, other) = (place.disk(), place.folder.path().join("other"));
    fs::copy(&disk, &other).unwrap();
    let error = place.pack_and(None, move || fs::rename(&other, &disk).unwrap());
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert_eq!(place.names(), ["disk"]);
}

#[test]
fn a_base_written_to_or_in_use_counts_as_the_disk() {
    let place = Place::new();
    let overlay = place.folder.path().join("vm.qcow2");
    BaseImage::open(place.disk(), BaseFormat::Raw).unwrap().overlay(&overlay).create().unwrap();
    let base = place.disk();
    let control = Control::new().with_observer(move |event| {
        if let Event::Progress { source_length: Some(_), .. } = event {
            let file = File::options().write(true).open(&base).unwrap();
            file.write_all_at(b"data", (12 << 20) - 5000).unwrap();
        }
    });
    let format = BaseFormat::Qcow2;
    let options = PackOptions { format, control, level: 1, ..PackOptions::default() };
    let error = pack(&overlay, &place.archive(), &options).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Mismatch, Some(place.disk().as_path())));

    let options = PackOptions { format, existing: Existing::Replace, ..PackOptions::default() };
    let error = pack(&overlay, &place.disk(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let vm = File::options().read(true).write(true).open(place.disk()).unwrap();
    assert!(image_lock::lock_for_writing(&vm).unwrap());
    let error = pack(&overlay, &place.archive(), &options).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Busy, Some(place.disk().as_path())));
    assert_eq!(place.names(), ["disk", "vm.qcow2"]);
}

#[test]
fn a_cancelled_pack_ends_and_leaves_nothing() {
    for frame_size in [None, Some(1 << 20)] {
        let place = Place::new();
        let cancel = CancelToken::new();
        let token = cancel.clone();
        let control = Control::new().with_cancel(cancel).with_observer(move |event| {
            if let Event::Progress { source_length: Some(_), .. } = event {
                token.cancel();
            }
        });
        let options = PackOptions { control, frame_size, ..PackOptions::default() };
        let error = pack(&place.disk(), &place.archive(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert_eq!(place.names(), ["disk"]);
    }
}

#[test]
fn a_disk_a_vm_writes_to_is_busy_and_one_that_is_only_read_is_not() {
    let place = Place::new();
    let options = PackOptions { level: 1, ..PackOptions::default() };
    let vm = File::options().read(true).write(true).open(place.disk()).unwrap();
    assert!(image_lock::lock_for_writing(&vm).unwrap());
    let error = pack(&place.disk(), &place.archive(), &options).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Busy, Some(place.disk().as_path())));
    drop(vm);
    pack(&place.disk(), &place.archive(), &options).unwrap();
}

#[test]
fn the_disk_is_never_replaced_and_options_are_checked_first() {
    let place = Place::new();
    let replace = PackOptions { existing: Existing::Replace, ..PackOptions::default() };
    let link = place.folder.path().join("link");
    std::os::unix::fs::symlink("disk", &link).unwrap();
    for destination in [place.disk(), link.clone()] {
        let error = pack(&place.disk(), &destination, &replace).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    fs::remove_file(link).unwrap();
    for (options, field) in [
        (PackOptions { level: 0, ..replace.clone() }, "level"),
        (PackOptions { level: 23, ..replace.clone() }, "level"),
        (PackOptions { window_log: 9, ..replace.clone() }, "long"),
        (PackOptions { window_log: 32, ..replace.clone() }, "long"),
        (PackOptions { frame_size: Some((64 << 10) - 1), ..replace.clone() }, "frames"),
        (PackOptions { frame_size: Some((1 << 30) + 1), ..replace.clone() }, "frames"),
        (PackOptions { member: "../disk".into(), ..replace.clone() }, "member"),
        (PackOptions { mtime: u64::MAX, ..replace }, "mtime"),
    ] {
        let error = pack(&place.disk(), &place.archive(), &options).unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some(field)));
    }
    fs::write(place.archive(), b"before").unwrap();
    let error = pack(&place.disk(), &place.archive(), &PackOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(place.names(), ["a.tar.zst", "disk"]);
}
