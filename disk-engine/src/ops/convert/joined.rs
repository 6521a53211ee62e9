//! Several disks, one behind the other, as one.
//!
//! Caller: `ops::convert`.

use std::ops::Range;
use std::path::PathBuf;

use super::options::files_of;
use crate::disk::sectors::SECTOR;
use crate::disk::{ContentRun, Disk, DiskContent, StoredRun};
use crate::error::{Error, ErrorKind, Result};
use crate::source::disk::Reading;

/// Disks and where each of them begins.
#[derive(Debug)]
pub(super) struct Joined {
    disks: Vec<(u64, Disk)>,
    size: u64,
    spilled: u64,
}

impl Joined {
    /// `spilled` bytes of them are kept in a file without a name.
    pub(super) fn new(disks: Vec<Disk>, spilled: u64) -> Result<Self> {
        let mut size = 0_u64;
        let mut placed = Vec::new();
        for disk in disks {
            // As in QEMU, a disk takes whole sectors of those before the last.
            let start = size.next_multiple_of(SECTOR);
            size = start
                .checked_add(disk.size())
                .filter(|size| i64::try_from(*size).is_ok())
                .ok_or_else(|| Error::new(ErrorKind::Limit, "the disks are too large together"))?;
            placed.push((start, disk));
        }
        if placed.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "there is nothing to convert"));
        }
        Ok(Self { disks: placed, size, spilled })
    }

    /// Bytes that are kept meanwhile.
    pub(super) fn spilled(&self) -> u64 {
        self.spilled
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().map(|(_, disk)| disk)
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.disks().flat_map(files_of).collect()
    }

    /// How the disks are read.
    pub(super) fn reading(&self, salvage: bool) -> Reading<'_> {
        if salvage { Reading::to_salvage(self, self.unit()) } else { Reading::strict(self) }
    }

    /// The part of the disk that begins at `offset`, as far as there is one.
    pub(super) fn range(&self, offset: u64, length: Option<u64>) -> Range<u64> {
        let start = offset.min(self.size);
        start..start.saturating_add(length.unwrap_or(u64::MAX)).min(self.size)
    }

    /// Bytes that all images map as one at the least.
    fn unit(&self) -> u64 {
        let images = self.disks().flat_map(Disk::images);
        let sizes = images.filter_map(|image| Some(image.header?.geometry().subcluster_bytes()));
        sizes.min().unwrap_or(512)
    }

    /// Size of the largest cluster of all images, in bytes.
    pub(super) fn cluster(&self) -> u64 {
        let images = self.disks().flat_map(Disk::images);
        let sizes = images.filter_map(|image| Some(image.header?.geometry().cluster_bits.bytes()));
        sizes.max().unwrap_or(512)
    }

    /// How many bytes of the rest of a sector, behind the end of a disk that another one follows, lie at
    /// `offset`.
    fn gap_at(&self, offset: u64) -> u64 {
        let behind = self.disks.partition_point(|(start, _)| *start <= offset);
        let before = behind.checked_sub(1).and_then(|index| self.disks.get(index));
        match (before, self.disks.get(behind)) {
            (Some((start, disk)), Some((next, _))) if offset - start >= disk.size() => {
                next - offset
            }
            _ => 0,
        }
    }

    /// The disk that holds `offset`, and where it begins.
    fn at(&self, offset: u64) -> Result<&(u64, Disk)> {
        let behind = self.disks.partition_point(|(start, _)| *start <= offset);
        // Empty disks begin where the next one does, which comes later.
        behind.checked_sub(1).and_then(|index| self.disks.get(index)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "there is no disk").with_offset(offset)
        })
    }
}

impl DiskContent for Joined {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        let length = self.gap_at(offset);
        if length > 0 {
            return Ok(ContentRun { length, zero: true, compressed: false });
        }
        let (start, disk) = self.at(offset)?;
        disk.run_at(offset.saturating_sub(*start))
    }

    fn stored_at(&self, offset: u64) -> Result<Option<StoredRun<'_>>> {
        if self.gap_at(offset) > 0 {
            return Ok(None);
        }
        let (start, disk) = self.at(offset)?;
        disk.stored_at(offset.saturating_sub(*start))
    }

    fn read_at(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let gap = self.gap_at(offset);
            if gap > 0 {
                let count = usize::try_from(gap).unwrap_or(usize::MAX).min(bytes.len());
                let (here, rest) = bytes.split_at_mut(count);
                here.fill(0);
                bytes = rest;
                offset = offset.saturating_add(count as u64);
                continue;
            }
            let (start, disk) = self.at(offset)?;
            let within = offset.saturating_sub(*start);
            let left = disk.size().saturating_sub(within);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            if count == 0 {
                // Behind the end: the disk says so.
                return disk.read_at(bytes, within);
            }
            let (here, rest) = bytes.split_at_mut(count);
            disk.read_at(here, within)?;
            bytes = rest;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }
}

/// A range of a disk as a disk of its own size.
pub(super) struct View<'a> {
    reading: &'a Reading<'a>,
    range: Range<u64>,
    size: u64,
}

impl<'a> View<'a> {
    /// What `reading` has in `range`, and zeros up to `size` bytes.
    pub(super) fn new(reading: &'a Reading<'a>, range: Range<u64>, size: Option<u64>) -> Self {
        let size = size.unwrap_or(range.end.saturating_sub(range.start));
        Self { reading, range, size }
    }

    fn taken(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start).min(self.size)
    }
}

impl DiskContent for View<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        let taken = self.taken();
        if offset >= taken {
            let length = self.size.saturating_sub(offset).max(1);
            return Ok(ContentRun { length, zero: true, compressed: false });
        }
        let run = self.reading.run_at(self.range.start.saturating_add(offset))?;
        Ok(ContentRun { length: run.length.min(taken - offset), ..run })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let left = self.taken().saturating_sub(offset);
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (there, beyond) = bytes.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.reading.read_at(there, self.range.start.saturating_add(offset))
    }
}
