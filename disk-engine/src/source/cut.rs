//! A range of whatever a source holds, as a disk of its own size.
//!
//! ```text
//! source   │ passed over │ offset …           length │ passed over │
//! disk                   │ 0 …                       │ zeros to its size │
//! ```
//!
//! What is passed over is read all the same: a source is verified to its last byte. Callers:
//! `ops::convert`.

use crate::disk::StoredRun;
use crate::error::{Error, ErrorKind, Result};
use crate::source::extent::{DiskShape, Extent, ExtentSource};
use crate::source::input;

const SCRATCH: usize = 64 << 10;

/// What of a source is wanted, and how large its disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Bytes passed over.
    pub(crate) offset: u64,
    /// Bytes taken; all that follow unless given.
    pub(crate) length: Option<u64>,
    /// Size of the disk, as large as what is taken unless given.
    pub(crate) size: Option<u64>,
}

/// A source, cut.
pub(crate) struct Cut<'a> {
    source: &'a mut dyn ExtentSource,
    wanted: Wanted,
    /// The range of the source that is taken.
    end: u64,
    /// Where the source is.
    at: u64,
    /// What is left of its data extent, if that is known.
    left: Option<Option<u64>>,
    scratch: Vec<u8>,
    /// Where the disk is.
    told: u64,
    finished: bool,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(source: &'a mut dyn ExtentSource, wanted: Wanted) -> Self {
        let end = wanted.length.map_or(u64::MAX, |length| wanted.offset.saturating_add(length));
        Self {
            source,
            wanted,
            end,
            at: 0,
            left: None,
            scratch: Vec::new(),
            told: 0,
            finished: false,
        }
    }

    fn shape(&mut self, shape: DiskShape) -> Result<DiskShape> {
        (self.at, self.told, self.left) = (0, 0, None);
        let whole = self.wanted.offset == 0 && self.end == u64::MAX;
        let taken =
            shape.size.map(|size| size.min(self.end).saturating_sub(self.wanted.offset.min(size)));
        if let (Some(taken), Some(size)) = (taken, self.wanted.size)
            && taken > size
        {
            return Err(too_large(size));
        }
        Ok(DiskShape {
            size: self.wanted.size.or(taken),
            data: if whole { shape.data } else { None },
        })
    }

    /// Reads on to `until` without wanting it; `false` if the extent ends before.
    fn read_over(&mut self, until: u64) -> Result<bool> {
        if self.scratch.is_empty() {
            self.scratch = input::zeroed(SCRATCH)?;
        }
        while self.at < until {
            let left = self.left.flatten().unwrap_or(u64::MAX).min(until - self.at);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.scratch.len());
            let room = self.scratch.get_mut(..count).unwrap_or_default();
            let read = if count == 0 { 0 } else { self.source.read(room)? };
            self.advance(read);
            if read < count || count == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn advance(&mut self, count: usize) {
        self.at = self.at.saturating_add(count as u64);
        if let Some(Some(left)) = &mut self.left {
            *left = left.saturating_sub(count as u64);
        }
    }

    /// The part of a range that is wanted, as the disk has it.
    fn part(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let start = offset.max(self.wanted.offset);
        let end = offset.saturating_add(length).min(self.end);
        (start < end).then(|| (start - self.wanted.offset, end - start))
    }

    fn tell(&mut self, end: u64) -> Result<()> {
        self.told = end;
        match self.wanted.size {
            Some(size) if end > size => Err(too_large(size)),
            _ => Ok(()),
        }
    }
}

