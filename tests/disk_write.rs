//! Disks that are written to, against `qemu-io` doing the same to a copy.
//!
//! ```text
//! qemu-img, qemu-io ─▶ a chain ─┬─ copy ─▶ WritableDisk: writes, zeros, discards ─▶ raw, by us and by QEMU
//!                               └─ copy ─▶ qemu-io:      the same                 ─▶ raw, by us and by QEMU
//! ```
//!
//! All four are the same bytes, no image below the top has changed, and `qemu-img check` finds
//! nothing in ours.

use std::error::Error as _;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk_engine::base::BaseFormat;
use disk_engine::disk::policy::BackingPolicy;
use disk_engine::disk::{Disk, DiskContent, DiskFile, Locking, WritableDisk, WritableDiskOptions};
use disk_engine::sys::image_file::FlushFailed;
use disk_engine::sys::image_lock::{Conflict, Permission};
use disk_engine::{Error, ErrorKind};
use qcow2_format::image::{DetectZeroes, Discard, Durability, ZeroMode};
use testkit::device::Device;
use testkit::disks::allocated;
use testkit::mounts::{Kind, Mount};
use testkit::qemu::{self, img, img_in};
use testkit::tool::{available, left_out, memory_folder, tell};

fn here() -> bool {
    available("disks that are written to", &["qemu-img", "qemu-io"])
}

/// What is done to a disk.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { pattern: u8, offset: u64, length: u64 },
    Zero { offset: u64, length: u64, unmap: bool },
    Discard { offset: u64, length: u64 },
    Flush,
}

impl Step {
    fn ours(self, disk: &WritableDisk) -> Result<(), Error> {
        match self {
            Self::Write { pattern, offset, length } => {
                disk.write_at(&vec![pattern; usize::try_from(length).unwrap()], offset)
            }
            Self::Zero { offset, length, unmap } => {
                let mode = if unmap { ZeroMode::Unmap } else { ZeroMode::Keep };
                disk.write_zeroes(offset, length, mode)
            }
            Self::Discard { offset, length } => disk.discard(offset, length),
            Self::Flush => disk.flush(),
        }
    }

    fn theirs(self) -> String {
        match self {
            Self::Write { pattern, offset, length } => {
                format!("write -q -P {pattern} {offset} {length}")
            }
            Self::Zero { offset, length, unmap } => {
                let unmap = if unmap { " -u" } else { "" };
                format!("write -q -z{unmap} {offset} {length}")
            }
            Self::Discard { offset, length } => format!("discard -q {offset} {length}"),
            Self::Flush => "flush".to_owned(),
        }
    }
}

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % end
    }

    /// A range on a disk of `size` bytes, at times on sectors, at times on clusters, at times on
    /// neither.
    fn range(&mut self, size: u64) -> (u64, u64) {
        let unit = [1, 512, 4096, 65_536][usize::try_from(self.below(4)).unwrap()];
        let offset = self.below(size) / unit * unit;
        let longest = if self.below(3) == 0 { 400_000 } else { 70_000 };
        let length = self.below(longest).max(1).next_multiple_of(unit).min(size - offset);
        (offset, length)
    }

    fn steps(&mut self, size: u64, count: usize) -> Vec<Step> {
        (0..count)
            .map(|index| {
                let (offset, length) = self.range(size);
                let pattern = u8::try_from(index % 250 + 1).unwrap();
                match self.below(10) {
                    0..5 => Step::Write { pattern, offset, length },
                    5..7 => Step::Zero { offset, length, unmap: self.below(2) == 0 },
                    7..9 => Step::Discard { offset, length },
                    _ => Step::Flush,
                }
            })
            .collect()
    }
}

fn format_of(path: &Path) -> BaseFormat {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => BaseFormat::Qcow2,
        _ => BaseFormat::Raw,
    }
}

fn options() -> WritableDiskOptions {
    let mut options = WritableDiskOptions::default();
    options.disk.data_files = BackingPolicy::default();
    options
}

fn open(path: &Path, options: &WritableDiskOptions) -> Result<WritableDisk, Error> {
    WritableDisk::open(path, format_of(path), options)
}

fn content(disk: &dyn DiskContent) -> Vec<u8> {
    let mut bytes = vec![7; usize::try_from(disk.size()).unwrap()];
    for (index, piece) in bytes.chunks_mut(300_001).enumerate() {
        disk.read_at(piece, index as u64 * 300_001).unwrap();
    }
    bytes
}

