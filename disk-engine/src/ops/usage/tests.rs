use super::*;
use crate::base::BaseImage;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};

fn names(report: &UsageReport, root: &Path) -> Vec<String> {
    let below = |disk: &DiskUsage| disk.path.strip_prefix(root).unwrap().display().to_string();
    report.disks.iter().map(below).collect()
}

fn look(path: &Path) -> UsageReport {
    usage(&[path], &UsageOptions::default()).unwrap()
}

/// A folder with a base and an overlay of it, `vm0/primary.qcow2`.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::write(root.join("base"), vec![7; 1 << 20]).unwrap();
    fs::create_dir(root.join("vm0")).unwrap();
    let base = BaseImage::open(root.join("base"), BaseFormat::Raw).unwrap();
    base.overlay(root.join("vm0/primary.qcow2")).min_size(1 << 30).create().unwrap();
    (folder, root)
}

#[test]
fn an_overlay_tells_its_growth_its_base_and_who_has_it() {
    let (_folder, root) = folder();
    let path = root.join("vm0/primary.qcow2");
    let before = look(&root);
    let disk = &before.disks[0];
    assert_eq!((disk.format, disk.virtual_size, disk.in_use), ("qcow2", 1 << 30, Some(false)));
    let base = disk.base.as_ref().unwrap();
    assert_eq!((base.path.as_path(), base.length), (root.join("base").as_path(), Some(1 << 20)));
    let system = &before.file_systems[0];
    assert_eq!((before.file_systems.len(), system.device), (1, disk.device));
    assert!(system.total >= system.available && system.available > 0);

    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert!(image_lock::lock_for_writing(&file).unwrap());
    file.write_all_at(&vec![1; 1 << 20], 1 << 20).unwrap();
    let after = look(&path);
    assert_eq!(after.disks[0].in_use, Some(true));
    let growth = after.growth_since(&before);
    assert_eq!(growth.len(), 1);
    let grown = growth[0].after - growth[0].before;
    assert!((1 << 20..3 << 20).contains(&grown), "{growth:?}");
    assert_eq!(after.disks[0].growth.unwrap() - disk.growth.unwrap(), grown);
    assert_eq!(after.growth_since(&after), []);
}

#[test]
fn a_folder_that_anybody_filled_shows_its_disks_and_hides_nothing() {
    let (_folder, root) = folder();
    let outside = tempfile::tempdir().unwrap();
    fs::copy(root.join("vm0/primary.qcow2"), outside.path().join("x.qcow2")).unwrap();
    symlink(outside.path(), root.join("a-folder-link")).unwrap();
    symlink(outside.path().join("x.qcow2"), root.join("a-link")).unwrap();
    symlink(".", root.join("loop")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(root.join("short"), b"QF").unwrap();
    fs::write(root.join("damaged"), b"QFI\xfb and no more").unwrap();
    // A guest wrote a qcow2 header into its raw disk: it stays raw.
    fs::create_dir(root.join("vm1")).unwrap();
    fs::write(root.join("vm1/primary.img"), b"QFI\xfb a guest's words").unwrap();
    fs::hard_link(root.join("vm0/primary.qcow2"), root.join("vm0/same")).unwrap();
    let odd = root.join(std::ffi::OsStr::from_bytes(b"odd\xff\n"));
    fs::copy(root.join("vm0/primary.qcow2"), &odd).unwrap();

    let report = look(&root);
    let [first, rest @ ..] = &names(&report, &root)[..] else { panic!("{report:?}") };
    assert!(first.starts_with("odd"), "{first}");
    assert_eq!(rest, ["vm0/primary.qcow2", "vm1/primary.img"]);
    assert_eq!(report.disks[2].format, "raw");
    assert_eq!((report.disks[2].growth, &report.disks[2].base), (None, &None));
    assert_eq!(report.skipped.len(), 1, "{:?}", report.skipped);
    assert_eq!(report.skipped[0].path, root.join("damaged"));
}

#[test]
fn depth_is_bounded_and_what_lies_deeper_is_told() {
    let (_folder, root) = folder();
    let options = UsageOptions { depth: 0, ..UsageOptions::default() };
    let report = usage(&[&root], &options).unwrap();
    assert_eq!(report.disks, []);
    assert_eq!(report.skipped[0].path, root.join("vm0"));
    let options = UsageOptions { depth: 1, ..UsageOptions::default() };
    assert_eq!(names(&usage(&[&root, &root], &options).unwrap(), &root), ["vm0/primary.qcow2"]);
}

#[test]
fn paths_the_caller_names_have_to_be_there_and_may_be_links() {
    let (_folder, root) = folder();
    symlink("vm0/primary.qcow2", root.join("link")).unwrap();
    assert_eq!(look(&root.join("link")).disks.len(), 1);
    assert_eq!(look(&root.join("base")).disks[0].format, "raw");
    for (path, kind) in [("absent", ErrorKind::NotFound), ("fifo", ErrorKind::InvalidInput)] {
        if path == "fifo" {
            nix::unistd::mkfifo(&root.join(path), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let error = usage(&[root.join(path)], &UsageOptions::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{path}");
    }
    let control = Control::new();
    control.cancel_token().cancel();
    let options = UsageOptions { control, ..UsageOptions::default() };
    assert_eq!(usage(&[&root], &options).unwrap_err().kind(), ErrorKind::Cancelled);
}
