//! Where the qemu-img door puts a disk, beside where the real one does: over files with owners, modes
//! and other names, through links, onto devices.
//!
//! ```text
//! a folder of cases ─┬─▶ qemu-img WORDS ─▶ code, messages, what is there ─┐
//! made anew for each └─▶ door     WORDS ─▶ code, messages, what is there ─┴─ equal
//! ```
//!
//! A privileged caller may do anything, so that one takes another user's place for it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use testkit::device::Device;
use testkit::qemu::img;
use testkit::tool::{available, memory_folder};

/// Somebody without privileges.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The cases, made by whoever runs this and worked on by nobody.
fn make(folder: &Path) {
    fs::create_dir(folder).unwrap();
    set_mode(folder, 0o777);
    let file = |name: &str, mode: u32| {
        let path = folder.join(name);
        fs::write(&path, b"what stood there").unwrap();
        set_mode(&path, mode);
    };
    fs::write(folder.join("src.raw"), [vec![b'x'; 65536], vec![0; 65536]].concat()).unwrap();
    set_mode(&folder.join("src.raw"), 0o644);
    file("read-only", 0o444);
    file("hidden", 0o400);
    file("writable", 0o666);
    file("odd", 0o626);
    file("linked", 0o666);
    fs::hard_link(folder.join("linked"), folder.join("other name")).unwrap();
    for (name, mode) in [("own", 0o600), ("own linked", 0o640)] {
        file(name, mode);
        if geteuid().is_root() {
            chown(folder.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    fs::hard_link(folder.join("own linked"), folder.join("own other name")).unwrap();
    fs::create_dir(folder.join("closed")).unwrap();
    file("closed/there", 0o666);
    set_mode(&folder.join("closed"), 0o555);
    symlink("writable", folder.join("link")).unwrap();
    symlink("made", folder.join("dangling")).unwrap();
    symlink("dangling", folder.join("twice")).unwrap();
    symlink("absent/made", folder.join("nowhere")).unwrap();
    symlink("absent/", folder.join("folder")).unwrap();
    symlink("loop", folder.join("loop")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    set_mode(&folder.join("fifo"), 0o666);
}

const TARGETS: &[&str] = &[
    "new",
    "read-only",
    "hidden",
    "writable",
    "odd",
    "linked",
    "own",
    "own linked",
    "closed/there",
    "closed/new",
    "closed",
    "link",
    "dangling",
    "twice",
    "nowhere",
    "folder",
    "loop",
    "fifo",
    "/dev/null",
];

/// What is at every name of the folder, and the disk in what was made.
fn state(folder: &Path, target: &str) -> Vec<String> {
    let mut told = Vec::new();
    for name in ["", "closed"] {
        for entry in fs::read_dir(folder.join(name)).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let length = if metadata.is_dir() { 0 } else { metadata.len() };
            told.push(format!(
                "{name}/{}: {:?} {:o} {} {} links={} {length}",
                entry.file_name().display(),
                metadata.file_type(),
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.nlink(),
            ));
        }
    }
    told.sort();
    let path = folder.join(target);
    if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        let same =
            img(["compare", path.to_str().unwrap(), folder.join("src.raw").to_str().unwrap()]);
        told.push(format!("{:?} {}", same.status.code(), same.stdout));
    }
    told
}

fn ask(program: &Path, words: &[&str], folder: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(program);
    command.arg0("qemu-img").args(words).current_dir(folder).stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_target_keeps_who_may_have_it() {
    if !available("targets of the door", &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    set_mode(place.path(), 0o755);
    // Nobody may be kept out of the folder that it was built in.
    let door = place.path().join("qemu-img");
    fs::copy(env!("CARGO_BIN_EXE_engine"), &door).unwrap();
    let mut compared = 0;
    for command in ["create", "convert", "dd"] {
        for format in ["raw", "qcow2"] {
            for &target in TARGETS {
                // A device has no first cluster of an image: qemu-img says so in the words of a read.
                if target == "/dev/null" && format == "qcow2" {
                    continue;
                }
                let of = format!("of={target}");
                let words = match command {
                    "create" => vec!["create", "-q", "-f", format, target, "1M"],
                    "convert" => vec!["convert", "-O", format, "src.raw", target],
                    _ => vec!["dd", "-O", format, "if=src.raw", "bs=64k", "count=1", &of],
                };
                let [theirs, ours] = ["theirs", "ours"].map(|name| {
                    let folder = place.path().join(name);
                    make(&folder);
                    let program =
                        if name == "ours" { door.as_path() } else { Path::new("qemu-img") };
                    let answer = ask(program, &words, &folder);
                    let state = state(&folder, target);
                    set_mode(&folder.join("closed"), 0o755);
                    fs::remove_dir_all(&folder).unwrap();
                    (answer, state)
                });
                assert_eq!(ours, theirs, "{words:?}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 100, "{compared}");
}

#[test]
fn names_are_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    if !available("names of the door", &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    let door = place.path().join("qemu-img");
    symlink(env!("CARGO_BIN_EXE_engine"), &door).unwrap();
    let source = OsStr::from_bytes(b"\xff\xfe source.raw");
    fs::write(place.path().join(source), [b'x'; 65536]).unwrap();
    let name = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let word = |text: &str| OsStr::new(text).to_owned();
    for words in [
        vec![word("convert"), word("-O"), word("qcow2"), source.to_owned(), name(b"\xfd")],
        vec![
            word("dd"),
            word("-O"),
            word("qcow2"),
            name(b"if=\xff\xfe source.raw"),
            name(b"of=\xfd"),
        ],
    ] {
        let status = Command::new(&door).args(&words).current_dir(place.path()).status().unwrap();
        assert!(status.success(), "{words:?}");
        let [made, source] =
            [OsStr::from_bytes(b"\xfd"), source].map(|name| place.path().join(name));
        let same = img([OsStr::new("compare"), made.as_os_str(), source.as_os_str()]);
        assert_eq!(same.status.code(), Some(0), "{words:?}: {same:?}");
        fs::remove_file(made).unwrap();
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
}

/// Command lines for a device, `@`, of 8 MiB with something on it.
const DEVICE_LINES: &[&str] = &[
    "create -f raw @ 1M",
    "create -f raw @ 8M",
    "create -f raw @ 9M",
    "create -f raw -o preallocation=full @ 1M",
    "convert -O raw src.raw @",
    "convert -S 0 -O raw src.raw @",
    "convert -O raw big.raw @",
    "convert -O raw -o preallocation=falloc src.raw @",
    "convert -n -O raw src.raw @",
    "convert -n -f raw -O raw big.raw @",
    "convert -f raw -O raw @ x.raw",
    "convert -f raw -O qcow2 @ x.qcow2",
    "convert -c -f raw -O qcow2 @ x.qcow2",
    "dd if=src.raw of=@",
    "dd if=src.raw of=@ bs=4k count=2 skip=1",
    "dd if=big.raw of=@",
    "dd -f raw if=@ of=x.raw bs=64k count=3",
    "create -f qcow2 @ 1M",
    "create -f qcow2 @ 1G",
    "create -f qcow2 -o preallocation=metadata @ 4M",
    "create -f qcow2 -o extended_l2=on -b content -F raw @",
    "convert -O qcow2 src.raw @",
    "convert -O qcow2 -S 0 src.raw @",
    "convert -O qcow2 -o cluster_size=512 src.raw @",
    "convert -O qcow2 -o preallocation=metadata,cluster_size=4k src.raw @",
    "convert -O qcow2 -o extended_l2=on,cluster_size=16k src.raw @",
    "convert -c -O qcow2 src.raw @",
    "convert -c -O qcow2 -o compression_type=zstd content @",
    "convert -O qcow2 -B content -F raw src.raw @",
    "dd -O qcow2 if=src.raw of=@ bs=4k",
    "info -f raw @",
    "info --output=json -f raw @",
    "map -f raw @",
    "map --output=json -f raw @",
    "measure -f raw -O qcow2 @",
    "compare -f raw -F raw @ content",
    "compare -f raw -F raw src.raw @",
];

#[test]
fn devices_are_read_and_written_as_they_are() {
    let what = "devices as sources and targets of the door";
    if !available(what, &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    let door = folder.join("qemu-img");
    symlink(env!("CARGO_BIN_EXE_engine"), &door).unwrap();
    let content: Vec<u8> =
        (0..8 << 20_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("content"), &content).unwrap();
    fs::write(folder.join("src.raw"), [vec![b'x'; 65536], vec![0; 65536]].concat()).unwrap();
    File::create(folder.join("big.raw")).unwrap().set_len(9 << 20).unwrap();
    for line in DEVICE_LINES {
        let [theirs, ours] = ["qemu-img", door.to_str().unwrap()].map(|program| {
            fs::write(folder.join("device"), &content).unwrap();
            let device = Device::over(&folder.join("device"), what)?;
            let name = device.path().to_str().unwrap();
            let line = line.replace('@', name);
            let output = Command::new(program)
                .arg0("qemu-img")
                .args(line.split(' '))
                .current_dir(folder)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(name, "@");
            let said = (output.status.code(), text(&output.stdout), text(&output.stderr));
            assert!(fs::metadata(name).unwrap().file_type().is_block_device());
            // The clusters of an image may lie anywhere.
            let made = ["create -f qcow2", "convert", "dd -O qcow2"];
            let image = made.iter().any(|start| line.starts_with(start))
                && line.contains("qcow2")
                && !line.ends_with("x.qcow2");
            let mut state = if image && output.status.success() {
                img(["check", "-q", "-f", "qcow2", name]).expect_success();
                let flat = folder.join("flat");
                img(["convert", "-f", "qcow2", "-O", "raw", name, flat.to_str().unwrap()])
                    .expect_success();
                let said = img(["info", "--output=json", "-f", "qcow2", name]).expect_success();
                let said = said.replace(name, "@");
                let end = said.find("\"actual-size\"").unwrap_or(said.len());
                let disk = fs::read(&flat).unwrap();
                let preallocated = line.contains("preallocation");
                // What stood on the device shows through clusters that qemu-img preallocates.
                let zeros = disk.iter().all(|byte| *byte == 0);
                assert!(
                    zeros || !preallocated || program == "qemu-img" || line.starts_with("convert")
                );
                let disk = if preallocated && line.starts_with("create") { vec![] } else { disk };
                vec![disk, said[..end].into()]
            } else if image {
                vec![]
            } else {
                vec![fs::read(name).unwrap()]
            };
            drop(device);
            for made in ["x.raw", "x.qcow2"] {
                let Ok(bytes) = fs::read(folder.join(made)) else { continue };
                if made == "x.qcow2" {
                    img(["check", "-q", folder.join(made).to_str().unwrap()]).expect_success();
                    let flat = folder.join("flat");
                    let [from, to] = [folder.join(made), flat.clone()]
                        .map(|path| path.to_str().unwrap().to_owned());
                    img(["convert", "-O", "raw", &from, &to]).expect_success();
                    state.push(fs::read(&flat).unwrap());
                } else {
                    state.push(bytes);
                }
                fs::remove_file(folder.join(made)).unwrap();
            }
            Some((said, state))
        });
        let (Some(theirs), Some(ours)) = (theirs, ours) else { return };
        assert_eq!(ours.0, theirs.0, "{line}");
        assert!(ours.1 == theirs.1, "{line}: other bytes");
    }
}

/// What would leave an earlier user's bytes on a device, or cannot say where it ends.
#[test]
fn devices_take_images_and_raw_disks_only() {
    let place = memory_folder();
    let folder = place.path();
    fs::write(folder.join("device"), vec![0xaa; 4 << 20]).unwrap();
    let Some(device) = Device::over(&folder.join("device"), "targets of ours on devices") else {
        return;
    };
    let name = device.path().to_str().unwrap();
    fs::write(folder.join("base"), [vec![1; 65536], vec![0; 65536]].concat()).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.args(words).current_dir(folder).stdin(Stdio::null()).output().unwrap()
    };
    let before = fs::read(name).unwrap();
    for words in [
        &["extract", "--force", "base", name][..],
        &["pack", "--force", "base", name],
        &["convert", "-O", "archive", "--force", "base", name],
        &["overlay", "--force", "base", name],
        // Not unless asked.
        &["convert", "base", name],
        &["convert", "-O", "qcow2", "base", name],
        &["create", name, "1M"],
    ] {
        let output = run(words);
        assert!(!output.status.success(), "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = said.contains("only a regular file") || said.contains("is left as it is");
        assert!(refused, "{words:?}: {said}");
        assert!(fs::read(name).unwrap() == before, "{words:?}");
    }
    assert!(run(&["convert", "--force", "base", name]).status.success());
    let after = fs::read(name).unwrap();
    assert!(after[..131_072] == fs::read(folder.join("base")).unwrap());
    assert!(after[131_072..] == before[131_072..]);
    assert!(run(&["convert", "--force", "-O", "qcow2", "base", name]).status.success());
    img(["check", "-q", "-f", "qcow2", name]).expect_success();
    img(["compare", "-F", "raw", name, folder.join("base").to_str().unwrap()]).expect_success();
}
