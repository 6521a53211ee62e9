//! `disk-engine compare` beside `qemu-img compare`: pairs of disks, drawn.
//!
//! ```text
//! seed ─▶ two disks that are nearly the same ─┬─▶ qemu-img compare ────▶ words, code ─┐
//!         options, sizes, chains, one byte    └─▶ disk-engine compare ─▶ words, code ─┴─▶ equal
//! ```
//!
//! `COMPARE_PROGRAMS` is how many, `COMPARE_SEED` what is drawn.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testkit::qemu::img_in;
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool::{available, memory_folder};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");
const KIB: u64 = 1 << 10;

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What both disks are to hold: where, how long, which byte.
type Content = Vec<(u64, u64, u64)>;

fn content(random: &mut Random, size: u64) -> Content {
    let count = random.below(8);
    let piece = |random: &mut Random| {
        let length = (1 + random.word() % 300) * 512;
        let offset = random.word() % (size / 512) * 512;
        // Zeros are written, too.
        (offset, length.min(size - offset), random.word() % 3)
    };
    (0..count).map(|_| piece(random)).collect()
}

/// Makes a disk in the manner of the words drawn; returns its format.
fn make(
    folder: &Path,
    name: &str,
    content: &Content,
    size: u64,
    random: &mut Random,
) -> &'static str {
    let path = folder.join(name);
    let _ = fs::remove_file(&path);
    let (below, middle) = (format!("{name}-below"), format!("{name}-middle"));
    if random.once_in(4) {
        let file = File::create(&path).unwrap();
        // It may end within a sector.
        let cut = if random.once_in(3) { random.word() % 512 } else { 0 };
        file.set_len(size - cut).unwrap();
        for (offset, length, byte) in content {
            let length = (*length).min((size - cut).saturating_sub(*offset));
            let bytes = vec![u8::try_from(*byte).unwrap(); usize::try_from(length).unwrap()];
            file.write_all_at(&bytes, *offset).unwrap();
        }
        return "raw";
    }
    let options = [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=2M",
        "compat=0.10",
        "preallocation=metadata",
    ];
    let options = options[random.below(options.len())];
    let length = size.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if random.once_in(3) && !options.contains("preallocation") {
        // What lies below may end earlier.
        let file = File::create(folder.join(&below)).unwrap();
        file.set_len(size / (1 + random.word() % 2)).unwrap();
        file.write_all_at(&[1; 512], 0).unwrap();
        if random.once_in(2) {
            create.extend(["-b", &below, "-F", "raw"]);
        } else {
            // And what is between them, too.
            let length = (size / (1 + random.word() % 3)).next_multiple_of(512).to_string();
            let layer = ["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw", &middle];
            img_in(folder, &[&layer[..], &[&length]].concat());
            create.extend(["-b", &middle, "-F", "qcow2"]);
        }
    }
    create.extend([name, &length]);
    img_in(folder, &create);
    let compressed = random.once_in(4);
    let mut io = Command::new("qemu-io");
    io.current_dir(folder).args(["-f", "qcow2", name]);
    for (offset, length, byte) in content {
        let how = if *byte == 0 && random.once_in(2) { "-z" } else { "-P" };
        let byte = if how == "-z" { String::new() } else { byte.to_string() };
        let how = if compressed && how == "-P" && offset % (64 * KIB) == 0 { "-c -P" } else { how };
        io.args(["-c", &format!("write {how} {byte} {offset} {length}")]);
    }
    io.output().unwrap();
    "qcow2"
}

/// With however few threads, what is compared is the same.
#[test]
fn threads_that_cannot_be_had_are_done_without() {
    if !testkit::tool::available("comparing without threads", &["strace"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, byte) in [("one", 1), ("same", 1), ("other", 2)] {
        fs::write(folder.path().join(name), vec![byte; 3 << 20]).unwrap();
    }
    for (second, code) in [("same", 0), ("other", 1)] {
        for command in [&["compare"][..], &["qemu-img", "compare"]] {
            let inject = ["-f", "-o", "/dev/null", "-e", "inject=clone3,clone:error=EAGAIN"];
            let words = ["-f", "raw", "-F", "raw", "one", second];
            let words = [&inject[..], &[ENGINE], command, &words].concat();
            let output = run(folder.path(), "strace", &words);
            assert_eq!(output.status.code(), Some(code), "{command:?} {output:?}");
        }
    }
}

#[test]
fn two_disks_are_compared_as_qemu_img_compares_them() {
    if !available("comparisons of disks beside qemu-img", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    let mut counts = [0; 3];
    let sweep = Sweep::new("COMPARE", 150, 90);
    let mut random = Random(sweep.seed);
    for program in 0..sweep.programs {
        let size = (1 + random.word() % 8192) * 512;
        let first = content(&mut random, size);
        let mut second = first.clone();
        if random.once_in(3) {
            second.push((random.word() % (size / 512) * 512, 512, 3));
        }
        let longer = if random.once_in(3) { size + (random.word() % 4096) * 512 } else { size };
        let formats = [
            make(folder, "first", &first, size, &mut random),
            make(folder, "second", &second, longer, &mut random),
        ];
        for strict in [&[][..], &["-s"]] {
            let options = [&["compare", "-f", formats[0], "-F", formats[1]], strict].concat();
            for pair in [["first", "second"], ["first", "first"]] {
                let mut arguments = options.clone();
                if pair == ["first", "first"] {
                    arguments[4] = formats[0];
                }
                arguments.extend(pair);
                let theirs = run(folder, "qemu-img", &arguments);
                let ours = run(folder, ENGINE, &arguments);
                let seed = sweep.seed;
                let what =
                    format!("COMPARE_SEED={seed} {program} {arguments:?}: {ours:?} {theirs:?}");
                assert_eq!(ours.status.code(), theirs.status.code(), "{what}");
                assert_eq!(ours.stdout, theirs.stdout, "{what}");
                counts[usize::try_from(theirs.status.code().unwrap()).unwrap()] += 1;
            }
        }
    }
    sweep.tell(&format!("{} the same, {} different", counts[0], counts[1]));
    assert!(sweep.programs < 100 || counts[0] > 50 && counts[1] > 20, "{counts:?}");
}

/// What lies in between may end where the top goes on: QEMU says of the top alone where the disk ends.
#[test]
fn an_image_between_that_ends_early_is_not_the_end_of_the_disk() {
    if !available("a short image in the middle of a chain", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    fs::write(folder.join("base"), [b'x'; 65536]).unwrap();
    img_in(folder, &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "middle", "64k"]);
    img_in(folder, &["create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "top", "128k"]);
    img_in(folder, &["create", "-q", "-f", "qcow2", "flat", "128k"]);
    for (name, writes) in
        [("top", &["write -z 64k 64k"][..]), ("flat", &["write -P 120 0 64k", "write -z 64k 64k"])]
    {
        let mut io = Command::new("qemu-io");
        io.current_dir(folder).args(["-f", "qcow2", name]);
        for write in writes {
            io.args(["-c", write]);
        }
        assert!(io.output().unwrap().status.success());
    }
    let words = ["compare", "-s", "-f", "qcow2", "-F", "qcow2", "top", "flat"];
    let (theirs, ours) = (run(folder, "qemu-img", &words), run(folder, ENGINE, &words));
    assert_eq!(theirs.status.code(), Some(0), "{theirs:?}");
    assert_eq!((ours.status.code(), ours.stdout), (Some(0), theirs.stdout));
}
