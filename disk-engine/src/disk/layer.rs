//! One image of an opened chain: what it says of a range, its bytes, and for the top of a writable disk
//! what becomes of them.
//!
//! ```text
//! raw      data and holes of the file
//! qcow2    runs of its tables; what is unallocated is the next layer's
//! ```
//!
//! Callers: `opening`, `layers`.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use qcow2_format::image::{Run, RunKind, WritableImage, ZeroMode};
use qcow2_format::{GuestOffset, Header, HostOffset, Image, ReadAt};

use crate::base::BaseFormat;
use crate::disk::chain::from_format;
use crate::disk::content::DiskContent;
use crate::disk::raw::RawDisk;
use crate::disk::raw_write::WritableRaw;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::ImageFile;
use crate::sys::{space, sparse};

#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    /// Its external data file, as that was opened.
    data_path: Option<PathBuf>,
    content: Content,
    /// Whether what is stored may be a hole of the file, and then is zeros.
    holes: bool,
}

#[derive(Debug)]
enum Content {
    Raw(RawDisk),
    Qcow2(Box<Image<ImageFile>>),
    WritableRaw(WritableRaw),
    WritableQcow2(Box<WritableImage<ImageFile>>),
}

/// A layer that is written to.
enum Writable<'a> {
    Raw(&'a WritableRaw),
    Qcow2(&'a WritableImage<ImageFile>),
}

/// What stopped a read or write: this layer, or one below, whose error is complete.
enum Failure {
    Here(qcow2_format::Error),
    Below(Error),
}

impl From<qcow2_format::Error> for Failure {
    fn from(error: qcow2_format::Error) -> Self {
        Self::Here(error)
    }
}

impl Layer {
    pub(super) fn raw(disk: RawDisk, path: PathBuf) -> Self {
        Self { path, data_path: None, content: Content::Raw(disk), holes: false }
    }

    pub(super) fn qcow2(
        image: Image<ImageFile>,
        path: PathBuf,
        data_path: Option<PathBuf>,
    ) -> Self {
        Self { path, data_path, content: Content::Qcow2(Box::new(image)), holes: false }
    }

    pub(super) fn writable_raw(disk: WritableRaw, path: PathBuf) -> Self {
        Self { path, data_path: None, content: Content::WritableRaw(disk), holes: false }
    }

    pub(super) fn writable_qcow2(
        image: WritableImage<ImageFile>,
        path: PathBuf,
        data_path: Option<PathBuf>,
    ) -> Self {
        Self { path, data_path, content: Content::WritableQcow2(Box::new(image)), holes: false }
    }

    /// Has the holes of its file count as zeros, if it was preallocated: if it uses far more clusters
    /// than its file takes space. QEMU draws the line there, too.
    pub(super) fn look_for_holes(&mut self) -> Result<()> {
        let Content::Qcow2(image) = &self.content else { return Ok(()) };
        let metadata = image.storage().file().metadata();
        let metadata = metadata.map_err(|error| Error::io("look at", &self.path, error))?;
        let stored = space::allocated(&metadata) / image.header().geometry().cluster_bits.bytes();
        let many = (stored.saturating_mul(10) / 9).max(stored.saturating_add(2));
        // Refcounts that cannot be read tell nothing; what reads data does without them.
        self.holes = image.uses_clusters(many).unwrap_or(false);
        Ok(())
    }

    /// Has clusters past the end of its file be errors, if it is read only.
    pub(super) fn fail_past_end(&self) {
        if let Content::Qcow2(image) = &self.content {
            let cluster = image.header().geometry().cluster_bits.bytes();
            image.storage().fail_past_end(cluster);
            image.data_storage().fail_past_end(cluster);
        }
    }

    /// `run` of this image as far as it is one hole of the file, or none; and which of both.
    pub(super) fn hole(&self, run: Run) -> Result<(Run, bool)> {
        let (RunKind::Data { host }, Content::Qcow2(image), true) =
            (run.kind, &self.content, self.holes)
        else {
            return Ok((run, false));
        };
        let file = image.data_storage().file();
        let data = sparse::next_data(file, host.to_u64())
            .map_err(|error| Error::io("look for holes in", &self.path, error))?;
        let (end, hole) = match data {
            None => {
                // What is past the end is no hole: reading it tells.
                let length = file.length();
                let length =
                    length.map_err(|error| Error::io("find the length of", &self.path, error))?;
                let inside = length.saturating_sub(host.to_u64());
                let length = if inside == 0 { run.length } else { run.length.min(inside) };
                return Ok((Run { length, ..run }, inside > 0));
            }
            Some(data) if data.start > host.to_u64() => (data.start, true),
            Some(data) => (data.end, false),
        };
        let length = run.length.min(end.saturating_sub(host.to_u64())).max(1);
        Ok((Run { length, ..run }, hole))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data_path(&self) -> Option<&Path> {
        self.data_path.as_deref()
    }

    pub(super) fn format(&self) -> BaseFormat {
        match self.content {
            Content::Raw(_) | Content::WritableRaw(_) => BaseFormat::Raw,
            Content::Qcow2(_) | Content::WritableQcow2(_) => BaseFormat::Qcow2,
        }
    }

    pub(super) fn header(&self) -> Option<Cow<'_, Header>> {
        match &self.content {
            Content::Raw(_) | Content::WritableRaw(_) => None,
            Content::Qcow2(image) => Some(Cow::Borrowed(image.header())),
            Content::WritableQcow2(image) => Some(Cow::Owned(image.header())),
        }
    }

    /// Size of its disk in bytes.
    pub(super) fn size(&self) -> u64 {
        match &self.content {
            Content::Raw(disk) => disk.size(),
            Content::Qcow2(image) => image.virtual_size(),
            Content::WritableRaw(raw) => raw.disk().size(),
            Content::WritableQcow2(image) => image.virtual_size(),
        }
    }

    /// The file that it stores its clusters in; `None` if it is written to.
    pub(super) fn data_file(&self) -> Option<&File> {
        match &self.content {
            Content::Raw(disk) => Some(disk.storage().file()),
            Content::Qcow2(image) => Some(image.data_storage().file()),
            Content::WritableRaw(_) | Content::WritableQcow2(_) => None,
        }
    }

    /// What starts at `offset`, at most `limit` bytes long.
    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Run> {
        match &self.content {
            Content::Qcow2(image) => {
                image.run_at(GuestOffset(offset), limit).map_err(|error| self.failed(error))
            }
            Content::WritableQcow2(image) => {
                image.run_at(GuestOffset(offset), limit).map_err(|error| self.failed(error))
            }
            Content::Raw(disk) => raw_run(disk, offset, limit),
            Content::WritableRaw(raw) => raw_run(raw.disk(), offset, limit),
        }
    }

    /// Fills `bytes` from `offset` on; what is the next layer's is filled by `below`.
    pub(super) fn read_over(
        &self,
        bytes: &mut [u8],
        offset: u64,
        below: impl Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        let below = from_below(below);
        match &self.content {
            Content::Raw(disk) => disk.read_at(bytes, offset),
            Content::WritableRaw(raw) => raw.disk().read_at(bytes, offset),
            Content::Qcow2(image) => image
                .read_over(bytes, GuestOffset(offset), below)
                .map_err(|failure| self.stopped(failure)),
            Content::WritableQcow2(image) => image
                .read_over(bytes, GuestOffset(offset), below)
                .map_err(|failure| self.stopped(failure)),
        }
    }

    /// Writes `bytes` at `offset`; what has to be copied for that is asked of `below`.
    pub(super) fn write_over(
        &self,
        bytes: &[u8],
        offset: u64,
        below: impl Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        match self.writable()? {
            Writable::Raw(raw) => raw.write_at(bytes, offset),
            Writable::Qcow2(image) => image
                .write_over(bytes, GuestOffset(offset), from_below(below))
                .map_err(|failure| self.stopped(failure)),
        }
    }

    /// As [`Layer::write_over`], stored compressed: whole clusters, so that nothing is copied.
    pub(super) fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self.writable()? {
            Writable::Raw(_) => {
                let message = "a raw image stores nothing compressed";
                Err(Error::new(ErrorKind::Unsupported, message).with_path(&self.path))
            }
            Writable::Qcow2(image) => image
                .write_compressed(bytes, GuestOffset(offset))
                .map_err(|error| self.failed(error)),
        }
    }

    /// Has `length` bytes from `offset` on read as zeros, whatever lies below.
    pub(super) fn write_zeroes_over(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        below: impl Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        match self.writable()? {
            Writable::Raw(raw) => raw.write_zeroes(offset, length, mode),
            Writable::Qcow2(image) => image
                .write_zeroes_over(GuestOffset(offset), length, mode, from_below(below))
                .map_err(|failure| self.stopped(failure)),
        }
    }

    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        match self.writable()? {
            Writable::Raw(raw) => raw.discard(offset, length),
            Writable::Qcow2(image) => {
                image.discard(GuestOffset(offset), length).map_err(|error| self.failed(error))
            }
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        match self.writable()? {
            Writable::Raw(raw) => raw.flush(),
            Writable::Qcow2(image) => image.flush().map_err(|error| self.failed(error)),
        }
    }

    /// Flushes, and leaves nothing to do.
    pub(super) fn close(self) -> Result<()> {
        match self.content {
            Content::Raw(_) | Content::Qcow2(_) => Ok(()),
            Content::WritableRaw(raw) => raw.flush(),
            Content::WritableQcow2(image) => {
                image.close().map_err(|error| from_format(error, &self.path))
            }
        }
    }

    fn writable(&self) -> Result<Writable<'_>> {
        match &self.content {
            Content::WritableRaw(raw) => Ok(Writable::Raw(raw)),
            Content::WritableQcow2(image) => Ok(Writable::Qcow2(image)),
            Content::Raw(_) | Content::Qcow2(_) => {
                let message = "the image is open for reading only";
                Err(Error::new(ErrorKind::InvalidInput, message).with_path(&self.path))
            }
        }
    }

    fn stopped(&self, failure: Failure) -> Error {
        match failure {
            Failure::Here(error) => self.failed(error),
            Failure::Below(error) => error,
        }
    }

    fn failed(&self, error: qcow2_format::Error) -> Error {
        from_format(error, &self.path)
    }
}

fn from_below(
    below: impl Fn(&mut [u8], u64) -> Result<()>,
) -> impl FnMut(&mut [u8], GuestOffset) -> Result<(), Failure> {
    move |part, at| below(part, at.to_u64()).map_err(Failure::Below)
}

fn raw_run(disk: &RawDisk, offset: u64, limit: u64) -> Result<Run> {
    let run = disk.run_at(offset)?;
    let host = HostOffset(disk.host(offset));
    let kind = match run.zero {
        true => RunKind::Zero { host: Some(host) },
        false => RunKind::Data { host },
    };
    Ok(Run { start: GuestOffset(offset), length: run.length.min(limit), kind })
}
