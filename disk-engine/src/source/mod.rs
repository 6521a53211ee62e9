//! Sources: one compressed image archive, read once, told as extents of a disk.
//!
//! ```text
//! Source ─open─▶ input ──▶ decompress ──▶ content ──▶ tar member │ bare disk ──▶ extents
//!                  │          │                          │
//!                  │          zstd · gzip · xz · none    plain, or one of four sparse forms
//!                  file · pipe · reader · stdin, hashed on the way when asked
//! ```
//!
//! What a source is, is told by its bytes and never by its name. Success means that every byte of
//! it was read and verified: each compression frame complete, the archive ended, nothing after it.
//! What it claims about itself is bounded by [`Limits`], and nothing is allocated on its word.
//!
//! [`seekable`] reads a disk in an archive of many frames from anywhere, without unpacking it.
//!
//! Callers: [`crate::transfer`], and through it `cache` and `ops::extract`.

pub(crate) mod bare;
pub(crate) mod content;
pub(crate) mod cut;
pub(crate) mod decompress;
pub(crate) mod digester;
pub(crate) mod disk;
pub mod extent;
pub(crate) mod input;
mod limits;
pub(crate) mod paced;
mod probe;
pub mod seekable;
pub(crate) mod tar;

use std::fmt;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use crate::control::Control;
use crate::digest::Sha256Digest;
use crate::error::{Error, Result};
use crate::sys::open;
use content::Content;
use decompress::Decoding;
use decompress::zstd::frames::JOB;
use extent::{Extent, ExtentSource};
use input::Input;
pub use limits::{EXPANSION_FREE, Limits};
pub use probe::Compression;
pub use tar::sparse::SparseForm;

/// Where a disk comes from. A description: nothing is opened before it is used.
pub struct Source {
    origin: Origin,
    member: Option<String>,
    limits: Limits,
    threads: Option<NonZeroUsize>,
    job: u64,
}

enum Origin {
    Path(PathBuf),
    Reader(Box<dyn Read + Send>, String),
    Stdin,
}

impl Source {
    /// The file, pipe or block device `path` leads to, through symbolic links.
    #[must_use]
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::new(Origin::Path(path.into()))
    }

    /// Whatever `reader` gives; `label` is how messages call it.
    #[must_use]
    pub fn reader(reader: impl Read + Send + 'static, label: impl Into<String>) -> Self {
        Self::new(Origin::Reader(Box::new(reader), label.into()))
    }

    /// The standard input of this process.
    #[must_use]
    pub fn stdin() -> Self {
        Self::new(Origin::Stdin)
    }

    fn new(origin: Origin) -> Self {
        Self { origin, member: None, limits: Limits::default(), threads: None, job: JOB }
    }

    /// Takes the archive's member `name`, rather than its single file or `disk.img`.
    #[must_use]
    pub fn with_member(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }

    /// Sets how large and complex the source may be.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets how many threads may decode: as many as there are cores unless given. More than one is of
    /// use where a source has many zstd frames, none of them over 32 MiB once decoded; what is read is
    /// the same with any number. One decodes on the caller's own thread.
    #[must_use]
    pub fn with_threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Has even small frames decoded by threads: `job` bytes are worth it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn with_job(mut self, job: u64) -> Self {
        self.job = job;
        self
    }

    /// The path, if that is where the source comes from.
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Path(path) => Some(path),
            Origin::Reader(..) | Origin::Stdin => None,
        }
    }

    /// The member asked for by name.
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    /// How large and complex the source may be.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many threads may decode, if that was said.
    #[must_use]
    pub fn threads(&self) -> Option<NonZeroUsize> {
        self.threads
    }

    /// What messages call the source.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.origin {
            Origin::Path(path) => path.display().to_string(),
            Origin::Reader(_, label) => label.clone(),
            Origin::Stdin => "standard input".into(),
        }
    }

    /// Whether `path` leads to the very file the source is, under whichever name.
    pub(crate) fn is_file(&self, path: &Path) -> bool {
        let source = match &self.origin {
            Origin::Path(source) => std::fs::metadata(source),
            Origin::Stdin => input::stdin_metadata(),
            Origin::Reader(..) => return false,
        };
        source.is_ok_and(|source| open::is_same_file(&source, path))
    }

    /// The path, if it is a file or device that holds the disk as it is.
    pub(crate) fn plain_file(&self, control: &Control) -> Result<Option<PathBuf>> {
        let Some(path) = self.as_path().filter(|_| self.member.is_none()) else { return Ok(None) };
        let looked_at = Self::path(path).with_limits(self.limits).with_threads(NonZeroUsize::MIN);
        if looked_at.is_pipe() {
            return Ok(None);
        }
        Ok(match looked_at.open(false, control)? {
            Opened::Bare(bare) if bare.is_plain() => Some(path.to_path_buf()),
            _ => None,
        })
    }

    /// Whether what is read is gone then.
    fn is_pipe(&self) -> bool {
        use std::os::unix::fs::FileTypeExt;
        let metadata = self.as_path().map(std::fs::metadata);
        metadata.is_none_or(|metadata| metadata.is_ok_and(|it| it.file_type().is_fifo()))
    }

    /// Opens the source and finds out what it is. Errors do not name it yet.
    pub(crate) fn open(self, hash: bool, control: &Control) -> Result<Opened> {
        let input = match self.origin {
            Origin::Path(path) => Input::open(&path, hash)?,
            Origin::Reader(reader, _) => Input::reader(reader, hash)?,
            Origin::Stdin => Input::stdin(hash)?,
        };
        let threads = self.threads.map_or_else(cores, NonZeroUsize::get).min(THREADS_MAX);
        let decoding = Decoding { threads, job: self.job };
        let content = Content::new(input, &self.limits, decoding, control.clone())?;
        let is_tar = tar::header::Header::probe(content.head());
        if is_tar.map_err(|defect| content.fault(defect))? {
            Ok(Opened::Tar(tar::Tar::new(content, &self.limits, self.member.as_deref())))
        } else if let Some(member) = self.member {
            let message = format!("the source is no archive, so it has no member {member:?}");
            Err(Error::new(crate::ErrorKind::NotFound, message))
        } else {
            bare::Bare::new(content, &self.limits).map(Opened::Bare)
        }
    }
}

