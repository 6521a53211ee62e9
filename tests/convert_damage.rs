//! `convert` of what is damaged or must not be read, killed, and out of room.
//!
//! ```text
//! image with one damage ── salvage ──▶ disk, and the list of what is zeros     qemu-img --salvage
//!                       └─ without ──▶ an error that names it, and no file
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use disk_engine::ErrorKind;
use disk_engine::control::{CancelToken, Control, Event};
use disk_engine::ops::convert::{
    ConvertOptions, ConvertSource, ConvertTarget, TargetFormat, convert,
};
use disk_engine::source::Source;
use disk_engine::sys::image_lock;
use qcow2_format::CreateOptions;
use testkit::convert_lab::Lab;
use testkit::random::Random;

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");
const CLUSTER: u64 = 65_536;

/// A disk of 4 MiB, all of it data, and images of it.
fn lab() -> Lab {
    let lab = Lab::new(ENGINE);
    let mut random = Random(11);
    let words =
        (0..(4 << 20) / 8).flat_map(|_| (random.word() & 0x0f0f_0f0f_0f0f_0f0f | 1).to_be_bytes());
    fs::write(lab.path("raw"), words.collect::<Vec<u8>>()).unwrap();
    for (name, words) in
        [("plain", &[][..]), ("zlib", &["-c"]), ("zstd", &["-c", "-o", "compression_type=zstd"])]
    {
        lab.qemu(&[&["convert", "-f", "raw", "-O", "qcow2"], words, &["raw", name]].concat());
    }
    lab
}

fn number(image: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Where the L2 table of the disk's first clusters lies, and the L1 table.
fn tables(image: &File) -> (u64, u64) {
    let l1 = number(image, 40);
    (number(image, l1) & 0x00ff_ffff_ffff_fe00, l1)
}

/// Damages `image` and says which clusters of the disk that concerns.
type Damage = fn(&File) -> Vec<u64>;

fn entry(image: &File, cluster: u64, change: impl Fn(u64) -> u64) -> Vec<u64> {
    let at = tables(image).0 + cluster * 8;
    image.write_all_at(&change(number(image, at)).to_be_bytes(), at).unwrap();
    vec![cluster]
}

fn payload(image: &File, cluster: u64) -> Vec<u64> {
    let descriptor = number(image, tables(image).0 + cluster * 8);
    let at = descriptor & ((1 << (62 - 8)) - 1);
    image.write_all_at(&[0xff; 300], at).unwrap();
    vec![cluster]
}

/// Half of the file is gone; a cluster that is there in part is there.
fn cut(image: &File) -> Vec<u64> {
    let length = image.metadata().unwrap().len() / 2 + 1000;
    image.set_len(length).unwrap();
    let (table, _) = tables(image);
    let place = |cluster: u64| number(image, table + cluster * 8) & 0x00ff_ffff_ffff_fe00;
    (0..64).filter(|cluster| place(*cluster) >= length).collect()
}

const DAMAGES: &[(&str, &str, Damage)] = &[
    ("plain", "reserved bits", |image| entry(image, 7, |raw| raw | 1 << 57)),
    ("plain", "an unaligned cluster", |image| entry(image, 9, |raw| raw | 512)),
    ("plain", "neighbours", |image| {
        let mut all = entry(image, 20, |raw| raw | 512);
        all.extend(entry(image, 21, |raw| raw | 1024));
        all.extend(entry(image, 40, |raw| raw | 2048));
        all
    }),
    ("plain", "the first and the last", |image| {
        [entry(image, 0, |raw| raw | 512), entry(image, 63, |raw| raw | 512)].concat()
    }),
    ("plain", "an unaligned L2 table", |image| {
        let l1 = tables(image).1;
        image.write_all_at(&(number(image, l1) | 512).to_be_bytes(), l1).unwrap();
        (0..64).collect()
    }),
    ("plain", "a cluster past the end", |image| entry(image, 12, |raw| raw | 1 << 45)),
    ("plain", "a file that was cut", cut),
    ("zlib", "a payload", |image| payload(image, 5)),
    ("zlib", "several payloads", |image| {
        [payload(image, 5), payload(image, 33), payload(image, 62)].concat()
    }),
    ("zstd", "a payload", |image| payload(image, 17)),
    ("zlib", "a payload past the end", |image| {
        entry(image, 3, |raw| raw & !0x3f_ffff_ffff_ffff | 1 << 40)
    }),
];

#[test]
fn what_can_be_read_is_and_the_rest_is_listed() {
    let lab = lab();
    for (image, what, damage) in DAMAGES {
        fs::copy(lab.path(image), lab.path("image")).unwrap();
        let file = File::options().read(true).write(true).open(lab.path("image")).unwrap();
        let mut lost = damage(&file);
        lost.dedup();
        // Payloads share sectors: the damage may reach into the one behind.
        let _ = fs::remove_file(lab.path("salvaged"));
        let (code, _) = lab.refused(&["-f", "qcow2", "image", "salvaged"]);
        assert_eq!(code, "corrupt", "{image}: {what}");
        assert!(!lab.path("salvaged").exists(), "{what}");
        let report = lab.convert(&["-f", "qcow2", "--salvage", "--force", "image", "salvaged"]);
        let mut listed = Vec::new();
        for part in report["unreadable"].as_array().unwrap() {
            let field = |name: &str| part[name].as_u64().unwrap();
            assert!(field("offset") % CLUSTER == 0 && field("length") % CLUSTER == 0, "{part}");
            assert!(!part["reason"].as_str().unwrap().is_empty());
            let first = field("offset") / CLUSTER;
            listed.extend(first..first + field("length") / CLUSTER);
        }
        assert_eq!(report["unreadable-bytes"], listed.len() as u64 * CLUSTER, "{what}");
        assert!(lost.iter().all(|cluster| listed.contains(cluster)), "{what}: {listed:?}");
        if *image == "plain" {
            assert_eq!(listed, lost, "{what}");
        }
        let (raw, salvaged) = (lab.read("raw"), lab.read("salvaged"));
        let size = usize::try_from(CLUSTER).unwrap();
        for (index, (here, there)) in (0..).zip(salvaged.chunks(size).zip(raw.chunks(size))) {
            if listed.contains(&index) {
                assert!(here.iter().all(|byte| *byte == 0), "{what}: cluster {index}");
            } else if *what == "a file that was cut" {
                let end = here.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                assert!(here[..end] == there[..end], "{what}: cluster {index}");
                assert!(end == here.len() || end >= 1000, "{what}: cluster {index}");
            } else {
                assert!(here == there, "{what}: cluster {index}");
            }
        }
        lab.qemu(&["convert", "-q", "--salvage", "-f", "qcow2", "-O", "raw", "image", "theirs"]);
        // QEMU does not look at reserved bits.
        let bits = *what == "reserved bits";
        assert!(lab.read("theirs") == if bits { raw } else { salvaged }, "{image}: {what}: theirs");
        // In every direction.
        let report = lab.convert(&[
            "-f",
            "qcow2",
            "--salvage",
            "-O",
            "qcow2",
            "-c",
            "--force",
            "image",
            "again",
        ]);
        assert_eq!(report["unreadable-bytes"], listed.len() as u64 * CLUSTER, "{what}");
        lab.judge("salvaged", "again", what);
    }
}

#[test]
fn an_image_marked_corrupt_is_no_source() {
    let lab = lab();
    let file = File::options().read(true).write(true).open(lab.path("plain")).unwrap();
    file.write_all_at(&2_u64.to_be_bytes(), 72).unwrap();
    let (code, text) = lab.refused(&["-f", "qcow2", "plain", "x"]);
    assert!(code == "corrupt" && text.contains("marked corrupt"), "{text}");
    lab.convert(&["-f", "qcow2", "--salvage", "plain", "x"]);
    assert!(lab.read("x") == lab.read("raw"));
    lab.qemu(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=word",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "secret",
        "1M",
    ]);
    let (code, text) = lab.refused(&["-f", "qcow2", "secret", "y"]);
    assert!(code == "unsupported" && text.contains("luks"), "{text}");
}

