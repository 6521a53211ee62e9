//! The disks a VM suite boots from: a base, overlays of it, and what their bytes add up to.

use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use disk_engine::base::{BaseFormat, BaseImage};
use disk_engine::ops::boot_image::BOOT_IMAGE;
use disk_engine::ops::{self, ExtractOptions};
use disk_engine::source::Source;
use disk_engine::sys::pending::FileMode;
use sha2::{Digest, Sha256};

/// Extracts the disk of an archive as a sparse raw file that nobody may write.
pub fn extract(archive: &Path, raw: &Path) {
    unpack(Source::path(archive), raw);
}

/// As [`extract`], for the boot image compiled into the library.
pub fn extract_boot_image(raw: &Path) {
    unpack(Source::reader(Cursor::new(BOOT_IMAGE), "the boot image"), raw);
}

/// Makes a thin overlay on a raw base.
pub fn make_overlay(base: &Path, overlay: &Path) {
    BaseImage::open(base, BaseFormat::Raw).unwrap().overlay(overlay).create().unwrap();
}

/// Bytes of storage a file takes.
#[must_use]
pub fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
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

fn unpack(source: Source, raw: &Path) {
    let options = ExtractOptions { mode: FileMode::Exact(0o444), ..ExtractOptions::default() };
    ops::extract(source, raw, &options).unwrap();
}
