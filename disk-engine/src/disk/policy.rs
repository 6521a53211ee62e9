//! Following a name found inside an image is the caller's decision, passed in as a value.
//!
//! ```text
//! name in the header ──▶ a plain path?  ──▶ below an allowed root? ──▶ a regular file or a
//!                        json:, nbd:…       openat2 RESOLVE_BENEATH    block device?
//!                        are refused        .. and links may not       FIFOs, sockets, folders
//!                                           lead out                   are refused
//! ```
//!
//! This is the one gate: nobody else in the crate opens a name that an image contains, be it a
//! backing file's or an external data file's. Callers: `chain`, `opening`.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::error::{Error, ErrorKind, Result};

/// Which files that an image names may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackingPolicy {
    /// None: the image is looked at alone.
    Deny,
    /// Plain files in the image's own folder or below it, and below these further folders, to
    /// which no `..` and no symbolic link may lead out.
    Beneath(Vec<PathBuf>),
    /// Any plain file the image names. For images the caller trusts.
    Any,
}

impl Default for BackingPolicy {
    fn default() -> Self {
        Self::Beneath(Vec::new())
    }
}

impl BackingPolicy {
    /// Opens what the image at `image` calls `name`, for reading, if the policy allows it.
    /// Returns the file and its path for messages.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] with the rule that forbids it; [`ErrorKind::NotFound`] if the file
    /// is gone.
    pub fn open(&self, image: &Path, name: &[u8]) -> Result<(File, PathBuf)> {
        self.open_named(Named::BackingFile, image, name, false)
    }

    /// As [`BackingPolicy::open`], for the image's external data file.
    ///
    /// # Errors
    ///
    /// As [`BackingPolicy::open`].
    pub fn open_data_file(&self, image: &Path, name: &[u8]) -> Result<(File, PathBuf)> {
        self.open_named(Named::DataFile, image, name, false)
    }

    /// As [`BackingPolicy::open_data_file`], for writing, too.
    ///
    /// # Errors
    ///
    /// As [`BackingPolicy::open`].
    pub fn open_data_file_for_writing(&self, image: &Path, name: &[u8]) -> Result<(File, PathBuf)> {
        self.open_named(Named::DataFile, image, name, true)
    }

    fn open_named(
        &self,
        named: Named,
        image: &Path,
        name: &[u8],
        write: bool,
    ) -> Result<(File, PathBuf)> {
        let path = named.plain_path(image, name)?;
        let opened = match self {
            Self::Deny => Err(refused("the policy follows no names found in images", &path)),
            Self::Any => named.open_plain(&path, write),
            Self::Beneath(roots) => named.open_beneath(image, roots, &path, write),
        };
        let file = opened?;
        let metadata =
            file.metadata().map_err(|error| Error::io("look at the file", &path, error))?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            let message = format!("{} is a regular file or a block device", named.article());
            return Err(refused(message, &path));
        }
        Ok((file, path))
    }
}

/// What a relative name of an external data file counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataFileNames {
    /// The folder of the image that has it.
    #[default]
    OfImage,
    /// The folder that the program works in, whatever image has it: so QEMU reads these names, other than
    /// those of backing files.
    OfWorkingFolder,
}

impl DataFileNames {
    /// What is in the folder that the names in the image at `image` count from.
    pub(crate) fn from(self, image: &Path) -> &Path {
        match self {
            Self::OfImage => image,
            Self::OfWorkingFolder => Path::new("image"),
        }
    }
}

/// The path a backing file name means. Nothing is opened.
///
/// # Errors
///
/// [`ErrorKind::Refused`] if QEMU would read the name as a protocol.
pub fn plain_path(image: &Path, name: &[u8]) -> Result<PathBuf> {
    Named::BackingFile.plain_path(image, name)
}

