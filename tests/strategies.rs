//! Every way to hand out a disk, on file systems that differ: made here in files, mounted over loop
//! devices, and gone afterwards. What cannot be mounted is left out with a printed line.
//!
//! ```text
//!            ext4     btrfs    XFS      XFS reflink=0   tmpfs
//! overlay    qcow2    qcow2    qcow2    qcow2           qcow2
//! reflink    refused  shared   shared   refused         refused     qemu-img compares the content,
//! copy       copied   shared   shared   copied          copied      filefrag tells what is shared
//! ```
//!
//! Topics: each on each · two file systems · nobody shares · changes and cancels · full · killed ·
//! kept · qcow2 bases · long paths · prepare · padding · boot.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use disk_engine::attachment::Disk;
use disk_engine::base::{BaseFormat, BaseImage};
use disk_engine::cache::{BaseOptions, ImageCache};
use disk_engine::disk::{PadOptions, pad_for_direct_io};
use disk_engine::ops::boot::{BootExit, BootOptions, boot};
use disk_engine::ops::boot_image::BOOT_IMAGE;
use disk_engine::ops::prepare::{PrepareOptions, PrepareReport, prepare};
use disk_engine::ops::usage::{UsageOptions, usage};
use disk_engine::source::Source;
use disk_engine::strategy::{Provided, Strategy};
use disk_engine::sys::reflink;
use disk_engine::{Control, Error, ErrorKind, Event, Existing, ProvidedDisk};
use testkit::mounts::{Kind, Mount};
use testkit::qemu::{self, SYSTEM};
use testkit::tool::{self, left_out};

const KINDS: [Kind; 5] = [Kind::Ext4, Kind::Btrfs, Kind::Xfs, Kind::XfsWithout, Kind::Tmpfs];
/// A length no block size divides, past what 32 bits hold.
const LENGTH: u64 = (5 << 30) + 512;
const MIB: u64 = 1 << 20;

/// Beside the build's own files: /tmp may be in memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn mount(what: &str, kind: Kind) -> Option<(tempfile::TempDir, Mount)> {
    let beside = folder();
    // XFS is never smaller than 300 MiB; the images are sparse.
    let mib = if matches!(kind, Kind::Xfs | Kind::XfsWithout) { 320 } else { 200 };
    let mount = Mount::new(what, kind, mib, beside.path())?;
    Some((beside, mount))
}

/// A sparse raw disk with data at its start, in its middle, past 4 GiB and in its last sector.
fn make_base(path: &Path) -> BaseImage {
    let file = File::create(path).unwrap();
    file.set_len(LENGTH).unwrap();
    let noise: Vec<u8> = (0..MIB).map(|at| (at * 31 % 251) as u8 + 1).collect();
    for offset in [0, 64 << 20, (4 << 30) + 4096] {
        file.write_all_at(&noise, offset).unwrap();
    }
    // Neither begins nor ends where a block does.
    file.write_all_at(&noise[..100_000], 32 * MIB + 777).unwrap();
    file.write_all_at(&[0xee; 512], LENGTH - 512).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o444)).unwrap();
    BaseImage::open(path, BaseFormat::Raw).unwrap()
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn format_of(disk: &ProvidedDisk) -> &'static str {
    disk.format().as_str()
}

/// qemu-img finds the same content in both; what one has beyond the other's end is zeros.
fn assert_same(one: (&str, &Path), other: (&str, &Path)) {
    let arguments = ["compare", "-f", one.0, "-F", other.0].map(std::ffi::OsStr::new);
    qemu::img(arguments.into_iter().chain([one.1.as_os_str(), other.1.as_os_str()]))
        .expect_success();
}

/// Whether any extent of the file is shared, as `filefrag` prints it.
fn is_shared(path: &Path) -> bool {
    let output = Command::new("filefrag").arg("-v").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Not in the file's name, which stands in the second and the last line.
    let extents = text.lines().filter(|line| line.trim_start().contains(": "));
    extents.filter(|line| line.contains("..")).any(|line| line.contains("shared"))
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.retain(|name| name != "lost+found");
    names
}

fn refused(outcome: disk_engine::Result<ProvidedDisk>, kind: ErrorKind, word: &str) -> Error {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error} does not say {word:?}");
    error
}

// ---------------------------------------------------------------------------------------------
// Each on each
// ---------------------------------------------------------------------------------------------

