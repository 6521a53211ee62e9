//! A disk's bytes, and what cannot be read of it.
//!
//! ```text
//! read 256 KiB ─ fails ─▶ 128 KiB, 128 KiB ─ one fails ─▶ … ─▶ the smallest piece: zeros, and noted
//! ```
//!
//! Without salvage the first failure is the answer. Callers: `source::disk`.

use std::sync::{Mutex, PoisonError};

use crate::disk::{ContentRun, DiskContent, StoredRun};
use crate::error::{Error, ErrorKind, Result};

/// Smallest piece of a disk that is read by itself, in bytes: a sector.
const SECTOR: u64 = 512;
/// Most parts that a list holds.
const PARTS_MAX: usize = 65_536;

/// A part of a disk that could not be read, and reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where it begins, in bytes of the source's disk.
    pub offset: u64,
    /// How long it is in bytes.
    pub length: u64,
    /// Why, in words, for its first piece.
    pub reason: String,
}

/// What could not be read of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadableParts {
    /// The parts, ascending; neighbours are one.
    pub parts: Vec<Unreadable>,
    /// Bytes of all parts, including those there was no room to list.
    pub bytes: u64,
    /// Whether there were more parts than are listed.
    pub cut: bool,
}

impl UnreadableParts {
    fn add(&mut self, offset: u64, length: u64, reason: &Error) {
        self.bytes = self.bytes.saturating_add(length);
        let end = offset.saturating_add(length);
        // Several threads read, so a part may come before others that are there.
        let index = self.parts.partition_point(|part| part.offset <= offset);
        let before = index.checked_sub(1).and_then(|index| self.parts.get_mut(index));
        if let Some(before) = before
            && before.offset.saturating_add(before.length) == offset
        {
            before.length = before.length.saturating_add(length);
            let end = before.offset.saturating_add(before.length);
            if self.parts.get(index).is_some_and(|after| after.offset == end) {
                let after = self.parts.remove(index);
                if let Some(before) = self.parts.get_mut(index.saturating_sub(1)) {
                    before.length = before.length.saturating_add(after.length);
                }
            }
            return;
        }
        if let Some(after) = self.parts.get_mut(index)
            && after.offset == end
        {
            after.offset = offset;
            after.length = after.length.saturating_add(length);
            after.reason = words(reason);
            return;
        }
        if self.parts.len() >= PARTS_MAX {
            self.cut = true;
            return;
        }
        let part = Unreadable { offset, length, reason: words(reason) };
        self.parts.insert(index, part);
    }
}

/// An error and its causes in one line.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// How a disk is read.
pub(crate) struct Reading<'a> {
    disk: &'a dyn DiskContent,
    /// Bytes that are damaged as one at the least, if damage is to be survived.
    salvage: Option<u64>,
    unreadable: Mutex<UnreadableParts>,
}

impl<'a> Reading<'a> {
    /// Fails where the disk does.
    pub(crate) fn strict(disk: &'a dyn DiskContent) -> Self {
        Self { disk, salvage: None, unreadable: Mutex::default() }
    }

    /// Goes on where the disk fails. `unit` is what its tables map as one at the least, in bytes.
    pub(crate) fn to_salvage(disk: &'a dyn DiskContent, unit: u64) -> Self {
        Self { disk, salvage: Some(unit.max(SECTOR)), unreadable: Mutex::default() }
    }

    /// As [`DiskContent::run_at`].
    pub(crate) fn run_at(&self, offset: u64) -> Result<ContentRun> {
        match (self.disk.run_at(offset), self.salvage) {
            (Err(error), Some(unit)) if is_damage(&error) => {
                // Reading it tells why, and lists it.
                let next = (offset / unit).saturating_add(1).saturating_mul(unit);
                let length = next.min(self.disk.size()).saturating_sub(offset).max(1);
                Ok(ContentRun { length, zero: false, compressed: false })
            }
            (run, _) => run,
        }
    }

