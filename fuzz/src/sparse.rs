//! One sparse file in the four forms archives know.

use crate::{header, number, put, record, seal};

/// A form of writing down a sparse map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

impl Form {
    pub const ALL: [Self; 4] = [Self::OldGnu, Self::Pax00, Self::Pax01, Self::Pax10];
}

/// A map that may be anything, and what is stored.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// Offsets and lengths.
    pub pairs: Vec<(u64, u64)>,
    /// Size of the whole file, as claimed.
    pub size: u64,
    /// Stored bytes, as claimed.
    pub stored: u64,
    /// Stored bytes, as they are.
    pub data: Vec<u8>,
}

impl Map {
    /// An archive with this file alone.
    #[must_use]
    pub fn archive(&self, form: Form) -> Vec<u8> {
        let mut archive = Vec::new();
        let records = |records: &[(&str, String)]| -> String {
            records.iter().map(|(key, value)| record(key, value)).collect()
        };
        let count = self.pairs.len().to_string();
        let size = self.size.to_string();
        match form {
            Form::OldGnu => self.old_gnu(&mut archive),
            Form::Pax00 => {
                let mut all = vec![("GNU.sparse.size", size), ("GNU.sparse.numblocks", count)];
                for (offset, length) in &self.pairs {
                    all.push(("GNU.sparse.offset", offset.to_string()));
                    all.push(("GNU.sparse.numbytes", length.to_string()));
                }
                pax(&mut archive, &records(&all));
                archive.extend(header("disk.img", b'0', self.stored));
            }
            Form::Pax01 => {
                let map: Vec<_> = self
                    .pairs
                    .iter()
                    .map(|(offset, length)| format!("{offset},{length}"))
                    .collect();
                let all = records(&[
                    ("GNU.sparse.size", size),
                    ("GNU.sparse.numblocks", count),
                    ("GNU.sparse.name", "disk.img".into()),
                    ("GNU.sparse.map", map.join(",")),
                ]);
                pax(&mut archive, &all);
                archive.extend(header("GNUSparseFile.0/x", b'0', self.stored));
            }
            Form::Pax10 => {
                let mut map = format!("{count}\n");
                for (offset, length) in &self.pairs {
                    map.push_str(&format!("{offset}\n{length}\n"));
                }
                let all = records(&[
                    ("GNU.sparse.major", "1".into()),
                    ("GNU.sparse.minor", "0".into()),
                    ("GNU.sparse.name", "disk.img".into()),
                    ("GNU.sparse.realsize", size),
                ]);
                pax(&mut archive, &all);
                let padded = map.len().next_multiple_of(512) as u64;
                archive.extend(header(
                    "GNUSparseFile.0/x",
                    b'0',
                    padded.saturating_add(self.stored),
                ));
                put(&mut archive, map.as_bytes());
            }
        }
        put(&mut archive, &self.data);
        // Where data is missing the archive is cut: the blocks that end one would pass for it.
        let described = self.pairs.iter().fold(0_u64, |sum, (_, length)| sum.wrapping_add(*length));
        if described == self.data.len() as u64 {
            archive.extend([0; 1024]);
        }
        archive
    }

    fn old_gnu(&self, archive: &mut Vec<u8>) {
        let mut block = header("disk.img", b'S', self.stored);
        block[257..265].copy_from_slice(b"ustar  \0");
        let (inline, more) = self.pairs.split_at(self.pairs.len().min(4));
        put_pairs(&mut block[386..482], inline);
        block[482] = u8::from(!more.is_empty());
        block[483..495].copy_from_slice(&number(self.size));
        seal(&mut block);
        archive.extend(block);
        let mut chunks = more.chunks(21).peekable();
        while let Some(chunk) = chunks.next() {
            let mut block = [0; 512];
            put_pairs(&mut block[..504], chunk);
            block[504] = u8::from(chunks.peek().is_some());
            archive.extend(block);
        }
    }
}

/// Appends a pax header with these records.
pub fn pax(archive: &mut Vec<u8>, records: &str) {
    archive.extend(header("pax", b'x', records.len() as u64));
    put(archive, records.as_bytes());
}

fn put_pairs(place: &mut [u8], pairs: &[(u64, u64)]) {
    for (place, (offset, length)) in place.chunks_exact_mut(24).zip(pairs) {
        place[..12].copy_from_slice(&number(*offset));
        place[12..].copy_from_slice(&number(*length));
    }
}
