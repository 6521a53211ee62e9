//! Four ways to make an overlay, and the least that any of them could do.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use disk_engine::base::BaseImage;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2CreateBuilder;
use imago::storage::StorageCreateOptions;
use imago::{FormatCreateBuilder, Storage};

/// Ours.
///
/// # Panics
///
/// It cannot be made; so do the others.
pub fn ours(base: &BaseImage, path: &Path) {
    base.overlay(path).create().expect("the overlay is made");
}

/// The limit: a new file, one small write, close.
///
/// # Panics
///
/// See [`ours`].
pub fn bare(path: &Path) {
    let mut file = File::create_new(path).expect("a new file is made");
    file.write_all(&[1; 512]).expect("a sector is written");
}

/// The imago crate.
///
/// # Panics
///
/// See [`ours`].
pub fn imago(base: &BaseImage, path: &Path) {
    let options = StorageCreateOptions::new().filename(path);
    let file = ImagoFile::create_open(options).expect("a new file is made");
    let name = base.path().to_str().expect("the base's path is text").to_owned();
    Qcow2CreateBuilder::<ImagoFile>::new(file)
        .size(base.virtual_size())
        .backing(name, "raw".to_owned())
        .create()
        .expect("the overlay is made");
}

/// A process of qemu-img.
///
/// # Panics
///
/// See [`ours`].
pub fn qemu_img(base: &BaseImage, path: &Path) {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(base.path())
        .arg(path)
        .status()
        .expect("qemu-img starts");
    assert!(status.success(), "qemu-img: {status}");
}
