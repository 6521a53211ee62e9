//! A disk as it ought to be: flat bytes, and for each sector what a crash may leave there.
//!
//! ```text
//! now       what reads give                      change done ───────▶ now
//! safe      what was last made durable           flush returned ────▶ safe = now, maybe = {}
//! maybe     sector ─▶ every value since then     change begun ──────▶ maybe
//!
//! after a crash   each sector is safe's, or one of maybe's; anything else is foreign
//! ```
//!
//! A raw data file has a model of its own: two files do not change at once. Where a crash has left the
//! two at odds, a call that touches a cluster ends that, in the disk's favour:
//!
//! ```text
//! disk       │ zeros            │      the crash came after the data and before the entry
//! data file  │ data             │
//! call       │     new │               copies around what the disk holds
//! data file  │ 0 0 new 0 0 0 0 0│      Model::begin_beside, apply_beside
//! ```
//!
//! [`stamp`] makes every sector that is written unlike every other one, so that a foreign one is
//! recognised and says where it comes from.
//!
//! Callers: `program`, the suites of the image writer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::random::Random;

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// Bytes at a place of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where they start.
    pub offset: u64,
    /// What they are.
    pub data: Arc<[u8]>,
}

impl Change {
    /// These bytes there.
    #[must_use]
    pub fn new(offset: u64, data: impl Into<Arc<[u8]>>) -> Self {
        Self { offset, data: data.into() }
    }

    /// Where they end.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// The disk.
#[derive(Clone, Debug)]
pub struct Model {
    now: Vec<u8>,
    safe: Vec<u8>,
    maybe: BTreeMap<usize, Vec<Box<[u8]>>>,
}

/// A sector that holds what never was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where the sector starts on the disk.
    pub offset: u64,
    /// What was found.
    pub found: String,
    /// What could have been.
    pub allowed: Vec<String>,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, found, allowed } = self;
        write!(f, "sector at {offset:#x} holds {found}, not {}", allowed.join(" or "))
    }
}

impl Model {
    /// A disk that durably holds `content`.
    #[must_use]
    pub fn new(content: Vec<u8>) -> Self {
        Self { safe: content.clone(), now: content, maybe: BTreeMap::new() }
    }

    /// What is read.
    #[must_use]
    pub fn now(&self) -> &[u8] {
        &self.now
    }

    /// What is read of a range.
    #[must_use]
    pub fn part(&self, offset: u64, length: u64) -> &[u8] {
        &self.now[offset as usize..(offset + length) as usize]
    }

    /// From now on, a crash may leave the change behind, or parts of it.
    pub fn begin(&mut self, change: &Change) {
        for sector in sectors(change) {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.now.len());
            let mut value: Box<[u8]> = self.now[start..end].into();
            overlay(&mut value, start as u64, change);
            let values = self.maybe.entry(sector).or_default();
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }

    /// The change is what is read from now on.
    pub fn apply(&mut self, change: &Change) {
        overlay(&mut self.now, 0, change);
    }

    /// [`Model::begin`] for the raw data file of a disk whose calls write whole grains of `grain` bytes: of
    /// those the change touches, the rest may become what the disk holds there.
    pub fn begin_beside(&mut self, disk: &Self, change: &Change, grain: u64) {
        self.begin(change);
        self.begin(&disk.around(change, grain));
    }

    /// [`Model::apply`] for the raw data file of a disk that the change is applied to already: grains that
    /// were touched hold what the disk holds. Returns what that is.
    pub fn apply_beside(&mut self, disk: &Self, change: &Change, grain: u64) -> Change {
        let whole = disk.around(change, grain);
        self.apply(&whole);
        whole
    }

    /// The whole grains that a change touches, with what the disk holds around it.
    #[must_use]
    pub fn around(&self, change: &Change, grain: u64) -> Change {
        let start = change.offset - change.offset % grain;
        let end = change.end().next_multiple_of(grain).min(self.now.len() as u64);
        let mut data = self.part(start, end - start).to_vec();
        overlay(&mut data, start, change);
        Change::new(start, data)
    }

    /// All that was applied is durable, and nothing else is under way.
    pub fn settle(&mut self) {
        for sector in std::mem::take(&mut self.maybe).into_keys() {
            self.settle_sector(sector);
        }
    }