impl ExtentSource for Cut<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        loop {
            // What is left of an extent lies behind what is wanted.
            if self.left.is_some_and(|left| left != Some(0)) {
                self.read_over(u64::MAX)?;
            }
            self.left = None;
            match self.source.next_extent()? {
                Some(Extent::Disk(shape)) => return Ok(Some(Extent::Disk(self.shape(shape)?))),
                Some(Extent::Zero { offset, length }) => {
                    self.at = offset.saturating_add(length);
                    if let Some((offset, length)) = self.part(offset, length) {
                        self.tell(offset.saturating_add(length))?;
                        return Ok(Some(Extent::Zero { offset, length }));
                    }
                }
                Some(Extent::Data { offset, length }) => {
                    (self.at, self.left) = (offset, Some(length));
                    let known = length.unwrap_or(u64::MAX - offset);
                    let Some((start, taken)) = self.part(offset, known) else { continue };
                    if !self.read_over(self.wanted.offset)? {
                        continue;
                    }
                    let length = length.map(|_| taken);
                    return Ok(Some(Extent::Data { offset: start, length }));
                }
                None => {
                    let size = self.wanted.size.unwrap_or(0);
                    if std::mem::replace(&mut self.finished, true) || self.told >= size {
                        return Ok(None);
                    }
                    let (offset, length) = (self.told, size - self.told);
                    return Ok(Some(Extent::Zero { offset, length }));
                }
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let wanted = self.end.saturating_sub(self.at);
        let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len());
        let room = bytes.get_mut(..count).unwrap_or_default();
        let read = if count == 0 { 0 } else { self.source.read(room)? };
        self.advance(read);
        self.tell(self.at.saturating_sub(self.wanted.offset))?;
        Ok(read)
    }

    fn stored(&self) -> Result<Option<StoredRun<'_>>> {
        let wanted = self.end.saturating_sub(self.at);
        let stored = self.source.stored()?;
        Ok(stored.map(|stored| StoredRun { length: stored.length.min(wanted), ..stored }))
    }

    fn pass(&mut self, count: u64) -> Result<()> {
        self.source.pass(count)?;
        self.at = self.at.saturating_add(count);
        if let Some(Some(left)) = &mut self.left {
            *left = left.saturating_sub(count);
        }
        self.tell(self.at.saturating_sub(self.wanted.offset))
    }

    fn map(&self) -> Option<Vec<(u64, u64)>> {
        let all = self.source.map()?;
        Some(all.into_iter().filter_map(|(offset, length)| self.part(offset, length)).collect())
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }
}

fn too_large(size: u64) -> Error {
    let message =
        format!("the source's disk is larger than the {size} bytes the target is to have");
    Error::new(ErrorKind::InvalidInput, message).with_hint("take a part of it by offset and length")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes of data, ten zeros, ten bytes of data without a stated length.
    struct Sample {
        told: usize,
        at: u8,
    }

    impl ExtentSource for Sample {
        fn next_extent(&mut self) -> Result<Option<Extent>> {
            self.told += 1;
            Ok(match self.told {
                1 => Some(Extent::Disk(DiskShape { size: None, data: None })),
                2 => Some(Extent::Data { offset: 0, length: Some(10) }),
                3 => {
                    assert_eq!(self.at, 10, "all of an extent is read");
                    self.at = 20;
                    Some(Extent::Zero { offset: 10, length: 10 })
                }
                4 => Some(Extent::Data { offset: 20, length: None }),
                _ => {
                    assert_eq!(self.at, 30, "all of an extent is read");
                    None
                }
            })
        }

        fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
            let end = if self.at < 10 { 10 } else { 30 };
            let mut count = 0;
            for byte in bytes {
                if self.at == end {
                    break;
                }
                self.at += 1;
                *byte = self.at;
                count += 1;
            }
            Ok(count)
        }

        fn progress(&self) -> (u64, Option<u64>) {
            (0, None)
        }
    }

    fn cut(wanted: Wanted) -> Vec<u8> {
        let mut sample = Sample { told: 0, at: 0 };
        let mut cut = Cut::new(&mut sample, wanted);
        let mut disk = Vec::new();
        while let Some(extent) = cut.next_extent().unwrap() {
            match extent {
                Extent::Disk(_) => {}
                Extent::Zero { offset, length } => {
                    assert_eq!(offset, disk.len() as u64);
                    disk.resize(disk.len() + usize::try_from(length).unwrap(), 0);
                }
                Extent::Data { offset, length } => {
                    assert_eq!(offset, disk.len() as u64);
                    let mut left = length.unwrap_or(u64::MAX);
                    while left > 0 {
                        let mut bytes = [0; 3];
                        let most = usize::try_from(left.min(3)).unwrap();
                        let count = cut.read(&mut bytes[..most]).unwrap();
                        disk.extend_from_slice(&bytes[..count]);
                        left -= count as u64;
                        if count < most {
                            break;
                        }
                    }
                }
            }
        }
        disk
    }

    #[test]
    fn every_range_is_the_range_of_the_whole() {
        let whole = cut(Wanted::default());
        let expected: Vec<u8> =
            (1..=30).map(|byte| if (11..=20).contains(&byte) { 0 } else { byte }).collect();
        assert_eq!(whole, expected);
        for offset in 0..35_usize {
            for length in 0..35_usize {
                let end = (offset + length).min(30);
                let part = whole.get(offset..end).unwrap_or_default();
                let wanted =
                    |size| Wanted { offset: offset as u64, length: Some(length as u64), size };
                assert_eq!(cut(wanted(None)), part, "{offset} {length}");
                let mut padded = part.to_vec();
                padded.resize(40, 0);
                assert_eq!(cut(wanted(Some(40))), padded, "{offset} {length}");
            }
        }
    }
}
