//! Images as a whole: their bytes, their limits, and what is refused. Other programs judge them in
//! `tests/config_disk.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;
use crate::digest::Sha256Digest;
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256Digest(Sha256::digest(bytes).into()).to_string()
}

fn example() -> ConfigDisk {
    ConfigDisk::new()
        .file("user-data", "#cloud-config\n")
        .file("net/Long name of eth0.conf", "dhcp\n")
        .file("net/deep/a.txt", "a")
        .file("big.bin", vec![7; 5000])
}

#[test]
fn the_bytes_of_an_image_are_pinned() {
    let image = example().build().unwrap();
    assert_eq!(
        sha256(&image),
        "23a7faec2b4d2b69acdd1808ebd7142b36eab551ac32e6e2fcff9806a7762587",
        "an image of the same content has changed: so have its users' digests"
    );
}

#[test]
fn order_times_and_modes_make_no_difference() {
    let expected =
        ConfigDisk::new().file("b", "2").file("a", "1").file("c/d", "3").build().unwrap();
    for names in [["a", "b", "c/d"], ["c/d", "b", "a"]] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        for (age, name) in (0..).zip(names) {
            let path = folder.path().join(name);
            let content = match name {
                "a" => "1",
                "b" => "2",
                _ => "3",
            };
            fs::write(&path, content).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << (20 + age));
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400 + age)).unwrap();
        }
        let image = ConfigDisk::new().folder(folder.path()).unwrap().build().unwrap();
        assert!(image == expected, "{names:?}");
    }
}

#[test]
fn other_content_and_labels_have_other_ids() {
    let id = |disk: ConfigDisk| disk.build().unwrap()[39..43].to_vec();
    let one = id(ConfigDisk::new().file("a", "1"));
    assert_ne!(one, id(ConfigDisk::new().file("a", "2")));
    assert_ne!(one, id(ConfigDisk::new().file("b", "1")));
    assert_ne!(one, id(ConfigDisk::new().file("a", "1").label("OTHER")));
    assert_eq!(one, id(ConfigDisk::new().file("a", "1").min_size(1 << 20)));
}

#[test]
fn the_image_grows_with_its_content_and_no_further() {
    for (content, least, size, fat) in [
        (0, 0, 32 << 10, FatType::Fat12),
        (1, 100_000, 112 << 10, FatType::Fat12),
        (1 << 20, 0, (1 << 20) + (32 << 10), FatType::Fat12),
        (3 << 20, 0, (3 << 20) + (48 << 10), FatType::Fat16),
        (1, 64 << 20, 64 << 20, FatType::Fat16),
    ] {
        let content = vec![1; content];
        let disk = ConfigDisk::new().file("a", content).min_size(least);
        let shape = disk.plan().unwrap().shape();
        assert_eq!((shape.size, shape.fat), (size, fat), "{least}");
        assert_eq!(disk.build().unwrap().len() as u64, size);
    }
}

#[test]
fn a_file_on_disk_is_what_is_built_in_memory() {
    let file = tempfile::tempfile().unwrap();
    let shape = example().write_to(&file, Path::new("disk")).unwrap();
    let mut written = Vec::new();
    use std::io::{Read, Seek};
    (&file).rewind().unwrap();
    (&file).read_to_end(&mut written).unwrap();
    assert!(written == example().build().unwrap());
    assert_eq!((shape.files, shape.folders, shape.content_bytes), (4, 2, 5020));
}

#[test]
fn every_size_of_content_fits() {
    // Around the places where clusters, FATs and widths change.
    let sizes =
        (0..20).map(|at| at * 1046).chain((0..6).map(|at| (2 << 20) - 30_000 + at * 10_000));
    for size in sizes {
        let image = ConfigDisk::new().file("a", vec![9; size]).file("b/c", "x").build();
        assert!(image.is_ok(), "{size}: {:?}", image.unwrap_err());
    }
    // Folders with more and more names in them.
    for count in (1..200).step_by(37) {
        let mut disk = ConfigDisk::new();
        for at in 0..count {
            disk = disk.file(format!("folder/a rather long name {at}"), "");
        }
        disk.build().unwrap();
    }
}

#[test]
fn names_that_fat_takes_for_one_are_refused() {
    for (first, second) in [("a", "A"), ("a", "a"), ("x/a", "X/b"), ("a", "a/b"), ("ä", "Ä")] {
        let disk = ConfigDisk::new().file(first, "1").file(second, "2");
        let error = disk.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{first} {second}");
        assert_eq!(error.path(), Some(Path::new(second)));
    }
    for bad in ["", "/a", "a/", "a//b", "../a", "a:b"] {
        let error = ConfigDisk::new().file(bad, "").build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
    }
}

