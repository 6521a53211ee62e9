//! A qcow2 image from a pipe: streamed where its layout allows, else kept in a file first.
//!
//! ```text
//! [ header … L1 … L2 tables ][ data, in guest order ]     kept in memory: at most 64 MiB
//!   read as any image's        passed on as it comes
//! ```
//!
//! An image streams if all tables come before all data, nothing is compressed and the disk's order is
//! the file's. Callers: `origin`.

use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use qcow2_format::image::RunKind;
use qcow2_format::l1::L1Entry;
use qcow2_format::{GuestOffset, Header, HostOffset, Image, ReadAt, ReadOptions};

use super::options::ConvertOptions;
use super::spilled::Spilled;
use crate::base::BaseFormat;
use crate::disk::chain::{from_format, read_header};
use crate::disk::{Disk, DiskFile, DiskOptions, PastEnd};
use crate::error::{Error, ErrorKind, Result};
use crate::source::extent::{DiskShape, Extent, ExtentSource};
use crate::source::input;

/// Most bytes that are kept of an image's start.
const START_MAX: u64 = 64 << 20;
/// Bytes that a header and what belongs to it take at most: the largest cluster.
const HEADER_MAX: u64 = 2 << 20;

/// An image from a pipe, one way or the other.
pub(super) enum Piped {
    Streamed(Box<PipedImage>),
    /// And how many bytes are kept.
    Spilled(Box<Disk>, u64),
}

/// The start of an image. What lies behind it is not there, and does not matter.
struct Start(Vec<u8>);

impl ReadAt for Start {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.as_slice().read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        // It goes on, nobody knows how far.
        Ok(i64::MAX.cast_unsigned())
    }
}

/// An image whose tables are known and whose data is still to come.
pub(super) struct PipedImage {
    image: Image<Start>,
    reader: Box<dyn Read + Send>,
    label: PathBuf,
    /// Bytes of the pipe that were read.
    position: u64,
    looked: u64,
    told: bool,
    /// Where the bytes of the data extent named last lie.
    current: Range<u64>,
}

/// Reads the tables of the image that `reader` gives, or all of it.
pub(super) fn open(
    reader: Box<dyn Read + Send>,
    label: &Path,
    snapshot: Option<&str>,
    options: &ConvertOptions,
) -> Result<Piped> {
    let mut reader = reader;
    let mut start = Start(Vec::new());
    let tables_in_memory = read_tables(&mut start, &mut reader, label)?;
    if tables_in_memory && snapshot.is_none() && !options.salvage && streams(&start, label)? {
        let position = start.0.len() as u64;
        let image = Image::open(start, &ReadOptions::new());
        let image = image.map_err(|error| from_format(error, label))?;
        if image.is_marked_corrupt() {
            return Err(
                Error::new(ErrorKind::Corrupt, "the image is marked corrupt").with_path(label)
            );
        }
        if image.header().backing_file().is_some() {
            let message = "the image has a backing file, which a pipe cannot give";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(label));
        }
        return Ok(Piped::Streamed(Box::new(PipedImage {
            image,
            reader,
            label: label.to_path_buf(),
            position,
            looked: 0,
            told: false,
            current: 0..0,
        })));
    }
    let mut spilled = Spilled::new(&options.spill)?;
    let kept = spilled.keep(start.0.as_slice().chain(reader))?;
    let file = DiskFile {
        file: spilled.into_file(),
        path: label.to_path_buf(),
        format: BaseFormat::Qcow2,
        data_file: None,
    };
    let how = DiskOptions {
        snapshot: snapshot.map(str::to_owned),
        threads: Some(1),
        past_end: PastEnd::Fails,
        ..DiskOptions::default()
    };
    Disk::from_files([file], &how).map(|disk| Piped::Spilled(Box::new(disk), kept))
}

/// Reads header, L1 table and L2 tables; says whether they are in memory, or it would be too much.
fn read_tables(start: &mut Start, reader: &mut dyn Read, label: &Path) -> Result<bool> {
    read_until(start, reader, HEADER_MAX, label)?;
    let header: Header = read_header(start, label)?;
    let geometry = header.geometry();
    let l1 = header.l1_table_offset().to_u64();
    let l1_length = u64::from(header.l1_size()).saturating_mul(8);
    let l1_end = l1.saturating_add(l1_length);
    if l1_end > START_MAX {
        return Ok(false);
    }
    read_tables_until(start, reader, l1_end, label)?;
    let range = usize::try_from(l1).unwrap_or(usize::MAX)..usize::try_from(l1_end).unwrap_or(0);
    let mut end = l1_end;
    let mut at = l1;
    for entry in start.0.get(range).unwrap_or_default().chunks_exact(8) {
        let raw = entry.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let entry = L1Entry::decode(raw, HostOffset(at), geometry);
        let entry = entry.map_err(|error| from_format(error, label))?;
        at = at.saturating_add(8);
        if let Some(table) = entry.l2_table {
            end = end.max(table.to_u64().saturating_add(geometry.cluster_bits.bytes()));
        }
    }
    if end > START_MAX {
        return Ok(false);
    }
    read_tables_until(start, reader, end, label)?;
    Ok(true)
}

