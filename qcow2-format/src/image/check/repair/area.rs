//! The header's bytes, where a repair changes several fields at once.
//!
//! ```text
//! 0            72        header_length                                  end
//! [ version 2 ][ … 3 … ][ extension │ bitmaps │ extension │ end marker ][ backing name
//!                                     └ changed, or gone with what is behind it moved up
//! ```
//!
//! What is changed is written by one call. Callers: `repair`.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::header::extension::HeaderExtension;
use crate::header::{Header, Version};
use crate::io::{ReadAt, WriteAt, zeroed};

/// Type and length of an extension.
const EXTENSION_HEADER: usize = 8;
/// Where the header has its own length, and what it is in version 2.
const HEADER_LENGTH_OFFSET: usize = 100;
const HEADER_LENGTH_V2: usize = 72;
/// Where `autoclear_features` lies.
pub(super) const AUTOCLEAR_OFFSET: usize = 88;
/// A cluster may be longer; then the extensions end long before it does.
const AREA_MAX: u64 = 1 << 20;

/// The header with its extensions, but for the name of a backing file.
#[derive(Debug)]
pub(super) struct Area {
    bytes: Vec<u8>,
    /// Where the extension for bitmaps lies, if there is one: with its type, length and padding.
    bitmaps: Option<Range<usize>>,
    /// Where the extensions end; the marker that says so is behind.
    end: usize,
    /// What is changed.
    changed: Option<Range<usize>>,
}

impl Area {
    /// Reads the area of the image whose header was read before.
    pub(super) fn read(storage: &impl ReadAt, header: &Header) -> Result<Self> {
        let failed = || Error::io("read the header", 0);
        let length = header.geometry.cluster_bits.bytes().min(AREA_MAX);
        let mut bytes = zeroed(usize::try_from(length).unwrap_or(0)).map_err(failed())?;
        let count = storage.read_full_at(&mut bytes, 0).map_err(failed())?;
        bytes.truncate(count);
        let name = bytes.get(8..16).and_then(<[u8]>::first_chunk).map(|at| u64::from_be_bytes(*at));
        let name = name.filter(|at| *at > 0).and_then(|at| usize::try_from(at).ok());
        let limit = name.unwrap_or(usize::MAX).min(bytes.len());
        let number = |at: usize| {
            let number = bytes.get(at..).and_then(<[u8]>::first_chunk)?;
            usize::try_from(u32::from_be_bytes(*number)).ok()
        };
        let mut bitmaps = None;
        let mut at = match header.version {
            Version::V2 => HEADER_LENGTH_V2,
            Version::V3 => number(HEADER_LENGTH_OFFSET).unwrap_or(usize::MAX),
        };
        while let (Some(kind), Some(length)) = (number(at), number(at.saturating_add(4))) {
            let data = at.saturating_add(EXTENSION_HEADER);
            let end = data.saturating_add(length).saturating_add(7) & !7;
            if kind == 0 || end > limit {
                break;
            }
            if u32::try_from(kind) == Ok(HeaderExtension::BITMAPS) {
                bitmaps = Some(at..end);
            }
            at = end;
        }
        // The end marker, which an area that is full lacks.
        let marker = at.saturating_add(EXTENSION_HEADER);
        bytes.truncate(if marker <= limit { marker } else { at });
        Ok(Self { bytes, bitmaps, end: at, changed: None })
    }

    /// Has `data` at `at`.
    pub(super) fn set(&mut self, at: usize, data: &[u8]) {
        let end = at.saturating_add(data.len());
        if let Some(place) = self.bytes.get_mut(at..end) {
            place.copy_from_slice(data);
            self.changed = Some(match &self.changed {
                Some(changed) => changed.start.min(at)..changed.end.max(end),
                None => at..end,
            });
        }
    }

    /// Where the data of the extension for bitmaps lies, if there is one.
    pub(super) fn bitmaps(&self) -> Option<usize> {
        self.bitmaps.as_ref().map(|range| range.start.saturating_add(EXTENSION_HEADER))
    }

    /// Takes the extension for bitmaps out.
    pub(super) fn remove_bitmaps(&mut self) {
        let Some(Range { start, end }) = self.bitmaps.take() else { return };
        let mut behind = self.bytes.get(end..self.end).unwrap_or_default().to_vec();
        behind.resize(self.bytes.len().saturating_sub(start), 0);
        self.set(start, &behind);
    }

    /// Writes what was changed.
    pub(super) fn write(self, storage: &impl WriteAt) -> Result<()> {
        let Some(changed) = self.changed else { return Ok(()) };
        let at = changed.start as u64;
        let bytes = self.bytes.get(changed).unwrap_or_default();
        storage.write_all_at(bytes, at).map_err(Error::io("write the header", at))
    }
}
