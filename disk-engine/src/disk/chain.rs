//! A chain: an image and everything it stands on, top first.
//!
//! ```text
//! [0] vm.qcow2 (read-write, one VM's) ─▶ [1] layer.qcow2 (read-only, shared) ─▶ [2] base.img
//! ```
//!
//! Formats are explicit: the caller states the top's, each header states the next one's. A header
//! that names a backing file without its format is refused, because guessing would believe what
//! a guest wrote. This walk is the only one.
//!
//! Who reads or writes a disk locks each image before its header is read, as QEMU does: the top for
//! what is done with it, those below against being written to. Who only looks at headers takes no
//! locks, so that a running VM's images can be looked at.
//!
//! Callers: `disk`, `ops::info`, `attachment`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use qcow2_format::error::RequestError;
use qcow2_format::{Header, ReadAt};

use crate::base::BaseFormat;
use crate::disk::foreign;
use crate::disk::policy::BackingPolicy;
use crate::disk::stated::StatedBacking;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image_file::{EndsEarly, ImageFile};
use crate::sys::image_lock::{Access, ImageLock, Locking};
use crate::sys::space;

/// Chains longer than this are refused.
pub const DEPTH_MAX: usize = 256;

/// One image of a chain.
#[derive(Debug)]
pub struct ChainImage {
    /// Where it lies, as its overlay or the caller names it.
    pub path: PathBuf,
    /// Its format, as its overlay or the caller states it.
    pub format: BaseFormat,
    /// Its header, if it is qcow2.
    pub header: Option<Header>,
    /// Size of the disk it holds, in bytes.
    pub virtual_size: u64,
    /// Bytes it takes on its file system.
    pub actual_size: u64,
    /// The file itself, open and locked for what is done with it.
    pub(crate) file: ImageFile,
}

/// An image and what it stands on, as far as the policy followed.
#[derive(Debug)]
pub struct Chain {
    /// The images, top first.
    pub images: Vec<ChainImage>,
    /// Why the last image's backing file was not followed, if it has one.
    pub not_followed: Option<Error>,
}

impl Chain {
    /// Opens the image at `path` for reading and follows its backing files as `policy` allows. A
    /// backing file that is refused or gone ends the chain and is told in `not_followed`. No image
    /// is locked: this is for who looks at headers, also those of a running VM's images.
    ///
    /// # Errors
    ///
    /// The top image cannot be opened; an image of the chain contradicts its format; the chain
    /// loops or is deeper than [`DEPTH_MAX`].
    pub fn open(path: &Path, format: BaseFormat, policy: &BackingPolicy) -> Result<Self> {
        let own = StatedBacking::Own;
        Self::open_for(Access::Read, path, format, policy, &own, Locking::Off)
    }

    /// As [`Chain::open`], with each image locked as `locking` says.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another process has an image in a way that forbids this; otherwise as
    /// [`Chain::open`].
    pub fn open_locked(
        path: &Path,
        format: BaseFormat,
        policy: &BackingPolicy,
        locking: Locking,
    ) -> Result<Self> {
        Self::open_for(Access::Read, path, format, policy, &StatedBacking::Own, locking)
    }

    /// As [`Chain::open`], with the top open for `access`, standing on what is `stated`, and each image
    /// locked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another process has an image in a way that forbids this; otherwise as
    /// [`Chain::open`].
    pub(super) fn open_for(
        access: Access,
        path: &Path,
        format: BaseFormat,
        policy: &BackingPolicy,
        stated: &StatedBacking,
        locking: Locking,
    ) -> Result<Self> {
        let writing = access == Access::Write;
        let top = open_image(path, File::options().read(true).write(writing))?;
        let mut seen = Seen::default();
        let mut images = Vec::new();
        let mut next = Some((top, path.to_path_buf(), format));
        let mut not_followed = None;
        while let Some((file, path, format)) = next.take() {
            seen.admit(&file, &path)?;
            let access = if images.is_empty() { access } else { Access::Read };
            let image = ChainImage::read(locked(file, &path, access, locking)?, path, format)?;
            let backing = if images.is_empty() {
                image.stated_backing(policy, stated)
            } else {
                image.backing(policy)
            };
            match backing {
                None => {}
                Some(Ok(backing)) => next = Some(backing),
                Some(Err(error)) => not_followed = Some(error),
            }
            images.push(image);
        }
        Ok(Self { images, not_followed })
    }

