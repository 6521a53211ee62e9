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
    assert_eq!(names(folder.path()).len(), 2);
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
    let live = PendingFile::create(&path, Existing::Replace, FileMode::Exact(0o600)).unwrap();
    fs::write(folder.path().join(".disk.0123456789abcdef.partial"), b"x").unwrap();
    fs::write(folder.path().join(".other.0123456789abcdef.partial"), b"x").unwrap();
    fs::write(folder.path().join(".disk.notes.partial"), b"x").unwrap();
    assert_eq!(sweep(&path).unwrap(), 1);
    assert_eq!(names(folder.path()).len(), 3);
    live.publish(Durability::None).unwrap();
    assert!(path.is_file());
}
