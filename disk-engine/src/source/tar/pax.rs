//! pax records: what a header cannot say about the member after it.
//!
//! ```text
//! "30 path=a/long/name/for/a/file\n" "20 size=8589934592\n" …
//!  └ length of the record, itself and the newline included
//! ```
//!
//! Read as a stream. Records with a sparse map turn into map entries as they pass, so they are
//! bounded by `Limits::max_extents`; all other records, known or not, by `Limits::max_metadata`.
//! A record that is malformed in any way makes the archive corrupt: readers that skip it disagree
//! with readers that do not. Caller: `tar`.

use crate::error::Result;
use crate::source::content::{Bytes, Content};
use crate::source::limits::{Defect, Limits};
use crate::source::tar::number;
use crate::source::tar::sparse::MapBuilder;

/// What pax records and long names say about the next member.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// Its name.
    pub(crate) path: Option<Vec<u8>>,
    /// Stored bytes.
    pub(crate) size: Option<u64>,
    /// The PAX sparse records, if there are any.
    pub(crate) sparse: Sparse,
}

/// The `GNU.sparse.*` records of a member.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.0 and 0.1).
    pub(crate) size: Option<u64>,
    /// `GNU.sparse.realsize` (1.0).
    pub(crate) real_size: Option<u64>,
    pub(crate) numblocks: Option<u64>,
    /// The map, and whether it came in one record (0.1).
    pub(crate) map: Option<(MapBuilder, bool)>,
    /// An offset whose length has not come yet (0.0).
    offset: Option<u64>,
}

impl Sparse {
    /// Whether any record was there.
    pub(crate) fn is_some(&self) -> bool {
        self.major.is_some()
            || self.minor.is_some()
            || self.name.is_some()
            || self.size.is_some()
            || self.real_size.is_some()
            || self.numblocks.is_some()
            || self.map.is_some()
    }
}

/// How much metadata one member may still bring.
#[derive(Debug)]
pub(crate) struct Budget(u64);

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self(limits.max_metadata)
    }

    /// Takes `bytes` off.
    pub(crate) fn spend(&mut self, bytes: u64) -> Result<(), Defect> {
        self.check(bytes)?;
        self.0 -= bytes;
        Ok(())
    }

    /// Whether `bytes` could be taken off.
    fn check(&self, bytes: u64) -> Result<(), Defect> {
        if bytes > self.0 {
            return Err(Defect::limit(
                "a member has too many bytes of pax records and names",
                "max_metadata (--max-metadata)",
            ));
        }
        Ok(())
    }
}

/// The keys that mean something here; all others are passed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Path,
    Size,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseRealSize,
    SparseNumBlocks,
    SparseMap,
    SparseOffset,
    SparseNumBytes,
    StarSparse,
    Other,
}

impl Key {
    const LONGEST: usize = 32;

    fn parse(key: &[u8]) -> Self {
        match key {
            b"path" => Self::Path,
            b"size" => Self::Size,
            b"GNU.sparse.major" => Self::SparseMajor,
            b"GNU.sparse.minor" => Self::SparseMinor,
            b"GNU.sparse.name" => Self::SparseName,
            b"GNU.sparse.size" => Self::SparseSize,
            b"GNU.sparse.realsize" => Self::SparseRealSize,
            b"GNU.sparse.numblocks" => Self::SparseNumBlocks,
            b"GNU.sparse.map" => Self::SparseMap,
            b"GNU.sparse.offset" => Self::SparseOffset,
            b"GNU.sparse.numbytes" => Self::SparseNumBytes,
            b"SCHILY.realsize" => Self::StarSparse,
            _ => Self::Other,
        }
    }

    /// Whether its value turns into map entries as it is read.
    fn is_map(self) -> bool {
        matches!(self, Self::SparseMap | Self::SparseOffset | Self::SparseNumBytes)
    }
}

