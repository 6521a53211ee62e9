//! What the fuzz targets need and nobody else may have: private parts, as few as possible.
//!
//! ```text
//! extents    a source pulled to its end, and what it told     sparse_map, pax
//! shared     a source whose small frames threads decode too    extract
//! sealed     a record's frame around any body                  manifest
//! manifest   a manifest taken apart and put together           manifest
//! memo       a remembered digest, from its bytes               manifest
//! holder     a lock file's text                                manifest
//! ```
//!
//! No part of the crate's interface: it exists with the feature `fuzzing` only and may change at any
//! time. Callers: the targets in `fuzz/`.

use crc32fast::Hasher;

use crate::cache::{self, manifest::Manifest, memo};
use crate::control::{Control, Holder};
use crate::error::Result;
use crate::source::extent::{Extent, ExtentSource};
use crate::source::{Container, Source, SparseForm};

/// All that a source said, once it was read and verified to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Size of the disk, if the source knew it beforehand.
    pub size: Option<u64>,
    /// The extents in the order they were told, all lengths known.
    pub extents: Vec<Extent>,
    /// CRC-32 of the bytes of all data extents, one after the other.
    pub crc32: u32,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// What held the disk.
    pub container: Container,
    /// How the archive told its holes.
    pub sparse_form: SparseForm,
}

/// `source`, with threads for frames of any size: as it is, only large ones are worth it.
#[must_use]
pub fn shared(source: Source) -> Source {
    source.with_job(1)
}

/// Pulls everything out of `source`; `room` is how many bytes are read at once.
///
/// # Errors
///
/// As extracting it.
pub fn extents(source: Source, room: usize) -> Result<Told> {
    let mut opened = source.open(false, &Control::new())?;
    let mut buffer = vec![0; room.max(1)];
    let (mut size, mut extents, mut sum) = (None, Vec::new(), Hasher::new());
    while let Some(extent) = opened.next_extent()? {
        match extent {
            Extent::Disk(shape) => {
                (size, extents, sum) = (shape.size, Vec::new(), Hasher::new());
            }
            Extent::Zero { .. } => extents.push(extent),
            Extent::Data { offset, length } => {
                let mut left = length.unwrap_or(u64::MAX);
                let mut read = 0_u64;
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let room = buffer.get_mut(..most).unwrap_or_default();
                    let count = opened.read(room)?;
                    sum.update(room.get(..count).unwrap_or_default());
                    read += count as u64;
                    left -= count as u64;
                    if count < most {
                        break;
                    }
                }
                extents.push(Extent::Data { offset, length: Some(read) });
            }
        }
    }
    let summary = opened.finish()?;
    Ok(Told {
        size,
        extents,
        crc32: sum.finalize(),
        source_bytes: summary.bytes,
        container: summary.container,
        sparse_form: summary.sparse_form,
    })
}

/// Kinds of records.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// Stands beside a base.
    Manifest,
    /// A remembered digest.
    Memo,
}

/// `body` in the frame of a record, with the right checksum.
#[must_use]
pub fn sealed(record: Record, body: &[u8]) -> Vec<u8> {
    let kind = match record {
        Record::Manifest => cache::manifest::KIND,
        Record::Memo => memo::KIND,
    };
    cache::record::seal(kind, body)
}

/// A manifest that parsed: its bytes put together anew, and what it says.
///
/// # Errors
///
/// The bytes are no manifest.
pub fn manifest(bytes: &[u8]) -> Result<(Vec<u8>, String)> {
    let manifest = Manifest::parse(bytes)?;
    Ok((manifest.encode(), format!("{manifest:?}")))
}

/// The digest in a remembered record, if `bytes` are one about the file with these `facts`, which
/// are as they stand in the record.
#[must_use]
pub fn memo(bytes: &[u8], facts: &[u8]) -> Option<[u8; 32]> {
    memo::parse(bytes, facts).map(|digest| digest.0)
}

/// What the text of a lock file says.
#[must_use]
pub fn holder(text: &str) -> Option<Holder> {
    cache::holder::parse(text)
}

/// The notes in a base's record of overlays, put together anew; and whether part of it was no note.
#[must_use]
pub fn uses(bytes: &[u8]) -> (Vec<u8>, bool) {
    let log = cache::uses::parse(bytes);
    (log.notes.iter().flat_map(cache::uses::Note::encode).collect(), log.damaged)
}
