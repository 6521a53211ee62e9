//! Disks boot: a boot sector under SeaBIOS, on virtio, on overlays of one base.
//!
//! ```text
//!            ┌── vm0.qcow2   boots 1 time    then SIGKILL
//! base.raw ◀─┼── vm1.qcow2   boots 2 times   SIGKILL after each
//!  (0444)    ├── vm2.qcow2   boots 3 times
//!            └── …           all VMs of a round run at once
//! ```
//!
//! The sector says its count and id only after it has read its own write back. The guest's driver
//! negotiates no flush, so QEMU must write through; a count that is lost to SIGKILL would show it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use disk_engine::ErrorKind;
use disk_engine::attachment::{Disk, qemu::Form};
use disk_engine::ops::boot::{BootExit, BootOptions, boot};
use testkit::qemu::{self, SYSTEM, Vm};
use testkit::{disks, tool};

const VMS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

fn folder() -> tempfile::TempDir {
    // Beside the build's own files: /tmp may be a tmpfs without O_DIRECT.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The count and the id of a line `disk-engine boot=<count> id=<id>`.
fn parse(line: &str) -> (u32, String) {
    let rest = line.strip_prefix("disk-engine boot=").unwrap_or_else(|| panic!("{line:?}"));
    let (count, id) = rest.split_once(" id=").unwrap_or_else(|| panic!("{line:?}"));
    assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line:?}");
    (count.parse().unwrap(), id.to_owned())
}

fn arguments(disk: &Path, form: Form) -> Vec<OsString> {
    let disk = Disk::qcow2(disk).unwrap();
    let mut arguments = disk_engine::attachment::qemu::arguments(&[disk], form).unwrap();
    arguments.extend(["-m", "32"].map(OsString::from));
    arguments
}

/// Makes a base and `count` overlays of it.
fn prepare(folder: &Path, count: usize) -> (PathBuf, Vec<PathBuf>) {
    let base = folder.join("base.raw");
    disks::extract_boot_image(&base);
    let overlays: Vec<_> = (0..count).map(|n| folder.join(format!("vm{n}.qcow2"))).collect();
    for overlay in &overlays {
        disks::make_overlay(&base, overlay);
    }
    (base, overlays)
}

#[test]
fn overlays_of_one_base_keep_what_their_own_guest_wrote() {
    if !tool::available("boot_bios: overlays under SeaBIOS", &[SYSTEM, "qemu-img"]) {
        return;
    }
    let folder = folder();
    let (base, overlays) = prepare(folder.path(), VMS);
    let digest = disks::sha256(&base);
    let mut ids: Vec<Option<String>> = vec![None; VMS];
    for round in 0..3_u32 {
        let form = if round % 2 == 0 { Form::Blockdev } else { Form::Drive };
        let mut running: Vec<_> = (0..VMS)
            .filter(|vm| round < 1 + u32::try_from(vm % 3).unwrap())
            .map(|vm| (vm, Vm::boot(arguments(&overlays[vm], form))))
            .collect();
        for (vm, machine) in &mut running {
            let (count, id) = parse(&machine.line("disk-engine ", PATIENCE));
            assert_eq!(count, round + 1, "boots of vm{vm}");
            assert_eq!(ids[*vm].get_or_insert_with(|| id.clone()), &id, "id of vm{vm}");
        }
        // All of them have run on the base at the same time.
        running.into_iter().for_each(|(_, machine)| machine.kill());
    }
    let different: HashSet<_> = ids.iter().flatten().collect();
    assert_eq!(different.len(), VMS, "{ids:?}");
    assert_eq!(disks::sha256(&base), digest, "the base has changed");
    for overlay in &overlays {
        qemu::img(["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), overlay.as_os_str()])
            .expect_success();
    }
}

#[test]
fn a_boot_reports_what_the_guest_said() {
    if !tool::available("boot_bios: ops::boot", &[SYSTEM, "qemu-img"]) {
        return;
    }
    let folder = folder();
    let (_, overlays) = prepare(folder.path(), 1);
    for (count, form) in [(1, Form::Blockdev), (2, Form::Drive)] {
        let disk = Disk::qcow2(&overlays[0]).unwrap();
        let mut options = BootOptions::default();
        options.form = form;
        let report = boot(&disk, &options).unwrap();
        assert_eq!(report.exit, BootExit::Wrote(0), "{report:?}");
        assert_eq!(parse(report.serial.trim_end()).0, count, "{report:?}");
    }
}

#[test]
fn a_sector_that_cannot_write_says_so() {
    if !tool::available("boot_bios: a read-only disk", &[SYSTEM]) {
        return;
    }
    let folder = folder();
    let base = folder.path().join("base.raw");
    disks::extract_boot_image(&base);
    let disk = Disk::raw(&base).unwrap().read_only(true);
    let report = boot(&disk, &BootOptions::default()).unwrap();
    assert_eq!(report.serial, "disk-engine error=write\r\n");
    assert_eq!(report.exit, BootExit::Wrote(1));
}

#[test]
fn a_boot_that_hangs_is_killed_and_one_that_cannot_start_says_why() {
    if !tool::available("boot_bios: timeout and failure", &[SYSTEM]) {
        return;
    }
    let folder = folder();
    let blank = folder.path().join("blank.raw");
    fs::write(&blank, vec![0; 1 << 20]).unwrap();
    let disk = Disk::raw(&blank).unwrap();
    let mut options = BootOptions::default();
    options.timeout = Duration::from_millis(500);
    let started = Instant::now();
    assert_eq!(boot(&disk, &options).unwrap().exit, BootExit::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(10));
    // The VM is gone, or it would still hold the lock on the disk and QEMU would refuse to start.
    options.accelerator = "no-such-accelerator".to_owned();
    let error = boot(&disk, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.io_error().unwrap().to_string().contains("no-such-accelerator"), "{error:?}");
    options.cancel.cancel();
    options.accelerator = "tcg".to_owned();
    assert_eq!(boot(&disk, &options).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn the_archive_holds_what_the_source_assembles_to() {
    let folder = folder();
    let disk = folder.path().join("disk.img");
    disks::extract_boot_image(&disk);
    let mut image = fs::File::open(&disk).unwrap();
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
    let mut sector = [0; 512];
    image.read_exact(&mut sector).unwrap();
    assert_eq!(sector[510..], [0x55, 0xaa]);
    let mut rest = Vec::new();
    image.read_to_end(&mut rest).unwrap();
    assert!(rest.iter().all(|&byte| byte == 0), "data outside the boot sector");

    if !tool::available("boot_bios: boot.asm against boot.tar.zst", &["nasm"]) {
        return;
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../disk-engine/assets/boot/boot.asm");
    let assembled = folder.path().join("boot.bin");
    let status =
        Command::new("nasm").args(["-f", "bin", "-o"]).arg(&assembled).arg(source).status();
    assert!(status.unwrap().success());
    assert!(fs::read(assembled).unwrap() == sector, "make boot.tar.zst again, see its README");
}