/// Whether the data that the tables name comes in order, as far as it is not in memory.
fn streams(start: &Start, label: &Path) -> Result<bool> {
    let failed = |error| from_format(error, label);
    let image = Image::open(start, &ReadOptions::new()).map_err(failed)?;
    let kept = start.0.len() as u64;
    let mut next = 0;
    for run in image.map(0..image.virtual_size()).map_err(failed)? {
        let run = run.map_err(failed)?;
        match run.kind {
            RunKind::Compressed => return Ok(false),
            RunKind::Data { host } => {
                let end = host.to_u64().saturating_add(run.length);
                if end <= kept {
                    continue;
                }
                if host.to_u64() < next {
                    return Ok(false);
                }
                next = end;
            }
            _ => {}
        }
    }
    Ok(true)
}

/// As [`read_until`]; what ends before is no image, and would read as zeros.
fn read_tables_until(
    start: &mut Start,
    reader: &mut dyn Read,
    end: u64,
    label: &Path,
) -> Result<()> {
    read_until(start, reader, end, label)?;
    if start.0.len() as u64 >= end {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "the image ends before its tables do")
        .with_path(label)
        .with_offset(start.0.len() as u64))
}

fn read_until(start: &mut Start, reader: &mut dyn Read, end: u64, label: &Path) -> Result<()> {
    let left = end.saturating_sub(start.0.len() as u64);
    reader
        .take(left)
        .read_to_end(&mut start.0)
        .map(drop)
        .map_err(|error| Error::io("read the image", label, error))
}

impl PipedImage {
    /// Reads the pipe to its end; says how many bytes there were.
    pub(super) fn finish(mut self) -> Result<u64> {
        let mut scratch = input::zeroed(input::CHUNK)?;
        loop {
            let count = self.more(&mut scratch)?;
            if count == 0 {
                return Ok(self.position);
            }
        }
    }

    /// The next bytes of the pipe; none at its end.
    fn more(&mut self, bytes: &mut [u8]) -> Result<usize> {
        loop {
            match self.reader.read(bytes) {
                Ok(count) => {
                    self.position = self.position.saturating_add(count as u64);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the image", &self.label, error)),
            }
        }
    }

    fn pass(&mut self, until: u64) -> Result<()> {
        let mut scratch = [0; 4096];
        while self.position < until {
            let left = usize::try_from(until - self.position).unwrap_or(usize::MAX);
            let room = scratch.len().min(left);
            if self.more(scratch.get_mut(..room).unwrap_or_default())? == 0 {
                return Err(self.cut());
            }
        }
        Ok(())
    }

    fn cut(&self) -> Error {
        Error::new(ErrorKind::Corrupt, "the image ends before its data does")
            .with_path(&self.label)
            .with_offset(self.position)
    }
}

impl ExtentSource for PipedImage {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        let size = self.image.virtual_size();
        if !self.told {
            self.told = true;
            return Ok(Some(Extent::Disk(DiskShape { size: Some(size), data: None })));
        }
        if self.looked >= size {
            return Ok(None);
        }
        let run = self
            .image
            .run_at(GuestOffset(self.looked), size - self.looked)
            .map_err(|error| from_format(error, &self.label))?;
        let (offset, length) = (self.looked, run.length);
        self.looked = self.looked.saturating_add(length);
        let RunKind::Data { host } = run.kind else {
            return Ok(Some(Extent::Zero { offset, length }));
        };
        self.current = host.to_u64()..host.to_u64().saturating_add(length);
        Ok(Some(Extent::Data { offset, length: Some(length) }))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.current.end - self.current.start).unwrap_or(usize::MAX);
        let count = left.min(bytes.len());
        let mut rest = bytes.get_mut(..count).unwrap_or_default();
        while !rest.is_empty() {
            let at = self.current.start;
            // What came along with the tables is in memory.
            let kept = self.image.storage().read_at(rest, at);
            let kept = kept.map_err(|error| Error::io("read the image", &self.label, error))?;
            let got = if kept > 0 {
                kept
            } else {
                self.pass(at)?;
                self.more(rest)?
            };
            if got == 0 {
                // Only a part of the last cluster may be missing, as in a file that ends there.
                let cluster = self.image.header().geometry().cluster_bits.bytes();
                let last_data = self.looked >= self.image.virtual_size();
                let last_cluster = (self.current.end.saturating_sub(1) / cluster) * cluster;
                if !last_data || at <= last_cluster {
                    return Err(self.cut());
                }
                rest.fill(0);
                self.current.start = at.saturating_add(rest.len() as u64);
                break;
            }
            self.current.start = at.saturating_add(got as u64);
            rest = rest.get_mut(got..).unwrap_or_default();
        }
        Ok(count)
    }

    fn progress(&self) -> (u64, Option<u64>) {
        (self.looked, Some(self.image.virtual_size()))
    }
}
