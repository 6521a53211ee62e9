//! Finding disks below a folder that anybody may have filled.
//!
//! ```text
//! regular file   primary.img: raw, whatever it begins with; "QFI\xfb" first: qcow2; else no disk
//! folder         looked into, down to a stated depth
//! the rest       links, FIFOs, sockets, devices: never opened
//! ```

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qcow2_format::ReadAt;

use super::{UsageOptions, UsageReport, not_a_disk};
use crate::base::BaseFormat;
use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::prepare::RAW_DISK_NAME;
use crate::sys::open;

/// Files that were looked at, by device and inode.
#[derive(Debug, Default)]
pub(super) struct Seen(HashSet<(u64, u64)>);

impl Seen {
    fn is_new(&mut self, metadata: &Metadata) -> bool {
        self.0.insert((metadata.dev(), metadata.ino()))
    }
}

/// Looks at a path the caller names.
pub(super) fn named(
    path: &Path,
    options: &UsageOptions,
    seen: &mut Seen,
    report: &mut UsageReport,
) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|error| Error::io("look at", path, error))?;
    if metadata.is_dir() {
        let folder = File::open(path).map_err(|error| Error::io("open", path, error))?;
        report.add_file_system(&folder, path)?;
        return below(path, options, seen, report);
    }
    if !metadata.is_file() {
        return Err(not_a_disk(path));
    }
    let file = chain::open_top(path)?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if seen.is_new(&metadata) {
        let format = format(&file, path)?.unwrap_or(BaseFormat::Raw);
        add(&file, path, format, report);
    }
    Ok(())
}

fn below(
    folder: &Path,
    options: &UsageOptions,
    seen: &mut Seen,
    report: &mut UsageReport,
) -> Result<()> {
    // Folders to look into, the next one last.
    let mut folders = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut inner = Vec::new();
        for path in sorted(&folder, report) {
            options.control.check()?;
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    vanished_or(report, &path, Error::io("look at", &path, error));
                    continue;
                }
            };
            if metadata.is_dir() && depth < options.depth {
                inner.push((path, depth + 1));
            } else if metadata.is_dir() {
                let message = format!("deeper than {} folders", options.depth);
                report.skip(&path, &Error::new(ErrorKind::Limit, message));
            } else if metadata.is_file()
                && let Err(error) = found(&path, seen, report)
            {
                vanished_or(report, &path, error);
            }
        }
        folders.extend(inner.into_iter().rev());
    }
    Ok(())
}

/// What a folder holds, by name. One that cannot be read is told.
fn sorted(folder: &Path, report: &mut UsageReport) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let entries = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            paths.push(entry?.path());
        }
        Ok(())
    });
    if let Err(error) = entries {
        vanished_or(report, folder, Error::io("read the folder", folder, error));
    }
    paths.sort_unstable();
    paths
}

/// Looks at a regular file that was found in a folder.
fn found(path: &Path, seen: &mut Seen, report: &mut UsageReport) -> Result<()> {
    let open = |error| Error::io("open", path, error);
    let file = open::existing(path).map_err(open)?;
    let metadata = file.metadata().map_err(open)?;
    // It may be another thing by now.
    if !metadata.is_file() {
        return Ok(());
    }
    if let Some(format) = format(&file, path)?
        && seen.is_new(&metadata)
    {
        add(&file, path, format, report);
    }
    Ok(())
}

/// What begins as an image and is none does not hide the others.
fn add(file: &File, path: &Path, format: BaseFormat, report: &mut UsageReport) {
    if let Err(error) = report.add(file, path, format) {
        report.skip(path, &error);
    }
}

/// The format a file has by its name or its first bytes.
fn format(file: &File, path: &Path) -> Result<Option<BaseFormat>> {
    if path.file_name().is_some_and(|name| name == RAW_DISK_NAME) {
        return Ok(Some(BaseFormat::Raw));
    }
    let mut magic = [0; 4];
    let count = file
        .read_full_at(&mut magic, 0)
        .map_err(|error| Error::io("read the first bytes of", path, error))?;
    Ok((count == 4 && magic == *b"QFI\xfb").then_some(BaseFormat::Qcow2))
}

/// Disks come and go while we look.
fn vanished_or(report: &mut UsageReport, path: &Path, error: Error) {
    if error.kind() != ErrorKind::NotFound {
        report.skip(path, &error);
    }
}