#[test]
fn each_strategy_on_each_file_system_does_what_it_reports() {
    const WHAT: &str = "strategies: each on each";
    if !tool::available(WHAT, &["qemu-img", "qemu-io", "filefrag"]) {
        return;
    }
    for kind in KINDS {
        let Some((_beside, mount)) = mount(WHAT, kind) else { continue };
        let root = mount.path();
        let base = make_base(&root.join("base.img"));
        let elsewhere = folder();
        make_base(&elsewhere.path().join("pristine"));
        for strategy in Strategy::ALL {
            for raw in [false, true] {
                for min_size in [0, 6 << 30] {
                    let case = format!("{kind:?} {strategy:?} raw={raw} min_size={min_size}");
                    let path = root.join("disk");
                    let outcome =
                        base.disk(&path).strategy(strategy).raw(raw).min_size(min_size).create();
                    let expected = match (strategy, raw) {
                        (Strategy::Overlay, true) => {
                            refused(outcome, ErrorKind::InvalidInput, "overlay");
                            None
                        }
                        (Strategy::Reflink, _) if !kind.shares() => {
                            let error = refused(outcome, ErrorKind::Unsupported, "cannot share");
                            let name = match kind {
                                Kind::XfsWithout => "(xfs)",
                                Kind::Tmpfs => "(tmpfs)",
                                _ => "ext4)",
                            };
                            assert!(error.to_string().contains(name), "{case}: {error}");
                            assert!(error.hint().unwrap().contains("copy"), "{case}: {error}");
                            None
                        }
                        (Strategy::Overlay, _) | (Strategy::Auto, false) => {
                            Some((outcome.unwrap(), "overlay"))
                        }
                        (Strategy::Reflink, _) => Some((outcome.unwrap(), "reflink")),
                        (Strategy::Auto, true) if kind.shares() => {
                            Some((outcome.unwrap(), "reflink"))
                        }
                        (Strategy::Copy | Strategy::Auto, _) => Some((outcome.unwrap(), "copy")),
                    };
                    let Some((disk, how)) = expected else {
                        assert_eq!(names(&root), ["base.img"], "{case}");
                        continue;
                    };
                    assert_eq!(disk.how().as_str(), how, "{case}");
                    judge(&disk, &base, min_size, kind, &case);
                    fs::remove_file(&path).unwrap();
                    assert_same(("raw", base.path()), ("raw", &elsewhere.path().join("pristine")));
                }
            }
        }
    }
}

