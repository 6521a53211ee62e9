//! `prepare`: the main job, one archive in, N bootable VM disks out.
//!
//! ```text
//! source ─▶ cache ─▶ base ─┬─▶ FOLDER/vm0/primary.qcow2
//!           (one extraction,├─▶ FOLDER/vm1/primary.qcow2      a few microseconds and
//!            ever, a key)   └─▶ …                             12 KiB each
//! ```
//!
//! A second call with the same folder is a reboot: overlays that fit are kept with their guests'
//! state. A call that fails removes the overlays and the VMs' folders it made itself, and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cache::{BaseOptions, CachedBase, ImageCache};
use crate::error::{Error, Result};
use crate::overlay::Overlay;
use crate::source::Source;
use crate::sys::pending::Existing;
use crate::sys::space;

/// The file name of each VM's disk.
pub const DISK_NAME: &str = "primary.qcow2";

/// What to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Number of VMs.
    pub nodes: usize,
    /// Where their folders go: `vm0`, `vm1`, …
    pub folder: PathBuf,
    /// Least size of each disk in bytes; the base's size is never cut.
    pub min_size: u64,
    /// Name the base relative to each overlay's folder.
    pub relative: bool,
    /// What to do with overlays that stand there: keep those that fit, or replace them all.
    pub fresh: bool,
    /// How the base is wanted.
    pub base: BaseOptions,
}

/// What was prepared, and what it cost.
#[derive(Debug)]
pub struct PrepareReport {
    /// The base; it cannot be removed while this lives.
    pub base: CachedBase,
    /// Time to have the base: an extraction, or next to nothing.
    pub base_time: Duration,
    /// The VMs' disks, in order.
    pub disks: Vec<PreparedDisk>,
    /// Time to make or check all overlays.
    pub overlays_time: Duration,
}

/// One VM's disk.
#[derive(Clone, Debug)]
pub struct PreparedDisk {
    /// The overlay.
    pub overlay: Overlay,
    /// Bytes it takes on its file system now.
    pub allocated: u64,
}

/// Prepares the disks of `options.nodes` VMs from `source`, through `cache`.
///
/// # Errors
///
/// As [`ImageCache::base_with`] and [`crate::overlay::OverlayBuilder::create`].
pub fn prepare(
    cache: &ImageCache,
    source: impl Into<Source>,
    options: &PrepareOptions,
) -> Result<PrepareReport> {
    let started = Instant::now();
    let base = cache.base_with(source, &options.base)?;
    let base_time = started.elapsed();

    let started = Instant::now();
    let mut made = Made::default();
    let disks = (0..options.nodes)
        .map(|node| {
            options.base.control.check()?;
            let path = disk_path(&options.folder, node);
            if let Some(folder) = path.parent() {
                made.folder(folder)?;
            }
            let disk = prepare_disk(&base, &path, options)?;
            made.note(&disk.overlay);
            Ok(disk)
        })
        .collect::<Result<Vec<_>>>()?;
    made.keep();
    Ok(PrepareReport { base, base_time, disks, overlays_time: started.elapsed() })
}

/// Where the disk of VM number `node` lies.
#[must_use]
pub fn disk_path(folder: &Path, node: usize) -> PathBuf {
    folder.join(format!("vm{node}")).join(DISK_NAME)
}

fn prepare_disk(base: &CachedBase, path: &Path, options: &PrepareOptions) -> Result<PreparedDisk> {
    let overlay = base
        .image
        .overlay(path)
        .min_size(options.min_size)
        .relative(options.relative)
        .reuse(!options.fresh)
        .existing(if options.fresh { Existing::Replace } else { Existing::Refuse })
        .durability(options.base.durability)
        .create()?;
    let metadata = fs::metadata(path).map_err(|error| Error::io("look at", path, error))?;
    Ok(PreparedDisk { overlay, allocated: space::allocated(&metadata) })
}

/// The overlays and their folders this call made, removed again unless it succeeds.
#[derive(Default)]
struct Made {
    overlays: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Made {
    /// Makes the folder, unless it is there.
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let made = match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder),
            outcome => outcome,
        };
        made.map_err(|error| Error::io("make the folder", folder, error))?;
        self.folders.push(folder.to_path_buf());
        Ok(())
    }

    fn note(&mut self, overlay: &Overlay) {
        if !overlay.reused() {
            self.overlays.push(overlay.path().to_path_buf());
        }
    }

    fn keep(mut self) {
        self.overlays.clear();
        self.folders.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.overlays {
            let _ = fs::remove_file(path);
        }
        // One that someone else has put something into stays.
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}
