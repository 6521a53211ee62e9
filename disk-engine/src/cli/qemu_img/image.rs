//! What the caller calls an image: a path, `json:{…}`, or with `--image-opts` a list of options.
//!
//! ```text
//! disk.qcow2                                   path; the format with -f, else by its first bytes
//! file:disk.qcow2                              the same
//! json:{"driver": "qcow2", "file": {…}}        flattened to file.driver, file.filename, …
//! driver=qcow2,file.filename=disk.qcow2        with --image-opts
//! ```
//!
//! Only the caller's own words are read like this, never a name found inside an image. Callers: the
//! commands of `qemu_img`.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow2_format::feature::AutoclearFeatures;
use qcow2_format::header::extension::HeaderExtension;
use qcow2_format::image::SnapshotSize;

use super::stated::{Other, Stated};
use super::{NAME, Outcome, Stop, complaint, tell};
use crate::base::BaseFormat;
use crate::disk::chain::DEPTH_MAX;
use crate::disk::foreign::foreign_format;
use crate::disk::policy::{BackingPolicy, DataFileNames};
use crate::disk::sectors::whole_sectors;
use crate::disk::{Disk, DiskContent, DiskOptions, Locking, StatedBacking, StatedTop, inspect};
use crate::error::Result;

/// What a disk encrypted as a whole begins with: to qemu-img a format, to others a disk's bytes.
const LUKS: &[u8] = b"LUKS\xba\xbe";

/// All formats and protocols that qemu-img has a name for.
const DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// Whether qemu-img knows a format of that name.
pub(super) fn is_known(name: &str) -> bool {
    DRIVERS.contains(&name)
}

/// Whether qemu-img opens names that begin like that otherwise than as files.
pub(super) fn is_protocol(name: &str) -> bool {
    // The driver behind it has another name.
    name == "fat" || is_known(name.split('+').next().unwrap_or_default())
}

/// What is said of a format that qemu-img has and this program has not.
pub(super) fn unsupported(name: &str) -> String {
    format!("the format '{name}' is not supported by this program, which has raw and qcow2")
}

/// How images are named and opened on a command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming {
    /// The format that was stated.
    pub(super) format: Option<String>,
    /// Whether names are lists of options.
    pub(super) image_opts: bool,
    /// Whether others may write meanwhile.
    pub(super) force_share: bool,
}

/// An image that the caller named.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// As the caller wrote it, for messages.
    pub(super) shown: String,
    /// The file that means.
    pub(super) path: PathBuf,
    /// Its format, stated or found.
    pub(super) format: BaseFormat,
    /// Whether it is a file without a format, which is read as a raw image is.
    pub(super) protocol: bool,
    /// Whether others may write meanwhile.
    pub(super) force_share: bool,
    /// What of it is read otherwise than it says.
    pub(super) top: StatedTop,
    /// The same as the caller wrote it.
    pub(super) other: Other,
}

impl Named {
    /// How its disk is opened: names in it are followed as far as qemu-img would, and no further than
    /// to plain files.
    pub(super) fn disk(&self) -> DiskOptions {
        DiskOptions {
            policy: BackingPolicy::Any,
            data_files: BackingPolicy::Any,
            data_file_names: DataFileNames::OfWorkingFolder,
            locking: self.locking(),
            top: self.top.clone(),
            snapshot_size: SnapshotSize::Active,
            ..DiskOptions::default()
        }
    }

    /// Says of each image of the chain what qemu-img warns of when it opens one.
    pub(super) fn warn(&self) {
        let (mut path, mut format) = (self.path.clone(), self.format);
        let mut stated = &self.top.backing;
        for _ in 0..DEPTH_MAX {
            warn_of_bitmaps(&path, format);
            match complaint::below(&path, format, stated) {
                complaint::Below::Named(next, next_format) => (path, format) = (next, next_format),
                _ => return,
            }
            stated = &StatedBacking::Own;
        }
    }

    /// As [`Named::warn`], of the image alone.
    pub(super) fn warn_alone(&self) {
        warn_of_bitmaps(&self.path, self.format);
    }

    /// Says now what is wrong with the disk, or with its snapshot: qemu-img opens it before it looks at
    /// what else was asked.
    pub(super) fn check(&self, snapshot: Option<&str>) -> Outcome<()> {
        // Of a snapshot it is asked once the image was opened.
        if snapshot.is_none() {
            self.warn();
        }
        let disk = DiskOptions { snapshot: snapshot.map(ToOwned::to_owned), ..self.disk() };
        self.opened(snapshot, Disk::open(&self.path, self.format, &disk))
    }

    /// As [`Named::check`], before a check of its tables: the image may be without a refcount table.
    pub(super) fn check_tables(&self) -> Outcome<()> {
        self.warn();
        match Disk::open(&self.path, self.format, &self.disk()) {
            Err(error)
                if error.path() == Some(&self.path) && complaint::lacks_refcounts(&error) =>
            {
                Ok(())
            }
            other => self.opened(None, other),
        }
    }

    fn opened(&self, snapshot: Option<&str>, disk: Result<Disk>) -> Outcome<()> {
        match disk {
            Ok(_) => Ok(()),
            Err(error) => Err(match complaint::no_snapshot(self, snapshot, &error) {
                Some(text) => Stop::said(text),
                None => complaint::not_opened(self, &error),
            }),
        }
    }

    /// The size of its disk in whole sectors, and the files that it is read from.
    pub(super) fn size_and_files(&self, disk: &DiskOptions) -> Outcome<(u64, Vec<PathBuf>)> {
        let disk = Disk::open(&self.path, self.format, disk)
            .map_err(|error| complaint::not_opened(self, &error))?;
        let files = disk.images().flat_map(|image| image.data_file.into_iter().chain([image.path]));
        Ok((whole_sectors(disk.size()), files.map(Path::to_path_buf).collect()))
    }

