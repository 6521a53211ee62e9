//! Three ways to tell that a base is what it was.

use std::path::Path;
use std::process::Command;

/// `sha256sum`, which reads holes like everything else.
///
/// # Panics
///
/// It does not start, or fails.
#[must_use]
pub fn sha256sum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum starts");
    assert!(output.status.success(), "sha256sum: {}", output.status);
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}
