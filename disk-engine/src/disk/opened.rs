//! An opened disk: a chain of raw and qcow2 images, read as the guest would read it.
//!
//! ```text
//! offset ─▶ [0] vm.qcow2 ──unallocated──▶ [1] layer.qcow2 ──unallocated──▶ [2] base.img
//!               data, zeros                   data, zeros                      data
//!                                             past its end: zeros              past its end: zeros
//! ```
//!
//! Formats are explicit, and names found inside images are opened by policy only: see `chain` and
//! `policy`. An image that is refused or gone is an error here, never zeros.
//!
//! Callers: whatever reads a disk through [`DiskContent`].

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use qcow2_format::image::RunKind;
use qcow2_format::{Header, Image, ReadOptions};

use crate::base::BaseFormat;
use crate::disk::chain::{Chain, ChainImage, from_format, identity};
use crate::disk::content::{ContentRun, DiskContent};
use crate::disk::layer::Layer;
use crate::disk::map::{Cleared, DiskRun, DiskRuns};
use crate::disk::policy::BackingPolicy;
use crate::disk::raw::RawDisk;
use crate::error::{Error, ErrorKind, Result};

/// Pieces that one call of [`DiskContent::run_at`] puts together.
const PIECES_MAX: usize = 64;

/// How a disk is opened. Memory is for the whole chain.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskOptions {
    /// Which backing files may be opened: by default those beside or below the image that names
    /// them.
    pub policy: BackingPolicy,
    /// Which external data files may be opened: by default none.
    pub data_files: BackingPolicy,
    /// The id or name of the top image's snapshot that is read, instead of its active disk.
    pub snapshot: Option<String>,
    /// Bytes of table entries kept in memory.
    pub l2_cache: u64,
    /// Bytes of decoded compressed clusters kept in memory.
    pub cluster_cache: u64,
    /// Threads that decode compressed clusters, the caller's among them; `None` leaves it to the
    /// number of processors.
    pub threads: Option<usize>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            policy: BackingPolicy::default(),
            data_files: BackingPolicy::Deny,
            snapshot: None,
            l2_cache: 4 << 20,
            cluster_cache: 8 << 20,
            threads: None,
        }
    }
}

/// A file the caller has opened, as part of a disk.
#[derive(Debug)]
pub struct DiskFile {
    /// The file, open for reading.
    pub file: File,
    /// What messages call it.
    pub path: PathBuf,
    /// Its format.
    pub format: BaseFormat,
    /// Its external data file, if it has one.
    pub data_file: Option<File>,
}

/// An image of an opened disk.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DiskImage<'a> {
    /// Where it lies, as its overlay or the caller names it.
    pub path: &'a Path,
    /// Its format.
    pub format: BaseFormat,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Its header, if it is qcow2.
    pub header: Option<&'a Header>,
    /// Whether its refcounts may be wrong. What is read is right all the same.
    pub dirty: bool,
    /// Whether it is marked corrupt: what is read may be anything.
    pub corrupt: bool,
}

/// A chain of images, open for reading.
#[derive(Debug)]
pub struct Disk {
    /// Top first; at least one.
    layers: Vec<Layer>,
    size: u64,
}

impl Disk {
    /// Opens the image at `path` and everything it stands on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] or [`ErrorKind::NotFound`] for an image or data file that the policy
    /// forbids or that is gone, and for a snapshot that does not exist;
    /// [`ErrorKind::Corrupt`], [`ErrorKind::Unsupported`] or [`ErrorKind::Limit`] for an image that
    /// cannot be read; otherwise what the system says.
    pub fn open(path: impl AsRef<Path>, format: BaseFormat, options: &DiskOptions) -> Result<Self> {
        let chain = Chain::open(path.as_ref(), format, &options.policy)?;
        if let Some(reason) = chain.not_followed {
            return Err(reason);
        }
        let files = chain
            .images
            .iter()
            .map(|image| named_data_file(image, &options.data_files))
            .collect::<Result<Vec<_>>>()?;
        Self::of_images(chain.images, files, options)
    }

    /// The disk in files that the caller has opened, top first, each standing on the next one.
    /// Nothing is opened by name; the policies are not asked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if there are none, if too few or too many, or if an external data
    /// file is missing or not needed; otherwise as [`Disk::open`].
    pub fn from_files(
        files: impl IntoIterator<Item = DiskFile>,
        options: &DiskOptions,
    ) -> Result<Self> {
        let mut data_files = Vec::new();
        let files = files.into_iter().map(|file| {
            data_files.push(file.data_file);
            (file.file, file.path, file.format)
        });
        let chain = Chain::of_files(files)?;
        Self::of_images(chain.images, data_files, options)
    }

