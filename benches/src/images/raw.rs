//! The limit: `pread` and `pwrite` on a raw file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Disk;

/// A raw file.
#[derive(Debug)]
pub struct Raw(File);

impl Raw {
    /// Opens the file at `path`.
    ///
    /// # Panics
    ///
    /// It does not open.
    #[must_use]
    pub fn open(path: &Path, write: bool) -> Self {
        let file = OpenOptions::new().read(true).write(write).open(path);
        Self(file.expect("the raw file opens"))
    }
}

impl Disk for Raw {
    fn read(&self, buffer: &mut [u8], offset: u64) {
        self.0.read_exact_at(buffer, offset).expect("the raw file reads");
    }

    fn write(&self, data: &[u8], offset: u64) {
        self.0.write_all_at(data, offset).expect("the raw file is written");
    }

    fn bring_down(&self) {}

    fn sync(&self) {
        self.0.sync_data().expect("the raw file syncs");
    }
}