    /// As [`DiskContent::stored_at`]; nothing is where everything has to be looked at.
    pub(super) fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'a>>> {
        if self.salvage.is_some() { Ok(None) } else { self.disk.stored_at(offset) }
    }

    /// As [`DiskContent::read_at`].
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match (self.disk.read_at(bytes, offset), self.salvage) {
            (Err(error), Some(unit)) if is_damage(&error) => {
                self.read_pieces(bytes, offset, unit, &error)
            }
            (outcome, _) => outcome,
        }
    }

    /// What could not be read so far.
    pub(crate) fn into_unreadable(self) -> UnreadableParts {
        self.unreadable.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has failed as a whole in two halves, and each of them again.
    fn read_pieces(&self, bytes: &mut [u8], offset: u64, unit: u64, reason: &Error) -> Result<()> {
        let length = bytes.len() as u64;
        // Damaged tables and payloads are so as a whole; a failing medium, sector by sector.
        let unit = if reason.kind() == ErrorKind::Io { SECTOR } else { unit };
        let first = (offset / unit).saturating_mul(unit);
        let units = offset.saturating_add(length).saturating_sub(first).div_ceil(unit);
        if units <= 1 {
            bytes.fill(0);
            let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
            unreadable.add(offset, length, reason);
            return Ok(());
        }
        let middle = first.saturating_add((units / 2).saturating_mul(unit));
        let split = usize::try_from(middle.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (left, right) = bytes.split_at_mut(split.min(bytes.len()));
        self.read_at(left, offset)?;
        self.read_at(right, middle)
    }
}

/// Whether an error tells of a damaged disk, and not of a caller's or of this machine.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of sevens whose sectors fail from place to place, and whose map does in one.
    struct Failing;

    const BAD: [std::ops::Range<u64>; 4] =
        [0..512, 5120..6144, 1_000_448..1_000_960, 2_097_152..2_099_200];
    const SIZE: u64 = (3 << 20) + 100;

    impl DiskContent for Failing {
        fn size(&self) -> u64 {
            SIZE
        }

        fn run_at(&self, offset: u64) -> Result<ContentRun> {
            if (2_097_152..2_099_200).contains(&offset) {
                return Err(Error::new(ErrorKind::Corrupt, "a table"));
            }
            let next = if offset < 2_097_152 { 2_097_152 } else { SIZE };
            Ok(ContentRun { length: next - offset, zero: false, compressed: offset > 600_000 })
        }

        fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
            let end = offset + bytes.len() as u64;
            assert!(end <= SIZE);
            if BAD.iter().any(|bad| bad.start < end && offset < bad.end) {
                return Err(Error::new(ErrorKind::Io, "a sector"));
            }
            bytes.fill(7);
            Ok(())
        }
    }

    #[test]
    fn a_failing_medium_costs_its_sectors_and_no_more() {
        use crate::source::disk::{Ahead, DiskSource};
        use crate::source::extent::{Extent, ExtentSource};
        for threads in [0, 1, 3] {
            let reading = Reading::to_salvage(&Failing, 65_536);
            let ahead = Ahead::new(&reading, threads, 65_536);
            let mut disk = Vec::new();
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| {
                    scope.spawn(|| ahead.run());
                });
                let ahead_of = (threads > 0).then_some(&ahead);
                let mut source = DiskSource::new(&reading, ahead_of, 0..SIZE);
                while let Some(extent) = source.next_extent().unwrap() {
                    let Extent::Data { offset, length } = extent else { continue };
                    assert_eq!(offset, disk.len() as u64);
                    let start = disk.len();
                    disk.resize(start + usize::try_from(length.unwrap()).unwrap(), 1);
                    // In pieces that end anywhere.
                    for piece in disk[start..].chunks_mut(100_000) {
                        assert_eq!(source.read(piece).unwrap(), piece.len());
                    }
                }
                ahead.end();
            });
            assert_eq!(disk.len() as u64, SIZE);
            for (at, byte) in (0..).zip(&disk) {
                let bad = BAD.iter().any(|bad| bad.contains(&at));
                assert_eq!(*byte, if bad { 0 } else { 7 }, "{at}");
            }
            let unreadable = reading.into_unreadable();
            let found: Vec<_> =
                unreadable.parts.iter().map(|it| it.offset..it.offset + it.length).collect();
            assert_eq!(found, BAD);
            assert!(unreadable.parts.iter().all(|part| part.reason == "a sector"));
        }
        // Without salvage it is the end.
        let error = Reading::strict(&Failing).read_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }

    #[test]
    fn neighbours_are_one_part_in_whatever_order_they_come() {
        let error = Error::new(ErrorKind::Io, "gone");
        let mut parts = UnreadableParts::default();
        for offset in [4096, 0, 8192, 20_480, 12_288] {
            parts.add(offset, 4096, &error);
        }
        let found: Vec<_> = parts.parts.iter().map(|part| (part.offset, part.length)).collect();
        assert_eq!(found, [(0, 16_384), (20_480, 4096)]);
        assert_eq!(parts.bytes, 20_480);
        assert!(!parts.cut);
    }
}