/// What a disk holds, by us and by QEMU.
fn both(path: &Path) -> [Vec<u8>; 2] {
    let format = format_of(path);
    let ours = content(&Disk::open(path, format, &options().disk).unwrap());
    let folder = path.parent().unwrap();
    let flat = folder.join("flat");
    let name = path.file_name().unwrap().to_str().unwrap();
    img_in(folder, &["convert", "-f", format.as_str(), "-O", "raw", name, "flat"]);
    let mut theirs = fs::read(&flat).unwrap();
    // QEMU has raw disks in whole sectors.
    theirs.truncate(ours.len());
    fs::remove_file(flat).unwrap();
    [ours, theirs]
}

/// `qemu-io` in the image's folder, where a data file is looked for.
fn qemu_io(path: &Path, commands: &[String]) {
    let mut command = Command::new("qemu-io");
    command.current_dir(path.parent().unwrap());
    command.args(["-f", format_of(path).as_str(), "-d", "unmap"]);
    for step in commands {
        command.args(["-c", step]);
    }
    let output = command.arg(path).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !said.contains("failed"), "{command:?}: {said} {output:?}");
}

fn copy(folder: &Path, name: &str) -> PathBuf {
    let to = folder.parent().unwrap().join(name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to
}

fn digests(folder: &Path, but: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| !but.contains(&name.as_str()))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Does `steps` to copies of the chain whose top is `top` in `folder`, and compares.
fn compare(what: &str, folder: &Path, top: &str, steps: &[Step], options: &WritableDiskOptions) {
    let (ours, theirs) = (copy(folder, "ours"), copy(folder, "theirs"));
    let disk = open(&ours.join(top), options).unwrap();
    for step in steps {
        step.ours(&disk).unwrap_or_else(|error| panic!("{what}: {step:?}: {error:?}"));
    }
    let seen = content(&disk);
    disk.close().unwrap();
    let commands: Vec<_> = steps.iter().map(|step| step.theirs()).collect();
    qemu_io(&theirs.join(top), &commands);

    let [by_us, by_qemu] = both(&ours.join(top));
    let [theirs_by_us, theirs_by_qemu] = both(&theirs.join(top));
    let told = || {
        let mut told = format!("{what}\n");
        for step in &commands {
            let _ = writeln!(told, "  {step}");
        }
        told
    };
    let differs = by_us.iter().zip(&theirs_by_qemu).position(|(one, other)| one != other);
    assert_eq!(differs, None, "{}", told());
    assert!(seen == by_us && by_us == by_qemu, "{}", told());
    assert!(theirs_by_us == theirs_by_qemu && by_us == theirs_by_us, "{}", told());
    if format_of(Path::new(top)) == BaseFormat::Qcow2 {
        img_in(&ours, &["check", "-q", "-f", "qcow2", top]);
    }
    let written = [top, "data"];
    assert!(
        digests(&ours, &written) == digests(folder, &written),
        "{what}: something below changed"
    );
    for copy in [ours, theirs] {
        fs::remove_dir_all(copy).unwrap();
    }
}

const SIZE: u64 = (3 << 20) + 1536;

#[test]
fn copies_from_below_are_qemus_whatever_the_sizes() {
    if !here() {
        return;
    }
    let mut numbers = Numbers(1);
    let mut count = 0;
    // Nothing below, and something shorter, as long, and longer; on sectors and not.
    for below in [0, 1, 700_000, (1 << 20) + 512, SIZE, SIZE + 5000, 4 << 20] {
        for format in ["raw", "qcow2"] {
            for layout in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
                let place = memory_folder();
                let folder = place.path().join("chain");
                fs::create_dir(&folder).unwrap();
                let base = folder.join(format!("base.{format}"));
                let mut backing = String::new();
                if below > 0 {
                    let size = if format == "raw" { below } else { below.next_multiple_of(512) };
                    if format == "raw" {
                        fs::write(&base, vec![0xee; usize::try_from(size).unwrap()]).unwrap();
                    } else {
                        img_in(
                            &folder,
                            &["create", "-q", "-f", format, "base.qcow2", &size.to_string()],
                        );
                        qemu_io(&base, &[format!("write -q -P 238 0 {size}")]);
                    }
                    backing = format!(",backing_file=base.{format},backing_fmt={format}");
                } else if format == "qcow2" {
                    continue;
                }
                let options_of_image = format!("{layout}{backing}");
                let size = SIZE.to_string();
                img_in(
                    &folder,
                    &["create", "-q", "-f", "qcow2", "-o", &options_of_image, "top.qcow2", &size],
                );
                let what = format!("{below} bytes of {format} below, {layout}");
                let mut options = options();
                // Version 2 has no zero clusters: QEMU ignores discards over anything, and we only
                // over what has bytes there.
                if layout == "compat=0.10" && below > 0 {
                    options.discard = Discard::Ignore;
                }
                compare(&what, &folder, "top.qcow2", &numbers.steps(SIZE, 40), &options);
                count += 1;
            }
        }
    }
    tell(&format!("disks over what is shorter and longer: {count} programs of 40 steps"));
}

