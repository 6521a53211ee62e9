//! `convert` between files: every direction and option, judged by QEMU.
//!
//! ```text
//! raw ──▶ qcow2 of every shape ──▶ raw again          qemu-img check, compare; byte by byte
//!  └──▶ qemu-img's image of that shape ──▶ raw
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;

use nix::sys::resource::{Resource, setrlimit};
use proptest::prelude::*;
use testkit::convert_lab::{Lab, scatter};
use testkit::qemu;
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool::tell;

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// Every shape of an image that options make.
const SHAPES: &[&str] = &[
    "compat=0.10",
    "compat=1.1",
    "compat=0.10,cluster_size=512",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2,cluster_size=1k",
    "refcount_bits=4",
    "refcount_bits=8",
    "refcount_bits=32",
    "refcount_bits=64,cluster_size=512",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "compression_type=zstd,cluster_size=2M",
];

fn lab() -> Lab {
    Lab::new(ENGINE)
}

fn fresh(what: &str) -> Random {
    let seed = std::env::var("CONVERT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(Random::fresh_seed);
    tell(&format!("{what}: CONVERT_SEED={seed}"));
    Random(seed)
}

/// A disk of odd length, as `raw`.
fn with_disk(what: &str) -> Lab {
    let lab = lab();
    lab.disk("raw", (9 << 20) + 1536, &mut fresh(what));
    lab
}

#[test]
fn every_shape_there_and_back() {
    let lab = with_disk("every shape");
    let raw = lab.read("raw");
    for shape in SHAPES {
        for more in [&[][..], &["-c"], &["-S", "0"], &["-S", "64k"]] {
            let what = format!("{shape} {more:?}");
            let words = ["-O", "qcow2", "-o", shape, "--force", "raw", "image"];
            lab.convert(&[more, &words[..]].concat());
            lab.judge("raw", "image", &what);
            lab.convert(&["-f", "qcow2", "--force", "image", "again"]);
            assert!(lab.read("again") == raw, "{what}: back");
        }
        lab.qemu(&["convert", "-q", "-f", "raw", "-O", "qcow2", "-o", shape, "raw", "theirs"]);
        lab.convert(&["-f", "qcow2", "--force", "theirs", "again"]);
        assert!(lab.read("again") == raw, "{shape}: qemu-img's");
        lab.qemu(&[
            "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", shape, "raw", "theirs",
        ]);
        lab.convert(&["-f", "qcow2", "-O", "qcow2", "--force", "theirs", "image"]);
        lab.judge("raw", "image", shape);
    }
}

#[test]
fn zeros_are_stored_nowhere() {
    let lab = lab();
    let file = File::create(lab.path("raw")).unwrap();
    // Stored, every byte of them, but for one cluster of data.
    file.write_all_at(&vec![0; 4 << 20], 0).unwrap();
    file.write_all_at(&[7; 1000], 1 << 20).unwrap();
    for (words, stored) in [
        (&["-O", "raw"][..], 4096),
        (&["-O", "qcow2"], 65_536),
        (&["-O", "qcow2", "-o", "cluster_size=4k"], 4096),
    ] {
        let report = lab.convert(&[words, &["--force", "raw", "target"]].concat());
        assert_eq!(report["stored"], stored, "{words:?}");
    }
    let report = lab.convert(&["-O", "qcow2", "-c", "--force", "raw", "target"]);
    assert_eq!((&report["stored"], &report["compressed-clusters"]), (&0.into(), &1.into()));
    assert_eq!(lab.convert(&["-S", "0", "--force", "raw", "target"])["stored"], 4 << 20);
}

#[test]
fn space_is_taken_as_told() {
    use std::os::unix::fs::MetadataExt;
    let lab = with_disk("preallocation");
    let size = fs::metadata(lab.path("raw")).unwrap().len();
    for format in ["raw", "qcow2"] {
        for (name, is_taken) in
            [("off", false), ("metadata", false), ("falloc", true), ("full", true)]
        {
            let option = format!("preallocation={name}");
            lab.convert(&["-O", format, "-o", &option, "--force", "raw", "target"]);
            lab.is_same(("raw", "raw"), ("target", format), &option);
            let metadata = fs::metadata(lab.path("target")).unwrap();
            assert_eq!(metadata.blocks() * 512 >= size, is_taken, "{format} {name}");
            if format == "qcow2" {
                lab.is_sound("target", name);
                let map = lab.qemu(&["map", "--output=json", "-f", "qcow2", "target"]);
                let map: serde_json::Value = serde_json::from_str(&map).unwrap();
                let all = map.as_array().unwrap().iter().all(|run| run["present"] == true);
                assert_eq!(all, name != "off", "{name}");
            }
        }
    }
    assert_eq!(
        lab.refused(&["-O", "qcow2", "-c", "-o", "preallocation=full", "raw", "x"]).0,
        "invalid-input"
    );
}

#[test]
fn an_external_data_file_is_made_with_its_image() {
    let lab = with_disk("data files");
    let raw = lab.read("raw");
    lab.disk("base", 6 << 20, &mut Random(5));
    for (options, is_raw) in [
        ("data_file=data", false),
        ("data_file=data,data_file_raw=on", true),
        ("data_file=data,extended_l2=on,data_file_raw=on", true),
        ("data_file=data,preallocation=metadata,cluster_size=4k", true),
        ("data_file=data,preallocation=full", true),
        ("data_file=data,backing_file=base,backing_fmt=raw", false),
    ] {
        for sparse in ["4k", "0"] {
            let what = format!("{options}, -S {sparse}");
            lab.convert(&["-O", "qcow2", "-o", options, "-S", sparse, "--force", "raw", "target"]);
            lab.judge("raw", "target", &what);
            let data = lab.read("data");
            if is_raw {
                assert!(data[..raw.len()] == raw && is_zero(&data[raw.len()..]), "{what}");
            } else {
                // As long as the disk, or as its last cluster if all have their place.
                assert!((raw.len()..raw.len() + 65_536).contains(&data.len()), "{what}");
            }
            let words =
                ["--data-files", "--backing-chain", "-f", "qcow2", "--force", "target", "back"];
            lab.convert(&words);
            assert!(lab.read("back") == raw, "{what}: back");
        }
    }
    fs::remove_file(lab.path("target")).unwrap();
    for (words, code) in [
        // The data file is there, and would be overwritten.
        (&["-o", "data_file=data", "raw", "target"][..], "already-exists"),
        (&["-o", "data_file=raw", "--force", "raw", "target"], "invalid-input"),
        (&["-o", "data_file=target", "--force", "raw", "target"], "invalid-input"),
        (&["-o", "data_file=new", "-c", "raw", "target"], "invalid-input"),
        (&["-o", "data_file_raw=on", "raw", "target"], "invalid-input"),
        (&["-o", "data_file=new", "raw", "-"], "invalid-input"),
    ] {
        assert_eq!(lab.refused(&[&["-O", "qcow2"], words].concat()).0, code, "{words:?}");
    }
    assert!(lab.read("raw") == raw);
    assert!(!lab.path("target").exists() && !lab.path("new").exists());
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// As in QEMU, what follows a disk of odd length begins with the next sector.
#[test]
fn disks_of_odd_lengths_are_joined_at_sectors() {
    let lab = lab();
    let mut random = fresh("joined");
    for (name, size) in [("a", 1000), ("b", 70_001), ("c", 513)] {
        lab.disk(name, size, &mut random);
        let file = File::options().write(true).open(lab.path(name)).unwrap();
        file.write_all_at(&[7; 300], size - 300).unwrap();
    }
    for format in ["raw", "qcow2"] {
        let words = ["convert", "-q", "-f", "raw", "-O", format];
        lab.qemu(&[&words[..], &["a", "b", "c", "theirs"]].concat());
        lab.shell(&format!(
            "mkdir -p bin && ln -sf \"$E\" bin/qemu-img && \
             bin/qemu-img convert -f raw -O {format} a b c ours"
        ));
        lab.is_same(("theirs", format), ("ours", format), format);
    }
}

#[test]
fn threads_change_no_byte() {
    let lab = with_disk("threads");
    lab.disk("base", 6 << 20, &mut Random(5));
    for words in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd,cluster_size=4k"],
        &["-O", "qcow2", "-c", "-B", "base", "-F", "raw"],
        &["-O", "qcow2", "-B", "base", "-F", "raw", "-o", "extended_l2=on"],
    ] {
        let mut first = None;
        for threads in ["1", "2", "7"] {
            lab.convert(&[words, &["--threads", threads, "--force", "raw", "image"]].concat());
            let bytes = lab.read("image");
            let one = first.get_or_insert_with(|| bytes.clone());
            assert!(*one == bytes, "{words:?}: {threads} threads");
        }
    }
}

#[test]
fn onto_a_backing_file_goes_what_differs_and_nothing_else() {
    let mut random = fresh("backing");
    let lab = lab();
    for (size, base_size) in [(7 << 20, 7 << 20), ((9 << 20) + 512, 5 << 20), (3 << 20, 8 << 20)] {
        lab.disk("base.raw", base_size, &mut random);
        let mut disk = lab.read("base.raw");
        disk.resize(size, 0);
        fs::write(lab.path("raw"), &disk).unwrap();
        let file = File::options().write(true).open(lab.path("raw")).unwrap();
        scatter(&file, size as u64, &mut random);
        file.write_all_at(&[0; 200_000], 1 << 20).unwrap();
        lab.qemu(&["convert", "-O", "qcow2", "base.raw", "base"]);
        let (disk, mut below) = (lab.read("raw"), lab.read("base.raw"));
        below.resize(size, 0);
        for shape in
            ["compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on", "cluster_size=2M"]
        {
            for more in [&[][..], &["-c"]] {
                let words = [
                    "-O", "qcow2", "-o", shape, "-B", "base", "-F", "qcow2", "--force", "raw",
                    "image",
                ];
                lab.convert(&[more, &words[..]].concat());
                lab.judge("raw", "image", shape);
                if shape == "extended_l2=on" && more.is_empty() {
                    // Its map is of subclusters; what it stores is compared below for clusters.
                    continue;
                }
                let cluster = match shape {
                    "cluster_size=512" => 512,
                    "cluster_size=2M" => 2 << 20,
                    _ => 65_536,
                };
                let map = lab.qemu(&["map", "--output=json", "-f", "qcow2", "image"]);
                let map: serde_json::Value = serde_json::from_str(&map).unwrap();
                let mut own = vec![false; size.div_ceil(cluster)];
                for run in map.as_array().unwrap() {
                    let number = |field: &str| run[field].as_u64().unwrap() as usize;
                    if number("depth") == 0 && run["present"] == true {
                        let (start, length) = (number("start"), number("length"));
                        let last = (start + length).div_ceil(cluster).min(own.len());
                        own[start / cluster..last].fill(true);
                    }
                }
                let pairs = disk.chunks(cluster).zip(below.chunks(cluster));
                for (index, (here, there)) in pairs.enumerate() {
                    assert_eq!(own[index], here != there, "{shape} {more:?}: cluster {index}");
                }
            }
        }
    }
}

#[test]
fn nothing_of_the_backing_file_shows_behind_an_odd_end() {
    let lab = lab();
    fs::write(lab.path("base"), [b'B'; 100_000]).unwrap();
    for (size, byte) in [(27_988, b'B'), (27_988, b'A'), (65_537, b'B'), (1, 0), (65_536 + 4100, 0)]
    {
        // The same as below up to its end, other data, zeros.
        fs::write(lab.path("raw"), vec![byte; size]).unwrap();
        for shape in SHAPES {
            for more in [&[][..], &["-c"]] {
                let words =
                    ["--force", "-f", "raw", "-O", "qcow2", "-B", "base", "-F", "raw", "-o", shape];
                lab.convert(&[&words[..], more, &["raw", "image"]].concat());
                lab.judge("raw", "image", &format!("{size} {byte} {shape} {more:?}"));
            }
        }
    }
}

#[test]
fn snapshots_are_sources() {
    let lab = with_disk("snapshots");
    lab.qemu(&["convert", "-O", "qcow2", "raw", "image"]);
    lab.qemu(&["snapshot", "-c", "first", "image"]);
    let image = lab.path("image");
    let image = image.to_str().unwrap();
    testkit::qemu::io(["-f", "qcow2", "-c", "write -P 9 1M 3M", image]).expect_success();
    lab.qemu(&["snapshot", "-c", "1", "image"]);
    testkit::qemu::io(["-f", "qcow2", "-c", "write -P 8 0 2M", image]).expect_success();
    for name in ["first", "1", "2"] {
        let words = ["-f", "qcow2", "-l", name, "--force", "image", "ours"];
        lab.convert(&words);
        lab.qemu(&["convert", "-f", "qcow2", "-O", "raw", "-l", name, "image", "theirs"]);
        assert!(lab.read("ours") == lab.read("theirs"), "{name}");
    }
    assert!(lab.read("ours") != lab.read("raw"), "a later snapshot is another disk");
    assert_eq!(lab.refused(&["-f", "qcow2", "-l", "third", "image", "x"]).0, "not-found");
    for words in [
        &["-f", "raw", "-l", "first", "image", "x"][..],
        &["-l", "first", "raw", "x"],
        &["-f", "qcow2", "--member", "disk.img", "image", "x"],
        &["-n", "-o", "cluster_size=4k", "-O", "qcow2", "raw", "image"],
    ] {
        assert_eq!(lab.refused(words).0, "invalid-input", "{words:?}");
    }
}

#[test]
fn into_a_disk_that_is_there() {
    let lab = with_disk("existing");
    let size = fs::metadata(lab.path("raw")).unwrap().len();
    for shape in ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=512"] {
        lab.disk("old", 12 << 20, &mut Random(9));
        lab.qemu(&["convert", "-O", "qcow2", "-o", shape, "old", "image"]);
        for more in [&[][..], &["-c"], &["-S", "0"]] {
            lab.convert(&[more, &["-n", "-O", "qcow2", "raw", "image"]].concat());
            let mut expected = lab.read("raw");
            expected.extend_from_slice(&lab.read("old")[size as usize..]);
            fs::write(lab.path("expected"), expected).unwrap();
            lab.judge("expected", "image", &format!("{shape} {more:?}"));
        }
    }
    lab.disk("old", size + 4096, &mut Random(10));
    let rest = lab.read("old")[size as usize..].to_vec();
    lab.convert(&["-n", "raw", "old"]);
    assert!(lab.read("old") == [lab.read("raw"), rest].concat());
    // Zeros are written nowhere if the target is said to be zeros.
    File::create(lab.path("zeros")).unwrap().set_len(size).unwrap();
    lab.convert(&["-n", "--target-is-zero", "raw", "zeros"]);
    assert!(lab.read("zeros") == lab.read("raw"));
    // Part into part.
    lab.convert(&[
        "-n",
        "--offset",
        "1M",
        "--length",
        "100000",
        "--target-offset",
        "4097",
        "raw",
        "zeros",
    ]);
    let mut expected = lab.read("raw");
    expected.copy_within(1 << 20..(1 << 20) + 100_000, 4097);
    assert!(lab.read("zeros") == expected);
    // Of a disk that ends within a sector qemu-img writes the whole sector; ours writes the disk.
    fs::write(lab.path("odd"), [b'A'; 1000]).unwrap();
    lab.qemu(&["create", "-q", "-f", "qcow2", "image", "4k"]);
    for program in [&["convert"][..], &["qemu-img", "convert"]] {
        assert!(
            qemu::io(["-c", "write -q -P 0xdc 0 4k", lab.path("image").to_str().unwrap()])
                .status
                .success()
        );
        let words = [program, &["-n", "-f", "raw", "-O", "qcow2", "odd", "image"]].concat();
        assert!(lab.engine().args(&words).output().unwrap().status.success(), "{words:?}");
        lab.qemu(&["convert", "-O", "raw", "image", "flat"]);
        let rest = if program.len() > 1 { 0 } else { 0xdc };
        let expected = [vec![b'A'; 1000], vec![rest; 24], vec![0xdc; 3072]].concat();
        assert!(lab.read("flat") == expected, "{words:?}");
    }
    // Too small, and then nothing was written.
    File::create(lab.path("small")).unwrap().set_len(size - 512).unwrap();
    assert_eq!(lab.refused(&["-n", "raw", "small"]).0, "invalid-input");
    assert!(lab.read("small").iter().all(|byte| *byte == 0));
    assert_eq!(lab.refused(&["-n", "raw", "absent"]).0, "not-found");
}

