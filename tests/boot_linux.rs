//! A real Linux boots from overlays: Debian's cloud kernel, GPT, ext4, its root on virtio.
//!
//! ```text
//! build-image.sh ─▶ disk-img.tar.zst ─▶ base.raw ◀─┬─ a.qcow2   boot, SIGKILL, boot, reboot, boot
//!                   vmlinuz, initrd                └─ b.qcow2   boot, SIGKILL
//! ```
//!
//! Each boot reads, increments and syncs `/boots` and says `linux boot=<n> id=<id> root=<device>
//! <type>`. The count is thus read from what an earlier boot wrote through ext4's journal, which the
//! next mount has to replay after a SIGKILL.
//!
//! Only the kernel and the initial RAM disk come from outside the disk; the root never does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk_engine::attachment::{
    Disk,
    qemu::{Form, arguments},
};
use testkit::qemu::{self, SYSTEM, Vm};
use testkit::{disks, tool};

/// Some three seconds are enough for a boot, on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest does after its line.
#[derive(Clone, Copy)]
enum Then {
    /// Runs until it is killed.
    Stay,
    /// Remounts its root read-only and resets, which ends QEMU.
    Reboot,
}

/// The kernel and its RAM disk, and the archive with the disk.
struct Image {
    folder: PathBuf,
}

impl Image {
    /// Builds the image once per target folder, or says why it cannot be had.
    fn build() -> Option<Self> {
        const SUITE: &str = "boot_linux: a Debian kernel on an overlay";
        if !tool::available(SUITE, &[SYSTEM, "qemu-img", "bash"]) {
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("linux-image");
        let output = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/linux/build-image.sh"))
            .arg(&folder)
            .output()
            .unwrap();
        if output.status.code() == Some(77) {
            let said = String::from_utf8_lossy(&output.stdout);
            tool::left_out(SUITE, said.lines().last().unwrap_or("build-image.sh does not say why"));
            return None;
        }
        assert!(output.status.success(), "{output:#?}");
        Some(Self { folder })
    }

    fn boot(&self, overlay: &Path, form: Form, then: Then) -> Vm {
        let then = match then {
            Then::Stay => "stay",
            Then::Reboot => "reboot",
        };
        let mut words: Vec<OsString> = vec![
            "-m".into(),
            "256".into(),
            "-kernel".into(),
            self.folder.join("vmlinuz").into(),
            "-initrd".into(),
            self.folder.join("initrd").into(),
            "-append".into(),
            format!("console=ttyS0 quiet panic=-1 then={then}").into(),
        ];
        words.extend(arguments(&[Disk::qcow2(overlay).unwrap()], form).unwrap());
        Vm::boot(words)
    }
}

/// The id in the VM's line, after the rest of it was found to be as expected.
fn id_at(vm: &mut Vm, boots: u32) -> String {
    let line = vm.line("linux ", PATIENCE);
    let expected = format!("linux boot={boots} id=");
    let rest = line.strip_prefix(&expected).unwrap_or_else(|| panic!("{line:?}, boot {boots}"));
    let id = rest.strip_suffix(" root=/dev/vda1 ext4").unwrap_or_else(|| panic!("{line:?}"));
    assert_eq!(id.len(), 32, "{line:?}");
    id.to_owned()
}

#[test]
fn a_linux_keeps_what_it_wrote_through_kill_and_reboot() {
    let Some(image) = Image::build() else { return };
    // Beside the build's own files: /tmp may be a tmpfs without O_DIRECT.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = folder.path().join("base.raw");
    disks::extract(&image.folder.join("disk-img.tar.zst"), &base);
    let digest = disks::sha256(&base);
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| folder.path().join(name));
    disks::make_overlay(&base, &a);
    disks::make_overlay(&base, &b);

    let mut vm_a = image.boot(&a, Form::Blockdev, Then::Stay);
    let mut vm_b = image.boot(&b, Form::Drive, Then::Stay);
    let id_a = id_at(&mut vm_a, 1);
    let id_b = id_at(&mut vm_b, 1);
    assert_ne!(id_a, id_b, "two overlays of one base share what was written");
    vm_a.kill();
    vm_b.kill();

    let mut vm_a = image.boot(&a, Form::Drive, Then::Reboot);
    assert_eq!(id_at(&mut vm_a, 2), id_a);
    assert!(vm_a.wait(PATIENCE).success());

    let mut vm_a = image.boot(&a, Form::Blockdev, Then::Stay);
    assert_eq!(id_at(&mut vm_a, 3), id_a);
    vm_a.kill();

    assert_eq!(disks::sha256(&base), digest, "the base has changed");
    for overlay in [&a, &b] {
        qemu::img(["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), overlay.as_os_str()])
            .expect_success();
    }
}
