//! Three ways to pack a disk into an archive. All compress with level 8 and a window of 128 MiB, as
//! the images in question are.

use std::path::Path;
use std::process::Command;

use disk_engine::ops::pack::{PackOptions, PackReport, pack};
use disk_engine::sys::pending::Existing;

/// What zstd is told: level and window.
const LEVEL: i32 = 8;
const WINDOW_LOG: u32 = 27;

/// Ours: in one frame, or in frames of so many bytes.
///
/// # Panics
///
/// The disk cannot be packed; so do the others.
pub fn ours(disk: &Path, archive: &Path, frame_size: Option<u64>) -> PackReport {
    let options = PackOptions {
        level: LEVEL,
        window_log: WINDOW_LOG,
        frame_size,
        existing: Existing::Replace,
        ..PackOptions::default()
    };
    pack(disk, archive, &options).expect("the disk is packed")
}

/// GNU tar, which looks for holes, and zstd with all cores.
///
/// # Panics
///
/// See [`ours`].
pub fn gnu_tar(disk: &Path, archive: &Path) {
    let (folder, name) = (disk.parent().expect("a folder"), disk.file_name().expect("a name"));
    let status = Command::new("tar")
        .args(["-I", &format!("zstd -q -T0 -{LEVEL} --long={WINDOW_LOG}"), "-cSf"])
        .arg(archive)
        .arg("-C")
        .arg(folder)
        .arg(name)
        .status()
        .expect("tar starts");
    assert!(status.success(), "tar: {status}");
}