/// What is reported is so, the content is the base's, and the base stays what it is.
fn judge(disk: &ProvidedDisk, base: &BaseImage, min_size: u64, kind: Kind, case: &str) {
    let metadata = fs::metadata(disk.path()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600, "{case}");
    let format = format_of(disk);
    assert_same((format, disk.path()), ("raw", base.path()));
    let overlay = disk.how() == Provided::Overlay;
    assert_eq!(format, if overlay { "qcow2" } else { "raw" }, "{case}");
    let size = LENGTH.max(min_size);
    assert_eq!(disk.virtual_size(), size, "{case}");
    if !overlay {
        assert_eq!(metadata.len(), size, "{case}");
        assert!(!disk.stands_on_base() && !disk.reused(), "{case}");
        // Sparse as the base: 5 GiB and more of holes.
        let most = allocated(base.path()) + 512 * 1024;
        assert!(allocated(disk.path()) <= most, "{case}: {}", allocated(disk.path()));
        // tmpfs has no extents to show.
        let shared = kind != Kind::Tmpfs && is_shared(disk.path());
        match disk.how() {
            Provided::Reflink => assert!(shared, "{case}"),
            Provided::Copy(copied) => {
                let data = copied.offloaded + copied.written;
                assert!((3 * MIB..4 * MIB).contains(&data), "{case}: {copied:?}");
                let told = if kind == Kind::Tmpfs { None } else { Some(shared) };
                assert_eq!(copied.shared, told, "{case}");
                assert_eq!(shared, kind.shares(), "{case}: the kernel copies as it pleases");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
    let path = disk.path().to_str().unwrap();
    for command in ["write -P 0x5a 64M 1M", "write -P 0x5a 2G 64k", "read -P 0x5a 64M 1M"] {
        let said = qemu::io(["-f", format, "-c", command, path]).expect_success();
        assert!(!said.contains("verification failed"), "{case}: {said}");
    }
}

#[test]
fn an_independent_disk_outlives_its_base() {
    const WHAT: &str = "strategies: a disk without its base";
    if !tool::available(WHAT, &["qemu-img"]) {
        return;
    }
    for kind in [Kind::Ext4, Kind::Btrfs, Kind::Xfs] {
        let Some((_beside, mount)) = mount(WHAT, kind) else { continue };
        let base = make_base(&mount.path().join("base"));
        let disk = base.disk(mount.path().join("disk")).raw(true).create().unwrap();
        let elsewhere = folder();
        make_base(&elsewhere.path().join("pristine"));
        fs::remove_file(base.path()).unwrap();
        drop(base);
        assert_same(("raw", disk.path()), ("raw", &elsewhere.path().join("pristine")));
    }
}

#[test]
fn ranges_can_be_shared_one_by_one() {
    for kind in [Kind::Btrfs, Kind::Xfs] {
        let Some((_beside, mount)) = mount("strategies: FICLONERANGE", kind) else { continue };
        let base = make_base(&mount.path().join("base"));
        let source = File::open(base.path()).unwrap();
        let path = mount.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(LENGTH).unwrap();
        // A whole block, and the end of the file, which is no multiple of one.
        for range in [0..MIB, LENGTH - 512..LENGTH, 7..7] {
            reflink::clone_range(&source, &file, range).unwrap();
        }
        let mut last = [0; 512];
        file.read_exact_at(&mut last, LENGTH - 512).unwrap();
        assert_eq!(last, [0xee; 512]);
        let uneven = reflink::clone_range(&source, &file, 100..MIB).unwrap_err();
        assert!(reflink::is_unsupported(&uneven), "{uneven}");
        if tool::available("strategies: filefrag on a range", &["filefrag"]) {
            assert!(is_shared(&path), "{kind:?}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Two file systems, and files that do not share on one
// ---------------------------------------------------------------------------------------------

#[test]
fn between_two_file_systems_a_reflink_is_refused_and_a_copy_is_made() {
    const WHAT: &str = "strategies: two file systems";
    if !tool::available(WHAT, &["qemu-img"]) {
        return;
    }
    let Some((_one, from)) = mount(WHAT, Kind::Btrfs) else { return };
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Tmpfs, Kind::Btrfs] {
        let Some((_two, to)) = mount(WHAT, kind) else { continue };
        let source = from.path().join(format!("{kind:?}"));
        let base = make_base(&source);
        let path = to.path().join("disk");
        let disk = || base.disk(&path);
        let error = refused(
            disk().strategy(Strategy::Reflink).create(),
            ErrorKind::Unsupported,
            "two file systems (btrfs and ",
        );
        assert!(error.hint().is_some() && names(&to.path()).is_empty(), "{error:?}");
        // What is zeros in the base's data need not be data here.
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
        let zeros = vec![0; 8 << 20];
        File::options().write(true).open(&source).unwrap().write_all_at(&zeros, 200 << 20).unwrap();
        let made = disk().raw(true).create().unwrap();
        let Provided::Copy(copied) = made.how() else { panic!("{made:?}") };
        assert!(!copied.shared.unwrap_or(false), "{kind:?}");
        assert_same(("raw", &path), ("raw", base.path()));
        if copied.offloaded == 0 {
            assert!(copied.written < 4 * MIB, "{kind:?}: {copied:?}");
            assert!(allocated(&path) < 5 * MIB, "{kind:?}: {}", allocated(&path));
        }
        fs::remove_file(&source).unwrap();
    }
}

#[test]
fn files_that_cannot_share_on_a_file_system_that_can_are_told_or_copied() {
    const WHAT: &str = "strategies: btrfs without checksums";
    if !tool::available(WHAT, &["chattr", "qemu-img"]) {
        return;
    }
    let Some((_beside, mount)) = mount(WHAT, Kind::Btrfs) else { return };
    let base = make_base(&mount.path().join("base"));
    let plain = mount.path().join("plain");
    fs::create_dir(&plain).unwrap();
    // New files here have no checksums, and share nothing with files that have.
    assert!(Command::new("chattr").arg("+C").arg(&plain).status().unwrap().success());
    let path = plain.join("disk");
    let strict = base.disk(&path).strategy(Strategy::Reflink).create();
    refused(strict, ErrorKind::Unsupported, "(btrfs)");
    assert!(names(&plain).is_empty());
    let disk = base.disk(&path).raw(true).create().unwrap();
    assert!(matches!(disk.how(), Provided::Copy(copied) if copied.shared == Some(false)));
    assert_same(("raw", &path), ("raw", base.path()));
}

// ---------------------------------------------------------------------------------------------
// Changes, cancels, full disks, kills
// ---------------------------------------------------------------------------------------------

/// A control that runs `act` at the first event of a copy.
fn at_first_step(act: impl FnOnce() + Send + 'static) -> Control {
    let act = Mutex::new(Some(act));
    Control::new().with_observer(move |event| {
        if matches!(event, Event::Copying { .. })
            && let Some(act) = act.lock().unwrap().take()
        {
            act();
        }
    })
}

#[test]
fn a_base_that_changes_and_a_cancel_end_a_copy_and_leave_nothing() {
    for existing in [Existing::Refuse, Existing::Replace] {
        let place = folder();
        let path = place.path().join("base");
        let write = move |path: PathBuf| {
            let file = File::options().write(true).open(path).unwrap();
            // Clocks tick in steps: far enough for the change to show.
            file.set_modified(std::time::SystemTime::now() + Duration::from_secs(9)).unwrap();
            file
        };
        for (what, kind) in [
            ("cut", ErrorKind::Mismatch),
            ("written", ErrorKind::Mismatch),
            ("cancelled", ErrorKind::Cancelled),
        ] {
            let _ = fs::remove_file(&path);
            let base = make_base(&path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let cancel = disk_engine::CancelToken::new();
            let (path, token) = (path.clone(), cancel.clone());
            let control = at_first_step(move || match what {
                "cut" => write(path).set_len(65 << 20).unwrap(),
                "written" => write(path).write_all_at(&[9; 512], 0).unwrap(),
                _ => token.cancel(),
            });
            let outcome = base
                .disk(place.path().join("disk"))
                .strategy(Strategy::Copy)
                .existing(existing)
                .control(control.with_cancel(cancel))
                .create();
            assert_eq!(outcome.unwrap_err().kind(), kind, "{what}");
            assert_eq!(names(place.path()), ["base"], "{what}");
        }
    }
}

#[test]
fn a_full_file_system_leaves_nothing_and_says_what_to_do() {
    const WHAT: &str = "strategies: full";
    let beside = folder();
    let source = folder();
    let path = source.path().join("base");
    fs::write(&path, vec![7; 24 << 20]).unwrap();
    let base = BaseImage::open(&path, BaseFormat::Raw).unwrap();
    for kind in [Kind::Ext4, Kind::Tmpfs] {
        let Some(mount) = Mount::new(WHAT, kind, 16, beside.path()) else { continue };
        for existing in [Existing::Refuse, Existing::Replace] {
            let disk = base.disk(mount.path().join("disk")).strategy(Strategy::Copy);
            let disk = disk.existing(existing);
            assert!(disk.space_needed().unwrap() > 24 << 20);
            let error = refused(disk.create(), ErrorKind::NoSpace, "free some space");
            assert_eq!(error.io_error().unwrap().raw_os_error(), Some(28));
            assert!(names(&mount.path()).is_empty(), "{kind:?}");
        }
        // There is room again for what fits, once a journal has let go of it.
        assert!(Command::new("sync").arg("-f").arg(mount.path()).status().unwrap().success());
        fs::write(mount.path().join("fits"), vec![1; 8 << 20]).unwrap();
    }
}

const TASK: &str = "STRATEGIES_TASK";

/// Not a test: a process that stops in the middle of a copy, to be killed there.
#[test]
#[ignore = "run by another test, as a child process"]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (existing, place) = task.split_once(':').unwrap();
    let place = Path::new(place);
    let existing = if existing == "replace" { Existing::Replace } else { Existing::Refuse };
    let control = at_first_step(|| {
        println!("COPYING");
        std::io::stdout().flush().unwrap();
        std::thread::sleep(Duration::from_secs(600));
    });
    let base = BaseImage::open(place.join("base"), BaseFormat::Raw).unwrap();
    let disk = base.disk(place.join("vm/disk")).strategy(Strategy::Copy).existing(existing);
    disk.control(control).create().unwrap();
}

#[test]
fn a_copy_that_is_killed_leaves_nothing() {
    let place = folder();
    let base = make_base(&place.path().join("base"));
    let vm = place.path().join("vm");
    fs::create_dir(&vm).unwrap();
    for word in ["refuse", "replace"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(TASK, format!("{word}:{}", place.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("COPYING")), "the child never copied");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(names(&vm), <[&str; 0]>::default(), "{word}");
    }
    let disk = base.disk(vm.join("disk")).strategy(Strategy::Copy).existing(Existing::Replace);
    disk.create().unwrap();
    assert_eq!(names(&vm), ["disk"]);
}

// ---------------------------------------------------------------------------------------------
// Kept disks, qcow2 bases, long paths
// ---------------------------------------------------------------------------------------------

#[test]
fn a_raw_disk_is_kept_if_it_can_be_the_right_one() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let base = make_base(&at("base"));
    let copy = |name: &str| base.disk(at(name)).strategy(Strategy::Copy).reuse(true);
    let disk = copy("disk").create().unwrap();
    File::options().write(true).open(disk.path()).unwrap().write_all_at(b"guest", 0).unwrap();
    let kept = copy("disk").create().unwrap();
    assert_eq!((kept.reused(), kept.how(), kept.virtual_size()), (true, Provided::Kept, LENGTH));
    let mut bytes = [0; 5];
    File::open(disk.path()).unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"guest");

    let misfit = |name: &str, word: &str| {
        let error = refused(copy(name).create(), ErrorKind::Mismatch, word);
        assert!(error.hint().is_some(), "{error:?}");
    };
    refused(copy("disk").min_size(6 << 30).create(), ErrorKind::Mismatch, "bytes");
    refused(copy("disk").reuse(false).create(), ErrorKind::AlreadyExists, "exists");
    fs::write(at("short"), b"x").unwrap();
    misfit("short", "has 1 bytes");
    // An overlay that has grown past the base's size is still no raw disk.
    base.overlay(at("overlay")).create().unwrap();
    File::options().write(true).open(at("overlay")).unwrap().set_len(LENGTH + 4096).unwrap();
    misfit("overlay", "qcow2");
    for (name, planted) in [("link", "disk"), ("nowhere", "absent")] {
        symlink(planted, at(name)).unwrap();
        misfit(name, "no regular file");
    }
    fs::create_dir(at("folder")).unwrap();
    misfit("folder", "no regular file");
    // And a raw disk is no overlay.
    let overlay = base.disk(at("disk")).reuse(true).create();
    refused(overlay, ErrorKind::Mismatch, "overlay");
    // Two disks in one folder, each its own way.
    assert_eq!(base.disk(at("another")).create().unwrap().how(), Provided::Overlay);
    assert!(copy("disk").create().unwrap().reused());

    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(at("disk"), Some(65_534), None).unwrap();
        misfit("disk", "belongs to user 65534");
        assert!(copy("disk").owner(Some(65_534), None).create().unwrap().reused());
    } else {
        left_out("strategies: a disk of another user", "needs root");
    }
}

#[test]
fn a_raw_disk_of_another_base_is_noticed_where_files_have_attributes() {
    const WHAT: &str = "strategies: the base a raw disk remembers";
    for kind in [Kind::Ext4, Kind::Btrfs, Kind::Xfs] {
        let Some((_beside, mount)) = mount(WHAT, kind) else { continue };
        let job = Job::new(Some(&mount.path()));
        let other = job.archive.with_file_name("other");
        fs::write(&other, vec![1; 16 << 20]).unwrap();
        let (base, other) =
            (job.cache.base(&job.archive).unwrap(), job.cache.base(&other).unwrap());
        assert_eq!(base.virtual_size(), other.virtual_size());
        let path = mount.path().join("disk");
        let disk = |base| BaseImage::disk(base, &path).raw(true).reuse(true);
        disk(&base).create().unwrap();
        assert!(disk(&base).create().unwrap().reused());
        let error = refused(disk(&other).create(), ErrorKind::Mismatch, "key");
        assert!(error.to_string().contains(base.key().unwrap()), "{error}");
        // Where the note is lost, the size is all there is.
        let copy = mount.path().join("copied");
        fs::write(&copy, fs::read(&path).unwrap()).unwrap();
        assert!(other.disk(&copy).raw(true).reuse(true).create().unwrap().reused());
    }
}

#[test]
fn what_stands_in_the_way_is_replaced_when_asked_and_the_base_never() {
    let place = folder();
    let base = make_base(&place.path().join("base"));
    let path = place.path().join("disk");
    fs::write(&path, b"precious").unwrap();
    let copy = || base.disk(&path).strategy(Strategy::Copy);
    refused(copy().create(), ErrorKind::AlreadyExists, "exists");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    copy().existing(Existing::Replace).mode(0o640).create().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let link = place.path().join("link");
    symlink("base", &link).unwrap();
    for on_itself in [base.path(), &link] {
        let disk = base.disk(on_itself).strategy(Strategy::Copy).existing(Existing::Replace);
        refused(disk.create(), ErrorKind::InvalidInput, "itself");
    }
}

#[test]
fn a_copy_of_a_qcow2_base_is_its_bytes_or_refused_by_name() {
    if !tool::available("strategies: qcow2 bases", &["qemu-img"]) {
        return;
    }
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let create = |arguments: &[&str]| {
        qemu::img_in(place.path(), &[&["create", "-q", "-f", "qcow2"], arguments].concat())
    };
    fs::write(at("raw"), vec![3; 1 << 20]).unwrap();
    create(&["alone", "64M"]);
    create(&["relative", "-b", "raw", "-F", "raw"]);
    create(&["absolute", "-b", at("raw").to_str().unwrap(), "-F", "raw"]);
    create(&["split", "-o", "data_file=data", "64M"]);
    fs::create_dir(at("vm")).unwrap();
    let open = |name: &str| BaseImage::open(at(name), BaseFormat::Qcow2).unwrap();
    let copy = Strategy::Copy;
    for (name, below) in [("alone", 0), ("absolute", 1)] {
        let base = open(name);
        let disk = base.disk(at("vm").join(name)).strategy(copy).create().unwrap();
        assert_eq!(format_of(&disk), "qcow2");
        assert_eq!(fs::read(disk.path()).unwrap(), fs::read(at(name)).unwrap());
        assert_eq!(Disk::provided(&disk, &base).unwrap().backing().len(), below, "{name}");
        assert!(base.disk(disk.path()).strategy(copy).reuse(true).create().unwrap().reused());
        let grown = base.disk(at("vm/x")).strategy(copy).min_size(1 << 40).create();
        refused(grown, ErrorKind::Unsupported, "cannot be made larger");
        let raw = base.disk(at("vm/x")).raw(true).create();
        refused(raw, ErrorKind::Unsupported, "qcow2");
    }
    let moved = open("relative").disk(at("vm/x")).strategy(copy).create();
    refused(moved, ErrorKind::Unsupported, "backing_file_name");
    open("relative").disk(at("beside")).strategy(copy).create().unwrap();
    assert_same(("qcow2", &at("beside")), ("raw", &at("raw")));
    let split = open("split").disk(at("vm/x")).strategy(copy).create();
    refused(split, ErrorKind::Unsupported, "data file");
    assert_eq!(names(&at("vm")), ["absolute", "alone"]);
    // What stands there is another disk.
    let kept =
        |name: &str| open("relative").disk(at("vm").join(name)).strategy(copy).reuse(true).create();
    refused(kept("alone"), ErrorKind::Mismatch, "made over a base of 67108864 bytes");
    refused(kept("absolute"), ErrorKind::Mismatch, "other files");
}

#[test]
fn a_base_whose_path_no_header_holds_is_copied() {
    let place = folder();
    let mut deep = place.path().to_path_buf();
    while deep.as_os_str().len() <= 1023 {
        deep.push("d".repeat(250));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("base"), vec![5; 1 << 20]).unwrap();
    let base = BaseImage::open(deep.join("base"), BaseFormat::Raw).unwrap();
    let disk = |name: &str| base.disk(place.path().join(name));
    let made = disk("auto").create().unwrap();
    assert!(matches!(made.how(), Provided::Copy(_) | Provided::Reflink), "{made:?}");
    assert_eq!(fs::read(made.path()).unwrap(), vec![5; 1 << 20]);
    let overlay = disk("overlay").strategy(Strategy::Overlay).create();
    assert_eq!(overlay.unwrap_err().kind(), ErrorKind::InvalidInput);
    // From its own folder the base has a short name.
    let near = base.disk(deep.join("near")).relative(true).create().unwrap();
    assert_eq!(near.how(), Provided::Overlay);
    assert_eq!(names(place.path()).len(), 2);
}

// ---------------------------------------------------------------------------------------------
// prepare
// ---------------------------------------------------------------------------------------------

/// An archive of 16 MiB of data, a folder for VMs, and a cache beside it.
struct Job {
    cache: ImageCache,
    archive: PathBuf,
    options: PrepareOptions,
    _place: tempfile::TempDir,
}

impl Job {
    fn new(folder_of_vms: Option<&Path>) -> Self {
        let place = folder();
        let archive = place.path().join("disk.zst");
        let disk: Vec<u8> = (0..16 * MIB).map(|at| (at * 7 % 253) as u8 + 1).collect();
        fs::write(&archive, zstd::encode_all(&disk[..], 1).unwrap()).unwrap();
        let vms = folder_of_vms.unwrap_or(place.path()).join("vms");
        let options = PrepareOptions {
            nodes: 3,
            folder: vms,
            min_size: 0,
            strategy: Strategy::Copy,
            raw: false,
            reserve: 0,
            relative: false,
            fresh: false,
            base: BaseOptions::default(),
        };
        let cache = ImageCache::open(place.path().join("cache")).unwrap();
        Self { cache, archive, options, _place: place }
    }

    fn run(&self) -> disk_engine::Result<PrepareReport> {
        prepare(&self.cache, Source::path(&self.archive), &self.options)
    }

    fn vm(&self, name: &str) -> PathBuf {
        self.options.folder.join(name)
    }
}

#[test]
fn a_vm_has_one_disk_whichever_strategy_is_asked_for_next() {
    let mut job = Job::new(None);
    let report = job.run().unwrap();
    assert!(report.disks.iter().all(|disk| matches!(disk.disk.how(), Provided::Copy(_))));
    assert_eq!(names(&job.vm("vm2")), ["primary.img"]);
    assert!(job.run().unwrap().disks.iter().all(|disk| disk.disk.how() == Provided::Kept));

    job.options.strategy = Strategy::Auto;
    let error = job.run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.hint().unwrap().contains("strategy reflink or copy"), "{error}");
    assert_eq!(names(&job.vm("vm0")), ["primary.img"]);
    // A raw disk is one, whoever made it.
    job.options.raw = true;
    assert!(job.run().unwrap().disks[0].disk.reused());

    (job.options.raw, job.options.fresh) = (false, true);
    let running = File::options().read(true).write(true).open(job.vm("vm1/primary.img")).unwrap();
    assert!(disk_engine::sys::image_lock::lock_for_writing(&running).unwrap());
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(names(&job.vm("vm0")), ["primary.img"]);
    drop(running);
    let report = job.run().unwrap();
    assert!(report.disks.iter().all(|disk| disk.disk.how() == Provided::Overlay));
    assert_eq!(names(&job.vm("vm0")), ["primary.qcow2"]);
}

#[test]
fn two_vms_never_get_one_disk_by_a_link() {
    for (strategy, name) in [(Strategy::Auto, "primary.qcow2"), (Strategy::Copy, "primary.img")] {
        let mut job = Job::new(None);
        job.options.strategy = strategy;
        job.run().unwrap();
        let (disk, other) = (job.vm("vm0").join(name), job.vm("vm2").join(name));
        let guest = fs::read(&disk).unwrap();
        fs::remove_file(&other).unwrap();
        fs::hard_link(&disk, &other).unwrap();
        let misfit = |job: &Job| {
            let error = job.run().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
            assert!(error.message().contains("two VMs"), "{error}");
        };
        misfit(&job);
        // Replaced, each name is a file of its own again.
        job.options.fresh = true;
        job.run().unwrap();
        let inode = |path| fs::metadata(path).unwrap().ino();
        assert_ne!(inode(&disk), inode(&other));
        fs::remove_file(&other).unwrap();
        symlink(&disk, &other).unwrap();
        let before = inode(&disk);
        for fresh in [true, false] {
            job.options.fresh = fresh;
            misfit(&job);
        }
        assert_eq!(inode(&disk), before);
        assert!(fs::read(&disk).unwrap() == guest);
    }
}

#[test]
fn a_preparation_that_fails_removes_its_copies_and_folders_only() {
    let job = Job::new(None);
    fs::create_dir_all(job.vm("vm2")).unwrap();
    fs::write(job.vm("vm2/primary.img"), b"precious").unwrap();
    fs::create_dir(job.vm("vm1")).unwrap();
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(names(&job.options.folder), ["vm1", "vm2"]);
    assert!(names(&job.vm("vm1")).is_empty());
    assert_eq!(fs::read(job.vm("vm2/primary.img")).unwrap(), b"precious");
}

#[test]
fn preparations_in_one_folder_take_turns() {
    let mut job = Job::new(None);
    job.options.base.timeout = Some(Duration::from_millis(50));
    fs::create_dir(&job.options.folder).unwrap();
    let turn = File::open(&job.options.folder).unwrap();
    turn.lock().unwrap();
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::Busy);
    assert!(names(&job.options.folder).is_empty());
    drop(turn);
    job.run().unwrap();

    // One that fails at its third disk, and others that keep what they find: each time it is one
    // call's work as a whole, so nobody's disk vanishes.
    let job = Job::new(None);
    let blocked = job.vm("vm9/primary.img");
    fs::create_dir_all(blocked.parent().unwrap()).unwrap();
    fs::write(&blocked, b"in the way").unwrap();
    let failing = PrepareOptions { nodes: 10, ..job.options.clone() };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let outcome = prepare(&job.cache, Source::path(&job.archive), &failing);
                    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Mismatch);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..10 {
                let report = job.run().unwrap();
                assert!(report.disks.iter().all(|disk| disk.disk.path().is_file()), "{report:?}");
            }
        });
    });
    assert!((0..3).all(|vm| job.vm(&format!("vm{vm}/primary.img")).is_file()));
    assert!(!job.vm("vm3").exists());
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_written() {
    const WHAT: &str = "strategies: prepare on a small file system";
    let beside = folder();
    for kind in [Kind::Ext4, Kind::Tmpfs] {
        let Some(mount) = Mount::new(WHAT, kind, 48, beside.path()) else { continue };
        let mut job = Job::new(Some(&mount.path()));
        let no_space = |job: &Job, number: &str| {
            let error = job.run().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
            assert!(error.message().contains(number) && error.hint().is_some(), "{error}");
            assert!(error.message().contains("disks need"), "not found out up front: {error}");
        };
        // Refused for the reserve alone: the base is not even extracted.
        job.options.strategy = Strategy::Overlay;
        job.options.reserve = 1 << 40;
        no_space(&job, "3 disks");
        assert!(job.cache.base(&job.archive).is_ok_and(|base| base.key().is_some()));
        job.options.reserve = 0;
        // Three copies of 16 MiB and a little do not go into 48 MiB, two do.
        job.options.strategy = Strategy::Copy;
        no_space(&job, "3 disks");
        assert!(names(&mount.path()).is_empty(), "{:?}", names(&mount.path()));
        job.options.nodes = 2;
        job.run().unwrap();
        // They stand: nothing more is needed, unless they are to grow.
        job.run().unwrap();
        job.options.reserve = 16 << 20;
        no_space(&job, "2 disks");
        job.options.reserve = 0;
        // Replaced in turn they would need a third place for a moment.
        job.options.fresh = true;
        no_space(&job, "2 disks");
        assert_eq!(names(&job.options.folder), ["vm0", "vm1"]);
        // In place of overlays there is room for both.
        job.options.strategy = Strategy::Overlay;
        job.run().unwrap();
        job.options.strategy = Strategy::Copy;
        job.run().unwrap();
        assert_eq!(names(&job.vm("vm1")), ["primary.img"]);
    }
}