/// Reads the `length` bytes of records after a pax header into `attributes`, overriding what is
/// there. `global` records describe no single file, so they may not bring a sparse map or
/// a size: some readers take a global size for every member's, some for none's.
pub(crate) fn read(
    content: &mut Content,
    length: u64,
    global: bool,
    attributes: &mut Attributes,
    budget: &mut Budget,
    limits: &Limits,
) -> Result<()> {
    let mut bytes = Bytes::new(content, length, "pax records");
    while bytes.left() > 0 {
        record(&mut bytes, global, attributes, budget, limits)?;
    }
    if attributes.sparse.offset.is_some() {
        return Err(bytes.fault(malformed("ends after an offset that has no length")));
    }
    Ok(())
}

fn record(
    bytes: &mut Bytes<'_>,
    global: bool,
    attributes: &mut Attributes,
    budget: &mut Budget,
    limits: &Limits,
) -> Result<()> {
    let start = bytes.left();
    let length = number_until(bytes, b' ')?;
    let end = start
        .checked_sub(length)
        .ok_or_else(|| bytes.fault(malformed("is longer than the header that holds it")))?;
    let mut key = [0; Key::LONGEST];
    let mut key_length = 0;
    loop {
        if bytes.left() <= end {
            return Err(bytes.fault(malformed("has no equals sign")));
        }
        match bytes.next()? {
            Some(b'=') => break,
            Some(byte) => {
                if let Some(place) = key.get_mut(key_length) {
                    *place = byte;
                }
                key_length += 1;
                budget.check(key_length as u64).map_err(|defect| bytes.fault(defect))?;
            }
            None => return Err(bytes.fault(malformed("has no equals sign"))),
        }
    }
    if key_length == 0 {
        return Err(bytes.fault(malformed("has no key")));
    }
    // A key longer than all we know is none of them.
    let key = key.get(..key_length).map_or(Key::Other, Key::parse);
    let value = bytes.left().checked_sub(end).and_then(|left| left.checked_sub(1));
    let value = value.ok_or_else(|| bytes.fault(malformed("is shorter than its own key")))?;
    if !key.is_map() {
        let whole = value.saturating_add(key_length as u64);
        budget.spend(whole).map_err(|defect| bytes.fault(defect))?;
    }
    if global && !matches!(key, Key::Path | Key::Other) {
        return Err(bytes.fault(malformed("describes one file's size or holes in a global header")));
    }
    set(bytes, key, value, attributes, limits)?;
    match bytes.next()? {
        Some(b'\n') => Ok(()),
        _ => Err(bytes.fault(malformed("does not end with a newline where it should"))),
    }
}

/// Reads a value of `length` bytes and keeps what it means.
fn set(
    bytes: &mut Bytes<'_>,
    key: Key,
    length: u64,
    attributes: &mut Attributes,
    limits: &Limits,
) -> Result<()> {
    let sparse = &mut attributes.sparse;
    match key {
        Key::Path => attributes.path = name(bytes, length)?,
        Key::SparseName => sparse.name = name(bytes, length)?,
        // POSIX: the header's size is taken back. Readers take it for the header's, or for zero, and
        // then see other members: nobody writes it in good faith.
        Key::Size if length == 0 => return Err(bytes.fault(malformed("has an empty size"))),
        Key::Size => attributes.size = Some(number(bytes, length)?),
        Key::SparseMajor => once(bytes, &mut sparse.major, length)?,
        Key::SparseMinor => once(bytes, &mut sparse.minor, length)?,
        Key::SparseSize => once(bytes, &mut sparse.size, length)?,
        Key::SparseRealSize => once(bytes, &mut sparse.real_size, length)?,
        Key::SparseNumBlocks => once(bytes, &mut sparse.numblocks, length)?,
        Key::SparseOffset => {
            let offset = number(bytes, length)?;
            if sparse.offset.replace(offset).is_some() {
                return Err(bytes.fault(malformed("has an offset after an offset")));
            }
        }
        Key::SparseNumBytes => {
            let count = number(bytes, length)?;
            let Some(offset) = sparse.offset.take() else {
                return Err(bytes.fault(malformed("has a length without an offset")));
            };
            let fresh = || (MapBuilder::new(limits.max_extents), false);
            let (map, at_once) = sparse.map.get_or_insert_with(fresh);
            if *at_once {
                return Err(bytes.fault(malformed("mixes two forms of a sparse map")));
            }
            map.push(offset, count).map_err(|defect| bytes.fault(defect))?;
        }
        Key::SparseMap => {
            if sparse.map.is_some() {
                return Err(bytes.fault(malformed("brings a second sparse map")));
            }
            sparse.map = Some((map(bytes, length, limits)?, true));
        }
        Key::StarSparse => {
            return Err(bytes.fault(
                Defect::unsupported("the archive has a sparse file in star's form")
                    .hint("repack it with GNU tar or bsdtar"),
            ));
        }
        Key::Other => {
            for _ in 0..length {
                bytes.next()?;
            }
        }
    }
    Ok(())
}

