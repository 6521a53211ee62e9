//! The calls of the system that can be struck: what each is about, and what can befall it.
//!
//! Left out are calls that do not fail (`getpid`), whose failure no program can notice (`close`,
//! `munmap`), or that only wait (`futex`, `clock_nanosleep`). The allocator's small requests are left
//! out too: an allocation that fails ends a program, and what input sizes is larger than that.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not made, and fails so.
    Error(Errno),
    /// It is made, for half of the bytes.
    Short,
    /// It is not made: the process is killed as it asks.
    Kill,
}

/// A call a process made.
#[derive(Clone, Debug)]
pub struct Call {
    /// The thread that made it: 0 is the first, and the others follow in the order they came.
    pub thread: usize,
    /// How many calls of that name the thread had made before. How often memory is asked for may
    /// depend on which thread was faster; the order of all other calls does not.
    pub number: usize,
    /// The call's name.
    pub name: &'static str,
    /// The file it is about.
    pub path: Option<PathBuf>,
    /// Its arguments.
    pub(super) arguments: [u64; 6],
}

/// Where a call says which file it is about.
#[derive(Clone, Copy)]
pub(super) enum Subject {
    /// A path, in this argument.
    Path(usize),
    /// A descriptor, in this argument.
    Descriptor(usize),
    Nothing,
}
use Subject::{Descriptor, Nothing, Path};

/// Calls that every Linux has.
const COMMON: &[(i64, &str, Subject)] = &[
    (libc::SYS_openat, "openat", Path(1)),
    (libc::SYS_openat2, "openat2", Path(1)),
    (libc::SYS_read, "read", Descriptor(0)),
    (libc::SYS_readv, "readv", Descriptor(0)),
    (libc::SYS_pread64, "pread64", Descriptor(0)),
    (libc::SYS_write, "write", Descriptor(0)),
    (libc::SYS_writev, "writev", Descriptor(0)),
    (libc::SYS_pwrite64, "pwrite64", Descriptor(0)),
    (libc::SYS_copy_file_range, "copy_file_range", Descriptor(2)),
    (libc::SYS_sendfile, "sendfile", Descriptor(0)),
    (libc::SYS_truncate, "truncate", Path(0)),
    (libc::SYS_ftruncate, "ftruncate", Descriptor(0)),
    (libc::SYS_fallocate, "fallocate", Descriptor(0)),
    (libc::SYS_lseek, "lseek", Descriptor(0)),
    (libc::SYS_fsync, "fsync", Descriptor(0)),
    (libc::SYS_fdatasync, "fdatasync", Descriptor(0)),
    (libc::SYS_syncfs, "syncfs", Descriptor(0)),
    (libc::SYS_renameat, "renameat", Path(3)),
    (libc::SYS_renameat2, "renameat2", Path(3)),
    (libc::SYS_linkat, "linkat", Path(3)),
    (libc::SYS_symlinkat, "symlinkat", Path(2)),
    (libc::SYS_unlinkat, "unlinkat", Path(1)),
    (libc::SYS_mkdirat, "mkdirat", Path(1)),
    (libc::SYS_flock, "flock", Descriptor(0)),
    (libc::SYS_fcntl, "fcntl", Descriptor(0)),
    (libc::SYS_fstat, "fstat", Descriptor(0)),
    (libc::SYS_newfstatat, "newfstatat", Path(1)),
    (libc::SYS_statx, "statx", Path(1)),
    (libc::SYS_faccessat, "faccessat", Path(1)),
    (libc::SYS_statfs, "statfs", Path(0)),
    (libc::SYS_fstatfs, "fstatfs", Descriptor(0)),
    (libc::SYS_readlinkat, "readlinkat", Path(1)),
    (libc::SYS_getdents64, "getdents64", Descriptor(0)),
    (libc::SYS_fchmod, "fchmod", Descriptor(0)),
    (libc::SYS_fchmodat, "fchmodat", Path(1)),
    (libc::SYS_fchown, "fchown", Descriptor(0)),
    (libc::SYS_fchownat, "fchownat", Path(1)),
    (libc::SYS_utimensat, "utimensat", Descriptor(0)),
    (libc::SYS_fgetxattr, "fgetxattr", Descriptor(0)),
    (libc::SYS_fsetxattr, "fsetxattr", Descriptor(0)),
    (libc::SYS_ioctl, "ioctl", Descriptor(0)),
    (libc::SYS_mmap, "mmap", Nothing),
    (libc::SYS_clone, "clone", Nothing),
    (libc::SYS_clone3, "clone3", Nothing),
    (libc::SYS_getrandom, "getrandom", Nothing),
];

