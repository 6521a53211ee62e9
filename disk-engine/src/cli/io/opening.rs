//! How a session opens a disk, when it starts and when a command says so.
//!
//! ```text
//! -t             what a write waits for        what a killed session leaves
//! writethrough   the disk                      everything it said was written
//! writeback      nothing; flush does           everything that was flushed
//! unsafe         nothing, nor does flush       everything it said was written; a power cut: anything
//! ```
//!
//! QEMU's `none` and `directsync` are the first two without the host's cache. That cache is one for all
//! programs and no write is done for its sake, so what they promise is kept with it too.
//!
//! Callers: `io`, `control`.

use std::path::Path;

use clap::ValueEnum;
use qcow2_format::image::{self, Durability};

use crate::base::BaseFormat;
use crate::cli::io::target::{Target, Written};
use crate::cli::overlay::Format;
use crate::disk::chain::probe_top;
use crate::disk::policy::BackingPolicy;
use crate::disk::{Disk, DiskOptions, Locking, WritableDisk, WritableDiskOptions};
use crate::error::{Error, ErrorKind, Result};

/// What `discard` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Discard {
    /// Nothing
    #[value(alias = "off")]
    Ignore,
    /// Gives storage back
    #[default]
    #[value(alias = "on")]
    Unmap,
}

/// What a write waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Cache {
    /// Each write is durable when it is done
    #[default]
    Writethrough,
    /// What was written is durable once flushed or closed; a session that is killed may lose the rest
    Writeback,
    /// As writeback: the host's cache is used all the same
    None,
    /// As writethrough: the host's cache is used all the same
    Directsync,
    /// Nothing is made durable, not even by flush
    Unsafe,
}

impl From<Cache> for Durability {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Writethrough | Cache::Directsync => Self::Full,
            Cache::Writeback | Cache::None => Self::Flush,
            Cache::Unsafe => Self::None,
        }
    }
}

/// What is said of a disk besides its name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mode {
    pub(super) read_only: bool,
    /// Whether others may write to it meanwhile.
    pub(super) shared: bool,
    pub(super) discard: Discard,
    pub(super) cache: Cache,
}

/// How a disk is opened.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) mode: Mode,
    /// Which backing files may be opened.
    pub(super) policy: BackingPolicy,
    /// Which external data files may be opened.
    pub(super) data_files: BackingPolicy,
}

impl Opening {
    /// Opens the disk at `path`. Without a format, a file that begins as qcow2 is one: the caller
    /// named this file, and no other is looked at like that.
    pub(super) fn open(&self, path: &Path, format: Option<Format>) -> Result<Box<dyn Target>> {
        if self.mode.shared && !self.mode.read_only {
            let message = "an image that is written to is not shared with other writers";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(path)
                .with_hint("-U goes with -r"));
        }
        let guessed = format.is_none();
        let format = match format {
            Some(format) => BaseFormat::from(format),
            None => probe_top(path)?,
        };
        let disk = DiskOptions {
            policy: self.policy.clone(),
            data_files: self.data_files.clone(),
            locking: if self.mode.shared { Locking::Shared } else { Locking::Auto },
            ..DiskOptions::default()
        };
        if self.mode.read_only {
            return Ok(Box::new(Disk::open(path, format, &disk)?));
        }
        let options = WritableDiskOptions {
            disk,
            durability: self.mode.cache.into(),
            discard: match self.mode.discard {
                Discard::Ignore => image::Discard::Ignore,
                Discard::Unmap => image::Discard::Unmap,
            },
            ..WritableDiskOptions::default()
        };
        let disk = WritableDisk::open(path, format, &options)?;
        Ok(Box::new(Written { disk, guessed_raw: guessed && format == BaseFormat::Raw }))
    }
}
