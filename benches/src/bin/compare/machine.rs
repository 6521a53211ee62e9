//! What the figures depend on: the machine, the programs, the image. Names no path and no host.

use std::fs;
use std::process::Command;

use disk_engine::transfer::TransferReport;
use nix::sys::statfs::{self, statfs};

use crate::table::Table;
use crate::{Setting, starts};

const LOCK: &str = include_str!("../../../../Cargo.lock");

/// A program that may not be there.
#[derive(Clone, Debug)]
pub struct Tool {
    /// What it says of itself; `None` if it does not start.
    pub version: Option<String>,
}

impl Tool {
    pub fn find(program: &str) -> Self {
        let version = starts(program).then(|| version(program));
        Self { version }
    }

    pub fn is_there(&self) -> bool {
        self.version.is_some()
    }

    fn told(&self) -> String {
        self.version.clone().unwrap_or_else(|| "not installed".into())
    }
}

/// GNU tar, which is of use only with zstd.
pub fn gnu_tar() -> Tool {
    let (tar, zstd) = (Tool::find("tar"), Tool::find("zstd"));
    let both = tar.version.zip(zstd.version);
    // Other programs are called tar elsewhere.
    let gnu = both.filter(|(tar, _)| tar.contains("GNU"));
    Tool { version: gnu.map(|(tar, zstd)| format!("{tar}, {zstd}")) }
}

/// The table of facts; of the disk in the archive and its extents, if there was one.
pub fn facts(setting: &Setting, disk: Option<(&TransferReport, Option<usize>)>) -> Table {
    let mut table = Table::new("Measured on", &["", ""]);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    table.row(["processor".into(), format!("{}, {cores} cores", processor())]);
    let load = first_line("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    table.row(["load at the end, ours included".into(), load]);
    table.row(["kernel".into(), format!("Linux {}", first_line("/proc/sys/kernel/osrelease"))]);
    table.row(["file system".into(), file_system(setting)]);
    if let Some((disk, extents)) = disk {
        table.row(["image".into(), image(disk, extents)]);
    }
    table.row(["GNU tar and zstd".into(), setting.tar.told()]);
    table.row(["qemu-img".into(), setting.qemu_img.told()]);
    let crates = ["imago", "tar", "zstd"].map(|name| format!("{name} {}", locked(name)));
    let library = zstd::zstd_safe::version_string();
    table.row(["crates".into(), format!("{} (libzstd {library})", crates.join(", "))]);
    table
}

fn image(disk: &TransferReport, extents: Option<usize>) -> String {
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let data: u64 = disk.extents.iter().map(|extent| extent.length).sum();
    let torn = extents.map_or(String::new(), |extents| format!("{extents} extents in "));
    format!(
        "{} GiB virtual, {} of data in {torn}{} runs, {} compressed",
        disk.virtual_size >> 30,
        gib(data),
        disk.extents.len(),
        gib(disk.source_bytes),
    )
}

fn processor() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = all.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
}

fn file_system(setting: &Setting) -> String {
    let kind = statfs(setting.scratch).map(|stat| stat.filesystem_type());
    let name = match kind {
        Ok(statfs::EXT4_SUPER_MAGIC) => "ext4",
        Ok(statfs::XFS_SUPER_MAGIC) => "XFS",
        Ok(statfs::BTRFS_SUPER_MAGIC) => "btrfs",
        Ok(statfs::TMPFS_MAGIC) => "tmpfs",
        Ok(statfs::OVERLAYFS_SUPER_MAGIC) => "overlayfs",
        Ok(statfs::NFS_SUPER_MAGIC) => "NFS",
        Ok(_) | Err(_) => "another",
    };
    name.to_owned()
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output().expect("it started before");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| !line.is_empty()).unwrap_or("of unknown version");
    // "*** Zstandard CLI (64-bit) v1.5.4, by …", "qemu-img version 10.0.2 (Debian …)"
    let line = line.trim_matches(['*', ' ']).split(", by").next().unwrap_or(line);
    let line = line.split(" (Debian").next().unwrap_or(line);
    line.strip_prefix("qemu-img version ").unwrap_or(line).to_owned()
}

/// The version of a crate this was built with.
fn locked(name: &str) -> String {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let after = LOCK.split_once(&entry).map(|(_, after)| after);
    let version = after.and_then(|after| after.split('"').next());
    version.unwrap_or("of unknown version").to_owned()
}
