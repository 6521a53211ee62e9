//! Config disks in other programs' hands.
//!
//! ```text
//! files ─▶ image ─▶ fsck.fat (nothing to repair) · mcopy, the kernel (same names, same bytes)
//!                   · blkid (the label a guest looks for)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use disk_engine::config_disk::{CloudInit, ConfigDisk};
use disk_engine::ops::config_disk::{ConfigDiskOptions, config_disk};
use testkit::tool;

type Files = BTreeMap<String, Vec<u8>>;

/// Names that want short ones made up, names that look like made-up ones, and letters of all sorts.
fn files() -> Files {
    let mut files = Files::new();
    let mut add = |path: &str, content: Vec<u8>| {
        files.insert(path.to_owned(), content);
    };
    add("user-data", b"#cloud-config\n".to_vec());
    add("empty", Vec::new());
    add("A+B,C;D=E[F].TXT", b"signs".to_vec());
    add("Grüße.txt", b"umlauts".to_vec());
    add(".hidden", b"dot".to_vec());
    add(".env", b"an extension alone".to_vec());
    add(".a", vec![3; 5000]);
    add("..env", b"two dots".to_vec());
    add("~1.env", b"what .env would be called".to_vec());
    add(".git/config", b"in such a folder".to_vec());
    add("deep/.ssh/.id", b"in two of them".to_vec());
    for alias in 1..12 {
        add(&format!("LONGFI~{alias}.TXT"), format!("taken {alias}").into_bytes());
    }
    for at in 0..60 {
        add(&format!("longfile name {at:02}.txt"), format!("long {at}").into_bytes());
        add(&format!("many/folder {at}/x"), vec![at; 1 + 37 * usize::from(at)]);
    }
    for length in [11, 12, 13, 14, 25, 26, 27, 39, 251] {
        add(&format!("lengths/{}", "n".repeat(length)), vec![1; length]);
    }
    for depth in 1..9 {
        add(&format!("{}file", "deep/".repeat(depth)), vec![2; depth * 511]);
    }
    add("big", (0..300_000_u32).map(|at| (at % 253) as u8).collect());
    files
}

fn make(folder: &Path, name: &str, disk: &ConfigDisk) -> PathBuf {
    let path = folder.join(name);
    config_disk(disk, &path, &ConfigDiskOptions::default()).unwrap();
    path
}

fn disk_of(files: &Files) -> ConfigDisk {
    files.iter().fold(ConfigDisk::new(), |disk, (path, content)| disk.file(path, content.clone()))
}

fn run(program: &str, arguments: &[&str]) -> Output {
    // Letters beyond ASCII go by the locale, and a clock zone is nobody's here.
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env("PATH", format!("{}:/usr/sbin:/sbin", env_path()));
    command.args(arguments).output().unwrap()
}

fn env_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// What is in a folder of this machine, all the way down.
fn listing(folder: &Path, inside: &str, files: &mut Files) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{inside}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            listing(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

fn assert_same(found: &Files, expected: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, content) in expected {
        assert!(found[name] == *content, "{name} has other content");
    }
}

#[test]
fn fsck_finds_nothing_to_repair() {
    if !available("config disks and fsck.fat", "fsck.fat") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let empty = ConfigDisk::new();
    let fat16 = disk_of(&files()).file("four MiB", vec![4; 4 << 20]);
    let large = disk_of(&files()).min_size(200 << 20);
    let only_folders = ConfigDisk::new().file("a/b/c/d/e/f", "");
    for (name, disk) in [
        ("full", disk_of(&files())),
        ("empty", empty),
        ("fat16", fat16),
        ("large", large),
        ("folders", only_folders),
        ("seed", CloudInit::new("#cloud-config\n").network_config("version: 2\n").disk()),
    ] {
        let image = make(folder.path(), name, &disk);
        let said = run("fsck.fat", &["-n", "-v", image.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success(), "{name}: {text}");
        let fat = if matches!(name, "fat16" | "large") { "16 bit" } else { "12 bit" };
        assert!(text.contains(fat), "{name}: {text}");
    }
}

#[test]
fn mtools_reads_what_was_put_in() {
    if !available("config disks and mtools", "mcopy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let expected = files();
    let image = make(folder.path(), "image", &disk_of(&expected));
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let said =
        run("mcopy", &["-s", "-n", "-i", image.to_str().unwrap(), "::*", out.to_str().unwrap()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let mut found = Files::new();
    listing(&out, "", &mut found);
    // mcopy's star, like a shell's, does not see a name that begins with a dot.
    if !found.contains_key(".hidden") {
        let said = run("mtype", &["-i", image.to_str().unwrap(), "::.hidden"]);
        found.insert(".hidden".into(), said.stdout);
    }
    assert_same(&found, &expected);
}

#[test]
fn the_kernel_reads_what_was_put_in() {
    const SUITE: &str = "config disks and the kernel's vfat";
    let folder = tempfile::tempdir().unwrap();
    let expected = files();
    let image = make(folder.path(), "image", &disk_of(&expected));
    let place = folder.path().join("place");
    fs::create_dir(&place).unwrap();
    let (image, place_text) = (image.to_str().unwrap(), place.to_str().unwrap());
    let options = "loop,ro,iocharset=utf8,shortname=mixed";
    let said =
        Command::new("mount").args(["-t", "vfat", "-o", options, image, place_text]).output();
    match said {
        Ok(said) if said.status.success() => {}
        Ok(said) => {
            let why = String::from_utf8_lossy(&said.stderr);
            tool::left_out(
                SUITE,
                &format!("cannot mount here: {}", why.lines().next().unwrap_or_default()),
            );
            return;
        }
        Err(error) => {
            tool::left_out(SUITE, &format!("cannot mount here: {error}"));
            return;
        }
    }
    let outcome = std::panic::catch_unwind(|| {
        let mut found = Files::new();
        listing(&place, "", &mut found);
        found
    });
    let unmounted = Command::new("umount").arg(&place).status().unwrap();
    assert!(unmounted.success(), "left mounted: {place:?}");
    assert_same(&outcome.unwrap(), &expected);
}

#[test]
fn guests_find_the_label_they_look_for() {
    if !available("config disks and blkid", "blkid") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, disk, label) in [
        ("plain", disk_of(&files()), "CONFIG"),
        ("named", ConfigDisk::new().label("My disk 1"), "My disk 1"),
        ("seed", CloudInit::new("#cloud-config\n").disk(), "cidata"),
    ] {
        let image = make(folder.path(), name, &disk);
        for (tag, expected) in [("LABEL", label), ("LABEL_FATBOOT", label), ("TYPE", "vfat")] {
            let image = image.to_str().unwrap();
            let said = run("blkid", &["-p", "-s", tag, "-o", "value", image]);
            let said = String::from_utf8_lossy(&said.stdout);
            assert_eq!(said.trim_end(), expected, "{name} {tag}");
        }
    }
}

fn available(suite: &str, program: &str) -> bool {
    let starts = Command::new(program)
        .env("PATH", format!("{}:/usr/sbin:/sbin", env_path()))
        .arg("--help")
        .output()
        .is_ok();
    if !starts {
        tool::left_out(suite, &format!("not installed: {program}"));
    }
    starts
}
