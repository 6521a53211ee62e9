//! How a session opens a disk, when it starts and when a command says so.
//!
//! Callers: `io`, `control`.

use std::path::Path;

use clap::ValueEnum;

use crate::base::BaseFormat;
use crate::cli::io::target::Target;
use crate::cli::overlay::Format;
use crate::disk::chain::probe_top;
use crate::disk::policy::BackingPolicy;
use crate::disk::{Disk, DiskOptions};
use crate::error::{Error, ErrorKind, Result};

/// What `discard` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Discard {
    /// Nothing
    #[value(alias = "off")]
    Ignore,
    /// Gives storage back
    #[value(alias = "on")]
    Unmap,
}

/// How a disk is opened.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) read_only: bool,
    pub(super) discard: Discard,
    /// Which backing files may be opened.
    pub(super) policy: BackingPolicy,
    /// Which external data files may be opened.
    pub(super) data_files: BackingPolicy,
}

impl Opening {
    /// Opens the disk at `path`. Without a format, a file that begins as qcow2 is one: the caller
    /// named this file, and no other is looked at like that.
    pub(super) fn open(&self, path: &Path, format: Option<Format>) -> Result<Box<dyn Target>> {
        let format = match format {
            Some(format) => BaseFormat::from(format),
            None => probe_top(path)?,
        };
        if !self.read_only {
            let message = "writing to disks is not supported yet";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_path(path)
                .with_hint("open it to be read only, with -r"));
        }
        let options = DiskOptions {
            policy: self.policy.clone(),
            data_files: self.data_files.clone(),
            ..DiskOptions::default()
        };
        Ok(Box::new(Disk::open(path, format, &options)?))
    }
}
