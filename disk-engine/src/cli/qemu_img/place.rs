//! Where a new image goes: its file, its data file, and what messages call them.
//!
//! ```text
//! file:a.qcow2 ─▶ path a.qcow2    data_file=d ─▶ from the folder that the program works in
//! ```
//!
//! Callers: `create`, `convert`, `dd`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::create::destination;
use super::opts::Target;
use super::{complaint, first_block};
use crate::error::{Error, ErrorKind};
use crate::ops::convert::READ_FROM;
use crate::sys::{open, pending};

/// The files of a new image.
#[derive(Debug)]
pub(super) struct Place {
    /// The image's file; where a link leads.
    pub(super) path: PathBuf,
    target: Target,
    /// The file as the caller wrote it, without a protocol.
    name: OsString,
    data_file: Option<PathBuf>,
}

impl Place {
    /// What `filename` means for an image of that format.
    pub(super) fn new(filename: &OsStr, target: Target) -> Result<Self, String> {
        let name = filename.as_bytes().strip_prefix(b"file:").unwrap_or(filename.as_bytes());
        let name = OsStr::from_bytes(name).to_os_string();
        Ok(Self { path: destination(filename)?, target, name, data_file: None })
    }

    /// The same with an external data file, if it is to have one.
    pub(super) fn with_data_file(self, data_file: Option<&str>) -> Self {
        Self { data_file: data_file.map(PathBuf::from), ..self }
    }

    /// Allocates the start of the file that holds the disk of `size` bytes, now that it is made, as qemu-img
    /// does.
    pub(super) fn allocate(&self, size: u64) {
        match (self.target, &self.data_file) {
            (Target::Raw, _) => first_block::allocate(&self.path, size),
            (Target::Qcow2, Some(data)) => first_block::allocate(data, size),
            (Target::Qcow2, None) => {}
        }
    }

    /// Whether its files can be made, as far as their folders tell: qemu-img makes them before it looks
    /// any further.
    pub(super) fn check_folders(&self) -> Result<(), String> {
        check_folder(&self.path, &self.name)?;
        self.data_file.iter().try_for_each(|path| check_folder(path, path.as_os_str()))
    }

    /// What the caller calls the file that is wrong, and that file.
    fn file_of(&self, error: &Error) -> (String, &Path) {
        let plain = |path: &Path| path.strip_prefix(".").unwrap_or(path).to_path_buf();
        let is = |data: &&PathBuf| error.path().is_some_and(|path| plain(path) == plain(data));
        match self.data_file.as_ref().filter(is) {
            Some(data) => (data.to_string_lossy().into_owned(), data),
            None => (self.name.to_string_lossy().into_owned(), &self.path),
        }
    }

    /// Why an image was not made.
    pub(super) fn not_made(&self, error: &Error) -> String {
        let (shown, path) = self.file_of(error);
        if error.message() == READ_FROM {
            return complaint::read_from(&shown);
        }
        if error.kind() == ErrorKind::Busy {
            return complaint::taken(path, &shown).unwrap_or_else(|| complaint::read_from(&shown));
        }
        if let Some(io) = error.io_error() {
            let cause = complaint::strerror(io);
            return match io.kind() {
                std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::StorageFull => {
                    format!("Could not resize file: {cause}")
                }
                _ => format!("Could not create '{shown}': {cause}"),
            };
        }
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            if let Some(qcow2_format::error::OptionsError::VirtualSize { .. }) =
                source.downcast_ref()
            {
                return "The image size is too large for file format 'qcow2' (try using a larger \
                        cluster size)"
                    .to_owned();
            }
            cause = source.source();
        }
        // A device that takes what is written to it and keeps nothing.
        let device = path.metadata().is_ok_and(|file| file.file_type().is_char_device());
        match self.target {
            Target::Raw if device => "Cannot grow device files".to_owned(),
            Target::Qcow2 if device => "Image is not in qcow2 format".to_owned(),
            Target::Raw | Target::Qcow2 => complaint::own(error),
        }
    }
}

/// Whether a file can be made at `path`, or written if it is there, as far as can be told beforehand.
fn check_folder(path: &Path, shown: &OsStr) -> Result<(), String> {
    let refused = |cause: &std::io::Error| {
        let cause = complaint::strerror(cause);
        Err(format!("Could not create '{}': {cause}", shown.to_string_lossy()))
    };
    match pending::destination_of(path) {
        Err(error) => refused(&error),
        Ok((_, Some(found))) if found.is_dir() => refused(&Errno::EISDIR.into()),
        Ok((path, None)) => match open::takes_files(folder_of(&path)) {
            Err(error) => refused(&error),
            Ok(()) => Ok(()),
        },
        Ok((_, Some(found))) if found.file_type().is_fifo() || found.file_type().is_socket() => {
            Err("Could not resize file: Invalid argument".to_owned())
        }
        Ok(_) => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