#[test]
fn a_chain_of_64_takes_writes() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path().join("chain");
    fs::create_dir(&folder).unwrap();
    let mut numbers = Numbers(2);
    fs::write(folder.join("0.raw"), vec![0xdd; 5 << 20]).unwrap();
    let mut below = "0.raw".to_owned();
    for depth in 1..64 {
        let format = if depth == 1 { "raw" } else { "qcow2" };
        let name = format!("{depth}.qcow2");
        // Each has another size, another cluster size, and a little of its own.
        let size = (4 << 20) + numbers.below(4 << 20) / 512 * 512;
        let cluster = 4096 << (depth % 5);
        let image = format!("cluster_size={cluster},backing_file={below},backing_fmt={format}");
        img_in(&folder, &["create", "-q", "-f", "qcow2", "-o", &image, &name, &size.to_string()]);
        let (offset, length) = (numbers.below(size - 60_000), 1 + numbers.below(60_000));
        qemu_io(&folder.join(&name), &[format!("write -q -P {depth} {offset} {length}")]);
        below = name;
    }
    let size = Disk::open(folder.join(&below), BaseFormat::Qcow2, &options().disk).unwrap().size();
    // Few enough that they leave much of what lies below to be seen.
    for _ in 0..4 {
        compare("a chain of 64", &folder, &below, &numbers.steps(size, 25), &options());
    }
}

#[test]
fn options_change_how_and_never_what() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path().join("chain");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("base.raw"), vec![0xcc; (2 << 20) + 100]).unwrap();
    let image = "cluster_size=16k,backing_file=base.raw,backing_fmt=raw";
    img_in(&folder, &["create", "-q", "-f", "qcow2", "-o", image, "top.qcow2", "3M"]);
    fs::write(folder.join("top.raw"), vec![0xbb; (2 << 20) + 777]).unwrap();
    let mut numbers = Numbers(3);
    for (top, size) in [("top.qcow2", 3 << 20), ("top.raw", (2 << 20) + 777)] {
        for durability in [Durability::None, Durability::Flush, Durability::Full] {
            for detect_zeroes in [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap] {
                let mut options = options();
                options.durability = durability;
                options.detect_zeroes = detect_zeroes;
                options.disk.threads = Some(1);
                options.disk.l2_cache = 0;
                options.refcount_cache = 0;
                let mut steps = numbers.steps(size, 40);
                // Written zeros, to be detected.
                steps.push(Step::Write { pattern: 0, offset: 5000, length: 300_000 });
                let what = format!("{top}, {durability:?}, {detect_zeroes:?}");
                compare(&what, &folder, top, &steps, &options);
            }
        }
    }
}

#[test]
fn external_data_files_are_written_by_policy() {
    if !here() {
        return;
    }
    let mut numbers = Numbers(4);
    for image in [
        "data_file=data,data_file_raw=off",
        "data_file=data,data_file_raw=on",
        "data_file=data,data_file_raw=off,extended_l2=on,backing_file=base.raw,backing_fmt=raw",
    ] {
        let place = memory_folder();
        let folder = place.path().join("chain");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("base.raw"), vec![9; 1 << 20]).unwrap();
        img_in(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", image, "top.qcow2", &SIZE.to_string()],
        );
        compare(image, &folder, "top.qcow2", &numbers.steps(SIZE, 60), &options());
        let mut denied = options();
        denied.disk.data_files = BackingPolicy::Deny;
        let before = digests(&folder, &[]);
        let error = open(&folder.join("top.qcow2"), &denied).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(digests(&folder, &[]) == before);
    }
}

