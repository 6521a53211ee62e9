//! The disks and folders one call made, removed again unless it succeeds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::strategy::ProvidedDisk;

#[derive(Debug, Default)]
pub(super) struct Made {
    disks: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Made {
    /// Makes the folder, unless it is there.
    pub(super) fn folder(&mut self, folder: &Path) -> Result<()> {
        let made = match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder),
            outcome => outcome,
        };
        made.map_err(|error| Error::io("make the folder", folder, error))?;
        self.folders.push(folder.to_path_buf());
        Ok(())
    }

    /// Remembers a disk, unless it stood there before.
    pub(super) fn note(&mut self, disk: &ProvidedDisk) {
        if !disk.reused() {
            self.disks.push(disk.path().to_path_buf());
        }
    }

    /// Everything stays.
    pub(super) fn keep(&mut self) {
        self.disks.clear();
        self.folders.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.disks {
            let _ = fs::remove_file(path);
        }
        // Inner ones first. One that someone else has put something into stays.
        for folder in self.folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}
