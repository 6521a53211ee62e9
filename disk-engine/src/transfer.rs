//! A source pumped into a sink: the one loop that moves disk content.
//!
//! ```text
//! caller's thread                                   writing thread          hashing thread
//! read ─▶ decompress ─▶ archive ─▶ window ────────▶ zeros, CRC-32, pwrite
//!   │       └─▶ threads, a zstd frame each
//!   └────────────────────────────────────────────────────────────────────▶ SHA-256, when asked
//! ```
//!
//! Memory is the decoder's window and about 4 MiB: six windows of the disk, six chunks of the
//! source. A source of many zstd frames is decoded by several threads; for what they hold, see
//! [`Source::with_threads`]. An error on either side stops the other at its next window, and so does a cancel.
//!
//! Callers: `cache` (bases), `ops::extract` and `ops::convert`.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::thread;

use crate::control::{Control, Event};
use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::raw::{RawRules, raw};
use crate::sink::{ExtentSink, ExtentSum};
use crate::source::Source;
use crate::source::extent::{Extent, ExtentSource};
pub use crate::source::{Compression, Container, SparseForm};

/// Bytes moved between two progress events.
const PROGRESS: u64 = 16 << 20;

/// How to extract.
#[derive(Clone, Debug, Default)]
pub struct TransferOptions {
    /// What the source's bytes, as they are given, must hash to: `sha256sum` of the archive.
    pub expected_sha256: Option<Sha256Digest>,
    /// Hash the source even with nothing to compare, for the report.
    pub hash_source: bool,
    /// Stops and watches the work.
    pub control: Control,
}

/// What was extracted.
#[derive(Clone, Debug)]
pub struct TransferReport {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes written to the file; the rest are holes.
    pub written_bytes: u64,
    /// Bytes of the source, compressed as it is.
    pub source_bytes: u64,
    /// Digest of those bytes, if it was asked for.
    pub source_sha256: Option<Sha256Digest>,
    /// How the source is compressed.
    pub compression: Compression,
    /// What held the disk.
    pub container: Container,
    /// How the archive said which parts of the disk it stores.
    pub sparse_form: SparseForm,
    /// zstd frames of the source, skippable ones not counted; 0 for anything but zstd.
    pub frames: u64,
    /// Threads that decoded it.
    pub threads: usize,
    /// CRC-32 of what was written, ascending.
    pub extents: Vec<ExtentSum>,
}

/// Extracts `source` into `file`, which is open for writing and empty; `path` is what messages call
/// it. Success means that all of the source was read and verified.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`], [`ErrorKind::Unsupported`] and [`ErrorKind::Limit`] for the source,
/// [`ErrorKind::NotFound`] and [`ErrorKind::InvalidInput`] when it holds no disk or several,
/// [`ErrorKind::Mismatch`] for its digest, [`ErrorKind::NoSpace`] and others for the file,
/// [`ErrorKind::Cancelled`]. The file's content is undefined then.
pub fn extract_into(
    source: Source,
    file: &File,
    path: &Path,
    options: &TransferOptions,
) -> Result<TransferReport> {
    let label = source.label();
    let hash = options.hash_source || options.expected_sha256.is_some();
    let named = |error: Error| error.or_path(&label);
    let mut opened = source.open(hash, &options.control).map_err(named)?;

    let written = AtomicU64::new(0);
    let (virtual_size, extents) = thread::scope(|scope| {
        let (mut sink, writer) = raw(file, path, RawRules::default(), &written);
        let writer = thread::Builder::new()
            .name("disk-writer".into())
            .spawn_scoped(scope, || writer.run())
            .map_err(|error| Error::io("start the writing thread for", path, error))?;
        let pumped = pump(&mut opened, &mut sink, &options.control);
        drop(sink);
        let wrote =
            writer.join().map_err(|_| Error::new(ErrorKind::Io, "the writing thread panicked"))?;
        // When writing failed, pumping failed for want of a writer: the first is the reason.
        let extents = wrote?;
        Ok((pumped.map_err(named)?, extents))
    })?;

    let summary = opened.finish().map_err(named)?;
    if let (Some(expected), Some(actual)) = (options.expected_sha256, summary.sha256)
        && expected != actual
    {
        let message = format!("the source's SHA-256 is {actual}, not {expected}");
        return Err(named(Error::new(ErrorKind::Mismatch, message).with_field("sha256")));
    }
    Ok(TransferReport {
        virtual_size,
        written_bytes: written.into_inner(),
        source_bytes: summary.bytes,
        source_sha256: summary.sha256,
        compression: summary.compression,
        container: summary.container,
        sparse_form: summary.sparse_form,
        frames: summary.frames,
        threads: summary.threads,
        extents,
    })
}

/// Moves all extents; returns the disk's size.
///
/// # Errors
///
/// What the source or the sink say, and [`ErrorKind::Cancelled`].
pub(crate) fn pump(
    source: &mut dyn ExtentSource,
    sink: &mut dyn ExtentSink,
    control: &Control,
) -> Result<u64> {
    let mut size = None;
    let mut end = 0_u64;
    let mut moved = 0;
    while let Some(extent) = source.next_extent()? {
        match extent {
            Extent::Disk(shape) => {
                (size, end) = (shape.size, 0);
                sink.begin(shape)?;
            }
            Extent::Zero { offset, length } => {
                sink.zero(offset, length)?;
                end = offset.saturating_add(length);
            }
            Extent::Data { offset, length } => {
                let mut left = length.unwrap_or(u64::MAX - offset);
                end = offset;
                while left > 0 {
                    control.check()?;
                    if sink.shares()
                        && length.is_some()
                        && let Some(stored) = source.stored()?
                    {
                        let taken = sink.share(end, stored)?;
                        if taken > 0 {
                            source.pass(taken)?;
                            end = end.saturating_add(taken);
                            left = left.saturating_sub(taken);
                            continue;
                        }
                    }
                    let room = sink.lend(end, left)?;
                    let wanted = room.len();
                    let count = source.read(room)?;
                    sink.filled(count)?;
                    end += count as u64;
                    left -= count as u64;
                    moved += count as u64;
                    if moved >= PROGRESS {
                        moved = 0;
                        tell(source, sink, control);
                    }
                    if count < wanted {
                        break;
                    }
                }
            }
        }
    }
    let size = size.unwrap_or(end);
    sink.finish(size)?;
    tell(source, sink, control);
    Ok(size)
}

fn tell(source: &dyn ExtentSource, sink: &dyn ExtentSink, control: &Control) {
    let (source_bytes, source_length) = source.progress();
    let written_bytes = sink.written();
    control.emit(&Event::Progress { source_bytes, source_length, written_bytes });
}
