//! The disks a VM suite boots from: a base, overlays of it, and what their bytes add up to.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::Path;

use disk_engine::ops::boot_image::BOOT_IMAGE;
use sha2::{Digest, Sha256};

use crate::qemu;

/// Unpacks the disk of an archive as a sparse raw file that nobody may write.
pub fn extract(archive: &Path, raw: &Path) {
    unpack(File::open(archive).unwrap(), raw);
}

/// As [`extract`], for the boot image compiled into the library.
pub fn extract_boot_image(raw: &Path) {
    unpack(Cursor::new(BOOT_IMAGE), raw);
}

/// Makes a thin overlay on a raw base.
pub fn make_overlay(base: &Path, overlay: &Path) {
    let words: [&OsStr; 8] = [
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-F".as_ref(),
        "raw".as_ref(),
        "-b".as_ref(),
        base.as_ref(),
    ];
    qemu::img(words.into_iter().chain([overlay.as_os_str()])).expect_success();
}

/// The SHA-256 of a file's content, in hexadecimal.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unpack(archive: impl Read, raw: &Path) {
    let mut tar = tar::Archive::new(zstd::Decoder::new(archive).unwrap());
    let mut entry = tar.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap(), Path::new("disk.img"));
    entry.unpack(raw).unwrap();
    // To the last byte, so that zstd verifies its checksum.
    drop(entry);
    io::copy(&mut tar.into_inner(), &mut io::sink()).unwrap();
    let mut permissions = fs::metadata(raw).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(raw, permissions).unwrap();
}
