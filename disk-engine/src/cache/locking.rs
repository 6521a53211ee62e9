//! Whether locks in the cache's folder bind everyone who can reach it.
//!
//! ```text
//! behaviour   probe.lock, opened twice: who locks one must be in the way of the other
//! mount       a network file system whose options keep locks on this machine
//! ```
//!
//! The first costs a few system calls; the second looks at `/proc` on network file systems only. A
//! cache that cannot be written to has nothing to lock but leases, and is not probed. Without `/proc`
//! nobody can tell the options, and a network file system is taken to lock as it does by default.
//!
//! Callers: [`ImageCache::open`](crate::cache::ImageCache::open).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cache::layout::Layout;
use crate::cache::{CacheOptions, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::{self as system, FileLock, LockMode};
use crate::sys::mount::Mount;
use crate::sys::{file_system, open};

/// Options that keep locks on this machine, by the name of the file system.
const LOCAL: [(&str, &[&str]); 3] = [
    ("nfs", &["nolock", "local_lock=all", "local_lock=flock"]),
    ("cifs", &["nobrl", "nolock"]),
    ("smb2", &["nobrl", "nolock"]),
];

/// Looks at the cache once, as it is opened.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`], with the name of the file system: its locks exclude nobody, or nobody
/// on other machines. [`ErrorKind::Refused`] if something else stands where the lock file belongs.
pub(crate) fn check(layout: &Layout, options: &CacheOptions) -> Result<()> {
    let path = layout.probe();
    let open = || {
        open::lock_file(&path).map_err(|error| {
            if open::is_misplaced(&error) {
                Error::new(ErrorKind::Refused, "no lock file of ours stands where one belongs")
                    .with_path(&path)
                    .with_source(error)
            } else {
                Error::io("open the lock", &path, error)
            }
        })
    };
    let [first, second] = match [open(), open()] {
        [Ok(first), Ok(second)] => [first, second],
        [Err(error), _] | [_, Err(error)] => return beside_the_point(error),
    };
    let kind = file_system::name(&first).unwrap_or_else(|_| "unknown".to_owned());
    if let Some((_, local)) = LOCAL.iter().find(|(name, _)| *name == kind)
        && !options.accept_local_locks
        && let Some(mount) = Mount::of(&first)
        && let Some(option) = local_option(&mount.options, local)
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("locks on this file system ({kind}, mounted with {option}) do not reach other machines"),
        )
        .with_path(layout.root())
        .with_hint("put the cache on a local file system, or mount this one without that option"));
    }
    exclude(first, second, layout.root(), &kind)
}

/// A cache in which no lock file can be made can still be read: whoever needs one will hear of it.
fn beside_the_point(error: Error) -> Result<()> {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::NoSpace => Ok(()),
        _ => Err(error),
    }
}

fn local_option<'a>(options: &'a [String], local: &[&str]) -> Option<&'a str> {
    options.iter().map(String::as_str).find(|option| local.contains(option))
}

/// Makes sure that a lock through one descriptor is in the way of the other.
fn exclude(first: File, second: File, root: &Path, kind: &str) -> Result<()> {
    let attempt = |file| {
        FileLock::try_acquire(file, LockMode::Exclusive).map_err(|error| {
            if system::is_unsupported(&error) {
                lock::unsupported(root, error)
            } else {
                Error::io("try the locks of", root, error)
            }
        })
    };
    // If someone else probes at this moment, the locks exclude: that is all there is to see.
    let Ok(held) = attempt(first)? else { return Ok(()) };
    match attempt(second)? {
        Err(_) => Ok(()),
        // A cleaner took the file away between the two opens: that says nothing about locks.
        Ok(other) if !is_one_file(held.file(), other.file(), root)? => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the cache's file system ({kind}) grants one exclusive lock twice"),
        )
        .with_path(root)
        .with_hint("put the cache on a local file system, or on NFS with locking")),
    }
}

fn is_one_file(one: &File, other: &File, root: &Path) -> Result<bool> {
    let identity = |file: &File| {
        let metadata =
            file.metadata().map_err(|error| Error::io("look at the locks of", root, error))?;
        Ok::<_, Error>((metadata.dev(), metadata.ino()))
    };
    Ok(identity(one)? == identity(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_that_exclude_nobody_are_refused_by_the_name_of_their_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| open::lock_file(&folder.path().join(name)).unwrap();
        exclude(open("one"), open("one"), folder.path(), "ext4").unwrap();
        // Held by someone else.
        let held = open("one");
        held.lock().unwrap();
        exclude(open("one"), open("one"), folder.path(), "ext4").unwrap();
        // Removed and made anew between the two opens.
        exclude(open("two"), open("three"), folder.path(), "ext4").unwrap();
        // One open file description is granted its own lock again, as any would be without locks.
        let twice = open("four");
        let again = twice.try_clone().unwrap();
        let error = exclude(twice, again, folder.path(), "oddfs").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("(oddfs)") && error.hint().is_some(), "{error}");
    }

    #[test]
    fn options_that_keep_locks_on_this_machine_are_told_by_name() {
        let nfs = LOCAL[0].1;
        for (line, option) in [
            ("rw,vers=3,hard,local_lock=none", None),
            ("rw,vers=4.2,local_lock=posix", None),
            ("rw,vers=3,nolock,local_lock=all", Some("nolock")),
            ("rw,vers=4.1,local_lock=flock", Some("local_lock=flock")),
            ("rw,vers=4.1,local_lock=all", Some("local_lock=all")),
        ] {
            let line = format!("36 35 0:50 / /mnt rw,relatime shared:1 - nfs4 host:/x {line}");
            let mount = Mount::parse(line.as_bytes()).unwrap();
            assert_eq!(local_option(&mount.options, nfs), option, "{line}");
        }
    }

    #[test]
    fn a_cache_is_probed_as_it_is_opened_and_a_planted_probe_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        check(&layout, &CacheOptions::default()).unwrap();
        assert!(layout.probe().is_file());
        std::fs::remove_file(layout.probe()).unwrap();
        std::os::unix::fs::symlink("/dev/null", layout.probe()).unwrap();
        let error = check(&layout, &CacheOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}