#[test]
fn space_is_given_back_only_where_that_is_allowed() {
    let place = memory_folder();
    let path = place.path().join("disk.raw");
    for (discard, expected) in [(Discard::Ignore, 4 << 20), (Discard::Unmap, 2 << 20)] {
        fs::write(&path, vec![1; 4 << 20]).unwrap();
        let mut options = options();
        options.discard = discard;
        let disk = open(&path, &options).unwrap();
        disk.discard(1 << 20, 2 << 20).unwrap();
        assert_eq!(allocated(&path), expected, "{discard:?}");
        let run = disk.run_at(1 << 20).unwrap();
        assert_eq!(run.zero, discard == Discard::Unmap);
        disk.write_zeroes(0, 4 << 20, ZeroMode::Keep).unwrap();
        assert_eq!(allocated(&path), 4 << 20, "kept");
        disk.write_zeroes(0, 4 << 20, ZeroMode::Unmap).unwrap();
        assert_eq!(allocated(&path), 0, "given back");
        assert_eq!(disk.size(), 4 << 20);
        let error = disk.write_at(&[1], 4 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let error = disk.write_compressed(&[1; 65_536], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        disk.close().unwrap();
    }
}

#[test]
fn files_already_open_are_all_there_is() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    fs::write(folder.join("base.raw"), vec![5; 1 << 20]).unwrap();
    let image = "backing_file=base.raw,backing_fmt=raw";
    img_in(folder, &["create", "-q", "-f", "qcow2", "-o", image, "top.qcow2", "2M"]);
    let files = |write: bool| {
        [("top.qcow2", BaseFormat::Qcow2, write), ("base.raw", BaseFormat::Raw, false)].map(
            |(name, format, write)| DiskFile {
                file: File::options().read(true).write(write).open(folder.join(name)).unwrap(),
                path: PathBuf::from(format!("what the caller calls {name}")),
                format,
                data_file: None,
            },
        )
    };
    let before = digests(folder, &[]);
    let error = WritableDisk::from_files(files(false), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(digests(folder, &[]) == before);
    let opened = files(true);
    fs::rename(folder.join("base.raw"), folder.join("elsewhere.raw")).unwrap();
    let disk = WritableDisk::from_files(opened, &options()).unwrap();
    disk.write_at(&[6; 1000], 500).unwrap();
    let mut bytes = [0; 3000];
    disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[499], bytes[500], bytes[1499], bytes[1500]), (5, 6, 6, 5));
    disk.close().unwrap();
    fs::rename(folder.join("elsewhere.raw"), folder.join("base.raw")).unwrap();
    assert_eq!(both(&folder.join("top.qcow2"))[1][..3000], bytes);
}

/// A folder with an overlay, and what its files hold.
fn overlay() -> (tempfile::TempDir, PathBuf) {
    let place = memory_folder();
    fs::write(place.path().join("base.raw"), vec![5; 1 << 20]).unwrap();
    let image = "lazy_refcounts=on,backing_file=base.raw,backing_fmt=raw";
    img_in(place.path(), &["create", "-q", "-f", "qcow2", "-o", image, "top.qcow2", "2M"]);
    let top = place.path().join("top.qcow2");
    qemu_io(&top, &["write -q -P 1 0 70000".to_owned()]);
    (place, top)
}

