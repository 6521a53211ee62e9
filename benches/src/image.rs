//! A disk shaped like a real one: an ext4 of real files in a large, mostly empty image.
//!
//! ```text
//! group                                    group                                   9 groups
//! ├─ run ──────────────┤    ├─ run ──┤            gaps of gigabytes between
//! │▒▒▒▒│▒▒│▒▒▒▒▒▒▒│▒▒▒▒│    │▒▒▒│▒▒▒▒│                                             263 runs
//!      └ gaps under 4 KiB   └ gaps under 64 KiB                                    38,754 extents
//! ```
//!
//! The numbers are those of a real image. An extent is a file, so it ends at any sector; most are
//! small and few are large. A third of the bytes is text, most of the rest structured like programs,
//! a little cannot be compressed, and some files are there twice.
//!
//! Packed as the images in question are: one member in GNU tar's old sparse form, in one zstd frame
//! of level 8 with a window of 128 MiB.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::random::Random;

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
const NAME: &[u8] = b"disk.img";

/// How large and how torn a disk is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Number of extents.
    pub extents: usize,
    /// Number of runs: extents with gaps under 4 KiB between them.
    pub runs: usize,
    /// Number of groups: runs with gaps under 64 KiB between them.
    pub groups: usize,
}

impl Shape {
    /// The real one: 50 GiB, 1.2 GiB of data.
    pub const REAL: Self = Self { virtual_size: 50 << 30, extents: 38_754, runs: 263, groups: 9 };
    /// A twentieth of it: 64 MiB of data.
    pub const SMALL: Self = Self { virtual_size: 4 << 30, extents: 2_000, runs: 14, groups: 3 };

    /// The extents, ascending and apart.
    ///
    /// # Panics
    ///
    /// The disk is too small for them.
    #[must_use]
    pub fn map(&self) -> Vec<Extent> {
        let mut random = Random::new(1);
        let mut map: Vec<Extent> = Vec::with_capacity(self.extents);
        let mut end = 1 << 20;
        for index in 0..self.extents {
            // The first extent of a run comes after a larger gap, the first run of a group after
            // a much larger one.
            let run = |index: usize| index * self.runs / self.extents;
            let group = |index: usize| run(index) * self.groups / self.runs;
            let before = index.saturating_sub(1);
            let offset: u64 = if group(index) != group(before) {
                let share = self.virtual_size / self.groups as u64;
                (group(index) as u64 * share).max(end + (1 << 20)).next_multiple_of(BLOCK)
            } else if run(index) != run(before) {
                (end + BLOCK * (2 + random.below(13))).next_multiple_of(BLOCK)
            } else if index > 0 {
                end + SECTOR * (1 + random.below(7))
            } else {
                end
            };
            let length = SECTOR
                * match random.below(100) {
                    0..70 => 1 + random.below(32),
                    70..95 => 32 + random.below(96),
                    _ => 128 + random.below(1100),
                };
            map.push(Extent { offset, length });
            end = offset + length;
        }
        assert!(end < self.virtual_size, "the disk is too small for its extents");
        map
    }
}

/// A range of a disk that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Packs a disk of `shape` into `archive`; returns the map of what is in it.
///
/// # Errors
///
/// The archive cannot be written.
pub fn pack(shape: &Shape, archive: &Path) -> io::Result<Vec<Extent>> {
    let map = shape.map();
    let headers = headers(shape, &map);
    let stored: u64 = map.iter().map(|extent| extent.length).sum();
    let unpadded = headers.len() as u64 + stored + 2 * SECTOR;
    let length = unpadded.next_multiple_of(20 * SECTOR);

    let mut encoder = zstd::Encoder::new(BufWriter::new(File::create(archive)?), 8)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(27)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(length))?;
    encoder.write_all(&headers)?;
    let files = Files::new();
    let mut bytes = Vec::new();
    for (index, extent) in map.iter().enumerate() {
        bytes.clear();
        files.generate(index, extent.length, &mut bytes);
        encoder.write_all(&bytes)?;
    }
    let end = usize::try_from(length - unpadded + 2 * SECTOR).expect("at most a record");
    encoder.write_all(&vec![0; end])?;
    encoder.finish()?.flush()?;
    Ok(map)
}

/// `length` bytes as they are in such a disk's files, and nothing between these.
#[must_use]
pub fn content(length: usize) -> Vec<u8> {
    let files = Files::new();
    let mut random = Random::new(4);
    let mut all = Vec::with_capacity(length);
    let mut file = Vec::new();
    for index in 0.. {
        if all.len() >= length {
            break;
        }
        file.clear();
        files.generate(index, SECTOR * (1 + random.below(256)), &mut file);
        all.extend_from_slice(&file);
    }
    all.truncate(length);
    all
}

