//! A disk of its own: a reflink or a sparse copy of the base.
//!
//! ```text
//! new file ─▶ FICLONE ─ EINVAL ─▶ FICLONERANGE by range of data ─▶ grow ─▶ owner, mode, name
//!         └─▶ by range of data: copy_file_range ─ cannot ─▶ read, leave out zeros, write
//! ```

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::source::{BaseFile, check_can_be_copied};
use super::{Copied, DiskBuilder, Means, Provided, ProvidedDisk, reuse};
use crate::base::{BaseFormat, BaseImage};
use crate::control::{Control, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::source::input;
use crate::sys::pending::{Existing, FileMode, PendingFile};
use crate::sys::{copy, fiemap, file_system, owner, reflink};

/// Bytes copied between two looks at the cancel token.
const STEP: u64 = 16 << 20;
/// Memory of a copy the kernel cannot make.
const BUFFER: usize = 1 << 20;
/// What is all zeros in units of this stays a hole.
const BLOCK: usize = 4096;

pub(super) fn create(request: &DiskBuilder<'_>, means: Means) -> Result<ProvidedDisk> {
    let path = request.path.as_path();
    request.control.check()?;
    match request.existing {
        Existing::Replace | Existing::Overwrite => {
            BaseImage::refuse_as_overlay(request.base.path(), path)?;
        }
        // Publishing would find out too, after all the work.
        Existing::Refuse if fs::symlink_metadata(path).is_ok() => {
            let message = "the file exists and is left as it is";
            return Err(Error::new(ErrorKind::AlreadyExists, message).with_path(path));
        }
        Existing::Refuse => {}
    }
    let base = BaseFile::open(request.base)?;
    check_can_be_copied(request.base, &base.file, path)?;
    let length = request.file_length(base.length)?;
    let pending = PendingFile::create(path, request.existing, FileMode::Exact(request.mode))?;
    let file = pending.file();
    let how = match means {
        Means::Reflink => {
            share(&base, file, path)?.map_err(|error| cannot_share(&base, file, path, error))?;
            Provided::Reflink
        }
        Means::ReflinkElseCopy if share(&base, file, path)?.is_ok() => Provided::Reflink,
        _ => Provided::Copy(copy_data(&base, file, path, &request.control)?),
    };
    if length != base.length {
        set_length(file, path, length)?;
    }
    base.check_unchanged()?;
    reuse::note_base(file, request.base, path)?;
    if let Some((user, group)) = request.owner {
        owner::change(file, path, user, group)?;
    }
    request.control.check()?;
    pending.publish(request.durability)?;
    let virtual_size = match request.base.format() {
        BaseFormat::Raw => length,
        BaseFormat::Qcow2 => request.base.virtual_size(),
    };
    Ok(ProvidedDisk {
        path: path.to_path_buf(),
        format: request.base.format(),
        how,
        virtual_size,
        reused: false,
    })
}

/// Whether a new file in `folder` could share the base's storage. A nameless file is made there,
/// and shares one block with the base for a moment.
pub(super) fn can_share(base: &BaseFile<'_>, folder: &Path) -> Result<bool> {
    let probe = folder.join(".disk-engine.probe");
    let pending = PendingFile::create(&probe, Existing::Refuse, FileMode::Exact(0o600))?;
    // The largest block a file system of Linux has.
    let range = 0..base.length.min(64 << 10);
    match reflink::clone_range(&base.file, pending.file(), range) {
        Ok(()) => Ok(true),
        Err(error) if is_no_way(&error) => Ok(false),
        Err(error) => Err(share_failed(folder, error)),
    }
}

/// Makes `file` share the base's storage. The inner error says that these files cannot; `file` is
/// then empty.
fn share(base: &BaseFile<'_>, file: &File, path: &Path) -> Result<Result<(), io::Error>> {
    match reflink::clone_file(&base.file, file) {
        Ok(()) => return Ok(Ok(())),
        // A file system that has ranges only, or does not take this end of file.
        Err(error) if reflink::may_take_ranges(&error) => {}
        Err(error) if is_no_way(&error) => return Ok(Err(error)),
        Err(error) => return Err(share_failed(path, error)),
    }
    set_length(file, path, base.length)?;
    for range in base.data() {
        match reflink::clone_range(&base.file, file, range?) {
            Ok(()) => {}
            Err(error) if is_no_way(&error) => {
                set_length(file, path, 0)?;
                return Ok(Err(error));
            }
            Err(error) => return Err(share_failed(path, error)),
        }
    }
    Ok(Ok(()))
}

fn is_no_way(error: &io::Error) -> bool {
    reflink::is_unsupported(error) || reflink::crosses_file_systems(error)
}

fn share_failed(path: &Path, error: io::Error) -> Error {
    full_hint(Error::io("share the base's storage", path, error))
}

/// Names the file systems, which are what the caller can change.
fn cannot_share(base: &BaseFile<'_>, file: &File, path: &Path, error: io::Error) -> Error {
    let name = |file| file_system::name(file).unwrap_or_else(|_| "unknown".to_owned());
    let (message, hint) = if reflink::crosses_file_systems(&error) {
        (
            format!(
                "base and disk lie on two file systems ({} and {}), which share no storage",
                name(&base.file),
                name(file)
            ),
            "put both on one file system, or use strategy overlay or copy",
        )
    } else {
        (
            format!("the file system ({}) cannot share these files' storage", name(file)),
            "use strategy overlay or copy, or btrfs, or XFS made with reflink=1",
        )
    };
    Error::new(ErrorKind::Unsupported, message).with_path(path).with_hint(hint).with_source(error)
}

/// Copies the base's data to the same places of `file`, which is empty.
fn copy_data(base: &BaseFile<'_>, file: &File, path: &Path, control: &Control) -> Result<Copied> {
    // First: a file system that sees a file grow takes space ahead, and XFS keeps it.
    set_length(file, path, base.length)?;
    let mut copied = Copied::default();
    let mut in_kernel = true;
    let mut memory = Vec::new();
    for range in base.data() {
        let Range { start: mut at, end } = range?;
        while at < end {
            control.check()?;
            let most = STEP.min(end - at);
            if in_kernel {
                match copy::copy_range(&base.file, file, at, most)
                    .map_err(|error| write_failed(path, at, error))?
                {
                    Some(count @ 1..) => {
                        at = at.saturating_add(count);
                        copied.offloaded = copied.offloaded.saturating_add(count);
                    }
                    // Some file systems say 0 for "not by me". If it is the end, reading will tell.
                    Some(0) | None => in_kernel = false,
                }
            } else {
                if memory.is_empty() {
                    memory = input::zeroed(BUFFER)?;
                }
                let room = usize::try_from(most).unwrap_or(usize::MAX).min(memory.len());
                let bytes = memory.get_mut(..room).unwrap_or_default();
                base.file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => base.cut(at),
                    _ => Error::io("read the base", base.path, error).with_offset(at),
                })?;
                copied.written = copied.written.saturating_add(write_data(file, bytes, at, path)?);
                at = at.saturating_add(bytes.len() as u64);
            }
            control.emit(&Event::Copying {
                disk: path.to_path_buf(),
                copied_bytes: at,
                total_bytes: base.length,
            });
        }
    }
    // Whether it shares is news for a report; a copy does not fail for want of them.
    copied.shared = fiemap::shares_storage(file).unwrap_or(None);
    Ok(copied)
}

