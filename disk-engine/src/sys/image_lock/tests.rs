//! Who excludes whom, and what is left of a lock that is gone.

use super::*;

use std::path::{Path, PathBuf};

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    std::fs::write(&path, b"x").unwrap();
    path
}

fn attempt(path: &Path, access: Access) -> Result<ImageLock, Conflict> {
    // Readers need not be able to write.
    let file = File::options().read(true).write(access == Access::Write).open(path).unwrap();
    match ImageLock::acquire(file, access, Locking::On) {
        Ok(lock) => Ok(lock),
        Err(LockError::InUse(conflict)) => Err(conflict),
        Err(LockError::Io(error)) => panic!("{error}"),
    }
}

#[test]
fn who_excludes_whom() {
    use Access::{Read, ReadShared, Write};
    use Conflict::{Keeps, Uses};
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    for (first, second, expected) in [
        (Read, Read, None),
        (Read, ReadShared, None),
        (Read, Write, Some(Keeps(Permission::Write))),
        (ReadShared, Read, None),
        (ReadShared, ReadShared, None),
        (ReadShared, Write, None),
        (Write, Read, Some(Uses(Permission::Write))),
        (Write, ReadShared, None),
        (Write, Write, Some(Keeps(Permission::Write))),
    ] {
        let held = attempt(&path, first).unwrap();
        assert_eq!(held.held(), Some(first));
        let refused = attempt(&path, second).err();
        assert_eq!(refused, expected, "{first:?} then {second:?}");
        drop(held);
        // Nothing is left of an attempt that was refused, nor of a lock that was dropped.
        assert!(!is_in_use(&File::open(&path).unwrap()).unwrap());
    }
}

#[test]
fn a_duplicate_in_other_hands_does_not_prolong_a_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let held = attempt(&path, Access::Write).unwrap();
    let duplicate = held.file().try_clone().unwrap();
    assert!(is_written(&File::open(&path).unwrap()).unwrap());
    drop(held);
    assert!(!is_in_use(&File::open(&path).unwrap()).unwrap());
    drop(attempt(&path, Access::Write).unwrap());
    drop(duplicate);
}

#[test]
fn a_value_of_another_process_only_closes() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let held = attempt(&path, Access::Read).unwrap();
    let copy = ImageLock {
        file: held.file().try_clone().unwrap(),
        held: held.held,
        owner: held.owner.wrapping_add(1),
    };
    drop(copy);
    assert!(is_in_use(&File::open(&path).unwrap()).unwrap());
    drop(held);
    assert!(!is_in_use(&File::open(&path).unwrap()).unwrap());
}

#[test]
fn two_writers_see_each_other_and_a_closed_one_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let first = open();
    assert!(lock_for_writing(&first).unwrap());
    assert!(!lock_for_writing(&open()).unwrap());
    assert!(is_written(&File::open(&path).unwrap()).unwrap());
    drop(first);
    assert!(!is_written(&File::open(&path).unwrap()).unwrap());
    assert!(lock_for_writing(&open()).unwrap());
}

#[test]
fn without_locks_only_who_insists_fails() {
    for (errno, cannot) in [(Errno::ENOLCK, true), (Errno::EINVAL, true), (Errno::EBADF, false)] {
        let failed = || Err(LockError::Io(errno.into()));
        assert_eq!(settle(failed(), Locking::Auto).ok(), cannot.then_some(false), "{errno}");
        assert_eq!(settle(failed(), Locking::Shared).ok(), cannot.then_some(false), "{errno}");
        assert!(settle(failed(), Locking::On).is_err(), "{errno}");
    }
    // One that is not open for reading cannot be locked, and nobody need ask.
    let folder = tempfile::tempdir().unwrap();
    let file = || File::options().write(true).open(image(folder.path())).unwrap();
    let error = ImageLock::acquire(file(), Access::Write, Locking::Auto).unwrap_err();
    assert!(matches!(error, LockError::Io(_)), "{error}");
    let lock = ImageLock::acquire(file(), Access::Write, Locking::Off).unwrap();
    assert_eq!(lock.held(), None);
}

#[test]
fn what_cannot_be_locked_is_told_from_what_cannot_be_asked() {
    for (errno, unsupported) in [(22, true), (95, true), (38, true), (37, false), (5, false)] {
        let error = io::Error::from_raw_os_error(errno);
        assert_eq!(is_unsupported(&error), unsupported, "{error}");
    }
}
