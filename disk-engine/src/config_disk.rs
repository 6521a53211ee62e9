//! Config disks: a few files for a guest to find at its first boot, as a FAT image with a label.
//!
//! ```text
//! folder ─┐                    ┌ boot sector, label, FAT ×2 ┬ root folder ┬ files, folders ┬ padding ┐
//! bytes  ─┴▶ tree ─▶ geometry ─▶└────────────────────────────┴─────────────┴────────────────┴─────────┘
//!            names checked       FAT12 or FAT16, as small as it gets       a multiple of 16 KiB
//! ```
//!
//! ```text
//! name        what FAT can call a file        tree        files and folders, sorted
//! label       what a guest finds it by        folder      a folder of this machine, read
//! geometry    how large everything is         image       written, through `fatfs`
//! cloud_init  a NoCloud seed                  shared      what `fatfs` gets wrong, put right
//! ```
//!
//! The same content gives the same bytes: whatever the order of adding it, whatever the files'
//! times and modes, on any machine. Times are 1980-01-01, FAT's first; the volume's id is the CRC-32
//! of label and content, so that two different disks in one guest do not share it. FAT32 is for disks
//! from 2 GiB on, and those are refused.
//!
//! Caller: `ops::config_disk`, which gives the image its name.

mod cloud_init;
mod folder;
mod geometry;
mod image;
mod label;
mod name;
mod shared;
mod tree;

use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
pub use cloud_init::{CloudInit, LABEL as NO_CLOUD_LABEL};
pub use geometry::FatType;
use geometry::Geometry;
use label::Label;
use tree::Tree;

/// The label of a disk that is given none.
pub const DEFAULT_LABEL: &str = "CONFIG";

/// What is written at once, or left a hole.
const BLOCK: usize = 4096;

/// How much a config disk may hold. Exceeding one is [`ErrorKind::Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigDiskLimits {
    /// Most bytes in all files together. They are held in memory, and so is the image.
    pub max_bytes: u64,
    /// Most files and folders together. `fatfs` looks through a folder for every name it adds, so
    /// the time grows with the square of this.
    pub max_entries: usize,
    /// Most folders inside each other.
    pub max_depth: usize,
}

impl Default for ConfigDiskLimits {
    /// 256 MiB, 1024 files and folders, 32 folders deep.
    fn default() -> Self {
        Self { max_bytes: 256 << 20, max_entries: 1024, max_depth: 32 }
    }
}

/// What a config disk will hold.
///
/// ```
/// use disk_engine::config_disk::ConfigDisk;
///
/// let image = ConfigDisk::new().label("CONFIG").file("net/eth0.conf", "dhcp\n").build()?;
/// assert!(image.len().is_multiple_of(4096));
/// # Ok::<(), disk_engine::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConfigDisk {
    label: String,
    entries: Vec<Entry>,
    least_size: u64,
    limits: ConfigDiskLimits,
}

/// A file or a folder at a path inside the disk.
#[derive(Clone, Debug)]
struct Entry {
    path: String,
    /// `None`: a folder.
    content: Option<Vec<u8>>,
}

/// What an image is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigDiskShape {
    /// Bytes of the image.
    pub size: u64,
    /// The width of its allocation table.
    pub fat: FatType,
    /// How many files it holds.
    pub files: usize,
    /// How many folders, the root not counted.
    pub folders: usize,
    /// Bytes in all files.
    pub content_bytes: u64,
}

impl Default for ConfigDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigDisk {
    /// An empty disk labelled [`DEFAULT_LABEL`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            label: DEFAULT_LABEL.into(),
            entries: Vec::new(),
            least_size: 0,
            limits: ConfigDiskLimits::default(),
        }
    }

    /// What guests find the disk by, as in `/dev/disk/by-label/`: 1 to 11 letters. They are kept as
    /// they are given: programs on Linux tell upper from lower case.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Makes the image at least `size` bytes; it is as small as its content allows otherwise.
    #[must_use]
    pub fn min_size(mut self, size: u64) -> Self {
        self.least_size = size;
        self
    }

    /// Sets how much may be added. Comes before [`ConfigDisk::folder`], which keeps to it.
    #[must_use]
    pub fn limits(mut self, limits: ConfigDiskLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a file. `path` is inside the disk, with `/` between folders, which need not be added.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.entries.push(Entry { path: path.into(), content: Some(content.into()) });
        self
    }

    /// Adds all that is in the folder at `path`, which may itself be a link to one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] for a symbolic link, device, FIFO or socket inside it;
    /// [`ErrorKind::Unsupported`] for a name that is not UTF-8; [`ErrorKind::Limit`]; otherwise what
    /// the system says. Each names the file.
    pub fn folder(mut self, path: &Path) -> Result<Self> {
        folder::read(path, &self.limits, &mut self.entries)?;
        Ok(self)
    }

    /// The image, in memory.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a label or a name that FAT cannot hold, or a file added twice;
    /// [`ErrorKind::Limit`] for more than there may be.
    pub fn build(&self) -> Result<Vec<u8>> {
        let plan = self.plan()?;
        let mut image = plan.image()?;
        let size = plan.geometry.size();
        let length = usize::try_from(size).map_err(|_| no_memory())?;
        image.try_reserve_exact(length.saturating_sub(image.len())).map_err(|_| no_memory())?;
        image.resize(length, 0);
        Ok(image)
    }

    /// Writes the image into `file`, which is empty and open for writing. What is not used stays a hole.
    ///
    /// # Errors
    ///
    /// As for [`ConfigDisk::build`], and what the system says about `path`.
    pub fn write_to(&self, file: &File, path: &Path) -> Result<ConfigDiskShape> {
        let plan = self.plan()?;
        let image = plan.image()?;
        let write = || {
            file.set_len(plan.geometry.size())?;
            for (block, bytes) in (0..).zip(image.chunks(BLOCK)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(bytes, block * BLOCK as u64)?;
                }
            }
            Ok(())
        };
        write().map_err(|error| Error::io("write the config disk", path, error))?;
        Ok(plan.shape())
    }

    fn plan(&self) -> Result<Plan<'_>> {
        let label = Label::new(&self.label)?;
        let tree = Tree::new(&self.entries, &self.limits)?;
        let geometry = Geometry::of(&tree, self.least_size)?;
        Ok(Plan { label, tree, geometry })
    }
}

/// All that is decided before the first byte is written.
struct Plan<'a> {
    label: Label,
    tree: Tree<'a>,
    geometry: Geometry,
}

impl Plan<'_> {
    /// The image up to its last byte in use.
    fn image(&self) -> Result<Vec<u8>> {
        let mut image = Vec::new();
        let used = usize::try_from(self.geometry.used()).map_err(|_| no_memory())?;
        image.try_reserve_exact(used).map_err(|_| no_memory())?;
        image::write(self, Cursor::new(&mut image)).map_err(|error| {
            Error::new(ErrorKind::Io, "build the config disk").with_source(error)
        })?;
        Ok(image)
    }

    fn shape(&self) -> ConfigDiskShape {
        let totals = self.tree.totals();
        ConfigDiskShape {
            size: self.geometry.size(),
            fat: self.geometry.fat,
            files: totals.files,
            folders: totals.folders,
            content_bytes: totals.bytes,
        }
    }
}

fn no_memory() -> Error {
    Error::new(ErrorKind::Limit, "no memory for the config disk")
}

#[cfg(test)]
mod tests;