#[test]
fn a_file_system_without_a_size_has_room() {
    let beside = folder();
    // tmpfs takes a size of 0 for "no limit", and tells of no blocks then.
    let mount = Mount::new("strategies: tmpfs without a limit", Kind::Tmpfs, 0, beside.path());
    let Some(mount) = mount else { return };
    let mut job = Job::new(Some(&mount.path()));
    job.options.reserve = 1 << 40;
    assert_eq!(job.run().unwrap().disks.len(), 3);
    let report = usage(&[&job.options.folder], &UsageOptions::default()).unwrap();
    assert_eq!((report.disks.len(), report.file_systems[0].total), (3, 0));
}

#[test]
fn reflinks_of_a_disk_that_is_nearly_full_still_fit() {
    const WHAT: &str = "strategies: reflinks on a full file system";
    let beside = folder();
    let Some(mount) = Mount::new(WHAT, Kind::Btrfs, 200, beside.path()) else { return };
    let mut job = Job::new(Some(&mount.path()));
    job.cache = ImageCache::open(mount.path().join("cache")).unwrap();
    job.options.nodes = 40;
    job.options.strategy = Strategy::Copy;
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::NoSpace);
    (job.options.strategy, job.options.raw) = (Strategy::Auto, true);
    let report = job.run().unwrap();
    assert!(report.disks.iter().all(|disk| disk.disk.how() == Provided::Reflink), "{report:?}");
}