fn folder(image: &Path) -> &Path {
    match image.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn refused(message: impl Into<Cow<'static, str>>, path: &Path) -> Error {
    Error::new(ErrorKind::Refused, message).with_path(path)
}

/// What a name found in an image is for.
#[derive(Clone, Copy)]
enum Named {
    BackingFile,
    DataFile,
}

impl Named {
    const fn as_str(self) -> &'static str {
        match self {
            Self::BackingFile => "backing file",
            Self::DataFile => "external data file",
        }
    }

    const fn article(self) -> &'static str {
        match self {
            Self::BackingFile => "a backing file",
            Self::DataFile => "an external data file",
        }
    }

    fn plain_path(self, image: &Path, name: &[u8]) -> Result<PathBuf> {
        if qcow2_format::create::protocol(name).is_some() {
            let message = format!("the {} name is a protocol, not a plain path", self.as_str());
            return Err(refused(message, Path::new(OsStr::from_bytes(name))));
        }
        Ok(folder(image).join(OsStr::from_bytes(name)))
    }

    fn open_plain(self, path: &Path, write: bool) -> Result<File> {
        // O_NONBLOCK: a FIFO's other end may never come.
        File::options()
            .read(true)
            .write(write)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| self.not_opened(path, error))
    }

    fn open_beneath(
        self,
        image: &Path,
        roots: &[PathBuf],
        path: &Path,
        write: bool,
    ) -> Result<File> {
        let roots = std::iter::once(folder(image)).chain(roots.iter().map(PathBuf::as_path));
        for root in roots {
            // A relative name below a relative folder has that folder as its prefix, an absolute
            // name needs the root's absolute path.
            let absolute = root.canonicalize().ok();
            let below = path.strip_prefix(root).ok().or_else(|| {
                absolute.as_deref().and_then(|absolute| path.strip_prefix(absolute).ok())
            });
            let Some(below) = below else { continue };
            match beneath(root, below, write) {
                Ok(file) => return Ok(file),
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EXDEV as i32) => {}
                Err(error) => return Err(self.not_opened(path, error)),
            }
        }
        let message =
            format!("the {} lies outside the folders that may be followed", self.as_str());
        Err(refused(message, path)
            .with_hint("name its folder as allowed, or trust the image's names"))
    }

    fn not_opened(self, path: &Path, error: io::Error) -> Error {
        if error.kind() != io::ErrorKind::NotFound {
            return Error::io(format!("open the {}", self.as_str()), path, error);
        }
        let gone = Error::new(ErrorKind::NotFound, format!("the {} is gone", self.as_str()))
            .with_path(path)
            .with_source(error);
        match self {
            Self::BackingFile => {
                gone.with_hint("if it was moved, rebase the overlay onto its new place")
            }
            Self::DataFile => gone,
        }
    }
}

fn beneath(root: &Path, below: &Path, write: bool) -> io::Result<File> {
    let root = File::options().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(root)?;
    let access = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let how = OpenHow::new()
        .flags(access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let descriptor: OwnedFd = openat2(&root, below, how).map_err(io::Error::from)?;
    Ok(File::from(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_files_below_the_roots_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        let inside = root.join("sub");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("base"), b"x").unwrap();
        fs::write(folder.path().join("secret"), b"x").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("sub/base", root.join("in")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let image = root.join("vm.qcow2");
        let secret = folder.path().join("secret");
        let absolute_inside = inside.join("base").canonicalize().unwrap();
        let policy = BackingPolicy::default();
        let kind = |name: &[u8]| policy.open(&image, name).map(|_| ()).map_err(|e| e.kind());
        for (name, expected) in [
            (&b"sub/base"[..], Ok(())),
            (b"in", Ok(())),
            (b"./sub/../sub/base", Ok(())),
            (absolute_inside.as_os_str().as_bytes(), Ok(())),
            (b"../secret", Err(ErrorKind::Refused)),
            (b"sub/../../secret", Err(ErrorKind::Refused)),
            (b"out", Err(ErrorKind::Refused)),
            (secret.as_os_str().as_bytes(), Err(ErrorKind::Refused)),
            (b"/proc/self/fd/0", Err(ErrorKind::Refused)),
            (b"fifo", Err(ErrorKind::Refused)),
            (b"sub", Err(ErrorKind::Refused)),
            (b"json:{}", Err(ErrorKind::Refused)),
            (b"nbd:localhost:1", Err(ErrorKind::Refused)),
            (b"absent", Err(ErrorKind::NotFound)),
        ] {
            assert_eq!(kind(name), expected, "{}", name.escape_ascii());
        }
        let wider = BackingPolicy::Beneath(vec![folder.path().to_path_buf()]);
        assert!(wider.open(&image, secret.as_os_str().as_bytes()).is_ok());
        assert!(BackingPolicy::Any.open(&image, b"../secret").is_ok());
        assert_eq!(BackingPolicy::Deny.open(&image, b"in").unwrap_err().kind(), ErrorKind::Refused);
    }
}
