//! Sparse maps: which ranges of a file are stored. Four ways to write one, and one rule for all.
//!
//! ```text
//! old GNU    4 entries in the header, then headers of 21 entries and a flag       typeflag S
//! PAX 0.0    GNU.sparse.offset=… GNU.sparse.numbytes=…  once per entry             pax records
//! PAX 0.1    GNU.sparse.map=offset,length,offset,length…                           pax record
//! PAX 1.0    "count\noffset\nlength\n…", padded to 512, before the data            in the data
//!
//! file    ┌──────┬ ─ ─ ─ ─ ─ ┬───┬ ─ ─ ┐     entries ascend and are disjoint, inside realsize;
//!         │ data │   hole    │ … │      │     their lengths add up to the stored size exactly;
//!         └──────┴ ─ ─ ─ ─ ─ ┴───┴ ─ ─ ┘     each begins at a multiple of 512, and each stored
//!                                            length but the last fills whole blocks
//! ```
//!
//! An entry of length zero stores nothing and may lie anywhere; writers end a map with one where
//! the file ends in a hole. The last part of the rule is what makes all readers agree: some pad
//! every piece to a block, some do not. No writer makes other maps: holes are found in blocks. Callers: `tar` and `tar::pax` push entries, `tar` reads the file by the map.

use crate::source::content::{BLOCK, Bytes};
use crate::source::limits::Defect;
use crate::source::tar::header::{Header, extended, number_in};
use crate::source::tar::number;

use crate::error::Result as CrateResult;
use crate::source::content::Content;

/// How a member says which of its ranges are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SparseForm {
    /// Not at all: all of it is stored.
    Dense,
    /// GNU tar's own headers (typeflag `S`).
    OldGnu,
    /// PAX sparse 0.0: a pair of records per range.
    Pax00,
    /// PAX sparse 0.1: one record with all ranges.
    Pax01,
    /// PAX sparse 1.0: the map stands before the data.
    Pax10,
}

/// A stored range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A map that keeps the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Stored ranges, none of them empty.
    pub(crate) ranges: Vec<Range>,
    /// Size of the whole file.
    pub(crate) size: u64,
}

impl SparseMap {
    /// A file that is stored whole.
    pub(crate) fn dense(size: u64) -> Self {
        let ranges = if size > 0 { vec![Range { offset: 0, length: size }] } else { Vec::new() };
        Self { ranges, size }
    }
}

/// A map on its way in, entry by entry.
#[derive(Debug)]
pub(crate) struct MapBuilder {
    ranges: Vec<Range>,
    most: usize,
    entries: usize,
    end: u64,
    stored: u64,
    /// The last stored range does not fill its last block, so nothing stored may follow.
    closed: bool,
}

impl MapBuilder {
    /// An empty map that takes `most` entries.
    pub(crate) fn new(most: usize) -> Self {
        Self { ranges: Vec::new(), most, entries: 0, end: 0, stored: 0, closed: false }
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, offset: u64, length: u64) -> Result<(), Defect> {
        if self.entries >= self.most {
            let message = format!("a sparse map has more than {} entries", self.most);
            return Err(Defect::limit(message, "max_extents (--max-extents)"));
        }
        if offset < self.end {
            return Err(Defect::corrupt(format!(
                "a sparse map's entry at {offset:#x} begins before the end of the one before it, {:#x}",
                self.end
            )));
        }
        let end =
            offset.checked_add(length).filter(|end| *end <= number::MAX).ok_or_else(|| {
                Defect::corrupt(format!(
                    "a sparse map's entry at {offset:#x} with {length:#x} bytes ends past 2^63"
                ))
            })?;
        if length > 0 {
            if self.closed {
                return Err(Defect::corrupt(format!(
                    "a sparse map's entry before {offset:#x} does not fill its last block"
                )));
            }
            if !offset.is_multiple_of(BLOCK as u64) {
                return Err(Defect::corrupt(format!(
                    "a sparse map's entry at {offset:#x} does not begin at a whole block"
                )));
            }
            self.ranges.try_reserve(1).map_err(|_| {
                Defect::limit("no memory for a sparse map", "max_extents (--max-extents)")
            })?;
            self.ranges.push(Range { offset, length });
            self.closed = !length.is_multiple_of(BLOCK as u64);
        }
        self.entries += 1;
        self.end = end;
        // Disjoint ranges below 2^63 add up to less than 2^63.
        self.stored = self.stored.saturating_add(length);
        Ok(())
    }

    /// Entries so far, empty ones included.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// The map of a file of `size` bytes, of which `stored` are in the archive.
    pub(crate) fn finish(self, size: u64, stored: u64) -> Result<SparseMap, Defect> {
        if self.end > size {
            return Err(Defect::corrupt(format!(
                "a sparse map reaches {:#x}, past the end of its file of {size:#x} bytes",
                self.end
            )));
        }
        if self.stored != stored {
            return Err(Defect::corrupt(format!(
                "a sparse map describes {:#x} stored bytes, and the archive holds {stored:#x}",
                self.stored
            )));
        }
        Ok(SparseMap { ranges: self.ranges, size })
    }
}

