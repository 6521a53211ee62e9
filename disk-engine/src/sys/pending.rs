//! A new file that nobody sees until it is whole.
//!
//! ```text
//! Existing::Refuse   O_TMPFILE in the destination's folder ── write ── linkat ──▶ destination
//!                    no name until the link: a killed process leaves nothing
//! otherwise          .NAME.16 hex digits.partial, flocked   ── write ── rename ──▶ destination
//!                    a killed process leaves a file whose lock is free: the next one that makes
//!                    such a file for this destination removes it (`sweep`)
//! ```
//!
//! The named form also serves file systems without `O_TMPFILE` and machines without `/proc`. A
//! temporary's age says nothing about it, only its lock does.
//!
//! Callers: `overlay` and `ops::create` (new images), `ops::extract`, `cache`.

mod temporary;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};

/// One word for all that is written: new files here, images and disks elsewhere.
pub use qcow2_format::image::Durability;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{image_lock, open};
pub use temporary::sweep;
use temporary::temporary_name;
pub(crate) use temporary::{Temporary, abandoned, remove_if_abandoned};

/// What to do when something already stands under the destination's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Fail with [`ErrorKind::AlreadyExists`] and leave it alone.
    #[default]
    Refuse,
    /// Put the new file in its place, in one step, once the new one is whole.
    Replace,
}

/// The permission bits of a new file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileMode {
    /// What any other program's files get: read and write for all, less the umask.
    #[default]
    Umask,
    /// Exactly these bits, whatever the umask.
    Exact(u32),
}

impl FileMode {
    /// The bits to create the file with: its owner can always write until it is published.
    fn at_creation(self) -> u32 {
        match self {
            Self::Umask => 0o666,
            Self::Exact(mode) => mode | 0o200,
        }
    }
}

/// A file being made. Dropped before [`PendingFile::publish`], it never existed.
#[derive(Debug)]
pub struct PendingFile {
    destination: PathBuf,
    existing: Existing,
    mode: FileMode,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Unnamed(File),
    Named(Temporary),
}

impl PendingFile {
    /// Starts a file that will be called `destination` and have the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if something stands there and `existing` refuses it;
    /// [`ErrorKind::Busy`] if it is an image that a QEMU has open; [`ErrorKind::InvalidInput`] if
    /// the path names no file; otherwise what the system says.
    pub fn create(destination: &Path, existing: Existing, mode: FileMode) -> Result<Self> {
        let destination = resolve(destination, existing)?;
        let unnamed = match existing {
            Existing::Refuse => open_unnamed(&destination, mode)?,
            Existing::Replace => None,
        };
        let form = match unnamed {
            Some(file) => Form::Unnamed(file),
            None => {
                if existing == Existing::Refuse && fs::symlink_metadata(&destination).is_ok() {
                    return Err(already_exists(&destination));
                }
                // What cannot be removed is in nobody's way.
                let _ = sweep(&destination);
                let (folder, name) = split(&destination)?;
                Form::Named(Temporary::create_in(folder, mode, |word| temporary_name(name, word))?)
            }
        };
        Ok(Self { destination, existing, mode, form })
    }

    /// The file to write to, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        match &self.form {
            Form::Unnamed(file) => file,
            Form::Named(temporary) => temporary.file(),
        }
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if someone took the name meanwhile; otherwise what the system
    /// says. Either way nothing of the new file is left, but for one that has replaced another by the
    /// time its folder cannot be synced. A failed sync is final.
    pub fn publish(self, durability: Durability) -> Result<()> {
        let destination = self.destination.as_path();
        let file = self.file();
        if let FileMode::Exact(mode) = self.mode {
            set_mode(file, mode)
                .map_err(|error| Error::io("set the permissions of", destination, error))?;
        }
        let mut synced = None;
        if durability != Durability::None {
            file.sync_all().map_err(|error| Error::io("sync", destination, error))?;
            synced =
                Some(file.metadata().map_err(|error| Error::io("look at", destination, error))?);
        }
        match self.form {
            Form::Unnamed(file) => link_unnamed(&file, destination),
            Form::Named(temporary) => temporary.publish(destination, self.existing),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => already_exists(destination),
            _ => Error::io("publish the finished file", destination, error),
        })?;
        if let Some(metadata) = synced {
            sync_folder(destination).inspect_err(|_| {
                if self.existing == Existing::Refuse && open::is_same_file(&metadata, destination) {
                    let _ = fs::remove_file(destination);
                }
            })?;
        }
        Ok(())
    }
}