    /// The sectors of this change are durable as they are.
    pub fn settle_change(&mut self, change: &Change) {
        for sector in sectors(change) {
            self.maybe.remove(&sector);
            self.settle_sector(sector);
        }
    }

    fn settle_sector(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.now.len());
        self.safe[start..end].copy_from_slice(&self.now[start..end]);
    }

    /// Whether what was found from sector boundary `offset` on after a crash could be there.
    ///
    /// # Errors
    ///
    /// The first sector that could not.
    pub fn judge(&self, found: &[u8], offset: u64) -> Result<(), Foreign> {
        let start = offset as usize;
        if self.maybe.is_empty() && found == &self.safe[start..start + found.len()] {
            return Ok(());
        }
        for (number, found) in found.chunks(SECTOR).enumerate() {
            let at = start + number * SECTOR;
            let safe = &self.safe[at..at + found.len()];
            if found == safe {
                continue;
            }
            let maybe = self.maybe.get(&(at / SECTOR)).map_or(&[][..], Vec::as_slice);
            if !maybe.iter().any(|value| **value == *found) {
                let values = std::iter::once(safe).chain(maybe.iter().map(|value| &**value));
                let allowed = values.map(describe).collect();
                return Err(Foreign { offset: at as u64, found: describe(found), allowed });
            }
        }
        Ok(())
    }

    /// Whether what was read from sector boundary `offset` on is what the disk holds.
    ///
    /// # Errors
    ///
    /// The first sector that differs.
    pub fn compare(&self, found: &[u8], offset: u64) -> Result<(), Foreign> {
        differ(found, &self.now[offset as usize..][..found.len()], offset)
    }
}

/// Whether two disks are the same from sector boundary `offset` on.
///
/// # Errors
///
/// The first sector that differs.
pub fn differ(found: &[u8], truth: &[u8], offset: u64) -> Result<(), Foreign> {
    if found == truth {
        return Ok(());
    }
    let pairs = found.chunks(SECTOR).zip(truth.chunks(SECTOR));
    match pairs.enumerate().find(|(_, (found, truth))| found != truth) {
        Some((number, (found, truth))) => Err(Foreign {
            offset: offset + (number * SECTOR) as u64,
            found: describe(found),
            allowed: vec![describe(truth)],
        }),
        None => Err(Foreign {
            offset: offset + found.len().min(truth.len()) as u64,
            found: format!("{} bytes", found.len()),
            allowed: vec![format!("{} bytes", truth.len())],
        }),
    }
}

/// The sectors a change touches.
fn sectors(change: &Change) -> std::ops::Range<usize> {
    (change.offset as usize / SECTOR)..(change.end() as usize).div_ceil(SECTOR)
}

/// Puts into `bytes`, which lie at `offset` of the disk, what the change has there.
fn overlay(bytes: &mut [u8], offset: u64, change: &Change) {
    let start = change.offset.max(offset);
    let end = change.end().min(offset + bytes.len() as u64);
    if start < end {
        let from = &change.data[(start - change.offset) as usize..(end - change.offset) as usize];
        bytes[(start - offset) as usize..(end - offset) as usize].copy_from_slice(from);
    }
}

/// What the sectors of a change are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One word over and over: compresses well.
    Word,
    /// Words that follow from the first one: does not compress.
    Noise,
    /// Zeros.
    Zeros,
}

/// `length` bytes for the disk's offset `offset`; no sector is like that of another place, or of
/// another `number`.
#[must_use]
pub fn stamp(number: u32, offset: u64, length: u64, fill: Fill) -> Vec<u8> {
    let mut data = vec![0; length as usize];
    if fill == Fill::Zeros {
        return data;
    }
    let (first, end) = (offset / SECTOR as u64, (offset + length).div_ceil(SECTOR as u64));
    for sector in first..end {
        // Never zero, whatever the number.
        let word = (1 << 63) | (u64::from(number) << 32) | sector;
        let mut value = [0; SECTOR];
        let mut random = Random(word);
        value[..8].copy_from_slice(&word.to_be_bytes());
        if fill == Fill::Word {
            for part in 1..SECTOR / 8 {
                value.copy_within(..8, part * 8);
            }
        } else {
            for part in value[8..].chunks_exact_mut(8) {
                part.copy_from_slice(&random.word().to_be_bytes());
            }
        }
        let start = sector * SECTOR as u64;
        let (from, to) = (start.max(offset), (start + SECTOR as u64).min(offset + length));
        data[(from - offset) as usize..(to - offset) as usize]
            .copy_from_slice(&value[(from - start) as usize..(to - start) as usize]);
    }
    data
}

