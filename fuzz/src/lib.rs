//! What the targets share: images and tar archives byte by byte, right checksums, and readers that
//! stop anywhere.

pub mod image;
pub mod model;
pub mod sparse;

use std::io::Read;

use disk_engine::source::Limits;
use disk_engine::{Error, ErrorKind};

/// Small enough that a lying input costs little, large enough that a good one passes.
#[must_use]
pub fn limits() -> Limits {
    Limits {
        max_window: 1 << 20,
        max_extents: 256,
        max_metadata: 4096,
        max_image_size: 4 << 20,
        max_members: 64,
        max_expansion: 1000,
    }
}

/// # Panics
///
/// The error is none that a bad source may cause.
pub fn assert_typed(error: &Error) {
    let blames_the_input = matches!(
        error.kind(),
        ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::Limit
            | ErrorKind::NotFound
            | ErrorKind::InvalidInput
    );
    assert!(blames_the_input, "{error}: {error:?}");
    assert!(!error.message().is_empty());
}

/// Takes integers and bytes off the front of an input; zeros once it is used up.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Gives bytes in pieces whose lengths depend on `step`: 0 gives all that fits at once.
pub struct Pieces {
    pub bytes: Vec<u8>,
    pub at: usize,
    pub step: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let most = if self.step == 0 { usize::MAX } else { 1 + self.at % 7 * self.step };
        let count = rest.len().min(out.len()).min(most);
        out[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

/// A number in a tar header, as GNU tar writes it.
#[must_use]
pub fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

/// Makes a header's checksum right.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A header with a right checksum.
#[must_use]
pub fn header(name: &str, typeflag: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(&number(size));
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// A pax record.
#[must_use]
pub fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// Appends data and its padding.
pub fn put(archive: &mut Vec<u8>, data: &[u8]) {
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Makes the checksum right in every header of something like a tar archive, so that an input needs
/// no luck to get past them. Goes from header to header as a plain reader would.
pub fn seal_all(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + 512) {
        let block: &mut [u8; 512] = block.try_into().expect("512 bytes");
        at += 512;
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        seal(block);
        let (typeflag, mut more) = (block[156], block[482] == 1);
        let size = octal(&block[124..136]);
        if typeflag == b'S' {
            while more && let Some(extension) = archive.get(at..at + 512) {
                more = extension[504] == 1;
                at += 512;
            }
        }
        let special = (b'1'..=b'6').contains(&typeflag);
        at = at.saturating_add(if special { 0 } else { size.next_multiple_of(512) });
    }
}

/// An octal number, as far as there is one.
fn octal(field: &[u8]) -> usize {
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let digits = digits.take_while(|byte| (b'0'..=b'7').contains(byte));
    // A field has 12 bytes: 36 bits.
    digits.fold(0, |value, digit| value << 3 | usize::from(digit - b'0'))
}
