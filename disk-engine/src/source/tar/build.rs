//! Archives for tests, byte by byte.

use std::ops::Range;

use crate::source::content::Block;
use crate::source::tar::sparse::SparseForm;

/// A POSIX header with a right checksum.
pub(crate) fn header(name: &[u8], typeflag: u8, size: &[u8; 12]) -> Block {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(size);
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Makes the checksum right.
pub(crate) fn seal(block: &mut Block) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A number as GNU tar writes it: octal, base-256 where that is too small.
pub(crate) fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

/// A pax record.
pub(crate) fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// An archive on its way.
#[derive(Clone, Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', data)
    }

    /// A header and its data.
    pub(crate) fn entry(mut self, name: &str, typeflag: u8, data: &[u8]) -> Self {
        self.0.extend(header(name.as_bytes(), typeflag, &number(data.len() as u64)));
        self.data(data)
    }

    /// Data and its padding.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn pax(self, records: &[(&str, String)]) -> Self {
        let text: String = records.iter().map(|(key, value)| record(key, value)).collect();
        self.entry("pax", b'x', text.as_bytes())
    }

    /// A sparse file: `ranges` of `disk`, described in `form`.
    pub(crate) fn sparse(
        self,
        form: SparseForm,
        name: &str,
        disk: &[u8],
        ranges: &[Range<usize>],
    ) -> Self {
        let stored: Vec<u8> =
            ranges.iter().flat_map(|range| &disk[range.clone()]).copied().collect();
        let mut pairs: Vec<(u64, u64)> =
            ranges.iter().map(|range| (range.start as u64, range.len() as u64)).collect();
        if pairs.last().is_none_or(|(offset, length)| offset + length < disk.len() as u64) {
            pairs.push((disk.len() as u64, 0));
        }
        let size = disk.len().to_string();
        let count = pairs.len().to_string();
        match form {
            SparseForm::Dense => self.file(name, disk),
            SparseForm::OldGnu => {
                self.gnu_sparse(name, disk.len() as u64, &pairs, stored.len() as u64).data(&stored)
            }
            SparseForm::Pax00 => {
                let mut records = vec![("GNU.sparse.size", size), ("GNU.sparse.numblocks", count)];
                for (offset, length) in pairs {
                    records.push(("GNU.sparse.offset", offset.to_string()));
                    records.push(("GNU.sparse.numbytes", length.to_string()));
                }
                self.pax(&records).file(name, &stored)
            }
            SparseForm::Pax01 => {
                let map: Vec<String> =
                    pairs.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
                self.pax(&[
                    ("GNU.sparse.size", size),
                    ("GNU.sparse.numblocks", count),
                    ("GNU.sparse.name", name.into()),
                    ("GNU.sparse.map", map.join(",")),
                ])
                .file("GNUSparseFile.0/x", &stored)
            }
            SparseForm::Pax10 => {
                let mut data = format!("{count}\n").into_bytes();
                for (offset, length) in pairs {
                    data.extend(format!("{offset}\n{length}\n").bytes());
                }
                data.resize(data.len().next_multiple_of(512), 0);
                data.extend(&stored);
                self.pax(&[
                    ("GNU.sparse.major", "1".into()),
                    ("GNU.sparse.minor", "0".into()),
                    ("GNU.sparse.name", name.into()),
                    ("GNU.sparse.realsize", size),
                ])
                .file("GNUSparseFile.0/x", &data)
            }
        }
    }

    /// The headers of an old GNU sparse file; its data is up to the caller.
    pub(crate) fn gnu_sparse(
        mut self,
        name: &str,
        size: u64,
        pairs: &[(u64, u64)],
        stored: u64,
    ) -> Self {
        let mut block = header(name.as_bytes(), b'S', &number(stored));
        block[257..265].copy_from_slice(b"ustar  \0");
        let (inline, more) = pairs.split_at(pairs.len().min(4));
        put_pairs(&mut block[386..482], inline);
        block[482] = u8::from(!more.is_empty());
        block[483..495].copy_from_slice(&number(size));
        seal(&mut block);
        self.0.extend(block);
        let mut chunks = more.chunks(21).peekable();
        while let Some(chunk) = chunks.next() {
            let mut block = [0; 512];
            put_pairs(&mut block[..504], chunk);
            block[504] = u8::from(chunks.peek().is_some());
            self.0.extend(block);
        }
        self
    }

    /// The archive with its two blocks of zeros.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn put_pairs(place: &mut [u8], pairs: &[(u64, u64)]) {
    for (place, (offset, length)) in place.chunks_exact_mut(24).zip(pairs) {
        place[..12].copy_from_slice(&number(*offset));
        place[12..].copy_from_slice(&number(*length));
    }
}
