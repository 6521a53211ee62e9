//! QEMU and an XML parser take our attachments, whatever the files are called.
//!
//! ```text
//! folder with a nasty name ─▶ base, overlay ─▶ attachment ─▶ qemu -S ─▶ /proc/<pid>/fd: which files
//!                                                │                       are open, and how
//!                                                └─▶ xmllint
//! ```

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk_engine::attachment::{CacheMode, Disk, Target, libvirt, qemu};
use testkit::qemu::{SYSTEM, Vm};
use testkit::{disks, tool};

const PATIENCE: Duration = Duration::from_secs(30);

/// Names a shell, QEMU's option lists, its protocols or XML would take for something else.
const NASTY: &[&[u8]] = &[
    b"plain",
    b"with space",
    b"comma,comma,,readonly=on",
    b"quote'quote\"back\\slash",
    b"<&>;$(x)`y`*?",
    b"new\nline\ttab",
    b"nbd:localhost:10809",
    b"json:{\"driver\":\"null-co\"}",
    b"=equals=",
    "größe-磁盘".as_bytes(),
    b"not-utf-8-\xff\xfe",
    b"-dash",
];

const FORMS: [qemu::Form; 2] = [qemu::Form::Blockdev, qemu::Form::Drive];

fn folder() -> tempfile::TempDir {
    // Beside the build's own files: /tmp may be a tmpfs without O_DIRECT.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// How QEMU holds a file.
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    direct: bool,
    writable: bool,
}

/// Starts QEMU without running a guest and tells how it has opened the files in `folder`.
fn opened(disks: &[Disk], form: qemu::Form, folder: &Path) -> HashMap<PathBuf, Opened> {
    let mut arguments = ["-S", "-m", "16", "-qmp", "stdio"].map(OsString::from).to_vec();
    arguments.extend(qemu::arguments(disks, form).unwrap());
    let mut vm = Vm::start(arguments);
    // The greeting comes after the devices are there.
    vm.line("QMP", PATIENCE);
    let mut opened = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", vm.id())).unwrap().flatten() {
        let Ok(path) = fs::read_link(entry.path()) else { continue };
        if path.starts_with(folder) {
            let info = format!("/proc/{}/fdinfo/{}", vm.id(), entry.file_name().display());
            let info = fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
            let direct = flags & nix::fcntl::OFlag::O_DIRECT.bits() != 0;
            let writable = flags & nix::fcntl::OFlag::O_RDWR.bits() != 0;
            opened.insert(path, Opened { direct, writable });
        }
    }
    vm.say("{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}");
    assert!(vm.wait(PATIENCE).success());
    opened
}

/// An overlay, its base, and a raw disk, in a folder and under names of that kind.
fn disks_named(folder: &Path, name: &[u8]) -> [PathBuf; 3] {
    let folder = folder.join(OsStr::from_bytes(name));
    fs::create_dir(&folder).unwrap();
    let path = |suffix: &[u8]| folder.join(OsStr::from_bytes(&[name, suffix].concat()));
    let (overlay, base, raw) = (path(b".qcow2"), path(b".base"), path(b""));
    fs::write(&base, vec![0; 1 << 20]).unwrap();
    fs::write(&raw, vec![0; 1 << 20]).unwrap();
    disks::make_overlay(&base, &overlay);
    [overlay, base, raw]
}

#[test]
fn qemu_opens_exactly_the_named_files() {
    if !tool::available("attachment: QEMU arguments", &[SYSTEM, "qemu-img"]) {
        return;
    }
    for name in NASTY {
        let folder = folder();
        let [overlay, base, raw] = disks_named(folder.path(), name);
        let disks = [
            Disk::qcow2(&overlay).unwrap().serial("a,b=c").boot_index(1),
            Disk::raw(&raw).unwrap().cache(CacheMode::Writeback),
        ];
        for form in FORMS {
            let expected = HashMap::from([
                (overlay.clone(), Opened { direct: true, writable: true }),
                (base.clone(), Opened { direct: false, writable: false }),
                (raw.clone(), Opened { direct: false, writable: true }),
            ]);
            assert_eq!(opened(&disks, form, folder.path()), expected, "{name:?}, {form:?}");
        }
    }
}

#[test]
fn qemu_takes_every_cache_mode() {
    if !tool::available("attachment: cache modes", &[SYSTEM, "qemu-img"]) {
        return;
    }
    let folder = folder();
    let [overlay, _, raw] = disks_named(folder.path(), b"disk");
    for cache in CacheMode::ALL {
        let disks = [&overlay, &raw].map(|path| Disk::probe(path).unwrap().cache(cache));
        for form in FORMS {
            let opened = opened(&disks, form, folder.path());
            assert_eq!(opened[&raw].direct, cache.is_direct(), "{cache:?}, {form:?}");
        }
        let disks = disks.map(|disk| disk.read_only(true));
        for form in FORMS {
            let opened = opened(&disks, form, folder.path());
            assert!(opened.values().all(|file| !file.writable), "{cache:?}, {form:?}: {opened:?}");
        }
    }
}

#[test]
fn two_vms_hold_one_base_and_a_chain_of_three_files() {
    if !tool::available("attachment: chains", &[SYSTEM, "qemu-img"]) {
        return;
    }
    let folder = folder();
    let [middle, base, _] = disks_named(folder.path(), b"a,b");
    let tops = ["x", "y"].map(|name| {
        let top = folder.path().join(name);
        let create = testkit::qemu::img([
            "create".as_ref(),
            "-fqcow2".as_ref(),
            "-Fqcow2".as_ref(),
            "-b".as_ref(),
            middle.as_os_str(),
            top.as_os_str(),
        ]);
        create.expect_success();
        Disk::qcow2(&top).unwrap()
    });
    for form in FORMS {
        // The same base twice in one QEMU stands for two VMs: the locks are the same.
        let opened = opened(&tops, form, folder.path());
        assert_eq!(opened.len(), 4, "{opened:?}");
        assert_eq!(opened[&base], Opened { direct: false, writable: false });
        assert_eq!(opened[&middle], Opened { direct: false, writable: false });
    }
}

#[test]
fn the_element_is_well_formed() {
    if !tool::available("attachment: libvirt XML", &["xmllint", "qemu-img"]) {
        return;
    }
    for name in NASTY {
        let folder = folder();
        let [overlay, base, raw] = disks_named(folder.path(), name);
        if overlay.to_str().is_none() {
            continue;
        }
        let disks = [Disk::qcow2(&overlay).unwrap(), Disk::raw(&raw).unwrap().serial("<&>'\"")];
        let elements: String =
            disks.iter().map(|disk| libvirt::element(disk, Target::default()).unwrap()).collect();
        let document = folder.path().join("document.xml");
        fs::write(&document, format!("<d>{elements}</d>")).unwrap();
        for (query, expected) in [
            ("string(/d/disk[1]/source/@file)", &overlay),
            ("string(/d/disk[1]/backingStore/source/@file)", &base),
            ("string(/d/disk[2]/source/@file)", &raw),
        ] {
            let output = Command::new("xmllint")
                .args(["--nonet", "--xpath", query])
                .arg(&document)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let found = output.stdout.strip_suffix(b"\n").unwrap();
            assert_eq!(found, expected.as_os_str().as_bytes(), "{name:?}, {query}");
        }
    }
}