/// `offset,length,offset,length…`
fn map(bytes: &mut Bytes<'_>, length: u64, limits: &Limits) -> Result<MapBuilder> {
    let mut map = MapBuilder::new(limits.max_extents);
    let longest = (limits.max_extents as u64).saturating_mul(2 * (DIGITS + 1));
    if length > longest {
        return Err(
            bytes.fault(Defect::limit("a sparse map is too long", "max_extents (--max-extents)"))
        );
    }
    let end = bytes.left().saturating_sub(length);
    let mut offset = None;
    let mut value = None;
    while bytes.left() > end {
        let byte = bytes.next()?.unwrap_or(0);
        let last = bytes.left() == end;
        if byte != b',' {
            let digit = number::push_decimal(value.unwrap_or(0), byte);
            value = Some(digit.map_err(|wrong| bytes.fault(in_value(wrong)))?);
        }
        if byte == b',' || last {
            let number = value.take();
            let number = number.filter(|_| byte != b',' || !last);
            let number = number.ok_or_else(|| bytes.fault(malformed("has an empty map entry")))?;
            match offset.take() {
                None => offset = Some(number),
                Some(offset) => {
                    map.push(offset, number).map_err(|defect| bytes.fault(defect))?;
                }
            }
        }
    }
    match offset {
        None => Ok(map),
        Some(_) => Err(bytes.fault(malformed("has a map that ends after an offset"))),
    }
}

/// A name; an empty value takes an earlier one back. Its length was paid for.
fn name(bytes: &mut Bytes<'_>, length: u64) -> Result<Option<Vec<u8>>> {
    let mut name = Vec::new();
    for _ in 0..length {
        match bytes.next()? {
            Some(0) => return Err(bytes.fault(malformed("has a name with a NUL in it"))),
            Some(byte) => name.push(byte),
            None => break,
        }
    }
    Ok(Some(name).filter(|name| !name.is_empty()))
}

fn once(bytes: &mut Bytes<'_>, place: &mut Option<u64>, length: u64) -> Result<()> {
    let value = number(bytes, length)?;
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(bytes.fault(malformed("repeats a key that may stand once"))),
    }
}

/// No number here has more digits; leading zeros are no way to make us read for ever.
const DIGITS: u64 = 20;

fn number(bytes: &mut Bytes<'_>, length: u64) -> Result<u64> {
    if length > DIGITS {
        return Err(bytes.fault(malformed("has a number that is too long")));
    }
    let mut value = None;
    for _ in 0..length {
        let digit = bytes.next()?.unwrap_or(0);
        let next = number::push_decimal(value.unwrap_or(0), digit);
        value = Some(next.map_err(|wrong| bytes.fault(in_value(wrong)))?);
    }
    value.ok_or_else(|| bytes.fault(malformed("has no value")))
}

fn number_until(bytes: &mut Bytes<'_>, stop: u8) -> Result<u64> {
    let mut value = None;
    for _ in 0..=DIGITS {
        match (bytes.next()?, value) {
            (Some(byte), Some(value)) if byte == stop => return Ok(value),
            (Some(digit), so_far) => {
                let next = number::push_decimal(so_far.unwrap_or(0), digit);
                value = Some(next.map_err(|_| bytes.fault(malformed("has no length")))?);
            }
            (None, _) => break,
        }
    }
    Err(bytes.fault(malformed("has no length")))
}

fn malformed(wrong: &str) -> Defect {
    Defect::corrupt(format!("a pax record {wrong}"))
}

fn in_value(wrong: &str) -> Defect {
    malformed(&format!("has a value that {wrong}"))
}
