//! The images that everybody reads: made by qemu-img from one raw file.
//!
//! ```text
//! data.raw ─▶ data.qcow2            as it is
//!          ─▶ over.qcow2            nothing in it: what is read comes from data.raw
//! part.raw ─▶ zlib.qcow2, zstd.qcow2
//! hot.raw  ─▶ hot-zlib.qcow2, hot-zstd.qcow2      no larger than half a cache of decoded clusters
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ours::OursWritten;
use super::{Disk, qemu};
use crate::image;
use qcow2_format::image::Durability;

/// Bytes that differ by more than their number: what follows them repeats them.
const TILE: usize = 64 << 20;
const BLOCK: usize = 4096;
const CLUSTER: u64 = 64 << 10;
/// Bytes of the small images.
pub const HOT: u64 = 2 << 20;

/// How an image's clusters are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As they are.
    Allocated,
    /// Not at all, over a raw file.
    Backed,
    /// Compressed, with zlib.
    Zlib,
    /// Compressed, with zstd.
    Zstd,
    /// As [`Kind::Zlib`], a small image.
    HotZlib,
    /// As [`Kind::Zstd`], a small image.
    HotZstd,
}

/// The images, in a folder.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
    /// Bytes of the large disks, a power of two.
    pub size: u64,
    /// Bytes of the compressed disks, a power of two.
    pub part: u64,
}

impl Files {
    /// Makes them all.
    ///
    /// # Panics
    ///
    /// They cannot be made; so do the other functions.
    #[must_use]
    pub fn make(folder: &Path, size: u64) -> Self {
        let files = Self { folder: folder.to_path_buf(), size, part: size / 4 };
        files.write_raw();
        for kind in [Kind::Allocated, Kind::Zlib, Kind::Zstd, Kind::HotZlib, Kind::HotZstd] {
            let options = match kind {
                Kind::Zstd | Kind::HotZstd => "compression_type=zstd",
                _ => "compression_type=zlib",
            };
            let (from, to) = (files.truth(kind), files.image(kind));
            let how = if kind == Kind::Allocated { "-q" } else { "-c" };
            qemu::img(&[
                &"convert", &"-f", &"raw", &"-O", &"qcow2", &how, &"-o", &options, &from, &to,
            ]);
        }
        overlay(&files.image(Kind::Backed), &files.truth(Kind::Backed));
        files
    }

    /// The image of that kind.
    #[must_use]
    pub fn image(&self, kind: Kind) -> PathBuf {
        self.folder.join(match kind {
            Kind::Allocated => "data.qcow2",
            Kind::Backed => "over.qcow2",
            Kind::Zlib => "zlib.qcow2",
            Kind::Zstd => "zstd.qcow2",
            Kind::HotZlib => "hot-zlib.qcow2",
            Kind::HotZstd => "hot-zstd.qcow2",
        })
    }

    /// The raw file that holds what an image of that kind does.
    #[must_use]
    pub fn truth(&self, kind: Kind) -> PathBuf {
        self.folder.join(match kind {
            Kind::Allocated | Kind::Backed => "data.raw",
            Kind::Zlib | Kind::Zstd => "part.raw",
            Kind::HotZlib | Kind::HotZstd => "hot.raw",
        })
    }

    /// Bytes of the disk in an image of that kind.
    #[must_use]
    pub fn size_of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Allocated | Kind::Backed => self.size,
            Kind::Zlib | Kind::Zstd => self.part,
            Kind::HotZlib | Kind::HotZstd => HOT,
        }
    }

    /// The raw files: the smaller ones hold the start of the large one.
    fn write_raw(&self) {
        let tile = image::content(TILE);
        for kind in [Kind::Allocated, Kind::Zlib, Kind::HotZlib] {
            let file = File::create(self.truth(kind)).expect("a raw file is made");
            let size = self.size_of(kind);
            let mut at = 0;
            while at < size {
                let length = tile.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
                let mut bytes = tile[..length].to_vec();
                // No two blocks are the same, so that one taken for the other is noticed.
                for (number, block) in (0_u64..).zip(bytes.chunks_mut(BLOCK)) {
                    let place = at + number * BLOCK as u64;
                    block[..8].copy_from_slice(&(place + 1).to_be_bytes());
                }
                file.write_all_at(&bytes, at).expect("a raw file is written");
                at += length as u64;
            }
        }
    }
}

/// Makes a new qcow2 image, all unallocated.
pub fn empty(path: &Path, size: u64) {
    let _ = fs::remove_file(path);
    qemu::img(&[&"create", &"-q", &"-f", &"qcow2", &path, &size.to_string()]);
}

/// Makes a new qcow2 image, all unallocated, over a raw file.
pub fn overlay(path: &Path, backing: &Path) {
    let _ = fs::remove_file(path);
    qemu::img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"raw", &"-b", &backing, &path]);
}

/// Makes an image of 1 TiB with a block of ones in every GiB.
pub fn huge(path: &Path) {
    empty(path, 1 << 40);
    let disk = OursWritten::open(path, None, Durability::None);
    for gibibyte in 0..1024 {
        disk.write(&[1; BLOCK], huge_place(gibibyte));
    }
}

/// Where the block is in that GiB of the image that [`huge`] makes.
#[must_use]
pub fn huge_place(gibibyte: u64) -> u64 {
    (gibibyte << 30) + gibibyte % 16 * CLUSTER
}
