//! Bitmaps that break a rule, let go of; the others are kept.
//!
//! ```text
//! directory ─┬▶ some are sound   a new directory of those, written with the refcount structures
//!            └▶ none is          the header no longer speaks of bitmaps
//! ```
//!
//! Callers: `repair`.

use std::ops::Range;

use crate::bitmap::{self, Bitmap};
use crate::error::{Error, Result};
use crate::feature::AutoclearFeatures;
use crate::header::Version;
use crate::image::check::bitmaps::{self, BROKEN_ENTRY, Bitmaps, Directory, Rules};
use crate::image::check::repair::area::{AUTOCLEAR_OFFSET, Area};
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Fixes, Mender};
use crate::image::check::spread::spread;
use crate::image::check::walk::Subject;
use crate::io::{ReadAt, WriteAt, zeroed};

/// Where an entry has its flags.
const FLAGS: u64 = 12;

/// A bitmap directory that replaces the one there is.
#[derive(Debug, Default)]
pub(super) struct NewBitmaps {
    /// Where the entries lie that are kept, one behind the other, in bytes.
    entries: Vec<Range<u64>>,
    /// Where their tables lie.
    pub(super) tables: Vec<Range<u64>>,
}

impl NewBitmaps {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of the directory, at most 64 MiB.
    pub(super) fn length(&self) -> u64 {
        self.entries.iter().map(|entry| entry.end.saturating_sub(entry.start)).sum()
    }

    /// The directory, as its entries are now.
    pub(super) fn read(&self, storage: &impl ReadAt) -> Result<Vec<u8>> {
        let failed = |at| Error::io("read the bitmap directory", at);
        let mut bytes = Vec::new();
        for entry in &self.entries {
            let length = entry.end.saturating_sub(entry.start);
            let mut part =
                zeroed(usize::try_from(length).unwrap_or(0)).map_err(failed(entry.start))?;
            storage.read_full_at(&mut part, entry.start).map_err(failed(entry.start))?;
            bytes.extend(part);
        }
        Ok(bytes)
    }
}

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// The directory that should replace the one there is, if one should. If no bitmap is left the header
    /// lets go of them at once, in one write.
    pub(super) fn mend_bitmaps(&mut self, fixes: &mut Fixes<'_>) -> Result<Option<NewBitmaps>> {
        let what = match renewed(&self.subject, fixes)? {
            Ok(new) => return Ok(new),
            Err(what) => what,
        };
        fixes.tell(&Fix::BitmapsLost { what });
        let header = &mut self.subject.header;
        let mut area = Area::read(self.subject.storage, header)?;
        area.remove_bitmaps();
        if header.version == Version::V3 {
            header.autoclear = header.autoclear.with(AutoclearFeatures::BITMAPS, false);
            area.set(AUTOCLEAR_OFFSET, &header.autoclear.0.to_be_bytes());
        }
        area.write(self.subject.storage)?;
        self.subject.bitmaps = Bitmaps::default();
        self.barrier()?;
        Ok(None)
    }

    /// Before what could not be read begins to read as something else, bitmaps are marked as wrong.
    pub(super) fn before_loss(&self, lost: bool) -> Result<()> {
        if !lost || self.marked.replace(true) {
            return Ok(());
        }
        let subject = &self.subject;
        let Ok(Some(directory)) = bitmaps::directory(&subject.header, subject.file_length) else {
            return Ok(());
        };
        let bytes = bitmap::read(subject.storage, directory.place)?;
        let start = directory.place.bitmap_directory_offset;
        for (bitmap, _) in bitmap::entries(&bytes, start).flatten() {
            if !bitmap.is_in_use() {
                let place = bitmap.at.0.saturating_add(FLAGS);
                let flags = (bitmap.flags | Bitmap::IN_USE).to_be_bytes();
                let failed = Error::io("mark the bitmaps as in use", place);
                subject.storage.write_all_at(&flags, place).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The directory that should replace the one there is, if one should; or why no bitmap can be kept.
fn renewed<S: ReadAt>(
    subject: &Subject<'_, S>,
    fixes: &mut Fixes<'_>,
) -> Result<Result<Option<NewBitmaps>, &'static str>> {
    let header = &subject.header;
    let vouched = header.autoclear.contains(AutoclearFeatures::BITMAPS);
    let directory = match bitmaps::directory(header, subject.file_length) {
        Ok(Some(directory)) => directory,
        Ok(None) if bitmaps::has_extension(header) => {
            // Their clusters are nobody's.
            return Ok(Err("the header does not vouch for them"));
        }
        Ok(None) if vouched => return Ok(Err("there are none")),
        Ok(None) => return Ok(Ok(None)),
        Err(what) => return Ok(Err(what)),
    };
    let wrong = wrong_parts(subject)?;
    let Directory { place, stated_well } = directory;
    let bytes = bitmap::read(subject.storage, place)?;
    let mut rules = Rules::new(header);
    let mut new = NewBitmaps::default();
    let mut reason = BROKEN_ENTRY;
    let mut seen = 0_u32;
    for entry in bitmap::entries(&bytes, place.bitmap_directory_offset) {
        let Ok((bitmap, entry)) = entry else { break };
        seen = seen.saturating_add(1);
        let table = rules.table(&bitmap).and_then(|table| {
            let first = wrong.partition_point(|part| part.end <= table.start);
            let is_wrong = wrong.get(first).is_some_and(|part| part.start < table.end);
            if is_wrong { Err("its table, or what that names, is nowhere") } else { Ok(table) }
        });
        match table {
            Ok(table) => {
                let start = bitmap.at.0;
                new.entries.push(start..start.saturating_add(entry.len() as u64));
                new.tables.push(table);
            }
            Err(what) => {
                reason = what;
                fixes.tell(&Fix::BitmapLost { name: bitmap.name, what });
            }
        }
    }
    let all = stated_well
        && seen == place.nb_bitmaps
        && new.count() == seen
        && new.length() == bytes.len() as u64;
    Ok(match new.count() {
        0 => Err(reason),
        _ if all => Ok(None),
        _ => Ok(Some(new)),
    })
}

/// Where bitmaps' tables are wrong: past the end of the file, or with an entry that names nothing. In
/// order, in bytes.
fn wrong_parts<S: ReadAt>(subject: &Subject<'_, S>) -> Result<Vec<Range<u64>>> {
    let mut wrong = Vec::new();
    for part in spread(subject.bitmaps.tables.clone()) {
        let length = part.range.end.saturating_sub(part.range.start);
        let mut is_wrong = subject.within(part.range.start, length).is_none();
        subject.each_bitmap_entry(part.range.clone(), |clusters| {
            is_wrong |= clusters.is_err();
            Ok(())
        })?;
        if is_wrong {
            wrong.push(part.range);
        }
    }
    Ok(wrong)
}
