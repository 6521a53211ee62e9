//! Archives of ours in the hands of those who did not make them: GNU tar, bsdtar, Python's tarfile,
//! the tar crate, zstd and its reference reader of seek tables.
//!
//! ```text
//! disk ── pack ──▶ archive ── each reader ──▶ disk again, byte by byte, holes and all
//!   └─ stored dense, sparse, in memory; 1 to 8 threads ──▶ the same archive
//! ```

use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk_engine::BaseFormat;
use disk_engine::ops::pack::{PackOptions, PackReport, pack, pack_into};
use disk_engine::ops::{self, ExtractOptions};
use disk_engine::source::Source;
use disk_engine::sys::sparse::next_data;
use testkit::disks::sha256;
use testkit::qemu::{self, img_in};
use testkit::tool::{available, left_out, memory_folder};
use zstd::zstd_safe::seekable::Seekable;

const BLOCK: u64 = 4096;

/// A disk: its size, and where it holds data.
struct Shape {
    name: &'static str,
    size: u64,
    data: Vec<(u64, u64)>,
}

fn shapes() -> Vec<Shape> {
    let every = |count: u64| (0..count).map(|n| (n * 8 * BLOCK, BLOCK)).collect::<Vec<_>>();
    let shape = |name, size, data: &[(u64, u64)]| Shape { name, size, data: data.to_vec() };
    vec![
        shape("of no bytes", 0, &[]),
        shape("all zeros", 1 << 20, &[]),
        shape("all zeros, 1000 bytes", 1000, &[]),
        shape("without a hole", 1 << 20, &[(0, 1 << 20)]),
        shape("without a hole, 70,001 bytes", 70_001, &[(0, 70_001)]),
        shape("that ends in a hole", 1 << 20, &[(0, 8192), (65_536, 4096)]),
        shape("that ends in data", 1 << 20, &[(8192, 4096), ((1 << 20) - 4096, 4096)]),
        shape("with its last byte only", (5 << 20) + 1000, &[((5 << 20) + 999, 1)]),
        shape("with three bytes across blocks", 1 << 20, &[(4095, 2), (500_000, 1)]),
        shape("of 4 runs to its end", 25 * BLOCK, &every(4)),
        shape("of 4 runs and a hole", 4 << 20, &every(4)),
        shape("of 24 runs and a hole", 4 << 20, &every(24)),
        shape("of 25 runs and a hole", 4 << 20, &every(25)),
        shape("of 67 runs and a hole", 4 << 20, &every(67)),
        shape("of 300 runs", 16 << 20, &every(300)),
        shape("of 9 GiB", 9 << 30, &[(0, 4096), ((8 << 30) - 4096, 8192), ((9 << 30) - 1, 1)]),
        shape("of 9 GiB that ends in a hole", (9 << 30) + 512, &[((8 << 30) + 8192, 4096)]),
    ]
}

impl Shape {
    /// Makes the disk, as sparse as the file system can.
    fn make(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size).unwrap();
        for (offset, length) in &self.data {
            file.write_all_at(&pattern(*offset, *length), *offset).unwrap();
        }
    }

    /// Bytes of the blocks that hold data.
    fn stored(&self) -> u64 {
        let mut blocks: Vec<u64> = self
            .data
            .iter()
            .flat_map(|(offset, length)| offset / BLOCK..(offset + length).div_ceil(BLOCK))
            .collect();
        blocks.dedup();
        blocks.iter().map(|block| BLOCK.min(self.size - block * BLOCK)).sum()
    }

    fn is_of_whole_blocks(&self) -> bool {
        self.data.iter().all(|(offset, length)| offset % BLOCK == 0 && length % BLOCK == 0)
    }
}

/// Bytes without a zero, as hard to compress as a disk's.
fn pattern(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 40).to_be_bytes();
        let piece: Vec<u8> = word[5..].iter().map(|byte| byte % 255 + 1).collect();
        // Some of it twice, as disks have it.
        bytes.extend_from_slice(&piece.repeat(if state >> 62 == 0 { 40 } else { 1 }));
    }
    bytes.truncate(usize::try_from(length).unwrap());
    bytes
}