#[test]
fn an_open_that_fails_has_changed_nothing() {
    if !here() {
        return;
    }
    let (place, top) = overlay();
    let folder = place.path();
    // Dirty: the first thing an open that succeeds does is to write. Byte 79 is the last of the
    // incompatible features, bit 0 "dirty", bit 1 "corrupt".
    let mark = |bits: u8| {
        use std::os::unix::fs::FileExt;
        File::options().write(true).open(&top).unwrap().write_all_at(&[bits], 79).unwrap();
    };
    mark(1);
    let before = digests(folder, &[]);
    let fails = |kind: ErrorKind, path: Option<&Path>, options: &WritableDiskOptions| {
        let error = open(&top, options).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        if path.is_some() {
            assert_eq!(error.path(), path, "{error:?}");
        }
        error
    };
    let moved = folder.join("moved");
    fs::rename(folder.join("base.raw"), &moved).unwrap();
    fails(ErrorKind::NotFound, Some(&folder.join("base.raw")), &options());
    fs::rename(&moved, folder.join("base.raw")).unwrap();
    let mut denied = options();
    denied.disk.policy = BackingPolicy::Deny;
    fails(ErrorKind::Refused, None, &denied);
    let mut snapshot = options();
    snapshot.disk.snapshot = Some("1".into());
    fails(ErrorKind::InvalidInput, None, &snapshot);
    let mut shared = options();
    shared.disk.locking = Locking::Shared;
    fails(ErrorKind::InvalidInput, None, &shared);
    // Another writer, on the same terms: through a descriptor of its own.
    let reader = Disk::open(folder.join("base.raw"), BaseFormat::Raw, &options().disk).unwrap();
    let holder = Disk::open(&top, BaseFormat::Qcow2, &options().disk).unwrap();
    let error = fails(ErrorKind::Busy, Some(&top), &options());
    let conflict: &Conflict = error.source().unwrap().downcast_ref().unwrap();
    assert_eq!(conflict, &Conflict::Keeps(Permission::Write));
    drop((holder, reader));
    assert!(digests(folder, &[]) == before);

    // A base somebody writes to.
    let writer = open(&folder.join("base.raw"), &options()).unwrap();
    let error = fails(ErrorKind::Busy, Some(&folder.join("base.raw")), &options());
    let conflict: &Conflict = error.source().unwrap().downcast_ref().unwrap();
    assert_eq!(conflict, &Conflict::Uses(Permission::Write));
    writer.close().unwrap();
    assert!(digests(folder, &[]) == before);

    mark(3);
    let marked = digests(folder, &[]);
    fails(ErrorKind::Unsupported, Some(&top), &options());
    assert!(digests(folder, &[]) == marked);

    // Dirty only, it is repaired by opening.
    mark(1);
    open(&top, &options()).unwrap().close().unwrap();
    let clean = img(["check", "-f", "qcow2", top.to_str().unwrap()]).expect_success();
    assert!(clean.contains("No errors"), "{clean}");
}

#[test]
fn what_must_not_be_written_to_is_not() {
    let what = "a file that must not be written to";
    let place = memory_folder();
    // Where root may write to anything, a file system can still refuse.
    let Some(mount) = Mount::new(what, Kind::Tmpfs, 4, place.path()) else { return };
    let path = mount.path().join("disk.raw");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let remount = |how: &str| {
        let how = format!("remount,{how}");
        let done = Command::new("mount").args(["-o", &how]).arg(mount.path()).status();
        done.is_ok_and(|status| status.success())
    };
    if !remount("ro") {
        left_out(what, "the file system cannot be made read-only");
        return;
    }
    let error = open(&path, &options()).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::PermissionDenied, Some(path.as_path())));
    Disk::open(&path, BaseFormat::Raw, &options().disk).unwrap();
    assert!(remount("rw"));
    open(&path, &options()).unwrap().close().unwrap();
}

#[test]
fn qemu_sees_a_disk_that_is_written_to() {
    if !here() {
        return;
    }
    let (place, top) = overlay();
    let base = place.path().join("base.raw");
    let refused = |path: &Path, how: &[&str]| {
        let arguments = how.iter().copied().chain(["-f", format_of(path).as_str()]);
        let said = qemu::io(arguments.chain(["-c", "length", path.to_str().unwrap()]));
        (!said.status.success()).then_some(said.stderr)
    };
    let disk = open(&top, &options()).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    assert!(refused(&top, &[]).unwrap().contains("Failed to get \"write\" lock"));
    assert!(refused(&top, &["-r"]).unwrap().contains("Failed to get shared \"write\" lock"));
    assert_eq!(refused(&top, &["-r", "-U"]), None);
    assert!(refused(&base, &[]).unwrap().contains("Failed to get \"write\" lock"));
    assert_eq!(refused(&base, &["-r"]), None);
    disk.close().unwrap();
    assert_eq!(refused(&top, &[]), None);
    assert_eq!(refused(&base, &[]), None);
    let mut unlocked = options();
    unlocked.disk.locking = Locking::Off;
    let disk = open(&top, &unlocked).unwrap();
    assert_eq!(refused(&top, &["-r"]), None);
    drop(disk);
}

