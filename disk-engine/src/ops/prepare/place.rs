//! One VM's folder, as it is found: which disks stand there.
//!
//! ```text
//! vm3/primary.qcow2     an overlay        one of them at most: a VM has one disk, and whoever asks
//! vm3/primary.img       a raw disk        for the other format gets an error, not a second disk
//! ```

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{disk_path, file_name};
use crate::base::BaseFormat;
use crate::error::{Error, ErrorKind, Result};
use crate::strategy::room::Need;
use crate::sys::{image_lock, open, space};

const FORMATS: [BaseFormat; 2] = [BaseFormat::Qcow2, BaseFormat::Raw];

#[derive(Debug)]
pub(super) struct Place {
    standing: Vec<(BaseFormat, PathBuf, Metadata)>,
}

impl Place {
    pub(super) fn look(folder: &Path, node: usize) -> Self {
        let look = |format| {
            let path = disk_path(folder, node, format);
            // What cannot be looked at is found out about when a disk is made there.
            let metadata = fs::symlink_metadata(&path).ok()?;
            Some((format, path, metadata))
        };
        Self { standing: FORMATS.into_iter().filter_map(look).collect() }
    }

    /// Whether any disk stands here.
    pub(super) fn is_taken(&self) -> bool {
        !self.standing.is_empty()
    }

    /// What a disk here takes of the file system, if a new one takes `bytes`.
    pub(super) fn need(&self, fresh: bool, bytes: u64) -> Need {
        let allocated = |formats: &[BaseFormat]| {
            let standing = self.standing.iter().filter(|(format, ..)| formats.contains(format));
            standing.map(|(_, _, metadata)| space::allocated(metadata)).sum()
        };
        if self.is_taken() && !fresh {
            // How much of a raw disk is the guest's, nobody can tell.
            Need::Kept { grown: allocated(&[BaseFormat::Qcow2]) }
        } else {
            Need::New { bytes, frees: allocated(&FORMATS) }
        }
    }

    /// Refuses a disk of the other format, unless it may be replaced.
    pub(super) fn check(&self, format: BaseFormat, fresh: bool) -> Result<()> {
        let Some(path) = self.other(format) else { return Ok(()) };
        if !fresh {
            let message = format!("the VM has a disk, and a {} one is asked for", format.as_str());
            let hint = match format {
                BaseFormat::Raw => "use strategy overlay or auto to keep it, or replace it (fresh)",
                BaseFormat::Qcow2 => {
                    "use strategy reflink or copy to keep it, or replace it (fresh)"
                }
            };
            return Err(Error::new(ErrorKind::Mismatch, message).with_path(path).with_hint(hint));
        }
        // Where it cannot be opened or locked, nobody can say.
        if open::existing(path).and_then(|file| image_lock::is_in_use(&file)).unwrap_or(false) {
            return Err(Error::new(ErrorKind::Busy, "another program has the image open")
                .with_path(path)
                .with_hint("stop its VM first"));
        }
        Ok(())
    }

    /// Refuses two VMs whose disks are one file, by a link: both would write to it. Replaced, the names
    /// of one file part, but a symbolic link stays and leads to the other VM's disk.
    pub(super) fn check_apart(places: &[Self], format: BaseFormat, fresh: bool) -> Result<()> {
        let mut seen: HashMap<_, (&Path, bool)> = HashMap::new();
        for (_, path, metadata) in places.iter().flat_map(|place| &place.standing) {
            let is_link = metadata.is_symlink();
            // One that leads nowhere is found out about when a disk is made there.
            let followed = if is_link { fs::metadata(path).ok() } else { Some(metadata.clone()) };
            let Some(followed) = followed.filter(|_| path.ends_with(file_name(format))) else {
                continue;
            };
            if let Some((other, other_is_link)) =
                seen.insert((followed.dev(), followed.ino()), (path, is_link))
                && (!fresh || is_link || other_is_link)
            {
                let message = format!("two VMs would write to one disk, which is {other:?} too");
                return Err(Error::new(ErrorKind::Mismatch, message)
                    .with_path(path)
                    .with_hint("remove the link"));
            }
        }
        Ok(())
    }

    /// Removes the disk of the other format, which was replaced. What could not be looked at is no
    /// less in the way.
    pub(super) fn remove_other(folder: &Path, node: usize, format: BaseFormat) -> Result<()> {
        for path in FORMATS
            .into_iter()
            .filter(|other| *other != format)
            .map(|other| disk_path(folder, node, other))
        {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove the old disk", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn other(&self, format: BaseFormat) -> Option<&Path> {
        let other = self.standing.iter().find(|(standing, ..)| *standing != format);
        other.map(|(_, path, _)| path.as_path())
    }
}
