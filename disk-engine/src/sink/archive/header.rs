//! Tar's headers of the one member, as GNU tar writes them.
//!
//! ```text
//! ┌────────┬────────┐  only if the name is longer than 100 bytes
//! │ L      │ name   │
//! ├────────┴────────┤
//! │ S header        │  size: stored bytes; realsize: the disk's; the first 4 pairs of the map
//! ├─────────────────┤
//! │ 21 pairs │ more?│  as often as it takes
//! └─────────────────┘
//! ```
//!
//! A pair is offset and length of a stored run. A disk that ends in a hole has a last pair of its
//! size and zero, as GNU tar has it. A disk without any hole is a plain file (typeflag 0): every
//! reader of tar takes it. Numbers are octal, base-256 from 8 GiB on. Owner and group are 0 and
//! have no names, the mode is 0644: nothing of the machine that packs is told. Caller: `stream`.

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::map::DiskMap;
use crate::error::{Error, ErrorKind, Result};

/// Tar's unit.
pub(crate) const TAR_BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCK_BYTES: usize = 512;
/// Longest name: what a path may have on Linux, without its NUL.
const NAME_MAX: usize = 4095;
/// Room for a name in a header.
const NAME_FIELD: usize = 100;
/// Pairs in an extension header.
const EXTENSION_PAIRS: usize = 21;
const INLINE_PAIRS: usize = 4;

/// The blocks before the data: `name` of the disk with `map`, changed last at `mtime`, in seconds
/// since the Unix epoch.
///
/// # Errors
///
/// [`ErrorKind::Limit`] if there is no memory for them.
pub(crate) fn encode(name: &str, mtime: u64, map: &DiskMap) -> Result<Vec<u8>> {
    let mut pairs: Vec<(u64, u64)> = Vec::new();
    let no_memory = || Error::new(ErrorKind::Limit, "no memory for the archive's headers");
    pairs.try_reserve_exact(map.runs.len() + 1).map_err(|_| no_memory())?;
    pairs.extend(map.runs.iter().map(|run| (run.offset, run.length)));
    if pairs.last().map_or(0, |(offset, length)| offset + length) < map.size {
        pairs.push((map.size, 0));
    }
    let (inline, more) = pairs.split_at(pairs.len().min(INLINE_PAIRS));

    let mut bytes = Vec::new();
    let blocks = 1 + more.len().div_ceil(EXTENSION_PAIRS);
    bytes.try_reserve(blocks * BLOCK_BYTES + NAME_MAX + 1024).map_err(|_| no_memory())?;
    if name.len() > NAME_FIELD {
        long_name(&mut bytes, name);
    }
    let mut header = start(name, EntryType::Regular, mtime);
    header.set_size(map.stored);
    if map.stored != map.size {
        header.set_entry_type(EntryType::GNUSparse);
        if let Some(gnu) = header.as_gnu_mut() {
            put_pairs(&mut gnu.sparse, inline);
            gnu.set_is_extended(!more.is_empty());
            gnu.set_real_size(map.size);
        }
    }
    seal(&mut header);
    bytes.extend_from_slice(header.as_bytes());
    if map.stored != map.size {
        let mut chunks = more.chunks(EXTENSION_PAIRS).peekable();
        while let Some(chunk) = chunks.next() {
            let mut extension = GnuExtSparseHeader::new();
            put_pairs(&mut extension.sparse, chunk);
            extension.set_is_extended(chunks.peek().is_some());
            bytes.extend_from_slice(extension.as_bytes());
        }
    }
    Ok(bytes)
}

/// Refuses names that tar's readers would not take as they are, or that no path can have.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] with the rule.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = if name.is_empty() || name.len() > NAME_MAX {
        "a member's name has 1 to 4095 bytes"
    } else if name.contains('\0') {
        "a member's name holds no NUL"
    } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        // Readers cut a leading slash, take a trailing one for a folder, and refuse "..".
        "a member's name is a relative path without empty parts, '.' and '..'"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidInput, wrong).with_field("member"))
}

fn long_name(bytes: &mut Vec<u8>, name: &str) {
    let mut header = start("././@LongLink", EntryType::GNULongName, 0);
    header.set_size(name.len() as u64 + 1);
    seal(&mut header);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
}

fn start(name: &str, kind: EntryType, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    if let Some(gnu) = header.as_gnu_mut() {
        for (to, from) in gnu.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header
}

/// Sets the checksum, in the form GNU tar gives it: six digits, NUL, space.
fn seal(header: &mut Header) {
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.cksum = *b"        ";
    }
    let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
    if let Some(gnu) = header.as_gnu_mut() {
        for (to, from) in gnu.cksum.iter_mut().zip(format!("{sum:06o}\0 ").bytes()) {
            *to = from;
        }
    }
}

fn put_pairs(places: &mut [GnuSparseHeader], pairs: &[(u64, u64)]) {
    for (place, (offset, length)) in places.iter_mut().zip(pairs) {
        place.set_offset(*offset);
        place.set_length(*length);
    }
}
