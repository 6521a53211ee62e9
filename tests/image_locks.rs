//! Image locks between real QEMU programs and us, in both directions.
//!
//! ```text
//! we hold  ──▶ qemu-io, qemu-img, a VM try          refused in QEMU's words, or not
//! they hold ─▶ we try                               refused with the holder's intent, or not
//! ```
//!
//! What is expected is what QEMU's own programs do to each other, tried by hand and with `strace`:
//! a qcow2 image and everything below an open one keeps writing and resizing to itself; a raw
//! image only as far as who uses it wants that, which a VM does and `qemu-io` and `qemu-img info` do
//! not.

use std::error::Error as _;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use disk_engine::base::{BaseFormat, BaseImage};
use disk_engine::disk::policy::BackingPolicy;
use disk_engine::disk::{Disk, DiskContent, DiskOptions, Locking};
use disk_engine::ops::info::{InfoOptions, info};
use disk_engine::ops::pack::{PackOptions, pack};
use disk_engine::sys::image_lock::{Access, Conflict, ImageLock, LockError, Permission};
use disk_engine::{Error, ErrorKind};
use testkit::qemu::{self, Vm, img_in};
use testkit::tool::{available, left_out, memory_folder};

const PATIENCE: Duration = Duration::from_secs(60);
const BUSY_WRITER: Conflict = Conflict::Uses(Permission::Write);
const NO_WRITERS: Conflict = Conflict::Keeps(Permission::Write);