#[test]
fn ranges_are_dds() {
    let mut random = fresh("ranges");
    let lab = with_disk("ranges");
    lab.qemu(&["convert", "-O", "qcow2", "-c", "raw", "image"]);
    let raw = lab.read("raw");
    for _ in 0..30 {
        let block = [512, 4096, 65_536, 1 << 20][random.below(4)];
        let (skip, count) = (random.below(12 << 20) / block, random.below(12 << 20) / block);
        let words = [("--offset", skip * block), ("--length", count * block)];
        let words: Vec<_> =
            words.iter().flat_map(|(word, n)| [word.to_string(), n.to_string()]).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let part = raw.get(skip * block..).unwrap_or_default();
        let part = &part[..part.len().min(count * block)];
        for source in [&["-f", "raw", "raw"][..], &["-f", "qcow2", "image"]] {
            lab.convert(&[&words, source, &["--force", "part"]].concat());
            assert!(lab.read("part") == part, "{words:?} {source:?}");
        }
        if !part.is_empty() {
            // What it counts begins at the start, skipped or not.
            let (bs, count) = (format!("bs={block}"), format!("count={}", skip + count));
            let skip = format!("skip={skip}");
            lab.qemu(&[
                "dd",
                "-f",
                "raw",
                "-O",
                "qcow2",
                "if=raw",
                "of=theirs",
                &bs,
                &count,
                &skip,
            ]);
            lab.convert(
                &[&words, &["-f", "raw", "-O", "qcow2", "--force", "raw", "part"][..]].concat(),
            );
            lab.is_sound("part", "a part");
            lab.is_same(("theirs", "qcow2"), ("part", "qcow2"), &format!("{words:?}"));
        }
        let _ = fs::remove_file(lab.path("theirs"));
    }
}