/// Whether two files hold the same, looking only where one of them has data.
fn assert_same(one: &Path, other: &Path, what: &str) {
    let (one, other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let size = one.metadata().unwrap().len();
    assert_eq!(size, other.metadata().unwrap().len(), "{what}: size");
    for with_data in [&one, &other] {
        let mut at = 0;
        while let Some(data) = next_data(with_data, at).unwrap() {
            for start in data.clone().step_by(1 << 20) {
                let length = usize::try_from((data.end - start).min(1 << 20)).unwrap();
                let (mut left, mut right) = (vec![0; length], vec![1; length]);
                one.read_exact_at(&mut left, start).unwrap();
                other.read_exact_at(&mut right, start).unwrap();
                assert!(left == right, "{what}: at {start:#x}");
            }
            at = data.end;
        }
    }
}

fn options(frame_size: Option<u64>, threads: usize) -> PackOptions {
    let threads = Some(NonZeroUsize::new(threads).unwrap());
    PackOptions { frame_size, threads, ..PackOptions::default() }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A command that unpacks into a folder.
type Reader<'a> = &'a dyn Fn(&Path) -> Command;

/// Python's tarfile, as anybody would use it.
const PYTHON: &str = "import sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2])
";

/// Unpacks `archive` with everything there is, and compares with `disk`.
fn assert_read_by_all(folder: &Path, archive: &Path, member: &str, disk: &Path, what: &str) {
    let tar = folder.join("plain.tar");
    run(Command::new("zstd").args(["-q", "-t"]).arg(archive));
    run(Command::new("zstd").args(["-q", "-d", "-f"]).arg(archive).arg("-o").arg(&tar));
    let readers: [(&str, Reader<'_>); 4] = [
        ("tar", &|into| {
            let mut command = Command::new("tar");
            command.arg("--zstd").arg("-xf").arg(archive).arg("-C").arg(into);
            command
        }),
        ("tar, as its owner", &|into| {
            let mut command = Command::new("tar");
            command.args(["-x", "-p", "--numeric-owner", "-f"]).arg(&tar).arg("-C").arg(into);
            command
        }),
        ("bsdtar", &|into| {
            let mut command = Command::new("bsdtar");
            command.args(["-x", "-f"]).arg(archive).arg("-C").arg(into);
            command
        }),
        ("python3", &|into| {
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON]).arg(&tar).arg(into);
            command
        }),
    ];
    for (reader, command) in readers {
        let into = tempfile::tempdir_in(folder).unwrap();
        run(&mut command(into.path()));
        let what = format!("a disk {what}, unpacked by {reader}");
        let unpacked = into.path().join(member);
        assert_same(disk, &unpacked, &what);
        assert_eq!(fs::metadata(unpacked).unwrap().mode() & 0o777, 0o644, "{what}");
    }
    let into = tempfile::tempdir_in(folder).unwrap();
    let unpacked = into.path().join("disk");
    let source = Source::path(archive).with_member(member);
    ops::extract(source, &unpacked, &ExtractOptions::default()).unwrap();
    assert_same(disk, &unpacked, &format!("a disk {what}, extracted by us"));
    if fs::metadata(disk).unwrap().len() < 1 << 30 {
        // It has no notion of holes, and would write gigabytes of zeros.
        let mut archive = tar::Archive::new(File::open(&tar).unwrap());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap(), Path::new(member));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert!(bytes == fs::read(disk).unwrap(), "a disk {what}, read by the tar crate");
    }
}