fn here() -> bool {
    available("image locks", &["qemu-img", "qemu-io", qemu::SYSTEM])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A `qemu-io` that has an image open until the value goes.
struct Io(Child);

impl Io {
    fn start(arguments: &[&str], path: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // It answers once the image is open.
        child.stdin.as_ref().unwrap().write_all(b"length\n").unwrap();
        let mut answer = BufReader::new(child.stdout.take().unwrap());
        let mut heard = String::new();
        while !heard.contains("MiB") {
            let mut byte = [0];
            assert_eq!(answer.read(&mut byte).unwrap(), 1, "{arguments:?}: {heard}");
            heard.push(char::from(byte[0]));
        }
        Self(child)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drive(path: &Path, format: &str, more: &str) -> String {
    format!("file={},format={format},if=virtio{more}", path.display())
}

/// A VM that waits for its start, with the image open.
fn machine(path: &Path, format: &str, more: &str) -> Vm {
    let drive = drive(path, format, more);
    let mut vm = Vm::start(["-S", "-monitor", "stdio", "-drive", &drive]);
    vm.say("info status");
    vm.line("paused", PATIENCE);
    vm
}

/// What a program that tries the image and ends says on standard error; empty if it could open it.
fn attempt(program: &str, format: &str, path: &Path) -> String {
    let path = text(path);
    let said = match program {
        "reads" => qemu::io(["-r", "-f", format, "-c", "read 0 512", path]),
        "reads -U" => qemu::io(["-r", "-U", "-f", format, "-c", "read 0 512", path]),
        "writes" => qemu::io(["-f", format, "-c", "write 0 512", path]),
        "info" => qemu::img(["info", "-f", format, path]),
        "info -U" => qemu::img(["info", "-U", "-f", format, path]),
        "check" => qemu::img(["check", "-f", format, path]),
        "map" => qemu::img(["map", "-f", format, path]),
        "VM" | "VM, readonly" => {
            let more = if program == "VM" { "" } else { ",readonly=on" };
            let drive = drive(Path::new(path), format, more);
            let mut command = Command::new(qemu::SYSTEM);
            command.args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"]);
            command.args(["-S", "-monitor", "stdio", "-drive", &drive]);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            // One that could not open its drive is gone before it reads this.
            let _ = child.stdin.as_ref().unwrap().write_all(b"quit\n");
            let output = child.wait_with_output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), words.is_empty(), "{words}");
            return words;
        }
        other => panic!("{other}"),
    };
    if said.status.success() {
        return String::new();
    }
    assert!(!said.stderr.is_empty(), "{said:?}");
    said.stderr
}

const NO_WRITE: &str = "Failed to get \"write\" lock";
const NO_SHARED_WRITE: &str = "Failed to get shared \"write\" lock";

fn images(folder: &Path) -> [(&'static str, PathBuf); 2] {
    img_in(folder, &["create", "-q", "-f", "qcow2", "image.qcow2", "8M"]);
    img_in(folder, &["create", "-q", "-f", "raw", "image.raw", "8M"]);
    [("qcow2", folder.join("image.qcow2")), ("raw", folder.join("image.raw"))]
}

fn lock(path: &Path, access: Access, locking: Locking) -> Result<ImageLock, Conflict> {
    let file = File::options().read(true).write(access == Access::Write).open(path).unwrap();
    match ImageLock::acquire(file, access, locking) {
        Ok(lock) => Ok(lock),
        Err(LockError::InUse(conflict)) => Err(conflict),
        Err(LockError::Io(error)) => panic!("{error}"),
    }
}

#[test]
fn qemu_is_refused_what_contradicts_us() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let both = images(place.path());
    // Per format: who is refused what, while we read and while we write.
    let refused = |format: &str, access: Access, program: &str| match (access, format, program) {
        (Access::ReadShared, ..) | (.., "reads -U" | "info -U") => None,
        (_, _, "writes" | "VM") => Some(NO_WRITE),
        (Access::Read, ..) => None,
        (Access::Write, "raw", "reads" | "info" | "map") => None,
        (Access::Write, ..) => Some(NO_SHARED_WRITE),
    };
    for (format, path) in &both {
        for access in [Access::Read, Access::ReadShared, Access::Write] {
            let held = lock(path, access, Locking::On).unwrap();
            let programs =
                ["reads", "reads -U", "writes", "info", "info -U", "map", "VM", "VM, readonly"];
            let check = (*format == "qcow2").then_some("check");
            for program in programs.into_iter().chain(check) {
                let said = attempt(program, format, path);
                match refused(format, access, program) {
                    None => assert_eq!(said, "", "{format}, {access:?}: {program}"),
                    Some(words) => {
                        assert!(said.contains(words), "{format}, {access:?}: {program}: {said}");
                    }
                }
            }
            drop(held);
            // Whatever was refused before is free now.
            assert_eq!(attempt("writes", format, path), "", "{format}, after {access:?}");
        }
        let unlocked = lock(path, Access::Write, Locking::Off).unwrap();
        assert_eq!(attempt("VM", format, path), "", "{format}");
        drop(unlocked);
    }
}

#[test]
fn we_are_refused_what_contradicts_qemu() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let expect = |holder: &str, path: &Path, read: Option<Conflict>, write: Option<Conflict>| {
        let outcome = |access, locking| lock(path, access, locking).err();
        assert_eq!(outcome(Access::Read, Locking::On), read, "{holder}: we read");
        assert_eq!(outcome(Access::Write, Locking::Auto), write, "{holder}: we write");
        assert_eq!(outcome(Access::Read, Locking::Shared), None, "{holder}: we read, shared");
        assert_eq!(outcome(Access::Write, Locking::Off), None, "{holder}: no locks");
    };
    let [(_, qcow2), (_, raw)] = images(place.path());
    // A raw image that qemu-io has open is kept to nobody; what others may not do comes first.
    for (format, path, write_of_reader, write_of_writer) in [
        ("qcow2", &qcow2, Some(NO_WRITERS), Some(NO_WRITERS)),
        ("raw", &raw, None, Some(BUSY_WRITER)),
    ] {
        let holder = Io::start(&["-f", format], path);
        expect(&format!("{format}: qemu-io"), path, Some(BUSY_WRITER), write_of_writer);
        drop(holder);
        let holder = Io::start(&["-r", "-f", format], path);
        expect(&format!("{format}: qemu-io -r"), path, None, write_of_reader);
        drop(holder);
        let holder = Io::start(&["-r", "-U", "-f", format], path);
        expect(&format!("{format}: qemu-io -r -U"), path, None, None);
        drop(holder);
        let vm = machine(path, format, "");
        expect(&format!("{format}: VM"), path, Some(BUSY_WRITER), Some(NO_WRITERS));
        // Killed, it is gone at once.
        vm.kill();
        expect(&format!("{format}: nobody"), path, None, None);
        let vm = machine(path, format, ",readonly=on");
        expect(&format!("{format}: VM, readonly"), path, None, Some(NO_WRITERS));
        drop(vm);
        let vm = machine(path, format, ",file.locking=off");
        expect(&format!("{format}: VM without locks"), path, None, None);
        drop(vm);
    }
    left_out(
        "image locks on a file system that cannot lock",
        "Linux locks for its file systems; only some of the network refuse, and their answers are \
         told apart in disk-engine's own tests",
    );
}

