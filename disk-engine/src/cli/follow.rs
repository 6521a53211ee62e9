//! How far names found in images are followed, as options of a command.
//!
//! Callers: `compare`, `convert`, `io`, `map`, `measure`.

use std::path::PathBuf;

use crate::disk::policy::BackingPolicy;
use crate::disk::{DiskOptions, Locking};

/// What an image names is opened beside or below the image, and where these options say.
#[derive(Debug, clap::Args)]
pub(crate) struct Follow {
    /// Follow backing files wherever the image says; else only in the image's folder and below
    #[arg(long)]
    backing_chain: bool,
    /// Follow backing files below this folder too
    #[arg(long, value_name = "DIR", conflicts_with = "backing_chain")]
    allow: Vec<PathBuf>,
    /// Open external data files too, where backing files may be followed
    #[arg(long)]
    data_files: bool,
}

impl Follow {
    /// Which backing files may be opened.
    pub(crate) fn policy(&self) -> BackingPolicy {
        if self.backing_chain {
            BackingPolicy::Any
        } else {
            BackingPolicy::Beneath(self.allow.clone())
        }
    }

    /// How a disk is opened that is looked at, with others that write to it if it is `shared`.
    pub(crate) fn disk(&self, shared: bool) -> DiskOptions {
        DiskOptions {
            policy: self.policy(),
            data_files: self.data_files(),
            locking: if shared { Locking::Shared } else { Locking::Auto },
            ..DiskOptions::default()
        }
    }

    /// Which external data files may be opened.
    pub(crate) fn data_files(&self) -> BackingPolicy {
        if self.data_files { self.policy() } else { BackingPolicy::Deny }
    }
}
