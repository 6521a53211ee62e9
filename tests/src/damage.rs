//! Images by QEMU, and where their tables lie, to be damaged one field at a time.
//!
//! ```text
//! base  plain · v2 · snapshots · compressed · extended · bitmaps · data-file · narrow · wide · backing
//! map   header, L1 and L2 entries, refcount table, counts, snapshot and bitmap entries ─▶ offsets
//! ```
//!
//! Callers: `image_check`, `image_repair`, `bitmap_repair`, `check_listing`, `check_random`.

mod chance;
mod list;

use std::fs;
use std::path::Path;
use std::process::Command;

pub use chance::by_chance;
pub use list::{Damage, damages};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// How the base images are made: name, options, size, and what is done to them.
const BASES: &[(&str, &str, &str, &[&str])] = &[
    ("plain", "cluster_size=512", "256k", WRITES),
    ("v2", "cluster_size=512,compat=0.10", "256k", WRITES),
    ("large", "cluster_size=65536", "4M", WRITES),
    ("snapshots", "cluster_size=512", "256k", SNAPSHOTS),
    ("compressed", "cluster_size=4096", "256k", COMPRESSED),
    ("extended", "cluster_size=16384,extended_l2=on", "4M", WRITES),
    ("bitmaps", "cluster_size=512", "256k", BITMAPS),
    ("data-file", "cluster_size=4096,data_file={}/guest.data", "256k", WRITES),
    ("narrow", "cluster_size=512,refcount_bits=1", "256k", WRITES),
    ("wide", "cluster_size=512,refcount_bits=64", "256k", WRITES),
    ("backing", "cluster_size=512,backing_file=below.raw,backing_fmt=raw", "256k", WRITES),
];

const WRITES: &[&str] =
    &["write -P 7 0 20k", "write -P 9 64k 9k", "write -z 66k 4k", "discard 8k 2k"];
const SNAPSHOTS: &[&str] =
    &["write -P 7 0 20k", "snapshot one", "write -P 8 4k 20k", "snapshot two", "write -P 5 40k 3k"];
const COMPRESSED: &[&str] =
    &["write -c -P 7 0 4k", "write -c -P 8 4k 4k", "write -P 9 8k 8k", "write -c -P 3 40k 4k"];
const BITMAPS: &[&str] = &["bitmap one", "write -P 7 0 20k", "bitmap two"];

/// The names of the base images.
pub fn bases() -> impl Iterator<Item = &'static str> {
    BASES.iter().map(|(name, ..)| *name)
}

/// Makes the base image `name` in `folder`, with what it stands on. Returns its bytes.
///
/// # Panics
///
/// QEMU's programs do not do it.
#[must_use]
pub fn base(folder: &Path, name: &str) -> Vec<u8> {
    let (_, options, size, commands) = BASES.iter().find(|(other, ..)| *other == name).unwrap();
    fs::write(folder.join("below.raw"), vec![0x55; 256 << 10]).unwrap();
    let image = format!("{name}.qcow2");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    };
    let options = options.replace("{}", folder.to_str().unwrap());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &image, size]);
    for command in *commands {
        match command.split_once(' ') {
            Some(("snapshot", name)) => run("qemu-img", &["snapshot", "-c", name, &image]),
            Some(("bitmap", name)) => run("qemu-img", &["bitmap", "--add", &image, name]),
            _ => run("qemu-io", &["-f", "qcow2", "-c", command, &image]),
        }
    }
    fs::read(folder.join(image)).unwrap()
}

/// Where things lie in an image.
#[derive(Clone, Debug)]
pub struct Map<'a> {
    bytes: &'a [u8],
}

impl<'a> Map<'a> {
    /// The places of a sound image.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// A big-endian number of `width` bytes.
    #[must_use]
    pub fn number(&self, at: u64, width: usize) -> u64 {
        let bytes = &self.bytes[at as usize..][..width];
        bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.number(20, 4)
    }

    /// Bytes of the file.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether L2 entries have bitmaps.
    #[must_use]
    pub fn extended(&self) -> bool {
        self.number(4, 4) > 2 && self.number(72, 8) & 16 != 0
    }

    fn words(&self, start: u64, count: u64, step: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..count).map(move |index| start + index * step).map(|at| (at, self.number(at, 8)))
    }

    /// Where the L1 entries lie that name a table.
    #[must_use]
    pub fn l1(&self) -> Vec<u64> {
        let entries = self.words(self.number(40, 8), self.number(36, 4), 8);
        entries.filter(|(_, entry)| entry & OFFSET != 0).map(|(at, _)| at).collect()
    }

    /// Where the L2 table lies that the first of those names.
    #[must_use]
    pub fn l2_table(&self) -> u64 {
        self.number(self.l1()[0], 8) & OFFSET
    }

    /// Where the entries of the first L2 table lie that are standard clusters.
    #[must_use]
    pub fn l2(&self) -> Vec<u64> {
        let step = if self.extended() { 16 } else { 8 };
        let entries = self.words(self.l2_table(), self.cluster() / step, step);
        let stored = entries.filter(|(_, entry)| entry >> 62 & 1 == 0 && entry & OFFSET != 0);
        stored.map(|(at, _)| at).collect()
    }

    /// Where an entry of the first L2 table lies that is empty.
    #[must_use]
    pub fn empty_l2(&self) -> u64 {
        let step = if self.extended() { 16 } else { 8 };
        let mut entries = self.words(self.l2_table(), self.cluster() / step, step);
        entries.find(|(_, entry)| *entry == 0).unwrap().0
    }

    /// Where the entries of the first L2 table lie that are compressed clusters.
    #[must_use]
    pub fn compressed(&self) -> Vec<u64> {
        let entries = self.words(self.l2_table(), self.cluster() / 8, 8);
        entries.filter(|(_, entry)| entry >> 62 & 1 == 1).map(|(at, _)| at).collect()
    }

    /// Where the refcount table lies.
    #[must_use]
    pub fn refcount_table(&self) -> u64 {
        self.number(48, 8)
    }

    /// Where the first refcount block lies.
    #[must_use]
    pub fn block(&self) -> u64 {
        self.number(self.refcount_table(), 8)
    }

    /// The bits of a refcount.
    #[must_use]
    pub fn refcount_bits(&self) -> u64 {
        if self.number(4, 4) > 2 { 1 << self.number(96, 4) } else { 16 }
    }

    /// Where the entries of the snapshot table lie.
    #[must_use]
    pub fn snapshots(&self) -> Vec<u64> {
        let mut at = self.number(64, 8);
        let mut places = Vec::new();
        for _ in 0..self.number(60, 4) {
            places.push(at);
            let variable =
                self.number(at + 36, 4) + self.number(at + 12, 2) + self.number(at + 14, 2);
            at = (at + 40 + variable).next_multiple_of(8);
        }
        places
    }

    /// Where the bitmaps extension's data lies, if there is one.
    #[must_use]
    pub fn bitmaps_extension(&self) -> Option<u64> {
        let mut at = self.number(100, 4);
        loop {
            match self.number(at, 4) {
                0 => return None,
                0x2385_2875 => return Some(at + 8),
                _ => at += 8 + self.number(at + 4, 4).next_multiple_of(8),
            }
        }
    }

    /// Where the bitmap directory lies.
    #[must_use]
    pub fn bitmap_directory(&self) -> u64 {
        self.number(self.bitmaps_extension().unwrap() + 16, 8)
    }
}
