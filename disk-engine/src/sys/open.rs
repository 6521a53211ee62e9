//! Opening what may not be what its name says: a planted link, a FIFO, a folder.
//!
//! A symbolic link in the last place is never followed, and a FIFO's other end never waited for.
//! Whether the thing is a regular file, and whose, the caller asks the opened file itself.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access};

fn careful() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// Opens an existing file for reading.
///
/// # Errors
///
/// What the system says; see [`is_misplaced`].
pub fn existing(path: &Path) -> io::Result<File> {
    careful().open(path)
}

/// Opens an existing file for reading and writing.
///
/// # Errors
///
/// What the system says; see [`is_misplaced`].
pub fn existing_to_write(path: &Path) -> io::Result<File> {
    careful().write(true).open(path)
}

/// Opens a file to lock it, creating it empty if need be, with mode 0600 whatever the umask.
/// Open for writing as well: NFS gives exclusive locks to writers only.
///
/// # Errors
///
/// What the system says; see [`is_misplaced`].
pub fn lock_file(path: &Path) -> io::Result<File> {
    let open = || careful().write(true).create(true).mode(0o600).open(path);
    match open() {
        // Made a moment ago by someone with a umask of 0777, or left so by one who was killed.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_plain(path) => {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            open()
        }
        outcome => outcome,
    }
}

/// Whether a file that is open already is open for reading and writing.
///
/// # Errors
///
/// What the system says.
pub fn is_writable(file: &File) -> io::Result<bool> {
    let flags = fcntl(file, FcntlArg::F_GETFL)?;
    Ok(OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

/// Fails as a call on a closed descriptor does, if a standard one was closed when the program began: by
/// then `/dev/null` stands in for it, open for reading and writing, as nobody else opens it.
///
/// # Errors
///
/// `EBADF`; what the system says.
pub fn was_open(file: &File) -> io::Result<()> {
    let null = fs::metadata("/dev/null");
    let is_null = null.is_ok_and(|null| {
        file.metadata()
            .is_ok_and(|file| file.rdev() == null.rdev() && file.file_type().is_char_device())
    });
    if is_null && is_writable(file)? { Err(Errno::EBADF.into()) } else { Ok(()) }
}

/// Opens an existing temporary of ours to lock it, however far its making got. Its owner may be
/// about to publish it, so it never gains a permission to write.
///
/// # Errors
///
/// What the system says; see [`is_misplaced`].
pub fn temporary(path: &Path) -> io::Result<File> {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match careful().write(true).open(path) {
        // Read-only already: its owner was killed just before it was published.
        Err(error) if denied(&error) => match existing(path) {
            // Made under a umask of 0777, and not a step further.
            Err(error) if denied(&error) && is_plain(path) => {
                fs::set_permissions(path, Permissions::from_mode(0o400))?;
                existing(path)
            }
            outcome => outcome,
        },
        outcome => outcome,
    }
}

/// Whether an open failed because something other than a regular file stands there: a link, a
/// folder, a socket, a device without a driver.
#[must_use]
pub fn is_misplaced(error: &io::Error) -> bool {
    [Errno::ELOOP, Errno::EISDIR, Errno::ENOTDIR, Errno::ENXIO, Errno::ENODEV]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// Whether `path` leads, through links, to the file with this `metadata`.
#[must_use]
pub fn is_same_file(metadata: &Metadata, path: &Path) -> bool {
    let same = |other: Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
    fs::metadata(path).is_ok_and(same)
}

/// Whether the caller may make files in `folder`.
///
/// # Errors
///
/// Why not.
pub fn takes_files(folder: &Path) -> io::Result<()> {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

fn is_plain(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_folders_are_misplaced_and_absence_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(is_misplaced(&existing(&link).unwrap_err()));
        assert!(is_misplaced(&lock_file(&link).unwrap_err()));
        assert!(is_misplaced(&lock_file(folder.path()).unwrap_err()));
        assert!(!is_misplaced(&existing(&folder.path().join("absent")).unwrap_err()));
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!existing(&fifo).unwrap().metadata().unwrap().is_file());
    }
}
