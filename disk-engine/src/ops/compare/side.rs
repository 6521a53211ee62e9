//! One of two disks that are compared: what lies where on it, and its bytes.
//!
//! ```text
//! loosely    runs of the map, as long as they are
//! strictly   pieces as QEMU tells of them
//! ```
//!
//! Callers: `compare`, `walk`.

use std::path::Path;

use crate::base::BaseFormat;
use crate::disk::sectors::{read_sectors, whole_sectors};
use crate::disk::{BlockStatus, Disk, DiskContent, DiskOptions, DiskRun, DiskRuns};
use crate::error::Result;

/// A disk that is open.
pub(super) struct Side {
    disk: Disk,
    strict: bool,
    /// Which file each image stores its clusters in.
    files: Vec<Option<(u64, u64)>>,
}

/// Where something is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    file: (u64, u64),
    offset: u64,
}

/// What starts at some offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// How many bytes are like that, at least one.
    pub(super) length: u64,
    /// Whether it reads as zeros.
    pub(super) zero: bool,
    /// Where it is stored as it is, if it is.
    pub(super) place: Option<Place>,
    /// What QEMU says of it, if that is compared, too.
    pub(super) status: Option<BlockStatus>,
}

impl Side {
    pub(super) fn open(
        path: &Path,
        format: BaseFormat,
        options: &DiskOptions,
        strict: bool,
    ) -> Result<Self> {
        let disk = Disk::open(path, format, &DiskOptions { holes: true, ..options.clone() })?;
        Ok(Self { strict, files: disk.data_files(), disk })
    }

    /// Size of the disk in bytes of whole sectors.
    pub(super) fn size(&self) -> u64 {
        whole_sectors(DiskContent::size(&self.disk))
    }

    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        read_sectors(&self.disk, bytes, offset)
    }

    /// A walk over the disk, from its start.
    pub(super) fn parts(&self) -> Result<Parts<'_>> {
        let runs = self.disk.map(0..DiskContent::size(&self.disk))?;
        Ok(Parts { side: self, runs, current: None })
    }

    fn place(&self, run: &DiskRun) -> Option<Place> {
        let file = (*self.files.get(run.depth)?)?;
        let offset = run.offset.filter(|_| run.data)?;
        Some(Place { file, offset })
    }
}

/// The parts of a disk, asked for in order.
pub(super) struct Parts<'a> {
    side: &'a Side,
    runs: DiskRuns<'a>,
    current: Option<DiskRun>,
}

impl Parts<'_> {
    /// The part that starts at `offset`, which is not before the last one asked for.
    pub(super) fn at(&mut self, offset: u64) -> Result<Part> {
        let rest = self.side.size().saturating_sub(offset).max(1);
        let zeros = Part { length: rest, zero: true, place: None, status: None };
        if self.side.strict {
            let status = self.side.disk.status_at(offset)?;
            let (length, zero) = (status.length, status.zero);
            return Ok(Part { length, zero, status: Some(status), ..zeros });
        }
        loop {
            let run = match self.current {
                Some(run) => run,
                // What the last sector lacks.
                None => match self.runs.next() {
                    None => return Ok(zeros),
                    Some(run) => *self.current.insert(run?),
                },
            };
            let skip = offset.saturating_sub(run.start);
            if skip >= run.length {
                self.current = None;
                continue;
            }
            let place = self
                .side
                .place(&run)
                .map(|place| Place { offset: place.offset.saturating_add(skip), ..place });
            let mut length = run.length - skip;
            if run.zero {
                // A raw file that ends within a sector: what follows there is zeros, and has a part of
                // its own, unless it ends in a hole.
                let end = offset.saturating_add(length);
                let sector = whole_sectors(offset);
                let end = if sector > offset { sector } else { whole_sectors(end) };
                length = (end - offset).min(rest);
            }
            return Ok(Part { length, zero: run.zero, place, status: None });
        }
    }
}
