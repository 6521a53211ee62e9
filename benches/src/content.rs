//! What a sparse file holds, whoever wrote it, and the space it takes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;

/// A digest of a file's size and of every block that is not zeros. Holes are not read; two files
/// have the same digest if and only if they read the same, however they are stored.
///
/// # Panics
///
/// The file cannot be read.
#[must_use]
pub fn digest(path: &Path) -> [u8; 32] {
    let file = File::open(path).expect("the file opens");
    let size = file.metadata().expect("the file has a size").len();
    let mut hash = Sha256::new();
    hash.update(size.to_be_bytes());
    let mut memory = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).expect("a file's offset");
            lseek(&file, from, whence).map(|to| u64::try_from(to).expect("not negative"))
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start - start % BLOCK as u64,
            Err(Errno::ENXIO) => break,
            Err(error) => panic!("look for data: {error}"),
        };
        let end = seek(start.max(at), Whence::SeekHole).expect("every file ends in a hole");
        at = start;
        while at < end {
            let count = file.read_at(&mut memory, at).expect("the file reads");
            for (index, block) in memory[..count].chunks(BLOCK).enumerate() {
                let offset = at + (index * BLOCK) as u64;
                if offset < end && block.iter().any(|byte| *byte != 0) {
                    hash.update(offset.to_be_bytes());
                    hash.update(block);
                }
            }
            at += count as u64;
        }
        at = end;
    }
    hash.finalize().into()
}

/// Bytes of storage that everything below `folder` takes, holes not counted.
///
/// # Panics
///
/// The folder cannot be read.
#[must_use]
pub fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("the folder reads");
    entries
        .map(|entry| {
            let entry = entry.expect("the folder reads");
            let metadata = entry.metadata().expect("the file is there");
            if metadata.is_dir() { allocated(&entry.path()) } else { metadata.blocks() * 512 }
        })
        .sum()
}