/// What the kernel takes over counts as well.
#[test]
fn a_rate_is_kept() {
    let lab = lab();
    fs::write(lab.path("raw"), vec![7; 2 << 20]).unwrap();
    for words in [&["-O", "raw"][..], &["-O", "qcow2"], &["-O", "raw", "-C"]] {
        let start = std::time::Instant::now();
        lab.convert(&[words, &["-r", "4M", "-f", "raw", "--force", "raw", "target"]].concat());
        assert!(start.elapsed().as_millis() >= 450, "{words:?}: {:?}", start.elapsed());
    }
}

#[test]
fn every_size_there_is() {
    let lab = lab();
    for size in [0, 1, 511, 512, 513, 1000, 4096, 65_535, 65_537, 131_072 + 512] {
        lab.disk("raw", size, &mut Random(size));
        for words in [&[][..], &["-c"], &["-o", "compat=0.10"], &["-o", "extended_l2=on"]] {
            lab.convert(
                &[words, &["-f", "raw", "-O", "qcow2", "--force", "raw", "image"]].concat(),
            );
            lab.judge("raw", "image", &format!("{size} {words:?}"));
        }
        lab.convert(&["-f", "raw", "--force", "raw", "again"]);
        assert!(lab.read("again") == lab.read("raw"), "{size}");
        // Larger, and never smaller, than what it holds.
        let larger = format!("size={}", size + 70_000);
        lab.convert(&["-f", "raw", "-o", &larger, "--force", "raw", "again"]);
        assert_eq!(lab.read("again").len() as u64, size + 70_000);
        assert!(lab.read("again").starts_with(&lab.read("raw")));
        if size > 0 {
            let smaller = format!("size={}", size - 1);
            let (code, _) = lab.refused(&["-f", "raw", "-o", &smaller, "raw", "x"]);
            assert_eq!(code, "invalid-input");
        }
    }
    for size in ["9223372036854775807", "15E", "8E"] {
        let size = format!("size={size}");
        let (code, _) = lab.refused(&["-f", "raw", "-O", "qcow2", "-o", &size, "raw", "x"]);
        assert_eq!(code, "invalid-input");
        let (code, _) = lab.refused(&["-f", "raw", "-o", &size, "raw", "x"]);
        assert_eq!(code, "io");
    }
    // What no file can be, and what one can that holds nothing.
    lab.qemu(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "huge", "1E"]);
    assert_eq!(lab.refused(&["-f", "qcow2", "huge", "x"]).0, "io");
    assert_eq!(lab.refused(&["-f", "qcow2", "-O", "qcow2", "huge", "x"]).0, "invalid-input");
    let words = ["-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=2M", "--force", "huge", "image"];
    lab.convert(&words);
    lab.is_sound("image", "an exbibyte");
    assert_eq!(lab.names(), ["again", "huge", "image", "raw"]);
}

