//! `convert` through pipes, into archives, and where the file system shares storage.
//!
//! ```text
//! image, sparse archive ──▶ qcow2 on standard output, tables first ──▶ standard input ──▶ raw
//! anything else         ──▶ kept in a file without a name first, up to a limit
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Output, Stdio};

use testkit::convert_lab::Lab;
use testkit::mounts::{Kind, Mount};
use testkit::random::Random;
use testkit::tool::{available, tell};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

fn with_disk(what: &str) -> Lab {
    let seed = std::env::var("CONVERT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(Random::fresh_seed);
    tell(&format!("{what}: CONVERT_SEED={seed}"));
    let lab = Lab::new(ENGINE);
    lab.disk("raw", (9 << 20) + 1536, &mut Random(seed));
    lab
}

/// `convert` with these words, `input` at its standard input and its standard output in `image`.
fn piped(lab: &Lab, words: &[&str], input: Option<&str>) -> Output {
    let mut command = lab.engine();
    command.args(["--json", "convert"]).args(words);
    let input = input.map(|name| lab.read(name));
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(File::create(lab.path("image")).unwrap()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    if let Some(input) = input {
        // A command that has found a fault reads no further.
        let _ = child.stdin.take().unwrap().write_all(&input);
    }
    child.wait_with_output().unwrap()
}

/// As [`piped`], which succeeds; what it reports, on standard error while standard output is taken.
fn through(lab: &Lab, words: &[&str], input: Option<&str>) -> serde_json::Value {
    let output = piped(lab, words, input);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {text}");
    if words.last() == Some(&"-") {
        serde_json::from_str(&text).unwrap()
    } else {
        serde_json::Value::Null
    }
}

#[test]
fn qcow2_goes_out_and_comes_back() {
    let lab = with_disk("out and back");
    lab.qemu(&["convert", "-O", "qcow2", "raw", "source"]);
    let raw = lab.read("raw");
    for shape in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=512",
    ] {
        for source in [&["-f", "raw", "raw"][..], &["-f", "qcow2", "source"]] {
            for (more, straight) in [(&[][..], true), (&["-c"], false), (&["-S", "0"], false)] {
                let words = [&["-O", "qcow2", "-o", shape], more, source, &["-"]].concat();
                let report = through(&lab, &words, None);
                assert_eq!(report["spilled"] == 0, straight, "{words:?}");
                lab.judge("raw", "image", &format!("{words:?}"));
                fs::rename(lab.path("image"), lab.path("sent")).unwrap();
                let input = Some("sent");
                let _ = fs::remove_file(lab.path("again"));
                assert!(piped(&lab, &["-f", "qcow2", "-", "again"], input).status.success());
                assert!(lab.read("again") == raw, "{words:?}");
                // What was sent tables first needs no file on its way.
                if straight {
                    let words = ["-f", "qcow2", "--spill", "/nonexistent", "-O", "qcow2", "-", "-"];
                    // Where it goes does not know what comes, so that side needs one.
                    let error = piped(&lab, &words, input);
                    assert!(!error.status.success());
                    let words = ["-f", "qcow2", "--spill", "/nonexistent", "-", "-"];
                    through(&lab, &words, input);
                    assert!(lab.read("image") == raw, "{words:?}");
                }
            }
        }
    }
}

#[test]
fn what_qemu_wrote_comes_in() {
    let lab = with_disk("qemu-img's");
    let raw = lab.read("raw");
    for words in [
        &["-o", "compat=1.1"][..],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-o", "extended_l2=on"],
    ] {
        lab.qemu(&[&["convert", "-O", "qcow2"], words, &["raw", "theirs"]].concat());
        through(&lab, &["-f", "qcow2", "-", "-"], Some("theirs"));
        assert!(lab.read("image") == raw, "{words:?}");
    }
    // A snapshot needs all of it.
    lab.qemu(&["snapshot", "-c", "one", "theirs"]);
    through(&lab, &["-f", "qcow2", "-l", "one", "-", "-"], Some("theirs"));
    assert!(lab.read("image") == raw);
    // What is kept has a limit, and is told by name.
    let output =
        piped(&lab, &["-f", "qcow2", "--spill-limit", "4k", "-l", "one", "-", "-"], Some("theirs"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("spill") && text.contains("\"limit\""),
        "{text}"
    );
    let output =
        piped(&lab, &["-O", "qcow2", "-c", "--spill-limit", "4k", "-f", "raw", "raw", "-"], None);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("spill") && text.contains("\"limit\""),
        "{text}"
    );
    assert!(lab.read("image").is_empty(), "nothing was sent");
}

#[test]
fn a_stream_that_ends_early_is_an_error_and_no_file() {
    let lab = with_disk("cut");
    through(&lab, &["-O", "qcow2", "-f", "raw", "raw", "-"], None);
    let whole = lab.read("image");
    let mut random = Random(whole.len() as u64);
    for round in 0..25 {
        let cut = match round {
            0 => 0,
            1 => 100,
            2 => whole.len() - 65_536,
            _ => random.below(whole.len() - 65_536),
        };
        fs::write(lab.path("cut"), &whole[..cut]).unwrap();
        let output = piped(&lab, &["-f", "qcow2", "-", "again"], Some("cut"));
        assert!(!output.status.success(), "{cut} of {} bytes", whole.len());
        assert!(!lab.path("again").exists(), "{cut}");
    }
    assert_eq!(lab.names(), ["cut", "image", "raw"]);
    // Of a disk that ends within a cluster, no more is to spare.
    let noise: Vec<u8> = (0..200_003).flat_map(|_| (random.word() | 1).to_be_bytes()).collect();
    fs::write(lab.path("raw"), &noise[..1_500_160]).unwrap();
    lab.qemu(&["convert", "-f", "raw", "-O", "qcow2", "raw", "image"]);
    let whole = lab.read("image");
    for cut in [65_536, 65_537, 70_000, 131_071, 131_072] {
        fs::write(lab.path("cut"), &whole[..whole.len() - cut]).unwrap();
        let output = piped(&lab, &["-f", "qcow2", "-", "again"], Some("cut"));
        assert_eq!(output.status.code(), Some(3), "{cut} bytes less");
        assert_eq!(lab.refused(&["-f", "qcow2", "cut", "again"]).0, "corrupt", "{cut} bytes less");
        assert!(!lab.path("again").exists(), "{cut}");
    }
}

#[test]
fn pipes_with_names_are_pipes() {
    let lab = with_disk("named");
    lab.qemu(&["convert", "-f", "raw", "-O", "qcow2", "raw", "image"]);
    for (format, source) in [(None, "raw"), (Some("raw"), "raw"), (Some("qcow2"), "image")] {
        nix::unistd::mkfifo(&lab.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut feeding = std::process::Command::new("sh");
        feeding.arg("-c").arg(format!("exec cat {source} > fifo")).current_dir(lab.path(""));
        let mut feeding = feeding.spawn().unwrap();
        let format = format.map_or(vec![], |format| vec!["-f", format]);
        lab.convert(&[&format[..], &["--force", "fifo", "again"]].concat());
        assert!(feeding.wait().unwrap().success(), "{source}");
        assert!(lab.read("again") == lab.read("raw"), "{format:?} {source}");
        fs::remove_file(lab.path("fifo")).unwrap();
    }
}

#[test]
fn closed_output_is_an_error() {
    let lab = with_disk("closed");
    for command in ["convert -f raw raw -", "pack raw -"] {
        let mut shell = std::process::Command::new("sh");
        let line = format!("\"$0\" {command} >&-");
        let output = shell.arg("-c").arg(line).arg(ENGINE).current_dir(lab.path("")).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("Bad file descriptor"),
            "{command}: {said}"
        );
        // Thrown away on purpose.
        let line = format!("exec \"$0\" {command} > /dev/null");
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg(line)
            .arg(ENGINE)
            .current_dir(lab.path(""))
            .status();
        assert!(status.unwrap().success(), "{command}");
    }
}

#[test]
fn raw_and_archives_stream() {
    let lab = with_disk("streams");
    if !available("archives through pipes", &["tar", "zstd", "gzip", "xz"]) {
        return;
    }
    let raw = lab.read("raw");
    through(&lab, &["-f", "raw", "raw", "-"], None);
    assert!(lab.read("image") == raw);
    lab.shell("mkdir in; cp --sparse=always raw in/disk.img; tar -C in -cSf s.tar disk.img; tar -C in -cf d.tar disk.img");
    lab.shell(
        "zstd -qk s.tar; gzip -k s.tar; xz -k s.tar; zstd -qk d.tar; zstd -qk raw; gzip -k raw",
    );
    for (source, straight) in [
        ("s.tar", true),
        ("s.tar.zst", true),
        ("s.tar.gz", true),
        ("s.tar.xz", true),
        ("d.tar", false),
        ("d.tar.zst", false),
        ("raw.zst", false),
        ("raw.gz", false),
    ] {
        for input in [None, Some(source)] {
            let from = if input.is_some() { "-" } else { source };
            let report = through(&lab, &["-O", "qcow2", from, "-"], input);
            assert_eq!(report["spilled"] == 0, straight, "{source}");
            lab.judge("raw", "image", source);
            through(&lab, &[from, "-"], input);
            assert!(lab.read("image") == raw, "{source}");
            through(&lab, &["--offset", "1M", "--length", "3M", from, "-"], input);
            assert!(lab.read("image") == raw[1 << 20..4 << 20], "{source}: a part");
        }
        lab.convert(&["-O", "qcow2", "-c", "--force", source, "made"]);
        lab.judge("raw", "made", source);
    }
    // Its first file is not the disk: what was sent cannot be taken back, what was written can.
    lab.shell("echo no > in/a; tar -C in -cSf two.tar a disk.img");
    assert!(!piped(&lab, &["two.tar", "-"], None).status.success());
    lab.convert(&["-O", "qcow2", "--force", "two.tar", "made"]);
    lab.judge("raw", "made", "two members");
    through(&lab, &["--member", "disk.img", "-O", "qcow2", "two.tar", "-"], None);
    lab.judge("raw", "image", "a named member");
}

#[test]
fn archives_are_made_and_read_by_others() {
    let lab = with_disk("archives");
    if !available("archives made by convert", &["tar", "zstd"]) {
        return;
    }
    lab.qemu(&["convert", "-O", "qcow2", "-c", "raw", "source"]);
    lab.convert(&["-O", "archive", "-f", "qcow2", "source", "one.tar.zst"]);
    assert_eq!(lab.shell("tar -tf one.tar.zst"), "disk.img\n");
    lab.shell("tar -xf one.tar.zst; cmp disk.img raw");
    // The same bytes, wherever it comes from and goes to.
    through(&lab, &["-O", "archive", "-", "-"], Some("raw"));
    assert!(lab.read("image") == lab.read("one.tar.zst"));
    lab.convert(&["-O", "archive", "--offset", "1M", "--length", "1000000", "raw", "part.tar.zst"]);
    lab.shell("tar -xf part.tar.zst; cmp disk.img <(tail -c +1048577 raw | head -c 1000000)");
}

#[test]
fn storage_is_shared_where_the_file_system_can() {
    for (kind, shares) in
        [(Kind::Xfs, true), (Kind::Btrfs, true), (Kind::XfsWithout, false), (Kind::Ext4, false)]
    {
        let beside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let Some(mount) = Mount::new("sharing storage", kind, 512, beside.path()) else { continue };
        let lab = Lab::new(ENGINE);
        let at = |name: &str| mount.path().join(name).to_str().unwrap().to_owned();
        let file = File::create(at("raw")).unwrap();
        file.set_len((40 << 20) + 5000).unwrap();
        testkit::convert_lab::scatter(&file, 40 << 20, &mut Random(7));
        file.write_all_at(&vec![7; (8 << 20) + 300], 16 << 20).unwrap();
        file.sync_all().unwrap();
        lab.qemu(&["convert", "-f", "raw", "-O", "qcow2", &at("raw"), &at("source")]);
        for (source, format) in [("raw", "raw"), ("source", "qcow2")] {
            for (target, shape) in [
                ("raw", None),
                ("qcow2", Some("cluster_size=64k")),
                ("qcow2", Some("cluster_size=512")),
            ] {
                let what = format!("{kind:?} {format} to {target} {shape:?}");
                let mut words = vec!["-f", format, "-O", target, "--force"];
                let (from, to) = (at(source), at("target"));
                words.extend(shape.iter().flat_map(|shape| ["-o", shape]));
                words.extend([from.as_str(), to.as_str()]);
                let report = lab.convert(&words);
                let shared = report["shared"].as_u64().unwrap();
                let can = shares && shape != Some("cluster_size=512");
                assert_eq!(shared > 4 << 20, can, "{what}: {report}");
                let raw = (at("raw"), to.clone());
                lab.is_same((&raw.0, "raw"), (&raw.1, target), &what);
                if target == "qcow2" {
                    lab.is_sound(&to, &what);
                }
                // The kernel copies where it is asked to, and nowhere else.
                words.insert(0, "-C");
                let report = lab.convert(&words);
                let by_kernel = report["copied-by-kernel"].as_u64().unwrap();
                let can_copy = !can && shape != Some("cluster_size=512");
                assert_eq!(by_kernel > 4 << 20, can_copy, "{what}: {report}");
                lab.is_same((&raw.0, "raw"), (&raw.1, target), &what);
            }
        }
        assert!(fs::metadata(at("target")).unwrap().blocks() > 0);
    }
}
