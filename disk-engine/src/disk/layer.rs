//! One image of an opened chain: what it says of a range, and its bytes.
//!
//! ```text
//! raw      data and holes of the file
//! qcow2    runs of its tables; what is unallocated is the next layer's
//! ```
//!
//! Callers: `opening`, `layers`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use qcow2_format::image::{Run, RunKind};
use qcow2_format::{GuestOffset, Header, HostOffset, Image};

use crate::base::BaseFormat;
use crate::disk::chain::from_format;
use crate::disk::content::DiskContent;
use crate::disk::raw::RawDisk;
use crate::error::{Error, Result};
use crate::sys::image_file::ImageFile;

#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Raw(RawDisk),
    Qcow2(Box<Image<ImageFile>>),
}

/// What stopped a read: this layer, or one below, whose error is complete.
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
        Self { path, content: Content::Raw(disk) }
    }

    pub(super) fn qcow2(image: Image<ImageFile>, path: PathBuf) -> Self {
        Self { path, content: Content::Qcow2(Box::new(image)) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn format(&self) -> BaseFormat {
        match self.content {
            Content::Raw(_) => BaseFormat::Raw,
            Content::Qcow2(_) => BaseFormat::Qcow2,
        }
    }

    pub(super) fn header(&self) -> Option<Cow<'_, Header>> {
        match &self.content {
            Content::Raw(_) => None,
            Content::Qcow2(image) => Some(Cow::Borrowed(image.header())),
        }
    }

    /// Size of its disk in bytes.
    pub(super) fn size(&self) -> u64 {
        match &self.content {
            Content::Raw(disk) => disk.size(),
            Content::Qcow2(image) => image.virtual_size(),
        }
    }

    /// What starts at `offset`, at most `limit` bytes long.
    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Run> {
        match &self.content {
            Content::Qcow2(image) => image
                .run_at(GuestOffset(offset), limit)
                .map_err(|error| from_format(error, &self.path)),
            Content::Raw(disk) => {
                let run = disk.run_at(offset)?;
                let host = HostOffset(offset);
                let kind = match run.zero {
                    true => RunKind::Zero { host: Some(host) },
                    false => RunKind::Data { host },
                };
                let length = run.length.min(limit);
                Ok(Run { start: GuestOffset(offset), length, kind })
            }
        }
    }

    /// Fills `bytes` from `offset` on; what is the next layer's is filled by `below`.
    pub(super) fn read_over(
        &self,
        bytes: &mut [u8],
        offset: u64,
        below: impl Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        match &self.content {
            Content::Raw(disk) => disk.read_at(bytes, offset),
            Content::Qcow2(image) => image
                .read_over(bytes, GuestOffset(offset), |part, at| {
                    below(part, at.to_u64()).map_err(Failure::Below)
                })
                .map_err(|failure| match failure {
                    Failure::Here(error) => from_format(error, &self.path),
                    Failure::Below(error) => error,
                }),
        }
    }
}
