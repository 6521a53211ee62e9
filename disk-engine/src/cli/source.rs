//! The options of every command that reads an archive or image.

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
}

impl SourceOptions {
    /// The source at `path`; '-' is standard input.
    pub(crate) fn at(&self, path: &Path) -> Source {
        let source = if path.as_os_str() == "-" { Source::stdin() } else { Source::path(path) };
        self.apply(source)
    }

    /// `source` with these options.
    pub(crate) fn apply(&self, source: Source) -> Source {
        let mut limits = Limits { max_window: 1 << self.long, ..Limits::default() };
        if let Some(max_size) = self.max_size {
            limits.max_image_size = max_size;
        }
        let source = source.with_limits(limits);
        match &self.member {
            Some(member) => source.with_member(member),
            None => source,
        }
    }
}