/// Calls of the first architectures, from before there was one of them that takes a folder.
#[cfg(target_arch = "x86_64")]
const OLD: &[(i64, &str, Subject)] = &[
    (libc::SYS_open, "open", Path(0)),
    (libc::SYS_rename, "rename", Path(1)),
    (libc::SYS_link, "link", Path(1)),
    (libc::SYS_symlink, "symlink", Path(1)),
    (libc::SYS_unlink, "unlink", Path(0)),
    (libc::SYS_rmdir, "rmdir", Path(0)),
    (libc::SYS_mkdir, "mkdir", Path(0)),
    (libc::SYS_stat, "stat", Path(0)),
    (libc::SYS_lstat, "lstat", Path(0)),
    (libc::SYS_access, "access", Path(0)),
    (libc::SYS_readlink, "readlink", Path(0)),
    (libc::SYS_chmod, "chmod", Path(0)),
    (libc::SYS_chown, "chown", Path(0)),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[(i64, &str, Subject)] = &[];

/// The name and the subject of a call that can be struck.
pub(super) fn known(number: u64, arguments: &[u64; 6]) -> Option<(&'static str, Subject)> {
    let mut all = COMMON.iter().chain(OLD);
    let &(_, name, subject) = all.find(|(known, ..)| known.cast_unsigned() == number)?;
    // Below this the C library takes memory from a heap that it grows by `brk`.
    let is_small = name == "mmap" && arguments[1] < 128 << 10;
    // Asking for a descriptor's flags cannot fail.
    let asks = name == "fcntl" && matches!(arguments[1].cast_signed(), 1..=4);
    (!is_small && !asks).then_some((name, subject))
}

impl Call {
    /// Whether it removes a name. When that fails, the name stays until someone else removes it.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self.name, "unlink" | "unlinkat" | "rmdir")
    }

    /// Whether it asks for data to be on the medium.
    #[must_use]
    pub fn syncs(&self) -> bool {
        matches!(self.name, "fsync" | "fdatasync" | "syncfs")
    }

    /// What can befall it, short of the process's end.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let errors: &[Errno] = match self.name {
            "open" | "openat" | "openat2" => {
                let flags = self.arguments[if self.name == "open" { 1 } else { 2 }];
                let tmpfile = flags & libc::O_TMPFILE as u64 == libc::O_TMPFILE as u64;
                if tmpfile {
                    &[Errno::EMFILE, Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EOPNOTSUPP]
                } else if flags & libc::O_CREAT as u64 != 0 {
                    &[Errno::EMFILE, Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EINTR]
                } else if flags & libc::O_DIRECTORY as u64 != 0 {
                    // Only a FIFO, a device or a file of a network is waited for.
                    &[Errno::EMFILE, Errno::ENFILE, Errno::EIO, Errno::ENOMEM]
                } else {
                    &[Errno::EMFILE, Errno::ENFILE, Errno::EIO, Errno::ENOMEM, Errno::EINTR]
                }
            }
            "read" | "readv" | "pread64" => &[Errno::EIO, Errno::EINTR],
            "getdents64" | "lseek" => &[Errno::EIO],
            "write" | "writev" | "pwrite64" | "copy_file_range" | "sendfile" => {
                &[Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EFBIG, Errno::EINTR]
            }
            "truncate" | "ftruncate" | "fallocate" => {
                &[Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EFBIG, Errno::EINTR]
            }
            "fsync" | "fdatasync" | "syncfs" => &[Errno::EIO, Errno::ENOSPC, Errno::EDQUOT],
            "rename" | "renameat" | "renameat2" | "link" | "linkat" | "symlink" | "symlinkat"
            | "mkdir" | "mkdirat" => &[Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EROFS],
            "unlink" | "unlinkat" | "rmdir" => &[Errno::EIO, Errno::EROFS],
            "flock" => &[Errno::ENOLCK, Errno::EIO, Errno::EINTR],
            "fcntl" => &[Errno::ENOLCK, Errno::EIO, Errno::EMFILE],
            "fsetxattr" => &[Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EOPNOTSUPP],
            "ioctl" => &[Errno::EIO, Errno::ENOSPC, Errno::EOPNOTSUPP],
            "mmap" => &[Errno::ENOMEM],
            // As a kernel without it: the C library then asks in the old way.
            "clone3" => &[Errno::EAGAIN, Errno::ENOSYS],
            "clone" => &[Errno::EAGAIN],
            "getrandom" => &[Errno::EINTR, Errno::ENOSYS],
            "fchmod" | "fchmodat" | "chmod" | "fchown" | "fchownat" | "chown" | "utimensat" => {
                &[Errno::EIO, Errno::ENOSPC, Errno::EROFS]
            }
            _ => &[Errno::EIO, Errno::ENOMEM],
        };
        let short = self.length_argument().is_some_and(|at| self.arguments[at] > 1);
        let errors = errors.iter().map(|&errno| Fault::Error(errno));
        errors.chain(short.then_some(Fault::Short)).collect()
    }

    /// Which argument says how many bytes, for a call that may do with fewer.
    pub(super) fn length_argument(&self) -> Option<usize> {
        match self.name {
            "read" | "pread64" | "write" | "pwrite64" => Some(2),
            "copy_file_range" => Some(4),
            "getrandom" => Some(1),
            _ => None,
        }
    }

    /// Whether the same call of the same thread: what it is about may carry a random name.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        (self.thread, self.number, self.name) == (other.thread, other.number, other.name)
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {} {} {}", self.thread, self.name, self.number)?;
        match &self.path {
            Some(path) => write!(f, " {}", path.display()),
            None => Ok(()),
        }
    }
}
