use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn base(&self, name: &str, length: u64) -> BaseImage {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::File::create(self.path(name)).unwrap().set_len(length).unwrap();
        BaseImage::open(self.path(name), BaseFormat::Raw).unwrap()
    }
}

fn header(path: &Path) -> Header {
    Header::read(&fs::File::open(path).unwrap()).unwrap()
}

#[test]
fn an_overlay_is_thin_private_and_names_its_base_absolutely() {
    let folder = Folder::new();
    let base = folder.base("base.img", 10 << 20);
    let overlay = base.overlay(folder.path("vm.qcow2")).create().unwrap();
    assert_eq!((overlay.virtual_size(), overlay.reused()), (10 << 20, false));
    let header = header(overlay.path());
    assert_eq!(header.backing_file(), Some(base.path().as_os_str().as_bytes()));
    assert_eq!(header.backing_format(), Some(&b"raw"[..]));
    let metadata = fs::metadata(overlay.path()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert!(metadata.blocks() * 512 <= 16 << 10, "{} bytes", metadata.blocks() * 512);
}

#[test]
fn sizes_grow_and_never_shrink() {
    let folder = Folder::new();
    let base = folder.base("base.img", (10 << 20) + 1);
    for (name, min_size, expected) in
        [("a", 0, (10 << 20) + 512), ("b", 1 << 20, (10 << 20) + 512), ("c", 50 << 30, 50 << 30)]
    {
        let overlay = base.overlay(folder.path(name)).min_size(min_size).create().unwrap();
        assert_eq!(overlay.virtual_size(), expected);
    }
    let error = base.overlay(folder.path("d")).min_size(u64::MAX).create().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!folder.path("d").exists());
}

#[test]
fn what_stands_there_is_refused_replaced_or_reused_as_asked() {
    let folder = Folder::new();
    let base = folder.base("base.img", 1 << 20);
    let path = folder.path("vm.qcow2");
    fs::write(&path, b"precious").unwrap();
    let error = base.overlay(&path).create().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = base.overlay(&path).reuse(true).create().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    base.overlay(&path).existing(Existing::Replace).create().unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    assert!(base.overlay(&path).reuse(true).create().unwrap().reused());
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
}

#[test]
fn an_overlay_that_does_not_fit_says_how() {
    let folder = Folder::new();
    let base = folder.base("base.img", 1 << 20);
    let other = folder.base("other.img", 1 << 20);
    let path = folder.path("vm.qcow2");
    base.overlay(&path).create().unwrap();
    let refused = |base: &BaseImage, min_size| {
        let error = base.overlay(&path).reuse(true).min_size(min_size).create().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        error.to_string()
    };
    assert!(refused(&other, 0).contains("not on"));
    assert!(refused(&base, 2 << 20).contains("at least 2097152"));
    fs::File::options().write(true).open(base.path()).unwrap().set_len(2 << 20).unwrap();
    let grown = BaseImage::open(base.path(), BaseFormat::Raw).unwrap();
    assert!(refused(&grown, 0).contains("made over a base of 1048576 bytes"));
    fs::remove_file(base.path()).unwrap();
    let gone = folder.base("moved.img", 1 << 20);
    assert!(refused(&gone, 0).contains("cannot be resolved"));
}

#[test]
fn a_relative_tree_moves_as_a_whole() {
    let folder = Folder::new();
    let base = folder.base("group/images/base.img", 1 << 20);
    fs::create_dir_all(folder.path("group/vms/0")).unwrap();
    let path = folder.path("group/vms/0/vm.qcow2");
    base.overlay(&path).relative(true).create().unwrap();
    assert_eq!(header(&path).backing_file(), Some(&b"../../images/base.img"[..]));
    fs::rename(folder.path("group"), folder.path("moved")).unwrap();
    let base = BaseImage::open(folder.path("moved/images/base.img"), BaseFormat::Raw).unwrap();
    let path = folder.path("moved/vms/0/vm.qcow2");
    assert!(base.overlay(&path).reuse(true).create().unwrap().reused());
}

#[test]
fn a_relative_name_with_a_colon_stays_a_path() {
    let folder = Folder::new();
    let base = folder.base("x:base", 1 << 20);
    let path = folder.path("vm.qcow2");
    base.overlay(&path).relative(true).create().unwrap();
    assert_eq!(header(&path).backing_file(), Some(&b"./x:base"[..]));
}

#[test]
fn a_moved_base_is_found_again_by_rebase_and_another_base_is_not_taken() {
    let folder = Folder::new();
    let base = folder.base("base.img", 1 << 20);
    let path = folder.path("vm.qcow2");
    base.overlay(&path).min_size(1 << 30).create().unwrap();
    fs::create_dir(folder.path("a-much-longer-folder-name")).unwrap();
    let moved = folder.path("a-much-longer-folder-name/base.img");
    fs::rename(base.path(), &moved).unwrap();
    let moved = BaseImage::open(moved, BaseFormat::Raw).unwrap();
    let other = folder.base("other.img", 2 << 20);
    let options = RebaseOptions::default();
    let error = rebase(&path, &other, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let report = rebase(&path, &moved, &options).unwrap();
    assert_eq!(report.previous.as_deref(), Some(base.path().as_os_str().as_bytes()));
    assert!(moved.overlay(&path).reuse(true).create().unwrap().reused());
    assert_eq!(header(&path).virtual_size(), 1 << 30);
    rebase(&path, &other, &RebaseOptions { force: true, ..options }).unwrap();
    assert_eq!(header(&path).backing_file(), Some(other.path().as_os_str().as_bytes()));
}