/// Writes what is not zero; says how many bytes. Ranges begin where blocks do, the last may end
/// anywhere.
fn write_data(file: &File, bytes: &[u8], offset: u64, path: &Path) -> Result<u64> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let is_zero = |block: &[u8]| ZEROS.get(..block.len()) == Some(block);
    let mut written = 0_u64;
    let mut at = offset;
    for run in bytes.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|block| block.len()).sum();
        if !run.first().is_some_and(|block| is_zero(block)) {
            let start = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let piece = bytes.get(start..).and_then(|rest| rest.get(..length)).unwrap_or_default();
            file.write_all_at(piece, at).map_err(|error| write_failed(path, at, error))?;
            written = written.saturating_add(length as u64);
        }
        at = at.saturating_add(length as u64);
    }
    Ok(written)
}

fn set_length(file: &File, path: &Path, length: u64) -> Result<()> {
    file.set_len(length).map_err(|error| {
        full_hint(Error::io(format!("set the size of the disk to {length} bytes"), path, error))
    })
}

fn write_failed(path: &Path, offset: u64, error: io::Error) -> Error {
    full_hint(Error::io("copy the base", path, error).with_offset(offset))
}

fn full_hint(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NoSpace => error.with_hint("free some space or choose another folder"),
        _ => error,
    }
}