#[test]
fn after_a_failed_flush_nothing_more_is_written() {
    if !here() {
        return;
    }
    // A file system that lies in one with less room than it believes to have: what is written is
    // lost when the page cache is written back.
    let what = "a flush that fails";
    let place = memory_folder();
    let Some(room) = Mount::new(what, Kind::Tmpfs, 24, place.path()) else { return };
    for name in ["disk.raw", "disk.qcow2"] {
        let Some(mount) = Mount::new(what, Kind::Ext4, 128, &room.path()) else { return };
        let path = mount.path().join(name);
        let format = format_of(&path);
        img_in(&mount.path(), &["create", "-q", "-f", format.as_str(), name, "64M"]);
        let disk = open(&path, &options()).unwrap();
        for at in 0..48 {
            disk.write_at(&vec![1; 1 << 20], at << 20).unwrap();
        }
        let first = disk.flush().unwrap_err();
        assert_eq!(first.path(), Some(path.as_path()), "{first:?}");
        let errno = first.io_error().and_then(std::io::Error::raw_os_error);
        assert!(errno.is_some(), "{first:?}");
        for outcome in [disk.flush(), disk.write_at(&[1; 512], 0), disk.flush()] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), first.kind(), "{error:?}");
            let mut told = format!("{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                let _ = write!(told, ": {error}");
                cause = error.source();
            }
            assert!(told.contains("an earlier flush failed"), "{name}: {told}");
            if format == BaseFormat::Raw {
                let kept = error.io_error().and_then(std::io::Error::get_ref).unwrap();
                assert!(kept.is::<FlushFailed>(), "{error:?}");
            }
        }
        disk.close().unwrap_err();
        tell(&format!("{what}: {name}: {first:?}"));
    }
}

#[test]
fn threads_write_side_by_side() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    fs::write(folder.join("base.raw"), vec![0xee; 4 << 20]).unwrap();
    for image in ["cluster_size=64k", "extended_l2=on,cluster_size=64k", "raw"] {
        let top = if image == "raw" {
            fs::write(folder.join("top.raw"), vec![0xee; 4 << 20]).unwrap();
            folder.join("top.raw")
        } else {
            let image = format!("{image},backing_file=base.raw,backing_fmt=raw");
            img_in(folder, &["create", "-q", "-f", "qcow2", "-o", &image, "top.qcow2", "4M"]);
            folder.join("top.qcow2")
        };
        let disk = open(&top, &options()).unwrap();
        // Each thread has every fourth piece of 5000 bytes, so that they meet in every cluster.
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let disk = &disk;
                scope.spawn(move || {
                    for piece in (u64::from(thread)..800).step_by(4) {
                        let mut bytes = [0; 5000];
                        disk.read_at(&mut bytes, piece * 5000).unwrap();
                        assert_eq!(bytes, [0xee; 5000], "{image}");
                        match piece % 7 {
                            0 => disk.write_zeroes(piece * 5000, 5000, ZeroMode::Unmap).unwrap(),
                            _ => disk.write_at(&[thread + 1; 5000], piece * 5000).unwrap(),
                        }
                        if piece % 50 == 0 {
                            disk.flush().unwrap();
                        }
                    }
                });
            }
        });
        disk.close().unwrap();
        let mut expected = vec![0xee; 4 << 20];
        for (piece, bytes) in expected[..800 * 5000].chunks_mut(5000).enumerate() {
            bytes.fill(if piece % 7 == 0 { 0 } else { u8::try_from(piece % 4).unwrap() + 1 });
        }
        let [ours, theirs] = both(&top);
        assert!(ours == expected && theirs == expected, "{image}");
        if image != "raw" {
            img_in(folder, &["check", "-q", "-f", "qcow2", "top.qcow2"]);
        }
    }
}

