//! A new file that nobody sees until it is whole.
//!
//! ```text
//! unnamed    O_TMPFILE in the destination's folder ── write ── linkat ──▶ destination
//!            to replace one:      linkat ──▶ .NAME.16 hex digits.partial ── rename ──▶ destination
//!            no name until then: a killed process leaves nothing
//! named      .NAME.16 hex digits.partial, flocked  ── write ── link or rename ──▶ destination
//!            where there is no O_TMPFILE, or no /proc. A killed process leaves a file whose lock
//!            is free: the next one that makes a file for this destination removes it (`sweep`)
//! in place   destination, locked as QEMU locks it, cut to nothing ── write
//!            a block device, which nothing can replace; and Existing::Overwrite, where a new file
//!            could not pass for the old one
//! ```
//!
//! A temporary's age says nothing about it, only its lock does.
//!
//! ```text
//! inherit     what a file that replaces another takes over from it
//! temporary   the named form
//! ```
//!
//! Callers: `overlay` and `ops::create` (new images), `ops::extract`, `ops::convert`, `cache`.

mod inherit;
mod temporary;

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};

/// One word for all that is written: new files here, images and disks elsewhere.
pub use qcow2_format::image::Durability;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_lock::{Access, ImageLock, Locking};
use crate::sys::{attribute, image_lock, open};
pub use temporary::sweep;
use temporary::temporary_name;
pub(crate) use temporary::{Temporary, abandoned, remove_if_abandoned};

/// Most symbolic links on the way to a file, as in the kernel.
const LINKS_MAX: usize = 40;

/// What to do when something already stands under the destination's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Fail with [`ErrorKind::AlreadyExists`] and leave it alone.
    #[default]
    Refuse,
    /// Put the new file in its place, in one step, once the new one is whole. It has the old one's
    /// permission bits unless others are asked for, and its owner, group and extended attributes as
    /// far as the caller may give them; other hard links keep the old file. A symbolic link stays: what
    /// it leads to is replaced, or made.
    Replace,
    /// Write to the file that is there, which the caller has to be allowed to: whoever has it by a
    /// link, an owner or a mode has the new content. Where a new file takes its place and nobody can
    /// tell, that is done in one step as for [`Existing::Replace`]; otherwise (hard links, a folder that
    /// takes no file, an owner who cannot be given) the old content is gone at once, and a call that
    /// fails or is killed leaves a part of the new.
    Overwrite,
}

/// The permission bits of a new file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileMode {
    /// What any other program's files get: read and write for all, less the umask. A file that is
    /// replaced keeps its own.
    #[default]
    Umask,
    /// These bits, less the umask. A file that is replaced keeps its own.
    Masked(u32),
    /// Exactly these bits, whatever the umask.
    Exact(u32),
}

impl FileMode {
    /// The bits to create the file with: its owner can always write until it is published.
    fn at_creation(self) -> u32 {
        match self {
            Self::Umask => 0o666,
            Self::Masked(mode) => mode,
            Self::Exact(mode) => mode | 0o200,
        }
    }
}

/// A file being made. Dropped before [`PendingFile::publish`], it never existed, unless it is written
/// in place.
#[derive(Debug)]
pub struct PendingFile {
    destination: PathBuf,
    existing: Existing,
    mode: FileMode,
    form: Form,
    /// The file that it takes the place of, kept from others meanwhile.
    _replaced: Option<ImageLock>,
}