/// Reading a terabyte would take minutes of this process; it gets seconds.
#[test]
fn a_terabyte_of_nothing_is_no_work() {
    let lab = lab();
    File::create(lab.path("raw")).unwrap().set_len(1 << 40).unwrap();
    let file = File::options().write(true).open(lab.path("raw")).unwrap();
    file.write_all_at(b"here", 700 << 30).unwrap();
    let convert = |words: &[&str]| {
        let mut command = lab.engine();
        command.arg("convert").args(words);
        #[expect(unsafe_code, reason = "a limit of the child is set between fork and exec")]
        // SAFETY: setrlimit is one system call, which may be made there.
        unsafe {
            command.pre_exec(|| setrlimit(Resource::RLIMIT_CPU, 5, 5).map_err(Into::into));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    convert(&["-O", "qcow2", "raw", "image"]);
    convert(&["-f", "qcow2", "image", "again"]);
    convert(&["-O", "qcow2", "-c", "-o", "cluster_size=2M", "raw", "small"]);
    convert(&["-f", "qcow2", "-O", "qcow2", "-B", "small", "-F", "qcow2", "small", "same"]);
    for image in ["image", "small", "same"] {
        lab.is_sound(image, "a terabyte");
        assert!(fs::metadata(lab.path(image)).unwrap().len() < 16 << 20, "{image}");
    }
    let again = File::open(lab.path("again")).unwrap();
    let mut four = [0; 4];
    again.read_exact_at(&mut four, 700 << 30).unwrap();
    assert_eq!((&four, again.metadata().unwrap().len()), (b"here", 1 << 40));
}

/// What is converted, and how.
#[derive(Clone, Debug)]
struct Drawn {
    size: u64,
    /// A shape of the source's, if it is no raw disk; and whether it is compressed.
    source: Option<(usize, bool)>,
    target: usize,
    compress: bool,
    backing: bool,
    sparse: &'static str,
    threads: u8,
}

impl std::fmt::Display for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let shape = 0..SHAPES.len();
    (
        prop_oneof![0..3_000_000_u64, (0..6000_u64).prop_map(|n| n * 512)],
        proptest::option::of((shape.clone(), any::<bool>())),
        shape,
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just("4k"), Just("0"), Just("64k"), Just("1M")],
        1..9_u8,
    )
        .prop_map(|(size, source, target, compress, backing, sparse, threads)| Drawn {
            size,
            source,
            target,
            compress,
            backing,
            sparse,
            threads,
        })
}

