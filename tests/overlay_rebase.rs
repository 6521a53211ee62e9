//! Overlays in QEMU's hands: made by us, written by a guest's stand-in, rebased by us after their
//! tree moved, and judged by `qemu-img` each time.
//!
//! ```text
//! base ◀── vm.qcow2 ── qemu-io writes ── base moves ── rebase ── check, info, read back
//! ```

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use disk_engine::base::{BaseFormat, BaseImage};
use disk_engine::overlay::{RebaseOptions, rebase};
use serde_json::Value;
use testkit::qemu::{self, img_in};

const DISK: u64 = 64 << 20;

/// What a guest finds: its own writes where it made them, the base's bytes elsewhere.
fn assert_content(overlay: &Path) {
    for command in [
        "read -P 0xaa 0 64k",
        "read -P 0x55 1M 128k",
        "read -P 0xaa 1152k 64k",
        "read -P 0 32M 64k",
    ] {
        let path = overlay.to_str().unwrap();
        let said = qemu::io(["-f", "qcow2", "-c", command, path]);
        let said = said.expect_success();
        assert!(!said.contains("verification failed"), "{command}: {said}");
    }
}

fn backing_filename(folder: &Path, overlay: &str) -> String {
    let said = img_in(folder, &["info", "-f", "qcow2", "--output=json", overlay]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["backing-filename-format"], "raw");
    said["backing-filename"].as_str().unwrap().to_owned()
}

#[test]
fn a_rebased_overlay_is_whole_to_qemu_and_keeps_the_guests_writes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let base_path = folder.join("base.img");
    let file = fs::File::create(&base_path).unwrap();
    file.set_len(DISK / 2).unwrap();
    file.write_all_at(&vec![0xaa; 2 << 20], 0).unwrap();
    let overlay = folder.join("vm.qcow2");
    let base = BaseImage::open(&base_path, BaseFormat::Raw).unwrap();
    base.overlay(&overlay).min_size(DISK).create().unwrap();
    img_in(&folder, &["check", "-q", "-f", "qcow2", "vm.qcow2"]);
    qemu::io(["-f", "qcow2", "-c", "write -P 0x55 1M 128k", overlay.to_str().unwrap()])
        .expect_success();
    assert_content(&overlay);

    // To a longer name, to a shorter one, to a relative one: the header area grows and shrinks.
    let mut base_path = base_path;
    let long = format!("{}/base.img", "long-".repeat(40));
    for (place, relative) in [(long.as_str(), false), ("b", false), ("sub/b:1", true)] {
        let next = folder.join(place);
        fs::create_dir_all(next.parent().unwrap()).unwrap();
        fs::rename(&base_path, &next).unwrap();
        base_path = next;
        let base = BaseImage::open(&base_path, BaseFormat::Raw).unwrap();
        let options = RebaseOptions { relative, ..RebaseOptions::default() };
        rebase(&overlay, &base, &options).unwrap();
        img_in(&folder, &["check", "-q", "-f", "qcow2", "vm.qcow2"]);
        let expected = if relative { place.to_owned() } else { base_path.display().to_string() };
        assert_eq!(backing_filename(&folder, "vm.qcow2"), expected);
        assert_content(&overlay);
    }
}