    /// The chain of files that the caller has opened, top first. Each stands on the next one,
    /// whatever its header calls it; nothing is opened by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if an image has a backing file and is the last, or has none and
    /// is not; otherwise as [`Chain::open_for`].
    pub(super) fn of_files(
        access: Access,
        files: impl IntoIterator<Item = (File, PathBuf, BaseFormat)>,
        locking: Locking,
    ) -> Result<Self> {
        let mut seen = Seen::default();
        let mut images: Vec<ChainImage> = Vec::new();
        for (file, path, format) in files {
            seen.admit(&file, &path)?;
            if let Some(above) = images.last()
                && !above.has_backing()
            {
                return Err(Error::new(ErrorKind::InvalidInput, "the image stands on no other")
                    .with_path(&above.path)
                    .with_hint("leave out the files after it"));
            }
            let access = if images.is_empty() { access } else { Access::Read };
            images.push(ChainImage::read(locked(file, &path, access, locking)?, path, format)?);
        }
        if let Some(last) = images.last()
            && last.has_backing()
        {
            let message = "the image has a backing file, which was not given";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_path(&last.path));
        }
        Ok(Self { images, not_followed: None })
    }
}

/// Locks an image or data file that was just opened.
///
/// # Errors
///
/// [`ErrorKind::Busy`] if another process has it in a way that forbids this, with the
/// [`Conflict`](crate::sys::image_lock::Conflict) as its source.
pub(crate) fn locked(
    file: File,
    path: &Path,
    access: Access,
    locking: Locking,
) -> Result<ImageFile> {
    let lock = ImageLock::acquire(file, access, locking);
    lock.map(ImageFile::new).map_err(|error| error.of(path, access))
}

/// The files of a chain so far.
#[derive(Default)]
struct Seen(Vec<(u64, u64)>);

impl Seen {
    fn admit(&mut self, file: &File, path: &Path) -> Result<()> {
        let identity = identity(file, path)?;
        if self.0.contains(&identity) {
            return Err(
                Error::new(ErrorKind::Corrupt, "the backing chain is a loop").with_path(path)
            );
        }
        if self.0.len() >= DEPTH_MAX {
            let message = format!("the backing chain is deeper than {DEPTH_MAX} images");
            return Err(Error::new(ErrorKind::Limit, message).with_path(path));
        }
        self.0.push(identity);
        Ok(())
    }
}

/// Device and inode: what a file is, under whichever name.
pub(crate) fn identity(file: &File, path: &Path) -> Result<(u64, u64)> {
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    Ok((metadata.dev(), metadata.ino()))
}

impl ChainImage {
    fn read(file: ImageFile, path: PathBuf, format: BaseFormat) -> Result<Self> {
        let metadata =
            file.file().metadata().map_err(|error| Error::io("look at", &path, error))?;
        let header = match format {
            BaseFormat::Raw => None,
            BaseFormat::Qcow2 => Some(read_header(&file, &path)?),
        };
        let virtual_size = match &header {
            Some(header) => header.virtual_size(),
            None => length(&file, &path)?.next_multiple_of(512),
        };
        let actual_size = space::allocated(&metadata);
        Ok(Self { path, format, header, virtual_size, actual_size, file })
    }

    fn has_backing(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.backing_file().is_some())
    }

    /// As [`ChainImage::backing`], where the caller may have said what it is.
    fn stated_backing(
        &self,
        policy: &BackingPolicy,
        stated: &StatedBacking,
    ) -> Option<Result<(File, PathBuf, BaseFormat)>> {
        match stated {
            StatedBacking::Own => self.backing(policy),
            StatedBacking::Nothing => None,
            StatedBacking::Format(format) => {
                let name = self.header.as_ref()?.backing_file()?;
                Some(policy.open(&self.path, name).map(|(file, path)| (file, path, *format)))
            }
            StatedBacking::File { path, format } => {
                Some(open_top(path).map(|file| (file, path.clone(), *format)))
            }
        }
    }

    /// Opens the backing file; `None` if there is none.
    fn backing(&self, policy: &BackingPolicy) -> Option<Result<(File, PathBuf, BaseFormat)>> {
        let header = self.header.as_ref()?;
        let name = header.backing_file()?;
        Some(match backing_format(header, &self.path) {
            Ok(format) => policy.open(&self.path, name).map(|(file, path)| (file, path, format)),
            Err(error) => Err(error),
        })
    }
}

