//! Real file systems in files, mounted for a suite: what a reflink does depends on them.
//!
//! ```text
//! temp folder/image   sparse ── mkfs ── mount -o loop ──▶ temp folder/mount
//! dropped             umount, which frees the loop device, then the folder goes
//! ```
//!
//! Mounting needs privileges and loop devices. Where a mount cannot be made, that is printed and
//! the suite goes on without.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tool::left_out;

/// A file system one can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No reflinks.
    Ext4,
    /// No reflinks, and 48 inodes.
    Ext4FewFiles,
    /// Reflinks.
    Btrfs,
    /// Reflinks, which `mkfs.xfs` turns on by itself.
    Xfs,
    /// Reflinks turned off.
    XfsWithout,
    /// In memory; no reflinks, and no device.
    Tmpfs,
}

impl Kind {
    /// The command that makes it, without the image's name.
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"],
            Self::Ext4FewFiles => &["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-N", "48"],
            Self::Btrfs => &["mkfs.btrfs", "-q"],
            Self::Xfs => &["mkfs.xfs", "-q"],
            Self::XfsWithout => &["mkfs.xfs", "-q", "-m", "reflink=0"],
            Self::Tmpfs => &[],
        }
    }

    /// Whether files on it can share storage.
    #[must_use]
    pub fn shares(self) -> bool {
        matches!(self, Self::Btrfs | Self::Xfs)
    }
}

/// A mounted file system, until it is dropped.
#[derive(Debug)]
pub struct Mount {
    /// What it is.
    pub kind: Kind,
    mounted: bool,
    folder: tempfile::TempDir,
}

impl Mount {
    /// Makes and mounts a file system of `mib` MiB; `None`, and a printed line, where that cannot
    /// be. `beside` is a folder for the image, which is sparse.
    #[must_use]
    pub fn new(what: &str, kind: Kind, mib: u64, beside: &Path) -> Option<Self> {
        let attempt = Self::attempt(kind, mib, beside);
        attempt.map_err(|why| left_out(&format!("{what} on {kind:?}"), &why)).ok()
    }

    fn attempt(kind: Kind, mib: u64, beside: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir_in(beside).map_err(|error| error.to_string())?;
        let mut mount = Self { kind, mounted: false, folder };
        let place = mount.path();
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        if let [program, options @ ..] = kind.mkfs() {
            let image = mount.folder.path().join("image");
            std::fs::File::create(&image)
                .and_then(|file| file.set_len(mib << 20))
                .map_err(|error| error.to_string())?;
            run(Command::new(program).args(options).arg(&image))?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place))?;
        } else {
            let size = format!("size={mib}m");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&place))?;
        }
        mount.mounted = true;
        Ok(mount)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // A process that was killed a moment ago may still be letting go: lazily then.
            let unmounted = run(Command::new("umount").arg(self.path()))
                .or_else(|_| run(Command::new("umount").arg("--lazy").arg(self.path())));
            if let Err(why) = unmounted {
                left_out(&format!("unmounting {}", self.path().display()), &why);
            }
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    // A user's path may be without the folders these programs lie in.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", command.get_program().display(), said.trim().replace('\n', "; ")))
}
