use super::*;
use std::io::Write;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_is_there_before_publish_and_everything_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let pending = PendingFile::create(&path, Existing::Refuse, FileMode::Exact(0o600)).unwrap();
    pending.file().write_all(b"content").unwrap();
    assert_eq!(names(folder.path()), Vec::<String>::new());
    pending.publish(Durability::Full).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_dropped_replacement_leaves_the_old_file_and_no_debris() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, b"old").unwrap();
    let pending = PendingFile::create(&path, Existing::Replace, FileMode::Exact(0o600)).unwrap();
    pending.file().write_all(b"new").unwrap();
    assert_eq!(names(folder.path()), ["disk"]);
    drop(pending);
    assert_eq!(names(folder.path()), ["disk"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn a_taken_name_is_refused_at_publish_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let pending = PendingFile::create(&path, Existing::Refuse, FileMode::Exact(0o600)).unwrap();
    fs::write(&path, b"someone else").unwrap();
    let error = pending.publish(Durability::None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"someone else");
}

#[test]
fn replacing_removes_what_a_killed_replacement_left_beside_the_real_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    let real = folder.path().join("real/disk");
    let abandoned = folder.path().join("real/.disk.0123456789abcdef.partial");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("real/disk", &link).unwrap();
    for destination in [&real, &link] {
        fs::write(&real, b"old").unwrap();
        fs::write(&abandoned, b"x").unwrap();
        PendingFile::create(destination, Existing::Replace, FileMode::Umask)
            .unwrap()
            .publish(Durability::None)
            .unwrap();
        assert_eq!(names(real.parent().unwrap()), ["disk"]);
    }
}

#[test]
fn an_image_that_qemu_has_open_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, b"a running VM's").unwrap();
    let replace = || PendingFile::create(&path, Existing::Replace, FileMode::Umask).map(drop);
    let running = File::options().read(true).write(true).open(&path).unwrap();
    assert!(image_lock::lock_for_writing(&running).unwrap());
    assert_eq!(replace().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(names(folder.path()), ["disk"]);
    drop(running);
    replace().unwrap();
}

#[test]
fn the_sweep_takes_what_is_abandoned_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let live = || {
        Temporary::create_in(folder.path(), FileMode::Umask, |word| {
            temporary_name(OsStr::new("disk"), word)
        })
    };
    let live = live().unwrap();
    fs::write(folder.path().join(".disk.0123456789abcdef.partial"), b"x").unwrap();
    fs::write(folder.path().join(".other.0123456789abcdef.partial"), b"x").unwrap();
    fs::write(folder.path().join(".disk.notes.partial"), b"x").unwrap();
    assert_eq!(sweep(&path).unwrap(), 1);
    assert_eq!(names(folder.path()).len(), 3);
    live.publish(&path, Existing::Refuse).unwrap();
    assert!(path.is_file());
    assert_eq!(names(folder.path()).len(), 3);
}

/// A file with a mode of its own and another name, in a folder.
fn old(folder: &Path) -> (PathBuf, PathBuf) {
    let (path, other) = (folder.join("disk"), folder.join("other"));
    fs::write(&path, b"old").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(&path, &other).unwrap();
    (path, other)
}

fn write(path: &Path, existing: Existing) {
    let pending = PendingFile::create(path, existing, FileMode::Umask).unwrap();
    pending.file().write_all(b"new").unwrap();
    pending.publish(Durability::None).unwrap();
}

#[test]
fn a_replacement_is_kept_from_whom_the_old_file_was() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = old(folder.path());
    let noted = |name: &std::ffi::CStr| {
        attribute::set(&File::open(&path).unwrap(), name, b"noted").unwrap()
    };
    let notes = noted(c"user.of.somebody") && noted(attribute::BASE);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), Some(65533)).unwrap();
    }
    let before = fs::metadata(&path).unwrap();
    write(&path, Existing::Replace);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read(&other).unwrap(), b"old");
    assert_eq!(after.mode(), before.mode());
    assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    let new = File::open(&path).unwrap();
    if notes {
        assert_eq!(attribute::get(&new, c"user.of.somebody").unwrap().unwrap(), b"noted");
    }
    // Of which base the old one was made says nothing of the new one.
    assert_eq!(attribute::get(&new, attribute::BASE).unwrap(), None);
    assert_eq!(names(folder.path()), ["disk", "other"]);
}

#[test]
fn a_replacement_is_nobodys_before_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = old(folder.path());
    fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
    let pending = PendingFile::create(&path, Existing::Replace, FileMode::Exact(0o600)).unwrap();
    assert_eq!(pending.file().metadata().unwrap().mode() & 0o7777, 0o604);
    pending.publish(Durability::None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_file_is_made_where_a_link_leads() {
    for existing in [Existing::Replace, Existing::Overwrite] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("real/disk", &link).unwrap();
        write(&link, existing);
        assert_eq!(fs::read(folder.path().join("real/disk")).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(&folder.path().join("real")), ["disk"]);
    }
}

#[test]
fn what_is_overwritten_has_the_new_content_under_all_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = old(folder.path());
    fs::write(&path, b"old and longer").unwrap();
    let before = fs::metadata(&path).unwrap();
    write(&path, Existing::Overwrite);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"new");
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));

    // One name only: the old content stays until the new is whole.
    fs::remove_file(&other).unwrap();
    let pending = PendingFile::create(&path, Existing::Overwrite, FileMode::Umask).unwrap();
    pending.file().write_all(b"not whole").unwrap();
    assert_eq!(names(folder.path()), ["disk"]);
    drop(pending);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    write(&path, Existing::Overwrite);
    assert_eq!(fs::metadata(&path).unwrap().mode(), before.mode());
}

#[test]
fn nobody_opens_what_is_being_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = old(folder.path());
    let opened = || open::existing_to_write(&path).unwrap();
    for names in [2, 1] {
        let pending = PendingFile::create(&path, Existing::Overwrite, FileMode::Umask).unwrap();
        assert!(!image_lock::lock_for_writing(&opened()).unwrap(), "{names} names");
        drop(pending);
        let vm = opened();
        assert!(image_lock::lock_for_writing(&vm).unwrap());
        let refused = PendingFile::create(&path, Existing::Overwrite, FileMode::Umask);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
        fs::remove_file(&other).unwrap_or_default();
    }
}

#[test]
fn a_vm_started_meanwhile_keeps_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = old(folder.path());
    let pending = PendingFile::create(&path, Existing::Replace, FileMode::Umask).unwrap();
    let vm = open::existing_to_write(&path).unwrap();
    assert!(image_lock::lock_for_writing(&vm).unwrap());
    assert_eq!(pending.publish(Durability::None).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["disk", "other"]);
}