/// The format a header states for its backing file.
///
/// # Errors
///
/// [`ErrorKind::Refused`] if it states none; [`ErrorKind::Unsupported`] if it is neither raw nor
/// qcow2.
pub fn backing_format(header: &Header, path: &Path) -> Result<BaseFormat> {
    match header.backing_format() {
        Some(b"raw") => Ok(BaseFormat::Raw),
        Some(b"qcow2") => Ok(BaseFormat::Qcow2),
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the backing file's format is \"{}\"", other.escape_ascii()),
        )
        .with_path(path)),
        None => Err(Error::new(
            ErrorKind::Refused,
            "the image names a backing file without its format, which is never guessed",
        )
        .with_path(path)
        .with_hint("rebase it with an explicit format")),
    }
}

/// Reads and checks a qcow2 header, with the file named in every error.
///
/// # Errors
///
/// What contradicts the specification, or is not supported, or the storage's failure.
pub fn read_header(storage: &(impl ReadAt + ?Sized), path: &Path) -> Result<Header> {
    Header::read(storage).map_err(|error| from_format(error, path))
}

/// An error of the format library as one of ours.
pub(crate) fn from_format(error: qcow2_format::Error, path: &Path) -> Error {
    use qcow2_format::Error as Format;
    match error {
        Format::Io { doing, offset, source } if is_past_end(&source) => {
            Error::new(ErrorKind::Corrupt, doing)
                .with_path(path)
                .with_offset(offset)
                .with_source(source)
                .with_hint("check the image; what is left of it can be salvaged")
        }
        Format::Io { doing, offset, source } => Error::io(doing, path, source).with_offset(offset),
        Format::Corrupt(field) => Error::new(ErrorKind::Corrupt, "not a valid qcow2 image")
            .with_path(path)
            .with_field(field.field)
            .with_offset(field.offset)
            .with_source(field),
        Format::Unsupported(what) => {
            Error::new(ErrorKind::Unsupported, "the qcow2 image needs what is not supported")
                .with_path(path)
                .with_source(what)
        }
        Format::Options(what) => {
            Error::new(ErrorKind::InvalidInput, "no qcow2 image can be made like that")
                .with_path(path)
                .with_source(what)
        }
        Format::Request(what) => {
            let kind = match what {
                RequestError::Cancelled => ErrorKind::Cancelled,
                RequestError::NoSuchSnapshot { .. } => ErrorKind::NotFound,
                RequestError::ReadOnly { .. } | RequestError::CompressedWithDataFile => {
                    ErrorKind::Unsupported
                }
                _ => ErrorKind::InvalidInput,
            };
            Error::new(kind, "the qcow2 image does not have what was asked for")
                .with_path(path)
                .with_source(what)
        }
        other => Error::new(ErrorKind::Io, other.to_string()).with_path(path),
    }
}

fn is_past_end(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<EndsEarly>)
}

/// Length in bytes of a regular file or a block device.
pub(crate) fn length(file: &impl ReadAt, path: &Path) -> Result<u64> {
    file.length().map_err(|error| Error::io("find the length of", path, error))
}

/// Opens a file the caller names, for reading: a regular file or a block device.
pub(crate) fn open_top(path: &Path) -> Result<File> {
    open_image(path, File::options().read(true))
}

/// Opens a file the caller names, as `options` say: a regular file or a block device.
pub(crate) fn open_image(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let misplaced = || {
        Error::new(ErrorKind::InvalidInput, "an image is a regular file or a block device")
            .with_path(path)
    };
    let file = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(|error| {
        match error.kind() {
            // Only said to a writer; a reader finds out below.
            io::ErrorKind::IsADirectory => misplaced().with_source(error),
            _ => Error::io("open", path, error),
        }
    })?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(misplaced());
    }
    Ok(file)
}

/// What a qcow2 image begins with.
pub(crate) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The format `file` seems to have, for a file the caller itself names on a command line. Never
/// for a backing file: what a guest wrote into a raw disk decides nothing.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if it seems to be an image of another format; the file cannot be read.
pub fn probe_top(path: &Path) -> Result<BaseFormat> {
    let mut start = [0; foreign::LENGTH];
    let count = open_top(path)?
        .read_full_at(&mut start, 0)
        .map_err(|error| Error::io("read the first bytes of", path, error))?;
    let start = start.get(..count).unwrap_or_default();
    match foreign::foreign_format(start) {
        Some(name) => {
            Err(Error::new(ErrorKind::Unsupported, format!("it is an image of the format {name}"))
                .with_path(path)
                .with_hint("convert it to qcow2 with qemu-img, or state that it is raw"))
        }
        None if start.starts_with(&QCOW2_MAGIC) => Ok(BaseFormat::Qcow2),
        None => Ok(BaseFormat::Raw),
    }
}
