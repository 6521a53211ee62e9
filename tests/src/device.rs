//! Block devices over files, as long as a suite needs them.
//!
//! Loop devices need privileges. Where there is none, that is printed and the suite goes on without.
//! Callers: `disk_write`, `qemu_img_targets`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool::left_out;

/// A block device, until it is dropped.
#[derive(Debug)]
pub struct Device(PathBuf);

impl Device {
    /// A device with the bytes of `file`; `None` if there are none, so that `what` is left out.
    ///
    /// # Panics
    ///
    /// Its name is none.
    #[must_use]
    pub fn over(file: &Path, what: &str) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
            }
            outcome => {
                left_out(what, &format!("no loop device: {outcome:?}"));
                None
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