    /// The images of the disk, top first.
    pub fn images(&self) -> impl ExactSizeIterator<Item = DiskImage<'_>> {
        self.layers.iter().map(|layer| DiskImage {
            path: layer.path(),
            format: layer.format(),
            size: layer.size(),
            header: layer.header(),
            dirty: layer.image().is_some_and(Image::is_dirty),
            corrupt: layer.image().is_some_and(Image::is_marked_corrupt),
        })
    }

    /// The runs of `range`, in order, each as long as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the range is not on the disk.
    pub fn map(&self, range: Range<u64>) -> Result<DiskRuns<'_>> {
        self.check(range.start, range.end.saturating_sub(range.start))?;
        Ok(DiskRuns::new(self, range))
    }

    fn of_images(
        images: Vec<ChainImage>,
        data_files: Vec<Option<File>>,
        options: &DiskOptions,
    ) -> Result<Self> {
        let identities = images
            .iter()
            .map(|image| identity(&image.file, &image.path))
            .collect::<Result<Vec<_>>>()?;
        // Each image gets its share.
        let share = images.len().max(1) as u64;
        let mut read = ReadOptions::new()
            .l2_cache(options.l2_cache / share)
            .cluster_cache(options.cluster_cache / share);
        if let Some(threads) = options.threads {
            read = read.threads(threads);
        }
        let mut layers = Vec::new();
        for (depth, (image, data)) in images.into_iter().zip(data_files).enumerate() {
            if let Some(data) = &data
                && identities.contains(&identity(data, &image.path)?)
            {
                let message = "the external data file is an image of the chain";
                return Err(Error::new(ErrorKind::Corrupt, message).with_path(&image.path));
            }
            let read = match &options.snapshot {
                Some(name) if depth == 0 => read.clone().snapshot(name.as_bytes()),
                _ => read.clone(),
            };
            let top_snapshot = depth == 0 && options.snapshot.is_some();
            layers.push(layer(image, data, &read, top_snapshot)?);
        }
        let size = layers
            .first()
            .map(Layer::size)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a disk has at least one image"))?;
        Ok(Self { layers, size })
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!("{length} bytes are not in a disk of {} bytes", self.size);
        let error = Error::new(ErrorKind::InvalidInput, message).with_offset(offset);
        Err(match self.layers.first() {
            Some(top) => error.with_path(top.path()),
            None => error,
        })
    }

    /// What starts at `offset`, as far as one look at the tables tells.
    pub(super) fn piece_at(
        &self,
        offset: u64,
        limit: u64,
        cleared: &mut Cleared,
    ) -> Result<DiskRun> {
        self.check(offset, 1)?;
        let mut limit = limit.min(self.size - offset).max(1);
        let unallocated = RunKind::Unallocated { host: None };
        for (depth, layer) in self.layers.iter().enumerate() {
            // Nothing below has it: it lies past the end of what is below.
            let below = self.layers.get(depth + 1).map_or(0, Layer::size);
            let left = cleared.until(depth).saturating_sub(offset);
            let (length, kind) = if left > 0 {
                (left.min(limit), unallocated)
            } else {
                let run = layer.run_at(offset, limit)?;
                (run.length.min(limit), run.kind)
            };
            let RunKind::Unallocated { .. } = kind else {
                return Ok(DiskRun::new(offset, length, depth, kind));
            };
            if below <= offset {
                return Ok(DiskRun::new(offset, length, depth, kind));
            }
            if left == 0 {
                cleared.set(depth, offset.saturating_add(length).min(below));
            }
            limit = length.min(below - offset);
        }
        // The last layer has nothing below, so the loop has returned.
        Ok(DiskRun::new(offset, limit, self.layers.len().saturating_sub(1), unallocated))
    }

    fn read_from(&self, depth: usize, bytes: &mut [u8], offset: u64) -> Result<()> {
        let size = self.layers.get(depth).map_or(0, Layer::size).saturating_sub(offset);
        let inside = usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len());
        let (inside, beyond) = bytes.split_at_mut(inside);
        beyond.fill(0);
        match self.layers.get(depth) {
            Some(layer) if !inside.is_empty() => {
                layer.read_over(inside, offset, |part, at| self.read_from(depth + 1, part, at))
            }
            _ => Ok(()),
        }
    }
}

impl DiskContent for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<ContentRun> {
        self.check(offset, 1)?;
        let mut pieces = DiskRuns::new(self, offset..self.size);
        let mut run = ContentRun { length: 0, zero: false };
        for index in 0..PIECES_MAX {
            match pieces.piece() {
                Some(Ok(piece)) if index == 0 => {
                    run = ContentRun { length: piece.length, zero: piece.zero };
                }
                Some(Ok(piece)) if piece.zero == run.zero => {
                    run.length = run.length.saturating_add(piece.length);
                }
                Some(Err(error)) if index == 0 => return Err(error),
                // Whoever asks for what lies there hears of it.
                _ => break,
            }
        }
        Ok(run)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.read_from(0, bytes, offset)
    }
}

/// Opens the external data file that `image` has, as `policy` allows.
fn named_data_file(image: &ChainImage, policy: &BackingPolicy) -> Result<Option<File>> {
    use qcow2_format::feature::IncompatibleFeatures;
    let external = |header: &&Header| {
        header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
    };
    let Some(header) = image.header.as_ref().filter(external) else { return Ok(None) };
    let Some(name) = header.external_data_file() else {
        let message = "the image does not name its external data file";
        return Err(Error::new(ErrorKind::NotFound, message).with_path(&image.path));
    };
    policy.open_data_file(&image.path, name).map(|(file, _)| Some(file)).map_err(
        |error| match error.kind() {
            ErrorKind::Refused if *policy == BackingPolicy::Deny => {
                error.with_hint("external data files are opened only where that is allowed")
            }
            _ => error,
        },
    )
}

fn layer(
    image: ChainImage,
    data: Option<File>,
    options: &ReadOptions,
    snapshot: bool,
) -> Result<Layer> {
    let ChainImage { path, format, file, .. } = image;
    let opened = match (format, data) {
        (BaseFormat::Raw, Some(_)) => {
            let message = "a raw image has no external data file";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
        }
        (BaseFormat::Raw, None) if snapshot => {
            let message = "a raw image has no snapshots";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(path));
        }
        (BaseFormat::Raw, None) => return Ok(Layer::raw(RawDisk::of(file, &path)?, path)),
        (BaseFormat::Qcow2, None) => Image::open(file, options),
        (BaseFormat::Qcow2, Some(data)) => Image::open_with_data(file, data, options),
    };
    opened.map(|image| Layer::qcow2(image, path.clone())).map_err(|error| from_format(error, &path))
}