#[test]
fn anything_into_anything() {
    let sweep = Sweep::new("CONVERT", 150, 60);
    let done = sweep.run(drawn(), |drawn, random| {
        let lab = lab();
        lab.disk("raw", drawn.size, random);
        let mut words = vec!["-O", "qcow2", "-o", SHAPES[drawn.target], "-S", drawn.sparse];
        let threads = drawn.threads.to_string();
        words.extend(["--threads", &threads]);
        if drawn.compress {
            words.push("-c");
        }
        if drawn.backing {
            lab.disk("base", random.below(3_000_000) as u64, random);
            words.extend(["-B", "base", "-F", "raw"]);
        }
        match drawn.source {
            None => words.extend(["-f", "raw", "raw", "image"]),
            Some((shape, compressed)) => {
                let more = if compressed { &["-c"][..] } else { &[] };
                let made =
                    ["convert", "-f", "raw", "-O", "qcow2", "-o", SHAPES[shape], "raw", "source"];
                lab.qemu(&[&made[..1], more, &made[1..]].concat());
                words.extend(["-f", "qcow2", "source", "image"]);
            }
        }
        lab.convert(&words);
        lab.judge("raw", "image", "drawn");
        Ok(())
    });
    sweep.tell(&format!("{done} conversions"));
}