/// Most threads that decode, however many there are cores.
const THREADS_MAX: usize = 256;

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::path(path)
    }
}

impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        Self::path(path)
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::path(path)
    }
}

impl From<&str> for Source {
    /// The file at that path.
    fn from(path: &str) -> Self {
        Self::path(path)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("label", &self.label())
            .field("member", &self.member)
            .field("limits", &self.limits)
            .field("threads", &self.threads)
            .finish()
    }
}

/// What held the disk inside the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Container {
    /// Nothing: the content is the disk.
    Bare,
    /// A tar archive.
    Tar {
        /// The member that was the disk. Bytes that are not UTF-8 are replaced.
        member: String,
    },
}

/// An open source.
#[expect(clippy::large_enum_variant, reason = "there is one, and it is not moved around")]
pub(crate) enum Opened {
    Bare(bare::Bare),
    Tar(tar::Tar),
}

/// What is known of a source once it was read.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) bytes: u64,
    pub(crate) sha256: Option<Sha256Digest>,
    pub(crate) compression: Compression,
    pub(crate) container: Container,
    pub(crate) sparse_form: SparseForm,
    pub(crate) frames: u64,
    pub(crate) threads: usize,
}

impl Opened {
    /// Sums up, after all extents were told.
    pub(crate) fn finish(self) -> Result<Summary> {
        let (container, sparse_form, content) = match self {
            Self::Bare(bare) => (Container::Bare, SparseForm::Dense, bare.into_content()),
            Self::Tar(tar) => {
                let chosen = tar.chosen().cloned();
                let (member, form) =
                    chosen.map_or((String::new(), SparseForm::Dense), |it| (it.name, it.form));
                (Container::Tar { member }, form, tar.into_content())
            }
        };
        let compression = content.compression();
        let (frames, threads) = content.shares();
        let (bytes, sha256) = content.finish()?;
        Ok(Summary { bytes, sha256, compression, container, sparse_form, frames, threads })
    }
}

impl ExtentSource for Opened {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        match self {
            Self::Bare(bare) => bare.next_extent(),
            Self::Tar(tar) => tar.next_extent(),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        match self {
            Self::Bare(bare) => bare.read(bytes),
            Self::Tar(tar) => tar.read(bytes),
        }
    }

    fn map(&self) -> Option<Vec<(u64, u64)>> {
        match self {
            Self::Bare(bare) => bare.map(),
            Self::Tar(tar) => tar.map(),
        }
    }

    fn progress(&self) -> (u64, Option<u64>) {
        match self {
            Self::Bare(bare) => bare.progress(),
            Self::Tar(tar) => tar.progress(),
        }
    }
}

#[cfg(test)]
mod tests;