#[test]
fn every_reader_gets_the_disk_back() {
    if !available("packs in other readers", &["tar", "bsdtar", "zstd", "python3"]) {
        return;
    }
    let folder = memory_folder();
    let folder = folder.path();
    for shape in shapes() {
        let disk = folder.join("disk.img");
        shape.make(&disk);
        let (whole, framed) = (folder.join("whole.tar.zst"), folder.join("framed.tar.zst"));
        let report = pack(&disk, &whole, &options(None, 2)).unwrap();
        assert_eq!(report.virtual_size, shape.size, "{}", shape.name);
        assert_eq!(report.data_bytes, shape.stored(), "{}", shape.name);
        assert_eq!(report.archive_bytes, fs::metadata(&whole).unwrap().len());
        assert_eq!(report.sha256.to_string(), sha256(&whole));
        assert_eq!(report.frames, 1);
        assert_read_by_all(folder, &whole, "disk.img", &disk, shape.name);

        let report = pack(&disk, &framed, &options(Some(64 << 10), 2)).unwrap();
        assert_eq!(report.frames, report.tar_bytes.div_ceil(64 << 10));
        assert_eq!(report.sha256.to_string(), sha256(&framed));
        assert_read_by_all(
            folder,
            &framed,
            "disk.img",
            &disk,
            &format!("{} in frames", shape.name),
        );
        let decode = |archive: &Path| run(Command::new("zstd").args(["-q", "-dc"]).arg(archive));
        let plain = decode(&whole);
        assert_eq!(report.tar_bytes, plain.len() as u64);
        assert!(plain == decode(&framed), "a disk {} in frames", shape.name);
        if shape.is_of_whole_blocks() && shape.size < 1 << 30 {
            let own = run(Command::new("tar").current_dir(folder).args([
                "--format=gnu",
                "--sparse",
                "--hole-detection=raw",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mtime=@0",
                "--mode=0644",
                "-c",
                "disk.img",
            ]));
            assert!(plain == own, "a disk {}: GNU tar writes something else", shape.name);
        }
        fs::remove_file(whole).unwrap();
        fs::remove_file(framed).unwrap();
    }
}