#[derive(Debug)]
enum Form {
    Unnamed(File),
    Named(Temporary),
    InPlace(ImageLock),
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
        Self::start(destination, existing, mode, false)
    }

    /// As [`PendingFile::create`], or a block device that is there and may be written to: what it has
    /// on it stays where nothing is written.
    ///
    /// # Errors
    ///
    /// As [`PendingFile::create`].
    pub fn create_or_device(
        destination: &Path,
        existing: Existing,
        mode: FileMode,
    ) -> Result<Self> {
        Self::start(destination, existing, mode, true)
    }

    fn start(
        destination: &Path,
        existing: Existing,
        mode: FileMode,
        devices: bool,
    ) -> Result<Self> {
        split(destination)?;
        let pending = |destination, form, _replaced| {
            Ok(Self { destination, existing, mode, form, _replaced })
        };
        if existing == Existing::Refuse {
            let form =
                new_form(destination, mode, || match fs::symlink_metadata(destination).is_ok() {
                    true => Err(already_exists(destination)),
                    false => Ok(()),
                })?;
            return pending(destination.to_path_buf(), form, None);
        }
        let (path, old) = resolve(destination, devices)?;
        // What cannot be removed is in nobody's way.
        let _ = sweep(&path);
        let Some(old) = old else {
            return pending(path.clone(), new_form(&path, mode, || Ok(()))?, None);
        };
        let made = |mode| new_form(&path, mode, || Ok(()));
        if old.file_type().is_block_device() {
            let device = lock_to_write(&path, destination)?;
            return pending(path, Form::InPlace(device), None);
        }
        if existing == Existing::Replace {
            refuse_in_use(&path, destination)?;
            let form = made(FileMode::Masked(0o600))?;
            // What the caller may not give it does without.
            let _ = inherit::everything(form.file(), &path, &old)
                .map_err(|error| Error::io("set the permissions of", destination, error))?;
            return pending(path, form, None);
        }
        let locked = lock_to_write(&path, destination)?;
        if old.nlink() == 1
            && let Ok(form) = made(FileMode::Masked(0o600))
            && inherit::everything(form.file(), &path, &old).unwrap_or(false)
        {
            return pending(path, form, Some(locked));
        }
        let emptied = locked.file().set_len(0);
        emptied
            .and_then(|()| attribute::remove(locked.file(), attribute::BASE))
            .map_err(|error| Error::io("empty", destination, error))?;
        pending(path, Form::InPlace(locked), None)
    }

    /// The file to write to, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        self.form.file()
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if someone took the name meanwhile, [`ErrorKind::Busy`] if someone
    /// opened the image that is to be replaced; otherwise what the system says. Either way nothing of
    /// the new file is left, but for one that has replaced another by the time its folder cannot be
    /// synced, and one written in place. A failed sync is final.
    pub fn publish(self, durability: Durability) -> Result<()> {
        let destination = self.destination.as_path();
        let file = self.file();
        let in_place = matches!(self.form, Form::InPlace(_));
        if let FileMode::Exact(mode) = self.mode
            && !in_place
        {
            set_mode(file, mode)
                .map_err(|error| Error::io("set the permissions of", destination, error))?;
        }
        let mut synced = None;
        if durability != Durability::None {
            file.sync_all().map_err(|error| Error::io("sync", destination, error))?;
            synced =
                Some(file.metadata().map_err(|error| Error::io("look at", destination, error))?);
        }
        if self.existing == Existing::Replace && !in_place {
            // A VM may have been started since.
            refuse_in_use(destination, destination)?;
        }
        match (self.form, self.existing) {
            (Form::InPlace(_), _) => Ok(()),
            (Form::Unnamed(file), Existing::Refuse) => link_unnamed(&file, destination),
            (Form::Unnamed(file), existing) => {
                let (folder, name) = split(destination)?;
                Temporary::of_unnamed(file, folder, |word| temporary_name(name, word))
                    .and_then(|temporary| temporary.publish(destination, existing))
            }
            (Form::Named(temporary), existing) => temporary.publish(destination, existing),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => already_exists(destination),
            _ => Error::io("publish the finished file", destination, error),
        })?;
        if let Some(metadata) = synced
            && !in_place
        {
            sync_folder(destination).inspect_err(|_| {
                if self.existing == Existing::Refuse && open::is_same_file(&metadata, destination) {
                    let _ = fs::remove_file(destination);
                }
            })?;
        }
        Ok(())
    }
}

impl Form {
    fn file(&self) -> &File {
        match self {
            Self::Unnamed(file) => file,
            Self::Named(temporary) => temporary.file(),
            Self::InPlace(locked) => locked.file(),
        }
    }
}

/// A new file in the folder of `destination`; `check` is asked before one gets a name.
fn new_form(destination: &Path, mode: FileMode, check: impl Fn() -> Result<()>) -> Result<Form> {
    if let Some(file) = open_unnamed(destination, mode)? {
        return Ok(Form::Unnamed(file));
    }
    check()?;
    // What cannot be removed is in nobody's way.
    let _ = sweep(destination);
    let (folder, name) = split(destination)?;
    Temporary::create_in(folder, mode, |word| temporary_name(name, word)).map(Form::Named)
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

/// Where `destination` leads, and the file there, if there is one.
fn resolve(destination: &Path, devices: bool) -> Result<(PathBuf, Option<Metadata>)> {
    let found =
        destination_of(destination).map_err(|error| Error::io("resolve", destination, error))?;
    match &found {
        (_, Some(metadata))
            if !(metadata.is_file() || devices && metadata.file_type().is_block_device()) =>
        {
            Err(Error::new(ErrorKind::InvalidInput, "only a regular file can be replaced")
                .with_path(destination))
        }
        _ => Ok(found),
    }
}

/// Where a path leads through symbolic links in its last place, and what is there. A link that leads
/// to nothing yet says where a file is to be.
///
/// # Errors
///
/// A loop of links; a link to a folder that is not there; otherwise what the system says.
pub(crate) fn destination_of(path: &Path) -> io::Result<(PathBuf, Option<Metadata>)> {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                path = path.parent().unwrap_or(Path::new("")).join(fs::read_link(&path)?);
            }
            Ok(metadata) => return Ok((path, Some(metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match split(&path) {
                    Ok(_) => Ok((path, None)),
                    Err(_) if path.as_os_str().is_empty() => Err(error),
                    Err(_) => Err(Errno::EISDIR.into()),
                };
            }
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ELOOP.into())
}

/// An image that another program has open is nobody's to replace.
fn refuse_in_use(path: &Path, destination: &Path) -> Result<()> {
    // Where it cannot be opened or locked, nobody can say.
    let in_use = open::existing(path).and_then(|file| image_lock::is_in_use(&file));
    if !in_use.unwrap_or(false) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, "another program has the image open")
        .with_path(destination)
        .with_hint("stop its VM first"))
}

/// Opens the file at `path` as QEMU opens what it writes to.
fn lock_to_write(path: &Path, destination: &Path) -> Result<ImageLock> {
    let file = open::existing_to_write(path)
        .map_err(|error| Error::io("open for writing", destination, error))?;
    ImageLock::acquire(file, Access::Write, Locking::Auto)
        .map_err(|error| error.of(destination, Access::Write))
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
