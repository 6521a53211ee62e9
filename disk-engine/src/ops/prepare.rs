//! `prepare`: the main job, one archive in, N bootable VM disks out.
//!
//! ```text
//! source ─▶ cache ─▶ base ─┬─▶ FOLDER/vm0/primary.qcow2     overlays: a few microseconds and
//!           (one extraction,├─▶ FOLDER/vm1/primary.qcow2    12 KiB each
//!            ever, a key)   └─▶ FOLDER/vm…/primary.img      reflinks and copies are raw
//! ```
//!
//! A second call with the same folder is a reboot: disks that fit are kept with their guests'
//! state. A call that fails removes the disks and the VMs' folders it made itself, and nothing
//! else. Calls for one folder take turns, so none keeps a disk that another one is about to remove.

mod made;
mod place;
mod turn;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::BaseFormat;
use crate::cache::{BaseOptions, CachedBase, ImageCache};
use crate::error::{Error, Result};
use crate::source::Source;
use crate::strategy::{DiskBuilder, ProvidedDisk, Strategy, room};
use crate::sys::pending::Existing;
use crate::sys::space;
use made::Made;
use place::Place;
use turn::Turn;

/// The file name of each VM's disk, if it is an overlay.
pub const DISK_NAME: &str = "primary.qcow2";
/// The file name of each VM's disk, if it is raw.
pub const RAW_DISK_NAME: &str = "primary.img";

/// What to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Number of VMs.
    pub nodes: usize,
    /// Where their folders go: `vm0`, `vm1`, …
    pub folder: PathBuf,
    /// Least size of each disk in bytes; the base's size is never cut.
    pub min_size: u64,
    /// How the disks are made.
    pub strategy: Strategy,
    /// Make raw disks only: reflinks or copies.
    pub raw: bool,
    /// Bytes each disk is expected to grow by; what the file system has left must hold them.
    pub reserve: u64,
    /// Name the base relative to each overlay's folder.
    pub relative: bool,
    /// What to do with disks that stand there: keep those that fit, or replace them all.
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
    /// Time to make or check all disks.
    pub disks_time: Duration,
}

/// One VM's disk.
#[derive(Clone, Debug)]
pub struct PreparedDisk {
    /// The disk, and how it was made.
    pub disk: ProvidedDisk,
    /// Bytes it takes on its file system now; storage that is shared counts too.
    pub allocated: u64,
}

/// Prepares the disks of `options.nodes` VMs from `source`, through `cache`.
///
/// What cannot fit is refused before anything is written: the reserve before the base is extracted,
/// the disks once the base is known, as [`room`] says. The base itself is checked when its archive
/// tells how much data there is.
///
/// # Errors
///
/// As [`ImageCache::base_with`] and [`DiskBuilder::create`]; [`ErrorKind::NoSpace`] for what cannot
/// fit; [`ErrorKind::Mismatch`] if a VM's folder holds a disk of the other format, or two VMs' disks are
/// one file;
/// [`ErrorKind::Busy`] if another call works in the folder for longer than `options.base.timeout`.
///
/// [`ErrorKind::Busy`]: crate::ErrorKind::Busy
/// [`ErrorKind::Mismatch`]: crate::ErrorKind::Mismatch
/// [`ErrorKind::NoSpace`]: crate::ErrorKind::NoSpace
pub fn prepare(
    cache: &ImageCache,
    source: impl Into<Source>,
    options: &PrepareOptions,
) -> Result<PrepareReport> {
    let standing = |place: Place| place.need(options.fresh, room::LEAST);
    let least = (0..options.nodes).map(|node| Place::look(&options.folder, node)).map(standing);
    room::check(&options.folder, room::peak(least, options.reserve), options.nodes)?;

    let started = Instant::now();
    let base = cache.base_with(source, &options.base)?;
    let base_time = started.elapsed();

    let started = Instant::now();
    let disks = if options.nodes == 0 { Vec::new() } else { make_disks(&base, options)? };
    Ok(PrepareReport { base, base_time, disks, disks_time: started.elapsed() })
}

/// Where the disk of VM number `node` lies, if it has that format.
#[must_use]
pub fn disk_path(folder: &Path, node: usize, format: BaseFormat) -> PathBuf {
    folder.join(format!("vm{node}")).join(file_name(format))
}

fn file_name(format: BaseFormat) -> &'static str {
    match format {
        BaseFormat::Raw => RAW_DISK_NAME,
        BaseFormat::Qcow2 => DISK_NAME,
    }
}

fn make_disks(base: &CachedBase, options: &PrepareOptions) -> Result<Vec<PreparedDisk>> {
    // Declared first, it ends last: nobody sees disks that are about to go.
    let _turn;
    let mut made = Made::default();
    _turn = Turn::take(&options.folder, &mut made, &options.base)?;
    let first = disk_path(&options.folder, 0, BaseFormat::Qcow2);
    let builder = builder(base, first, options);
    let format = builder.format()?;
    let places: Vec<_> =
        (0..options.nodes).map(|node| Place::look(&options.folder, node)).collect();
    places.iter().try_for_each(|place| place.check(format, options.fresh))?;
    Place::check_apart(&places, format, options.fresh)?;
    let all_kept = !options.fresh && places.iter().all(Place::is_taken);
    let per_disk = if all_kept { 0 } else { builder.space_needed()? };
    let needs = places.iter().map(|place| place.need(options.fresh, per_disk));
    room::check(&options.folder, room::peak(needs, options.reserve), options.nodes)?;

    let disks = (0..options.nodes)
        .map(|node| {
            options.base.control.check()?;
            let path = disk_path(&options.folder, node, format);
            if let Some(folder) = path.parent() {
                made.folder(folder)?;
            }
            let disk = self::builder(base, path, options).create()?;
            made.note(&disk);
            if options.fresh {
                Place::remove_other(&options.folder, node, format)?;
            }
            let metadata = fs::metadata(disk.path())
                .map_err(|error| Error::io("look at", disk.path(), error))?;
            Ok(PreparedDisk { disk, allocated: space::allocated(&metadata) })
        })
        .collect::<Result<Vec<_>>>()?;
    made.keep();
    Ok(disks)
}

fn builder<'base>(
    base: &'base CachedBase,
    path: PathBuf,
    options: &PrepareOptions,
) -> DiskBuilder<'base> {
    base.image
        .disk(path)
        .strategy(options.strategy)
        .raw(options.raw)
        .min_size(options.min_size)
        .relative(options.relative)
        .reuse(!options.fresh)
        .existing(if options.fresh { Existing::Replace } else { Existing::Refuse })
        .durability(options.base.durability)
        .control(options.base.control.clone())
}
