//! Ways to disks for many VMs, each in a folder that holds nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk_engine::base::{BaseFormat, BaseImage};
use disk_engine::cache::{BaseOptions, ImageCache};
use disk_engine::ops::prepare::{PrepareOptions, PrepareReport, prepare};
use disk_engine::source::Source;
use disk_engine::strategy::Strategy;

use crate::{extractions, overlays};

/// GNU tar for each VM.
///
/// # Panics
///
/// The disks cannot be prepared; so do the others.
pub fn tar_each(archive: &Path, folder: &Path, vms: usize) {
    for vm in folders(folder, vms) {
        extractions::gnu_tar(archive, &vm);
    }
}

/// GNU tar once, and a copy for each VM: a reflink where the file system has them.
///
/// # Panics
///
/// See [`tar_each`].
pub fn tar_and_copies(archive: &Path, folder: &Path, vms: usize) {
    extractions::gnu_tar(archive, folder);
    for vm in folders(folder, vms) {
        let status = Command::new("cp")
            .args(["--reflink=auto", "--sparse=auto"])
            .arg(folder.join(extractions::DISK))
            .arg(vm.join(extractions::DISK))
            .status()
            .expect("cp starts");
        assert!(status.success(), "cp: {status}");
    }
}

/// GNU tar once, and an overlay by qemu-img for each VM.
///
/// # Panics
///
/// See [`tar_each`].
pub fn tar_and_qemu_img(archive: &Path, folder: &Path, vms: usize) {
    extractions::gnu_tar(archive, folder);
    let base = BaseImage::open(folder.join(extractions::DISK), BaseFormat::Raw).expect("the base");
    for vm in folders(folder, vms) {
        overlays::qemu_img(&base, &vm.join("primary.qcow2"));
    }
}

/// Ours: `cache` may hold the base already, or not.
///
/// # Panics
///
/// See [`tar_each`].
pub fn ours(archive: &Path, cache: &Path, folder: &Path, vms: usize) -> PrepareReport {
    let options = plain(folder, vms);
    let cache = ImageCache::open(cache).expect("the cache opens");
    prepare(&cache, Source::path(archive), &options).expect("the disks are prepared")
}

/// Ours, by one strategy, with the base in `cache` already.
///
/// # Errors
///
/// What the file system cannot do.
///
/// # Panics
///
/// The cache does not open.
pub fn by_strategy(
    strategy: Strategy,
    archive: &Path,
    cache: &Path,
    folder: &Path,
    vms: usize,
) -> disk_engine::Result<PrepareReport> {
    let options = PrepareOptions { strategy, ..plain(folder, vms) };
    let cache = ImageCache::open(cache).expect("the cache opens");
    prepare(&cache, Source::path(archive), &options)
}

/// Disks for `vms` VMs, and nothing special.
fn plain(folder: &Path, vms: usize) -> PrepareOptions {
    PrepareOptions {
        nodes: vms,
        folder: folder.to_path_buf(),
        min_size: 0,
        strategy: Strategy::Overlay,
        raw: false,
        reserve: 0,
        relative: false,
        fresh: false,
        base: BaseOptions { timeout: Some(Duration::from_secs(600)), ..Default::default() },
    }
}

fn folders(folder: &Path, vms: usize) -> impl Iterator<Item = PathBuf> {
    (0..vms).map(move |vm| {
        let folder = folder.join(format!("vm{vm}"));
        fs::create_dir(&folder).expect("a VM's folder is made");
        folder
    })
}