#[test]
fn what_a_guest_has_no_use_for_is_refused_by_name() {
    type Make = fn(&Path);
    let cases: [(&str, ErrorKind, Make); 4] = [
        ("link", ErrorKind::Refused, |path| symlink("a", path).unwrap()),
        ("fifo", ErrorKind::Refused, |path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("socket", ErrorKind::Refused, |path| {
            std::os::unix::net::UnixListener::bind(path).unwrap();
        }),
        ("sub", ErrorKind::Refused, |path| {
            fs::create_dir(path).unwrap();
            symlink("/etc", path.join("link")).unwrap();
        }),
    ];
    for (name, kind, make) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        make(&folder.path().join(name));
        let error = ConfigDisk::new().folder(folder.path()).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
        assert!(error.path().unwrap().starts_with(folder.path().join(name)), "{error}");
    }
    use std::os::unix::ffi::OsStringExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PathBuf::from(std::ffi::OsString::from_vec(vec![0xff])));
    fs::write(&path, "").unwrap();
    let error = ConfigDisk::new().folder(folder.path()).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Unsupported, Some(path.as_path())));
}

#[test]
fn limits_hold_for_folders_and_for_memory() {
    let limits = ConfigDiskLimits { max_bytes: 10, max_entries: 3, max_depth: 1 };
    let folder = tempfile::tempdir().unwrap();
    let disk = || ConfigDisk::new().limits(limits);
    let limited = |outcome: Result<Vec<u8>>| outcome.unwrap_err().kind() == ErrorKind::Limit;
    let read = || disk().folder(folder.path()).and_then(|disk| disk.build());

    fs::write(folder.path().join("a"), [0; 10]).unwrap();
    read().unwrap();
    fs::write(folder.path().join("b"), [0]).unwrap();
    assert!(limited(read()));
    assert!(limited(disk().file("a", [0; 11]).build()));
    fs::remove_file(folder.path().join("b")).unwrap();

    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/c"), "").unwrap();
    read().unwrap();
    fs::write(folder.path().join("b/d"), "").unwrap();
    assert!(limited(read()));
    assert!(limited(disk().file("a", "").file("b/c", "").file("b/d", "").build()));
    fs::remove_file(folder.path().join("b/d")).unwrap();

    fs::remove_file(folder.path().join("b/c")).unwrap();
    fs::create_dir(folder.path().join("b/c")).unwrap();
    assert!(limited(read()));
    assert!(limited(disk().file("a/b/c", "").build()));

    let huge = ConfigDisk::new().min_size(u64::MAX).build();
    assert!(limited(huge));
    assert!(limited(ConfigDisk::new().min_size(2 << 30).build()));
}

#[test]
fn a_seed_makes_up_an_instance_that_follows_its_content() {
    let content = |seed: CloudInit| {
        let disk = seed.disk();
        let entry = disk.entries.iter().find(|entry| entry.path == "meta-data").unwrap();
        String::from_utf8(entry.content.clone().unwrap()).unwrap()
    };
    let one = content(CloudInit::new("a"));
    assert!(one.starts_with("instance-id: iid-") && one.len() == 34, "{one}");
    assert_eq!(one, content(CloudInit::new("a")));
    for other in [
        CloudInit::new("b"),
        CloudInit::new("a").network_config(""),
        CloudInit::new("a").vendor_data(""),
    ] {
        assert_ne!(one, content(other));
    }
    assert_eq!(content(CloudInit::new("a").meta_data("mine")), "mine");
    assert_eq!(CloudInit::new("a").disk().label, NO_CLOUD_LABEL);
}

#[test]
fn a_folder_without_meta_data_is_no_seed() {
    let folder = tempfile::tempdir().unwrap();
    for missing in ["user-data", "meta-data"] {
        let error = CloudInit::check_folder(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.path(), Some(folder.path().join(missing).as_path()));
        fs::create_dir(folder.path().join(missing)).unwrap();
        let error = CloudInit::check_folder(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.path(), Some(folder.path().join(missing).as_path()));
        fs::remove_dir(folder.path().join(missing)).unwrap();
        fs::write(folder.path().join(missing), "").unwrap();
    }
    CloudInit::check_folder(folder.path()).unwrap();
}