/// A sector in few words.
fn describe(sector: &[u8]) -> String {
    if sector.iter().all(|byte| *byte == 0) {
        return "zeros".to_owned();
    }
    let hexadecimal =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (head, tail) = (&sector[..sector.len().min(8)], &sector[sector.len().saturating_sub(8)..]);
    format!("{}…{}", hexadecimal(head), hexadecimal(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_are_right_and_everything_else_is_foreign() {
        let mut model = Model::new(stamp(1, 0, 4096, Fill::Word));
        let first = Change::new(700, stamp(2, 700, 1000, Fill::Word));
        let second = Change::new(512, stamp(3, 512, 512, Fill::Noise));
        let old = model.now().to_vec();
        model.begin(&first);
        assert_eq!(model.judge(&old, 0), Ok(()));
        model.apply(&first);
        let middle = model.now().to_vec();
        model.begin(&second);
        model.apply(&second);
        let new = model.now().to_vec();
        for value in [&old, &middle, &new] {
            assert_eq!(model.judge(value, 0), Ok(()));
        }
        // Sector by sector, in any combination.
        let mixed = [&old[..512], &middle[512..1024], &old[1024..1536], &new[1536..]].concat();
        assert_eq!(model.judge(&mixed, 0), Ok(()));
        let foreign = [&old[..512], &old[..512], &old[1024..]].concat();
        assert_eq!(model.judge(&foreign, 0).unwrap_err().offset, 512);
        let torn = [&old[..800], &new[800..]].concat();
        assert_eq!(model.judge(&torn, 0).unwrap_err().offset, 512);
        assert_eq!(model.compare(&new, 0), Ok(()));
        assert_eq!(model.compare(&middle[512..], 512).unwrap_err().offset, 512);

        model.settle();
        assert_eq!(model.judge(&new, 0), Ok(()));
        assert_eq!(model.judge(&old, 0).unwrap_err().offset, 512);
        assert_eq!(model.judge(&middle[512..1024], 512).unwrap_err().offset, 512);
    }

    #[test]
    fn a_raw_data_file_at_odds_takes_the_disks_side_where_it_is_touched() {
        let disk_before = vec![0; 4096];
        let file_before = stamp(1, 0, 4096, Fill::Word);
        let (mut disk, mut file) =
            (Model::new(disk_before.clone()), Model::new(file_before.clone()));
        let change = Change::new(1536, stamp(2, 1536, 300, Fill::Word));
        file.begin_beside(&disk, &change, 1024);
        disk.begin(&change);
        disk.apply(&change);
        let after = [&file_before[..1024], &disk.now()[1024..2048], &file_before[2048..]].concat();
        for file_now in [&file_before, &after] {
            assert_eq!(file.judge(file_now, 0), Ok(()));
        }
        // What is not touched does not change.
        assert_eq!(file.judge(&disk_before[..512], 512).unwrap_err().offset, 512);
        let whole = file.apply_beside(&disk, &change, 1024);
        file.settle_change(&whole);
        assert_eq!(file.now(), after);
        assert_eq!(file.judge(&after, 0), Ok(()));
        assert_eq!(file.judge(&file_before[1536..2048], 1536).unwrap_err().offset, 1536);
    }

    #[test]
    fn no_two_sectors_are_alike() {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..20 {
            for fill in [Fill::Word, Fill::Noise] {
                let data = stamp(number, 0, 8192, fill);
                assert!(data.chunks(SECTOR).all(|sector| seen.insert(sector.to_vec())));
                // A part is the part of the whole.
                assert_eq!(stamp(number, 1000, 3000, fill), data[1000..4000]);
            }
        }
    }
}