// ---------------------------------------------------------------------------------------------
// Padding, booting
// ---------------------------------------------------------------------------------------------

#[test]
fn a_disk_sfdisk_partitioned_is_padded_unless_its_gpt_would_break() {
    if !tool::available("strategies: padding", &["sfdisk"]) {
        return;
    }
    let place = folder();
    let path = place.path().join("disk");
    let sfdisk = |label: &str, length: u64| {
        File::create(&path).unwrap().set_len(length).unwrap();
        let mut child = Command::new("sfdisk")
            .args(["--quiet", "--no-reread"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("label: {label}\n,,\n");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    let verify = || {
        let output = Command::new("sfdisk").arg("--verify").arg(&path).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let pad = || pad_for_direct_io(&path, &PadOptions::default());
    let uneven = 8 * MIB + 512;
    sfdisk("gpt", uneven);
    let whole = verify();
    let error = pad().unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Unsupported, Some(512)), "{error:?}");
    assert!(error.hint().is_some());
    assert_eq!((fs::metadata(&path).unwrap().len(), verify()), (uneven, whole.clone()));
    // It would have broken: the very same change by hand.
    File::options().write(true).open(&path).unwrap().set_len(8 * MIB + 4096).unwrap();
    assert!(!whole.contains("backup GPT") && verify().contains("backup GPT"), "{}", verify());

    sfdisk("gpt", 8 * MIB);
    assert_eq!(pad().unwrap().after, 8 * MIB);
    sfdisk("dos", uneven);
    assert!(Disk::raw(&path).unwrap().check().is_err());
    let padded = pad().unwrap();
    assert_eq!((padded.before, padded.after), (uneven, 8 * MIB + 4096));
    assert!(verify().contains("No errors detected"), "{}", verify());
    assert!(Disk::raw(&path).unwrap().check().is_ok());
}

#[test]
fn a_raw_disk_boots_counts_its_boots_and_leaves_its_base_alone() {
    const WHAT: &str = "strategies: boot";
    if !tool::available(WHAT, &[SYSTEM]) {
        return;
    }
    for kind in [Kind::Ext4, Kind::Btrfs, Kind::Xfs] {
        let Some((_beside, mount)) = mount(WHAT, kind) else { continue };
        let mut job = Job::new(Some(&mount.path()));
        job.cache = ImageCache::open(mount.path().join("cache")).unwrap();
        job.archive = mount.path().join("boot");
        fs::write(&job.archive, BOOT_IMAGE).unwrap();
        (job.options.nodes, job.options.strategy, job.options.raw) = (2, Strategy::Auto, true);
        for count in 1..3 {
            let report = job.run().unwrap();
            let how = report.disks[0].disk.how().as_str();
            let expected = match (count, kind.shares()) {
                (1, true) => "reflink",
                (1, false) => "copy",
                _ => "kept",
            };
            assert_eq!(how, expected, "{kind:?}");
            let before = fs::read(report.base.image.path()).unwrap();
            for prepared in &report.disks {
                let disk = Disk::provided(&prepared.disk, &report.base.image).unwrap();
                let booted = boot(&disk, &BootOptions::default()).unwrap();
                assert_eq!(booted.exit, BootExit::Wrote(0), "{booted:?}");
                let said = format!("disk-engine boot={count} ");
                assert!(booted.serial.contains(&said), "{booted:?}");
            }
            assert!(fs::read(report.base.image.path()).unwrap() == before, "the base has changed");
        }
    }
}