/// Reads an old GNU map: the entries in `header`, and the extension headers that follow it.
pub(crate) fn read_gnu(
    content: &mut Content,
    header: &Header,
    stored: u64,
    most: usize,
) -> CrateResult<SparseMap> {
    let mut map = MapBuilder::new(most);
    let (mut more, size, mut ended) = {
        let sparse = header.gnu_sparse().map_err(|defect| content.fault(defect))?;
        let sparse = sparse.ok_or_else(|| content.fault(Defect::corrupt("not a GNU header")))?;
        let ended = push_gnu(&mut map, sparse.entries).map_err(|defect| content.fault(defect))?;
        (sparse.extended, sparse.real_size, ended)
    };
    while more {
        if ended {
            return Err(content.fault(Defect::corrupt(
                "a sparse map has ended, yet another extension header is announced",
            )));
        }
        let block = content.expect_block("a sparse map's extension header")?;
        let (entries, tail) = block.split_at(504);
        let outcome = push_gnu(&mut map, entries).and_then(|over| {
            ended = over;
            extended(tail.first().copied().unwrap_or(0))
        });
        more = outcome.map_err(|defect| content.fault(defect))?;
    }
    map.finish(size, stored).map_err(|defect| content.fault(defect))
}

/// Adds entries of 24 bytes; true if an unused one ended the map.
fn push_gnu(map: &mut MapBuilder, entries: &[u8]) -> Result<bool, Defect> {
    let mut ended = false;
    for entry in entries.chunks_exact(24) {
        let (offset, numbytes) = entry.split_at(12);
        // GNU tar: an entry whose length field is empty is not used, nor is any after it.
        if numbytes.first() == Some(&0) {
            ended = true;
            continue;
        }
        if ended {
            return Err(Defect::corrupt("a sparse map has an entry after its end"));
        }
        map.push(number_in("offset", offset)?, number_in("numbytes", numbytes)?)?;
    }
    Ok(ended)
}

/// Reads a PAX 1.0 map from the start of a member's `stored` bytes.
pub(crate) fn read_pax_10(
    content: &mut Content,
    size: u64,
    stored: u64,
    most: usize,
) -> CrateResult<SparseMap> {
    let mut bytes = Bytes::new(content, stored, "a sparse map");
    let count = line(&mut bytes)?;
    let mut map = MapBuilder::new(most);
    if count > most as u64 {
        let message = format!("a sparse map claims {count} entries, more than {most}");
        return Err(bytes.fault(Defect::limit(message, "max_extents (--max-extents)")));
    }
    for _ in 0..count {
        let (offset, length) = (line(&mut bytes)?, line(&mut bytes)?);
        map.push(offset, length).map_err(|defect| bytes.fault(defect))?;
    }
    // The map fills whole blocks, and those count as stored bytes too.
    let read = (stored - bytes.left()).next_multiple_of(BLOCK as u64);
    let data = stored.checked_sub(read).ok_or_else(|| {
        bytes.fault(Defect::corrupt("a sparse map is longer than what the member stores"))
    })?;
    map.finish(size, data).map_err(|defect| content.fault(defect))
}

/// A decimal number on a line of its own.
fn line(bytes: &mut Bytes<'_>) -> CrateResult<u64> {
    let mut value = None;
    // Leading zeros are no way to make us read for ever.
    for _ in 0..=20 {
        let byte = bytes.next()?;
        value = match (byte, value) {
            (Some(b'\n'), Some(value)) => return Ok(value),
            (Some(digit), value) => {
                let next = number::push_decimal(value.unwrap_or(0), digit);
                Some(next.map_err(|wrong| {
                    bytes.fault(Defect::corrupt(format!("a line of a sparse map {wrong}")))
                })?)
            }
            (None, _) => {
                return Err(bytes
                    .fault(Defect::corrupt("a sparse map is longer than what the member stores")));
            }
        };
    }
    Err(bytes.fault(Defect::corrupt("a line of a sparse map is too long")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(entries: &[(u64, u64)], size: u64, stored: u64) -> Result<SparseMap, Defect> {
        let mut map = MapBuilder::new(8);
        for (offset, length) in entries {
            map.push(*offset, *length)?;
        }
        map.finish(size, stored)
    }

    #[test]
    fn a_map_that_keeps_the_rule_is_accepted() {
        let map = build(&[(512, 1024), (4096, 100), (8192, 0)], 8192, 1124).unwrap();
        assert_eq!(
            map.ranges,
            [Range { offset: 512, length: 1024 }, Range { offset: 4096, length: 100 }]
        );
        assert!(build(&[], 8192, 0).is_ok());
        assert!(build(&[(0, 0), (0, 512)], 512, 512).is_ok());
        assert!(build(&[(0, 512), (1000, 0)], 1000, 512).is_ok());
    }

    #[test]
    fn a_map_that_lies_is_refused() {
        let max = number::MAX;
        for (name, entries, size, stored) in [
            ("overlap", &[(0, 1024), (512, 512)][..], 4096, 1536),
            ("descending", &[(1024, 512), (0, 512)], 4096, 1024),
            ("past the end", &[(0, 1024)], 512, 1024),
            ("terminator past the end", &[(0, 512), (1024, 0)], 512, 512),
            ("wraps", &[(512, max)], max, max),
            ("sum too small", &[(0, 512)], 4096, 1024),
            ("sum too large", &[(0, 1024)], 4096, 512),
            ("unaligned before the last", &[(0, 100), (512, 512)], 4096, 612),
            ("unaligned start", &[(0, 512), (1000, 512)], 4096, 1024),
            ("unaligned start of the only one", &[(1, 5)], 4096, 5),
            ("too many", &[(0, 0); 9], 0, 0),
        ] {
            assert!(build(entries, size, stored).is_err(), "{name}");
        }
    }
}