fn opened(path: &Path, format: BaseFormat, locking: Locking) -> Result<Disk, Error> {
    let mut options = DiskOptions::default();
    options.locking = locking;
    options.data_files = BackingPolicy::default();
    Disk::open(path, format, &options)
}

fn busy(outcome: Result<Disk, Error>, path: &Path) {
    let error = outcome.unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Busy, Some(path)), "{error:?}");
    let conflict: &Conflict = error.source().and_then(|source| source.downcast_ref()).unwrap();
    assert_eq!(conflict, &BUSY_WRITER);
    assert!(conflict.to_string().contains("open for writing"), "{conflict}");
}

#[test]
fn a_vm_and_a_disk_share_a_base_and_nothing_else() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    let base = folder.join("base.img");
    fs::write(&base, vec![9; 8 << 20]).unwrap();
    let overlay = |name: &str| {
        let path = folder.join(name);
        BaseImage::open(&base, BaseFormat::Raw).unwrap().overlay(&path).create().unwrap();
        path
    };
    let (first, second) = (overlay("first.qcow2"), overlay("second.qcow2"));

    let vm = machine(&first, "qcow2", "");
    busy(opened(&first, BaseFormat::Qcow2, Locking::Auto), &first);
    assert!(opened(&first, BaseFormat::Qcow2, Locking::Shared).is_ok());
    assert!(opened(&first, BaseFormat::Qcow2, Locking::Off).is_ok());
    assert!(opened(&base, BaseFormat::Raw, Locking::On).is_ok());
    assert_eq!(lock(&base, Access::Write, Locking::On).err(), Some(NO_WRITERS));
    // Who only looks at headers is in nobody's way.
    let report = info(&first, BaseFormat::Qcow2, &InfoOptions::default()).unwrap();
    assert_eq!(report.backing_chain.len(), 1);
    assert!(attempt("info", "qcow2", &first).contains(NO_SHARED_WRITE));

    let archive = folder.join("disk.tar.zst");
    let mut options = PackOptions { format: BaseFormat::Qcow2, level: 1, ..PackOptions::default() };
    let error = pack(&first, &archive, &options).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Busy, Some(first.as_path())), "{error}");
    assert!(!archive.exists());
    options.disk.locking = Locking::Shared;
    pack(&first, &archive, &options).unwrap();
    drop(vm);

    let disk = opened(&second, BaseFormat::Qcow2, Locking::On).unwrap();
    let vm = machine(&first, "qcow2", "");
    assert!(attempt("VM", "qcow2", &second).contains(NO_WRITE));
    assert!(attempt("writes", "raw", &base).contains(NO_WRITE));
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [9; 512]);
    drop(disk);
    drop(vm);
    assert_eq!(attempt("writes", "raw", &base), "");

    // A writer somewhere below is as much in the way, and named.
    let holder = Io::start(&["-f", "raw"], &base);
    busy(opened(&second, BaseFormat::Qcow2, Locking::Auto), &base);
    drop(holder);
    assert!(opened(&second, BaseFormat::Qcow2, Locking::Auto).is_ok());
}

#[test]
fn data_files_are_locked_like_their_images() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    img_in(folder, &["create", "-q", "-f", "qcow2", "-o", "data_file=data", "image", "8M"]);
    let data = folder.join("data");
    let json = format!(
        "driver=qcow2,file.filename={},data-file.driver=file,data-file.filename={},if=virtio",
        folder.join("image").display(),
        data.display()
    );
    let mut vm = Vm::start(["-S", "-monitor", "stdio", "-drive", &json]);
    vm.say("info status");
    vm.line("paused", PATIENCE);
    assert_eq!(lock(&data, Access::Read, Locking::On).err(), Some(BUSY_WRITER));
    drop(vm);

    let disk = opened(&folder.join("image"), BaseFormat::Qcow2, Locking::On).unwrap();
    assert!(attempt("writes", "raw", &data).contains(NO_WRITE));
    assert_eq!(attempt("reads", "raw", &data), "");
    drop(disk);
    let holder = Io::start(&["-f", "raw"], &data);
    busy(opened(&folder.join("image"), BaseFormat::Qcow2, Locking::On), &data);
    drop(holder);
}
