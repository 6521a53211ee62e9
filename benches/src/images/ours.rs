//! Ours: an image of qcow2-format over a plain file, and a raw file below it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use qcow2_format::address::GuestOffset;
use qcow2_format::error::Error;
use qcow2_format::image::{Durability, Image, ReadOptions, WritableImage, WriteOptions};

use super::Disk;

/// An image that is only read.
#[derive(Debug)]
pub struct OursRead {
    image: Image<File>,
    backing: Option<File>,
}

impl OursRead {
    /// Opens the image at `path`, over the raw file at `backing` if there is one.
    ///
    /// # Panics
    ///
    /// It does not open.
    #[must_use]
    pub fn open(path: &Path, backing: Option<&Path>) -> Self {
        let file = File::open(path).expect("the image's file opens");
        let image = Image::open(file, &ReadOptions::new()).expect("the image opens");
        Self { image, backing: backing.map(open_backing) }
    }
}

impl Disk for OursRead {
    fn read(&self, buffer: &mut [u8], offset: u64) {
        let read = match &self.backing {
            None => self.image.read_at(buffer, GuestOffset(offset)),
            Some(file) => self.image.read_over(buffer, GuestOffset(offset), below(file)),
        };
        read.expect("the image reads");
    }

    fn write(&self, _: &[u8], _: u64) {
        panic!("opened for reading");
    }

    fn bring_down(&self) {}

    fn sync(&self) {}
}

/// An image that is written.
#[derive(Debug)]
pub struct OursWritten {
    image: WritableImage<File>,
    backing: Option<File>,
}

impl OursWritten {
    /// Opens the image at `path`, over the raw file at `backing` if there is one.
    ///
    /// # Panics
    ///
    /// It does not open.
    #[must_use]
    pub fn open(path: &Path, backing: Option<&Path>, durability: Durability) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.expect("the image's file opens");
        let options = WriteOptions::new().durability(durability);
        let image = WritableImage::open(file, &options).expect("the image opens");
        Self { image, backing: backing.map(open_backing) }
    }
}

impl Disk for OursWritten {
    fn read(&self, buffer: &mut [u8], offset: u64) {
        let read = match &self.backing {
            None => self.image.read_at(buffer, GuestOffset(offset)),
            Some(file) => self.image.read_over(buffer, GuestOffset(offset), below(file)),
        };
        read.expect("the image reads");
    }

    fn write(&self, data: &[u8], offset: u64) {
        let written = match &self.backing {
            None => self.image.write_at(data, GuestOffset(offset)),
            Some(file) => self.image.write_over(data, GuestOffset(offset), below(file)),
        };
        written.expect("the image is written");
    }

    /// Nothing: without durability each write has done so, and with it only a flush does.
    fn bring_down(&self) {}

    fn sync(&self) {
        self.image.flush().expect("the image is flushed");
    }
}

fn open_backing(path: &Path) -> File {
    File::open(path).expect("the backing file opens")
}

/// Reads from `file`, which is as long as the disk.
fn below(file: &File) -> impl FnMut(&mut [u8], GuestOffset) -> Result<(), Error> {
    |part, at| {
        file.read_exact_at(part, at.0).expect("the backing file reads");
        Ok(())
    }
}