    /// As qemu-img opens it to look at it: a raw image may be written to meanwhile, as that of a VM that
    /// runs.
    pub(super) fn looked_at(self) -> Self {
        let force_share = self.force_share || self.format == BaseFormat::Raw;
        Self { force_share, ..self }
    }

    pub(super) fn locking(&self) -> Locking {
        if self.force_share { Locking::Shared } else { Locking::Auto }
    }
}

/// Says of bitmaps that nobody vouches for what qemu-img says of them.
fn warn_of_bitmaps(path: &Path, format: BaseFormat) {
    let Ok(image) = inspect(path, format) else { return };
    let Some(header) = image.header else { return };
    let mut types = header.extensions().iter().map(HeaderExtension::extension_type);
    let vouched = header.autoclear_features().contains(AutoclearFeatures::BITMAPS);
    if types.any(|extension| extension == HeaderExtension::BITMAPS) && !vouched {
        // Its last line has no end.
        tell(&format!(
            "{NAME}: warning: a program lacking bitmap support modified this file, so all bitmaps are \
             now considered inconsistent\nSome clusters may be leaked, run 'qemu-img check -r' on the \
             image file to fix."
        ));
    }
}

impl Naming {
    /// The image that `word` names.
    pub(super) fn resolve(&self, word: &OsStr) -> Outcome<Named> {
        if self.image_opts && self.format.is_some() {
            return Err(Stop::said("--image-opts and --format are mutually exclusive"));
        }
        let shown = word.to_string_lossy().into_owned();
        let stop = |reason: String| Stop::said(format!("Could not open '{shown}': {reason}"));
        let mut format = self.format.clone();
        let mut force_share = self.force_share;
        let mut other = Other::default();
        let mut protocol = false;
        let json = if self.image_opts { None } else { word.as_bytes().strip_prefix(b"json:") };
        let path = if self.image_opts || json.is_some() {
            let stated = match json {
                Some(text) => Stated::from_json(&String::from_utf8_lossy(text)).map_err(stop)?,
                None => Stated::from_list(&shown).map_err(stop)?,
            };
            // What the command states goes before what the name does.
            let (path, alone) = stated.file().map_err(stop)?;
            protocol = alone;
            other = stated.other;
            format = format.or(stated.driver);
            force_share |= stated.force_share;
            if let Some(driver) = stated.file_driver.filter(|driver| driver != "file") {
                return Err(stop(unsupported(&driver)));
            }
            path
        } else {
            plain(word).map_err(stop)?
        };
        if path.as_os_str().is_empty() {
            return Err(stop("The 'file' block driver requires a file name".to_owned()));
        }
        let format = match format.as_deref() {
            Some("file") if protocol => BaseFormat::Raw,
            Some("raw") => BaseFormat::Raw,
            Some("qcow2") => BaseFormat::Qcow2,
            Some(other) if is_known(other) => return Err(stop(unsupported(other))),
            Some(other) => return Err(stop(format!("Unknown driver '{other}'"))),
            None => probe(&path).map_err(stop)?,
        };
        let top = other.top(&path, format).map_err(stop)?;
        Ok(Named { shown, path, format, protocol, force_share, top, other })
    }
}

/// The length of the file at `path` in whole sectors.
pub(super) fn length(path: &Path) -> Result<u64, String> {
    let reason = |error| complaint::reason(&error, path);
    let mut file = crate::disk::chain::open_top(path).map_err(reason)?;
    let end = file.seek(SeekFrom::End(0)).map_err(|error| complaint::strerror(&error))?;
    Ok(whole_sectors(end))
}

/// The path that a word without options means.
fn plain(word: &OsStr) -> Result<PathBuf, String> {
    let name = word.as_bytes();
    if let Some(path) = name.strip_prefix(b"file:") {
        let path = OsStr::from_bytes(path);
        // So that it can be given as it is reported.
        return Ok(match qcow2_format::create::protocol(path.as_bytes()) {
            None => PathBuf::from(path),
            Some(_) => Path::new(".").join(path),
        });
    }
    match qcow2_format::create::protocol(name) {
        None => Ok(PathBuf::from(word)),
        Some(protocol) => {
            let protocol = String::from_utf8_lossy(protocol);
            Err(if is_protocol(&protocol) {
                format!("the protocol '{protocol}' is not supported by this program")
            } else {
                format!("Unknown protocol '{protocol}'")
            })
        }
    }
}

/// The format of a file that the caller names without one, told by its first bytes, as qemu-img tells.
pub(super) fn probe(path: &Path) -> Result<BaseFormat, String> {
    let open =
        crate::disk::chain::open_top(path).map_err(|error| complaint::reason(&error, path))?;
    let mut start = Vec::new();
    let read = open.take(2048).read_to_end(&mut start);
    read.map_err(|_| "Could not read image for determining its format".to_owned())?;
    // Version 2 or later: version 1 is a format of its own.
    if start.starts_with(&crate::disk::chain::QCOW2_MAGIC) && start.get(4..8) > Some(&[0, 0, 0, 1])
    {
        return Ok(BaseFormat::Qcow2);
    }
    let luks = start.starts_with(LUKS).then_some("luks");
    let dmg = path.extension().is_some_and(|end| end == "dmg").then_some("dmg");
    match foreign_format(&start).or(luks).or(dmg) {
        Some(name) => Err(unsupported(name)),
        None => Ok(BaseFormat::Raw),
    }
}