#[test]
fn block_devices_are_disks_and_hold_images() {
    if !here() {
        return;
    }
    let place = memory_folder();
    let what = "block devices that are written to";
    let file = place.path().join("device");
    fs::write(&file, vec![0xaa; 8 << 20]).unwrap();
    let Some(device) = Device::over(&file, what) else { return };
    let mut numbers = Numbers(5);
    let path = device.path();
    let read = |format: BaseFormat| content(&Disk::open(path, format, &options().disk).unwrap());

    // The device as a disk: what is written is there, and its length stays.
    let mut expected = read(BaseFormat::Raw);
    let size = expected.len() as u64;
    assert_eq!(size, 8 << 20);
    let disk = open(path, &options()).unwrap();
    for step in numbers.steps(size, 100) {
        step.ours(&disk).unwrap();
        let (range, with) = match step {
            Step::Write { pattern, offset, length } => (offset..offset + length, pattern),
            Step::Zero { offset, length, .. } => (offset..offset + length, 0),
            // What is given back may stay or not: look.
            Step::Discard { offset, length } => {
                let mut bytes = vec![1; usize::try_from(length).unwrap()];
                disk.read_at(&mut bytes, offset).unwrap();
                let start = usize::try_from(offset).unwrap();
                let before = &expected[start..][..bytes.len()];
                assert!(bytes.iter().zip(before).all(|(now, then)| now == then || *now == 0));
                expected[start..][..bytes.len()].copy_from_slice(&bytes);
                continue;
            }
            Step::Flush => continue,
        };
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        expected[range].fill(with);
    }
    assert!(content(&disk) == expected);
    disk.close().unwrap();
    assert!(read(BaseFormat::Raw) == expected);

    // An image in the device, over what was there before: new clusters do not read as zeros.
    let name = path.to_str().unwrap();
    img(["create", "-q", "-f", "qcow2", name, "3M"]).expect_success();
    let disk = WritableDisk::open(path, BaseFormat::Qcow2, &options()).unwrap();
    let mut expected = vec![0_u8; 3 << 20];
    for at in 0..40_u64 {
        let (offset, length) = (at * 70_001, 3000 + at * 17);
        disk.write_at(&vec![7; usize::try_from(length).unwrap()], offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        expected[start..][..usize::try_from(length).unwrap()].fill(7);
    }
    disk.write_zeroes(1 << 20, 300_000, ZeroMode::Unmap).unwrap();
    expected[1 << 20..][..300_000].fill(0);
    disk.discard(0, 65_536).unwrap();
    expected[..65_536].fill(0);
    let said = qemu::io(["-f", "qcow2", "-c", "length", name]);
    assert!(said.stderr.contains("Failed to get \"write\" lock"), "{said:?}");
    disk.close().unwrap();
    assert!(read(BaseFormat::Qcow2) == expected);
    img(["check", "-q", "-f", "qcow2", name]).expect_success();
    img(["convert", "-f", "qcow2", "-O", "raw", name, place.path().join("flat").to_str().unwrap()])
        .expect_success();
    assert!(fs::read(place.path().join("flat")).unwrap() == expected);

    // More than the device has.
    img(["create", "-q", "-f", "qcow2", name, "64M"]).expect_success();
    let disk = WritableDisk::open(path, BaseFormat::Qcow2, &options()).unwrap();
    let full = (0..64).map(|mib| disk.write_at(&vec![1; 1 << 20], mib << 20)).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), ErrorKind::NoSpace);
    disk.close().unwrap();
    let check = img(["check", "-f", "qcow2", name]);
    assert!([Some(0), Some(3)].contains(&check.status.code()), "{check:?}");
}

#[test]
fn without_holes_disks_hold_the_same() {
    if !here() {
        return;
    }
    // ramfs can neither punch nor reserve.
    let what = "disks on a file system without holes";
    let place = memory_folder();
    let mount = place.path().join("ramfs");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        left_out(what, "ramfs cannot be mounted");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let folder = mount.join("chain");
        fs::create_dir(&folder).unwrap();
        let punched = File::create(folder.join("top.raw")).unwrap();
        punched.set_len(SIZE).unwrap();
        let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert!(nix::fcntl::fallocate(&punched, flags, 0, 4096).is_err(), "it can punch");
        fs::write(folder.join("base.raw"), vec![0x99; 1 << 20]).unwrap();
        let image = "backing_file=base.raw,backing_fmt=raw";
        img_in(
            &folder,
            &["create", "-q", "-f", "qcow2", "-o", image, "top.qcow2", &SIZE.to_string()],
        );
        let mut numbers = Numbers(6);
        compare(what, &folder, "top.qcow2", &numbers.steps(SIZE, 100), &options());
        // Where nothing can be given back, QEMU leaves what was discarded as it was, as we do.
        compare(what, &folder, "top.raw", &numbers.steps(SIZE, 100), &options());
    });
    let _ = Command::new("umount").arg(&mount).status();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