/// Makes sure of a file's permission bits. Looking first is cheaper: setting them is a change that the
/// file system has to log, and most umasks leave nothing to set.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Makes a name in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let (folder, _) = split(path)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync the folder", folder, error))
}

/// The destination as an absolute-or-relative path with a final name. When replacing, a symbolic
/// link stays and what it points to is replaced; one that leads nowhere is replaced itself.
fn resolve(destination: &Path, existing: Existing) -> Result<PathBuf> {
    split(destination)?;
    if existing == Existing::Replace {
        match fs::canonicalize(destination) {
            Ok(path) => {
                let metadata = fs::metadata(&path)
                    .map_err(|error| Error::io("look at", destination, error))?;
                if !metadata.is_file() {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "only a regular file can be replaced",
                    )
                    .with_path(destination));
                }
                // Where it cannot be opened or locked, nobody can say.
                let in_use = open::existing(&path).and_then(|file| image_lock::is_in_use(&file));
                if in_use.unwrap_or(false) {
                    return Err(Error::new(ErrorKind::Busy, "another program has the image open")
                        .with_path(destination)
                        .with_hint("stop its VM first"));
                }
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("resolve", destination, error)),
        }
    }
    Ok(destination.to_path_buf())
}

fn split(destination: &Path) -> Result<(&Path, &OsStr)> {
    // `Path::file_name` looks past a trailing slash, which says "folder" to everybody else.
    let trailing_slash = destination.as_os_str().as_bytes().last() == Some(&b'/');
    match destination.file_name() {
        Some(name) if !trailing_slash => {
            let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
            Ok((folder.unwrap_or(Path::new(".")), name))
        }
        _ => {
            Err(Error::new(ErrorKind::InvalidInput, "the path names no file")
                .with_path(destination))
        }
    }
}

fn already_exists(destination: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "the file exists and is left as it is")
        .with_path(destination)
}

/// An unnamed file in the destination's folder; `None` where such files cannot be made or named.
fn open_unnamed(destination: &Path, mode: FileMode) -> Result<Option<File>> {
    static PROC: OnceLock<bool> = OnceLock::new();
    if !*PROC.get_or_init(|| Path::new("/proc/self/fd").is_dir()) {
        return Ok(None);
    }
    let (folder, _) = split(destination)?;
    match OpenOptions::new()
        .read(true)
        .write(true)
        .mode(mode.at_creation())
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(folder)
    {
        Ok(file) => Ok(Some(file)),
        // Kernels and file systems without O_TMPFILE answer with one of these.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io("create a file in", folder, error)),
    }
}

/// A file without a name in `folder`, for reading and writing, which is gone when it is closed.
///
/// # Errors
///
/// What the system says.
pub(crate) fn unnamed_in(folder: &Path) -> Result<File> {
    let path = folder.join("unnamed");
    if let Some(file) = open_unnamed(&path, FileMode::Exact(0o600))? {
        return Ok(file);
    }
    // Where there are no such files, a name is given and taken away again.
    let name = |word: &str| temporary_name(OsStr::new("unnamed"), word);
    let temporary = Temporary::create_in(folder, FileMode::Exact(0o600), name)?;
    let file = temporary.file().try_clone();
    file.map_err(|error| Error::io("duplicate a file in", folder, error))
}

fn link_unnamed(file: &File, destination: &Path) -> io::Result<()> {
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    nix::unistd::linkat(AT_FDCWD, &source, AT_FDCWD, destination, AtFlags::AT_SYMLINK_FOLLOW)
        .map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