/// What is in the files.
struct Files {
    words: Vec<Vec<u8>>,
    instructions: Vec<[u8; 6]>,
}

impl Files {
    fn new() -> Self {
        let mut random = Random::new(2);
        let letters = b"etaoinshrdlucmfwypvbgkjqxz";
        let words = (0..8192)
            .map(|_| {
                let length = 2 + random.skewed(10);
                let mut word: Vec<u8> =
                    (0..length).map(|_| letters[random.skewed(letters.len())]).collect();
                word.push(b" \n,.;=/_"[random.skewed(8)]);
                word
            })
            .collect();
        // No byte is zero, so no sector is.
        let instructions = (0..256)
            .map(|_| std::array::from_fn(|_| (random.bits() % 255 + 1).to_le_bytes()[0]))
            .collect();
        Self { words, instructions }
    }

    /// Appends the file of extent `index`.
    fn generate(&self, index: usize, length: u64, bytes: &mut Vec<u8>) {
        let length = usize::try_from(length).expect("a file fits in memory");
        let mut random = Random::new(3 + index as u64);
        if random.below(12) == 0 && index > 4000 {
            // A copy of an earlier file.
            random = Random::new(3 + index as u64 - 1 - random.below(4000));
            let _ = random.below(12);
        }
        match random.below(100) {
            0..45 => {
                let topic = random.skewed(self.words.len());
                while bytes.len() < length {
                    let word = (topic + random.skewed(1024)) % self.words.len();
                    bytes.extend_from_slice(&self.words[word]);
                }
            }
            45..95 => {
                while bytes.len() < length {
                    let at = random.skewed(self.instructions.len());
                    bytes.extend_from_slice(&self.instructions[at]);
                    let [a, b, c, ..] = random.bits().to_le_bytes();
                    bytes.push(a & 0x07);
                    if b < 48 {
                        bytes.push(c | 1);
                    }
                }
            }
            _ => {
                while bytes.len() < length {
                    bytes.extend_from_slice(&random.bits().to_le_bytes());
                }
            }
        }
        bytes.truncate(length);
    }
}

/// The member's header and those that continue its map.
fn headers(shape: &Shape, map: &[Extent]) -> Vec<u8> {
    let last = map.last().expect("a map has extents");
    let mut pairs: Vec<_> = map.iter().map(|extent| (extent.offset, extent.length)).collect();
    if last.offset + last.length < shape.virtual_size {
        // A disk that ends in a hole is told by a pair without data.
        pairs.push((shape.virtual_size, 0));
    }
    let stored = map.iter().map(|extent| extent.length).sum();

    let mut header = vec![0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    let (inline, rest) = pairs.split_at(pairs.len().min(4));
    put(0, NAME);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, &number(stored));
    put(136, &number(0));
    put(148, b"        ");
    put(156, b"S");
    put(257, b"ustar  \0");
    for (index, pair) in inline.iter().enumerate() {
        put(386 + 24 * index, &encode(*pair));
    }
    put(482, &[u8::from(!rest.is_empty())]);
    put(483, &number(shape.virtual_size));
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let chunks = rest.chunks(21);
    let count = chunks.len();
    for (index, chunk) in chunks.enumerate() {
        let mut block = [0; 512];
        for (place, pair) in block.chunks_mut(24).zip(chunk) {
            place.copy_from_slice(&encode(*pair));
        }
        block[504] = u8::from(index + 1 < count);
        header.extend_from_slice(&block);
    }
    header
}

fn encode((offset, length): (u64, u64)) -> [u8; 24] {
    let mut pair = [0; 24];
    pair[..12].copy_from_slice(&number(offset));
    pair[12..].copy_from_slice(&number(length));
    pair
}

/// Twelve bytes: octal, or base-256 where eleven digits are not enough.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 8 << 30 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_torn_as_a_real_one() {
        let map = Shape::REAL.map();
        let parts = |gap: u64| {
            let gaps = map.windows(2).map(|pair| pair[1].offset - pair[0].offset - pair[0].length);
            1 + gaps.filter(|it| *it >= gap).count()
        };
        let data: u64 = map.iter().map(|extent| extent.length).sum();
        let aligned = map.iter().filter(|it| it.offset % BLOCK == 0 && it.length % BLOCK == 0);
        assert_eq!((map.len(), parts(4096), parts(65536)), (38_754, 263, 9));
        assert!(data > 1 << 30, "{data}");
        assert!(aligned.count() < map.len() / 40);
    }
}
