//! The options of every command that reads an archive or image.

use std::num::NonZeroUsize;
use std::path::Path;

use crate::cli::size;
use crate::source::{Limits, Source};

/// What to take from a source, and how much of it to accept.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SourceOptions {
    /// The archive's member to take [default: its only file, else disk.img]
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Largest decoder window to allow, as a power of two (zstd's --long)
    #[arg(long, value_name = "LOG", default_value_t = 27, value_parser = clap::value_parser!(u32).range(10..=31))]
    long: u32,
    /// Largest disk to accept
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_size: Option<u64>,
    /// Most entries of a member's sparse map to accept [default: 200000]
    #[arg(long, value_name = "N")]
    max_extents: Option<usize>,
    /// Most bytes of pax records and long names to accept for a member [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_metadata: Option<u64>,
    /// Most members of an archive to accept [default: 1000000]
    #[arg(long, value_name = "N")]
    max_members: Option<u64>,
    /// Most bytes to accept for each byte of the source, past the first GiB; zeros of the disk are
    /// not counted [default: 1000]
    #[arg(long, value_name = "N")]
    max_expansion: Option<u64>,
    /// Threads that decode a source of many zstd frames [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl SourceOptions {
    /// The source at `path`; '-' is standard input.
    pub(crate) fn at(&self, path: &Path) -> Source {
        let source = if path.as_os_str() == "-" { Source::stdin() } else { Source::path(path) };
        self.apply(source)
    }

    /// Whether a member was asked for.
    pub(crate) fn names_member(&self) -> bool {
        self.member.is_some()
    }

    /// Threads that may decode, if that was said.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads
    }

    /// `source` with these options.
    pub(crate) fn apply(&self, source: Source) -> Source {
        let default = Limits::default();
        let mut source = source.with_limits(Limits {
            max_window: 1 << self.long,
            max_extents: self.max_extents.unwrap_or(default.max_extents),
            max_metadata: self.max_metadata.unwrap_or(default.max_metadata),
            max_image_size: self.max_size.unwrap_or(default.max_image_size),
            max_members: self.max_members.unwrap_or(default.max_members),
            max_expansion: self.max_expansion.unwrap_or(default.max_expansion),
        });
        if let Some(threads) = self.threads {
            source = source.with_threads(threads);
        }
        match &self.member {
            Some(member) => source.with_member(member),
            None => source,
        }
    }
}