#[test]
fn a_target_is_never_its_own_source() {
    let lab = lab();
    lab.qemu(&["create", "-q", "-f", "qcow2", "-b", "plain", "-F", "qcow2", "overlay"]);
    fs::hard_link(lab.path("raw"), lab.path("link")).unwrap();
    std::os::unix::fs::symlink("raw", lab.path("symbolic")).unwrap();
    let before = (lab.read("raw"), lab.read("plain"), lab.read("overlay"));
    for words in [
        &["--force", "raw", "raw"][..],
        &["--force", "raw", "link"],
        &["--force", "symbolic", "raw"],
        &["-n", "raw", "link"],
        &["-f", "qcow2", "--force", "overlay", "overlay"],
        &["-f", "qcow2", "--force", "overlay", "plain"],
        &["-f", "qcow2", "-O", "qcow2", "-n", "overlay", "plain"],
        &["-O", "qcow2", "-B", "plain", "-F", "qcow2", "--force", "raw", "plain"],
    ] {
        let (code, text) = lab.refused(words);
        assert!(code == "invalid-input" && text.contains("replaced"), "{words:?}: {text}");
    }
    assert!(before == (lab.read("raw"), lab.read("plain"), lab.read("overlay")));
    assert_eq!(lab.refused(&["raw", "plain"]).0, "already-exists");
}

#[test]
fn a_guest_that_spelled_a_header_is_not_believed() {
    let lab = lab();
    let (code, text) = lab.refused(&["plain", "x"]);
    assert!(code == "invalid-input" && text.contains("not stated"), "{text}");
    lab.convert(&["-f", "raw", "plain", "x"]);
    assert!(lab.read("x") == lab.read("plain"));
}

