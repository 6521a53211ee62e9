//! Ways through an archive. All but the last leave a sparse `disk.img` in a folder.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

use disk_engine::ops::{ExtractOptions, ExtractReport, extract};
use disk_engine::source::Source;

/// What the archives here need: 2^27 bytes.
const WINDOW_LOG: u32 = 27;

/// The disk's name in the archive, and so in the folder.
pub const DISK: &str = "disk.img";

/// Ours.
///
/// # Panics
///
/// The archive cannot be extracted; so do the others.
pub fn ours(archive: &Path, folder: &Path) -> ExtractReport {
    extract(Source::path(archive), &folder.join(DISK), &ExtractOptions::default())
        .expect("the archive is extracted")
}

/// Ours, on `threads` threads at most.
///
/// # Panics
///
/// See [`ours`].
pub fn ours_on(threads: NonZeroUsize, archive: &Path, folder: &Path) -> ExtractReport {
    let source = Source::path(archive).with_threads(threads);
    extract(source, &folder.join(DISK), &ExtractOptions::default())
        .expect("the archive is extracted")
}

/// GNU tar with zstd, two processes.
///
/// # Panics
///
/// See [`ours`].
pub fn gnu_tar(archive: &Path, folder: &Path) {
    let status = Command::new("tar")
        .args(["-I", "zstd -d --long=27", "-xSf"])
        .arg(archive)
        .arg("-C")
        .arg(folder)
        .status()
        .expect("tar starts");
    assert!(status.success(), "tar: {status}");
}

/// The tar crate over the zstd crate.
///
/// # Panics
///
/// See [`ours`].
pub fn tar_crate(archive: &Path, folder: &Path) {
    tar::Archive::new(decoder(archive)).unpack(folder).expect("the archive is extracted");
}

/// The limit: decompressing into memory that is used again and again, and nothing else. Returns
/// the number of bytes.
///
/// # Panics
///
/// See [`ours`].
#[must_use]
pub fn decoding_alone(archive: &Path) -> u64 {
    let mut decoder = decoder(archive);
    let mut memory = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match decoder.read(&mut memory).expect("the archive is decoded") {
            0 => return total,
            count => total += count as u64,
        }
    }
}

fn decoder(archive: &Path) -> impl Read {
    let file = File::open(archive).expect("the archive opens");
    let mut decoder = zstd::Decoder::new(file).expect("a decoder");
    decoder.window_log_max(WINDOW_LOG).expect("zstd knows the window");
    decoder
}
