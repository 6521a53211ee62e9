//! `check`: whether an image is consistent, and what to do if it is not, as `qemu-img check` has it.
//!
//! ```text
//! check            read-only, locked as a reader          findings, one by one ─▶ counts
//! repair           locked as a writer                     findings, changes ─▶ counts, what was fixed
//! repair, planned  read-only                              the same words, nothing written
//! ```
//!
//! Only the image itself is opened: neither its backing file nor its external data file has anything to
//! do with its tables. Callers: `cli::check`, whoever speaks qemu-img's language.

use std::fs::File;
use std::path::{Path, PathBuf};

use qcow2_format::image::check;
pub use qcow2_format::image::check::{Finding, Fix, RepairMode, Severity};

use crate::base::BaseFormat;
use crate::control::{Control, Event};
use crate::disk::chain::{from_format, locked, open_image};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_lock::{Access, Locking};

/// What qemu-img says of a format that has nothing to check.
pub const UNSUPPORTED: &str = "This image format does not support checks";

/// How an image is checked.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CheckOptions {
    /// What is repaired; nothing, if `None`.
    pub repair: Option<RepairMode>,
    /// Whether a repair is only planned.
    pub dry_run: bool,
    /// How the image is locked.
    pub locking: Locking,
    /// Bytes of memory for counts, about; `None` for the format library's default.
    pub memory: Option<u64>,
    /// Threads; `None` for one a processor, at most 8.
    pub threads: Option<usize>,
    /// Stops the work, hears of its progress.
    pub control: Control,
}

/// What was found, in qemu-img's fields. After a repair the counts are those of the repaired image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// The image.
    pub filename: PathBuf,
    /// Its format, `qcow2`.
    pub format: &'static str,
    /// What could not be looked at.
    pub check_errors: u64,
    /// Where the last host cluster ends that is counted or used, in bytes.
    pub image_end_offset: u64,
    /// What makes the image dangerous to use or part of it unreadable.
    pub corruptions: u64,
    /// Clusters that are counted more often than they are used.
    pub leaks: u64,
    /// Corruptions that were repaired, or would be.
    pub corruptions_fixed: u64,
    /// Leaks that were given back, or would be.
    pub leaks_fixed: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Those that are stored, or have a place to be.
    pub allocated_clusters: u64,
    /// Those that do not lie behind the one before.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Changes that were made, or would be.
    pub fixes: u64,
}

/// What is told while an image is checked or repaired.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckEvent<'a> {
    /// Something found, and how often.
    Found(&'a Finding, u64),
    /// A change, just before it is made; of a plan, one that would be.
    Fixing(&'a Fix),
}

/// Checks the image at `path`, and repairs it if that is asked for. `each` is told what is found and
/// changed; how much that is, nothing bounds.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] with [`UNSUPPORTED`] if `format` has nothing to check;
/// [`ErrorKind::Corrupt`] if nothing can be found through the header or the snapshot table;
/// [`ErrorKind::Busy`] if another program has the image open in a way that forbids this;
/// [`ErrorKind::Cancelled`]; the storage's failure. What was repaired until then is whole.
pub fn check(
    path: impl AsRef<Path>,
    format: BaseFormat,
    options: &CheckOptions,
    mut each: impl FnMut(&CheckEvent<'_>) + Send,
) -> Result<CheckReport> {
    let path = path.as_ref();
    let writes = options.repair.is_some() && !options.dry_run;
    let access = if writes { Access::Write } else { Access::Read };
    let file = open_image(path, File::options().read(true).write(writes))?;
    if format == BaseFormat::Raw {
        return Err(Error::new(ErrorKind::Unsupported, UNSUPPORTED).with_path(path));
    }
    let image = locked(file, path, access, options.locking)?;
    let mut how = check::CheckOptions::new();
    if let Some(memory) = options.memory {
        how = how.memory(memory);
    }
    if let Some(threads) = options.threads {
        how = how.threads(threads);
    }
    let control = options.control.clone();
    let how = how.progress(move |checked_tables, total_tables| {
        control.emit(&Event::Checking { checked_tables, total_tables });
        control.check().is_ok()
    });
    let failed = |error| {
        // The library stops for no other reason than being told to.
        options.control.check().err().unwrap_or_else(|| from_format(error, path))
    };
    let Some(mode) = options.repair else {
        let found = |finding: &Finding, times| each(&CheckEvent::Found(finding, times));
        let report = check::check(&image, &how, found).map_err(failed)?;
        return Ok(CheckReport::of(path, &report));
    };
    let how = check::RepairOptions::new(mode).check(how);
    let each = std::sync::Mutex::new(&mut each);
    let tell = |event: &CheckEvent<'_>| {
        let mut each = each.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        each(event);
    };
    let found = |finding: &Finding, times: u64| tell(&CheckEvent::Found(finding, times));
    let fixed = |fix: &Fix| tell(&CheckEvent::Fixing(fix));
    let repaired = match options.dry_run {
        true => check::plan_repair(&image, &how, found, fixed),
        false => check::repair(&image, &how, found, fixed),
    };
    let repaired = repaired.map_err(failed)?;
    Ok(CheckReport {
        corruptions_fixed: repaired.corruptions_fixed,
        leaks_fixed: repaired.leaks_fixed,
        fixes: repaired.fixes,
        ..CheckReport::of(path, &repaired.after)
    })
}

impl CheckReport {
    fn of(path: &Path, report: &check::CheckReport) -> Self {
        Self {
            filename: path.to_path_buf(),
            format: "qcow2",
            check_errors: report.check_errors,
            image_end_offset: report.image_end_offset,
            corruptions: report.corruptions,
            leaks: report.leaks,
            corruptions_fixed: 0,
            leaks_fixed: 0,
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: report.compressed_clusters,
            fixes: 0,
        }
    }

    /// qemu-img's exit code: 0 nothing is wrong, 1 the check is not complete, 2 there are corruptions,
    /// 3 there are leaks and nothing worse.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if self.check_errors > 0 {
            1
        } else if self.corruptions > 0 {
            2
        } else if self.leaks > 0 {
            3
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::control::CancelToken;

    #[test]
    fn progress_is_told_and_a_cancelled_check_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let image = qcow2_format::CreateOptions::new(8 << 20)
            .cluster_bits(qcow2_format::ClusterBits::MIN)
            .preallocation(qcow2_format::image::Preallocation::Metadata);
        image.plan().unwrap().write_to(&File::create_new(&path).unwrap()).unwrap();
        let (told, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let cancel = CancelToken::new();
        let (seen, of) = (Arc::clone(&told), Arc::clone(&total));
        let control = Control::new().with_cancel(cancel.clone()).with_observer(move |event| {
            if let Event::Checking { checked_tables, total_tables } = event {
                seen.fetch_max(*checked_tables, Ordering::Relaxed);
                of.store(*total_tables, Ordering::Relaxed);
            }
        });
        let options = CheckOptions { control, ..CheckOptions::default() };
        let report = check(&path, BaseFormat::Qcow2, &options, |_| {}).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0));
        let (told, total) = (told.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        assert!(told > 0 && told <= total && total == (8 << 20) / (64 * 512), "{told} of {total}");
        cancel.cancel();
        let error = check(&path, BaseFormat::Qcow2, &options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