#[test]
fn images_of_other_formats_are_no_disks() {
    let lab = lab();
    for format in ["vdi", "vmdk", "vhdx", "vpc", "qed", "qcow", "parallels"] {
        let _ = fs::remove_file(lab.path("other"));
        lab.qemu(&["create", "-q", "-f", format, "other", "1M"]);
        for words in [
            &["convert", "other", "disk"][..],
            &["extract", "other", "disk"],
            &["info", "other"],
            &["map", "other"],
            &["compare", "other", "other"],
            &["measure", "-O", "raw", "other"],
            &["check", "other"],
            &["pack", "other", "disk"],
        ] {
            let output = lab.engine().args(words).arg("--json").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{words:?} of {format}");
            let foreign = said.contains("\"code\":\"unsupported\"") && said.contains(format);
            assert!(foreign, "{words:?} of {format}: {said}");
            assert!(!lab.path("disk").exists(), "{words:?} of {format}");
        }
        // Unless they are meant as they are.
        lab.convert(&["-f", "raw", "other", "disk"]);
        assert!(lab.read("other") == lab.read("disk"), "{format}");
        fs::remove_file(lab.path("disk")).unwrap();
    }
}

#[test]
fn a_killed_conversion_leaves_nothing() {
    let lab = Lab::new(ENGINE);
    // Noise, compressed as slowly as can be, from a pipe that never ends.
    for force in [false, true] {
        let mut command = lab.engine();
        command.args(["convert", "-c", "-O", "qcow2", "-f", "raw"]);
        if force {
            fs::write(lab.path("image"), "old").unwrap();
            command.arg("--force");
        }
        command.args(["-", "image"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut noise = Random(3);
        for _ in 0..40 {
            let bytes: Vec<u8> = (0..32_768).flat_map(|_| noise.word().to_le_bytes()).collect();
            std::io::Write::write_all(&mut input, &bytes).unwrap();
        }
        // All but the last pieces have gone through by then.
        child.kill().unwrap();
        child.wait().unwrap();
        if force {
            assert_eq!(lab.read("image"), b"old");
            assert_eq!(lab.names(), ["image"]);
        } else {
            assert_eq!(lab.names(), Vec::<String>::new());
        }
    }
    fs::write(lab.path("raw"), [7; 5000]).unwrap();
    lab.convert(&["-f", "raw", "-O", "qcow2", "--force", "raw", "image"]);
    assert_eq!(lab.names(), ["image", "raw"]);
    fs::write(lab.path("raw"), [&[7; 5000][..], &[0; 120]].concat()).unwrap();
    lab.judge("raw", "image", "after kills");
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let lab = lab();
    for compress in [false, true] {
        let cancel = CancelToken::new();
        let token = cancel.clone();
        let control = Control::new().with_cancel(cancel).with_observer(move |event| {
            if matches!(event, Event::Progress { .. }) {
                token.cancel();
            }
        });
        // Large enough for a second look.
        let file = File::options().write(true).open(lab.path("raw")).unwrap();
        for part in 0..12 {
            file.write_all_at(&vec![7; 2 << 20], part * (3 << 20)).unwrap();
        }
        let options = ConvertOptions {
            control,
            compress,
            ..ConvertOptions::new(TargetFormat::Qcow2(CreateOptions::new(0)))
        };
        let source = ConvertSource::Packed(Source::path(lab.path("raw")));
        let names = lab.names();
        let target = lab.path("target");
        let error = convert(source, ConvertTarget::File(&target), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(lab.names(), names);
    }
}

#[test]
fn standard_output_is_not_the_source_either() {
    let lab = lab();
    let before = lab.read("raw");
    for (source, format) in [("raw", "raw"), ("plain", "qcow2")] {
        let mut command = lab.engine();
        command.args(["convert", "-f", format, source, "-"]);
        let file = File::options().write(true).open(lab.path(source)).unwrap();
        let output = command.stdout(file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("replaced"), "{source}: {said}");
    }
    assert!(lab.read("raw") == before);
    lab.judge("raw", "plain", "after it was refused");
}

/// Locked as a running QEMU locks it.
#[test]
fn a_disk_in_use_is_refused() {
    let lab = lab();
    let file = File::options().read(true).write(true).open(lab.path("plain")).unwrap();
    assert!(image_lock::lock_for_writing(&file).unwrap());
    let busy = |words: &[&str]| assert_eq!(lab.refused(words).0, "busy", "{words:?}");
    busy(&["-f", "qcow2", "plain", "x"]);
    busy(&["-n", "-O", "qcow2", "raw", "plain"]);
    busy(&["--force", "raw", "plain"]);
    lab.convert(&["-f", "qcow2", "-U", "plain", "x"]);
    drop(file);
    lab.convert(&["-f", "qcow2", "--force", "plain", "x"]);
}
