//! Helpers shared by every suite of the workspace.

use std::path::Path;
use std::process::Command;

/// Runs `qemu-img` in `folder` and returns what it prints; panics if it fails.
pub fn qemu_img(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("qemu-img runs; the test script installs it");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).expect("qemu-img prints UTF-8")
}