#[test]
fn holes_are_holes_again() {
    if !available("holes unpacked by tar", &["tar", "zstd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    Shape { name: "", size: 1 << 30, data: vec![(0, 1 << 20), (512 << 20, 1 << 20)] }.make(&disk);
    let archive = folder.path().join("a.tar.zst");
    pack(&disk, &archive, &options(None, 2)).unwrap();
    fs::remove_file(&disk).unwrap();
    run(Command::new("tar").current_dir(folder.path()).args(["--zstd", "-xf", "a.tar.zst"]));
    let allocated = fs::metadata(&disk).unwrap().blocks() * 512;
    assert!((2 << 20..4 << 20).contains(&allocated), "{allocated} bytes");
}

#[test]
fn long_names_reach_every_reader() {
    if !available("long names in other readers", &["tar", "bsdtar", "zstd", "python3"]) {
        return;
    }
    let folder = memory_folder();
    let folder = folder.path();
    let disk = folder.join("disk");
    Shape { name: "", size: 1 << 20, data: vec![(8192, 4096)] }.make(&disk);
    for name in ["n".repeat(99), "n".repeat(100), "n".repeat(101), "dir/ü ☃/".repeat(40) + "disk"]
    {
        let archive = folder.join("a.tar.zst");
        let options = PackOptions { member: name.clone(), ..options(None, 1) };
        pack(&disk, &archive, &options).unwrap();
        assert_read_by_all(folder, &archive, &name, &disk, "with a long name");
        fs::remove_file(archive).unwrap();
    }
}

/// Size of the disk below.
const LARGE: u64 = 36 << 20;

/// 24 MiB of data, six jobs of libzstd's, with zeros in it that a file may or may not have as holes.
fn write_content(file: &File, dense: bool) {
    if dense {
        file.write_all_at(&vec![0; usize::try_from(LARGE).unwrap()], 0).unwrap();
    }
    file.set_len(LARGE).unwrap();
    let mut bytes = pattern(1, 4 << 20);
    for stretch in 0..6 {
        // The same again, but for a part of it.
        bytes.rotate_left(1000);
        bytes[..1 << 20].iter_mut().for_each(|byte| *byte = byte.rotate_left(1) | 1);
        file.write_all_at(&bytes, stretch * (6 << 20) + 8192).unwrap();
        // Zeros inside, some of them whole blocks.
        file.write_all_at(&[0; 20_000], stretch * (6 << 20) + 100_000).unwrap();
    }
}

fn packed(disk: &Path, options: &PackOptions) -> (Vec<u8>, PackReport) {
    let mut bytes = Vec::new();
    let report = pack_into(disk, &mut bytes, Path::new("memory"), options).unwrap();
    (bytes, report)
}

#[test]
fn the_bytes_follow_from_content_and_options_alone() {
    let (folder, memory) = (tempfile::tempdir().unwrap(), memory_folder());
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(folder.path()) == device(memory.path()) {
        left_out("packs from two file systems", "temporary files lie on one");
    }
    let disks: Vec<PathBuf> =
        [(folder.path(), true), (folder.path(), false), (memory.path(), false)]
            .into_iter()
            .enumerate()
            .map(|(number, (folder, dense))| {
                let path = folder.join(format!("disk-{number}"));
                write_content(&File::create(&path).unwrap(), dense);
                path
            })
            .collect();
    let allocated: Vec<u64> =
        disks.iter().map(|disk| fs::metadata(disk).unwrap().blocks() * 512).collect();
    assert!(allocated[0] > allocated[1], "the file system knows no holes: {allocated:?}");

    for (frame_size, level) in [(None, 6), (None, 1), (Some(300_000), 6), (Some(8 << 20), 3)] {
        let mut first: Option<Vec<u8>> = None;
        for (threads, disk) in [(1, 0), (2, 1), (3, 2), (8, 0), (8, 1)] {
            let options = PackOptions { level, ..options(frame_size, threads) };
            let (bytes, report) = packed(&disks[disk], &options);
            assert_eq!((report.threads, report.virtual_size), (threads, LARGE));
            let first = first.get_or_insert_with(|| bytes.clone());
            let what = format!("{frame_size:?}, level {level}, {threads} threads, disk {disk}");
            assert!(bytes == *first, "{what}: {} and {} bytes", bytes.len(), first.len());
        }
    }
}

#[test]
fn the_reference_reader_of_seek_tables_reads_any_range() {
    let folder = memory_folder();
    let disk = folder.path().join("disk");
    write_content(&File::create(&disk).unwrap(), false);
    let plain = zstd::decode_all(Cursor::new(packed(&disk, &options(None, 2)).0)).unwrap();
    for size in [64 << 10, 1_000_003, 1 << 30] {
        let (bytes, report) = packed(&disk, &options(Some(size), 2));
        let mut reader = Seekable::create();
        reader.init_buff(&bytes).unwrap();
        assert_eq!(u64::from(reader.num_frames()), report.frames);
        let mut state = size;
        for _ in 0..60 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let from = usize::try_from(state >> 20).unwrap() % plain.len();
            let length = usize::try_from(state >> 7).unwrap() % 300_000;
            let expected = &plain[from..(from + length).min(plain.len())];
            let mut out = vec![0; expected.len()];
            let mut filled = 0;
            // It hands out what one frame gives.
            while filled < out.len() {
                let count = reader.decompress(&mut out[filled..], (from + filled) as u64).unwrap();
                assert!(count > 0, "frames of {size}: nothing at {}", from + filled);
                filled += count;
            }
            assert!(out == expected, "frames of {size}: {length} bytes at {from}");
        }
        // Every frame is one for itself, of the stated size, and says what it holds.
        for number in 0..reader.num_frames() {
            let length = reader.frame_decompressed_size(number).unwrap();
            let left = plain.len() - usize::try_from(size).unwrap() * number as usize;
            assert_eq!(length, left.min(usize::try_from(size).unwrap()));
        }
    }
}

/// Packs in one frame and in many, and compares with the raw disk packed.
fn assert_packs_like(image: &Path, snapshot: Option<&str>, raw: &Path, what: &str) {
    for frame_size in [None, Some(1 << 20)] {
        let expected = packed(raw, &options(frame_size, 2)).0;
        for threads in [1, 3] {
            let mut options =
                PackOptions { format: BaseFormat::Qcow2, ..options(frame_size, threads) };
            options.disk.snapshot = snapshot.map(Into::into);
            assert!(packed(image, &options).0 == expected, "{what}, {frame_size:?}, {threads}");
        }
    }
}

#[test]
fn a_qcow2_image_packs_like_the_raw_disk_it_holds() {
    if !available("packs of qcow2 images", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = memory_folder();
    let folder = folder.path();
    let raw = folder.join("raw");
    let data = vec![(0, 8192), (1 << 20, 1 << 20), ((7 << 20) - 512, 200_000)];
    Shape { name: "", size: 9 << 20, data }.make(&raw);
    for (what, arguments) in [
        ("plain", &["-o", "cluster_size=512"][..]),
        ("large clusters", &["-o", "cluster_size=2M", "-S", "0"]),
        ("deflate", &["-c"]),
        ("zstd", &["-c", "-o", "compression_type=zstd,cluster_size=2M"]),
    ] {
        let convert = [&["convert", "-f", "raw", "-O", "qcow2"], arguments, &["raw", "a.qcow2"]];
        img_in(folder, &convert.concat());
        assert_packs_like(&folder.join("a.qcow2"), None, &raw, what);
    }
    // An overlay over a base over a raw disk, with data, zeros over data, and a snapshot.
    let overlay = folder.join("vm.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", "mid.qcow2", "12M"];
    img_in(folder, &create);
    img_in(folder, &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", "vm.qcow2"]);
    let path = overlay.to_str().unwrap();
    let write = |commands: &[&str]| {
        let arguments = commands.iter().flat_map(|command| ["-c", command]);
        let arguments: Vec<_> =
            ["-f", "qcow2"].into_iter().chain(arguments).chain([path]).collect();
        qemu::io(arguments).expect_success();
    };
    write(&["write -P 7 100k 300k", "write -z 1M 2M"]);
    img_in(folder, &["snapshot", "-c", "first", "vm.qcow2"]);
    write(&["write -P 9 6M 1M", "write -z 100k 100k", "write -P 3 11M 4k"]);
    let flat = folder.join("flat");
    img_in(folder, &["convert", "-f", "qcow2", "-O", "raw", "vm.qcow2", "flat"]);
    assert_packs_like(&overlay, None, &flat, "a chain");
    let convert = ["convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=first"];
    img_in(folder, &[&convert[..], &["vm.qcow2", "flat"]].concat());
    assert_packs_like(&overlay, Some("first"), &flat, "a snapshot");
}

#[test]
fn a_full_device_is_an_error_that_names_it() {
    let folder = memory_folder();
    let disk = folder.path().join("disk");
    write_content(&File::create(&disk).unwrap(), false);
    for frame_size in [None, Some(1 << 20)] {
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = pack_into(&disk, &mut full, Path::new("/dev/full"), &options(frame_size, 3))
            .unwrap_err();
        assert_eq!(error.kind(), disk_engine::ErrorKind::NoSpace, "{error}");
        assert_eq!(error.path(), Some(Path::new("/dev/full")));
    }
}

#[test]
fn a_writer_that_takes_little_at_a_time_gets_all() {
    struct Slow(Vec<u8>);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(1000);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let folder = memory_folder();
    let disk = folder.path().join("disk");
    write_content(&File::create(&disk).unwrap(), false);
    let options = options(Some(1 << 20), 2);
    let mut slow = Slow(Vec::new());
    pack_into(&disk, &mut slow, Path::new("slow"), &options).unwrap();
    assert!(slow.0 == packed(&disk, &options).0);
}
