//! `disk-engine map` and `info` beside `qemu-img`, over images and chains.
//!
//! ```text
//! testdata/images, chains ─┬─▶ qemu-img map ──────▶ text ─┐
//!                          └─▶ disk-engine map ───▶ text ─┴─▶ equal
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testkit::qemu::img_in;
use testkit::tool::{available, memory_folder};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compares both forms of a map, with the same options. Returns how many entries it has, or nothing if
/// qemu-img does not open the image.
fn same_map(folder: &Path, format: &str, options: &[&str], image: &str) -> Option<usize> {
    let both = |form: &str| {
        let arguments = [&["map", "-f", format, "--output", form], options].concat();
        let theirs = run(folder, "qemu-img", &[&arguments[..], &[image]].concat());
        (run(folder, ENGINE, &[&arguments[..], &["--data-files", image]].concat()), theirs)
    };
    let (ours, theirs) = both("json");
    if theirs.stdout.is_empty() {
        return None;
    }
    let what = format!("{format} {options:?} {image}: {ours:?} {theirs:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{what}");
    let our_entries: Vec<Value> = serde_json::from_slice(&ours.stdout).unwrap();
    assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{what}");
    let (ours, theirs) = both("human");
    assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{what}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{what}");
    Some(our_entries.len())
}

#[test]
fn every_image_of_testdata_is_mapped_as_qemu_img_maps_it() {
    if !available("maps of images beside qemu-img", &["qemu-img"]) {
        return;
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/images");
    let (mut mapped, mut names) = (0, Vec::new());
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".qcow2") && !name.starts_with("bad-") {
            names.push(name);
        }
    }
    for name in &names {
        mapped += usize::from(same_map(&folder, "qcow2", &[], name).is_some());
        assert!(same_map(&folder, "raw", &[], name).is_some());
    }
    // Those with a backing or data file that is not kept are opened by nobody.
    assert!(mapped > 25, "{mapped} of {}", names.len());
}

/// A raw file with holes.
fn holey(path: &Path, length: u64) {
    let file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    for at in (0..length).step_by(300_000) {
        let bytes = vec![7; usize::try_from((length - at).min(20_000)).unwrap()];
        file.write_all_at(&bytes, at).unwrap();
    }
}

/// Commands of qemu-io that write here and there, the same for the same seed.
fn writes(seed: u64, size: u64, cluster: u64) -> Vec<String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut commands = Vec::new();
    for index in 0..20 {
        let length = (1 + next(3 * cluster / 512)) * 512;
        let offset = next(size / 512) * 512;
        let length = length.min(size - offset);
        let whole = offset - offset % cluster;
        commands.push(match index % 5 {
            0 | 1 => format!("write -P {index} {offset} {length}"),
            2 => format!("write -z {offset} {length}"),
            3 => format!("discard {offset} {length}"),
            // Fails where something is allocated already.
            _ => format!("write -c -P {index} {whole} {}", cluster.min(size - whole)),
        });
    }
    commands
}

#[test]
fn chains_are_mapped_as_qemu_img_maps_them() {
    if !available("maps of chains beside qemu-img", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    let mut entries = 0;
    for (seed, (options, raw_size, sizes)) in [
        ("cluster_size=512", 200_000, [300_000, 250_000]),
        ("cluster_size=64k", 3_000_000, [5 << 20, 6 << 20]),
        ("cluster_size=64k,extended_l2=on", 4_000_001, [3 << 20, 6 << 20]),
        ("cluster_size=4k,compat=0.10", 1000, [1 << 20, 1536]),
        ("cluster_size=2M", 700_000_000, [64 << 20, 1 << 30]),
        ("cluster_size=16k,compression_type=zstd,extended_l2=on", 99_999, [1 << 20, 1 << 20]),
    ]
    .into_iter()
    .enumerate()
    {
        holey(&folder.join("base"), raw_size);
        let mut below = ("base", "raw");
        for (depth, (image, size)) in ["middle", "top"].into_iter().zip(sizes).enumerate() {
            let cluster = if options.contains("512") {
                512
            } else {
                options.split(['=', 'k', 'M']).nth(1).unwrap().parse::<u64>().unwrap()
                    << if options.contains('M') { 20 } else { 10 }
            };
            let _ = fs::remove_file(folder.join(image));
            let length = size.to_string();
            let create = ["create", "-q", "-f", "qcow2", "-o", options, "-b", below.0];
            let create = [&create[..], &["-F", below.1, image, &length]].concat();
            img_in(folder, &create);
            let commands = writes((seed * 2 + depth + 1) as u64, size, cluster);
            let mut io = Command::new("qemu-io");
            io.current_dir(folder).args(["-f", "qcow2", image]);
            for command in &commands {
                io.args(["-c", command]);
            }
            io.output().unwrap();
            below = (image, "qcow2");
            for part in [
                &[][..],
                &["-s", "1000", "-l", "100000"],
                &["--start-offset", "200k"],
                &["--max-length", "0"],
                &["-l", "1"],
                &["-s", "999", "-l", "2"],
                &["-s", "1G"],
            ] {
                entries += same_map(folder, "qcow2", part, image).unwrap();
            }
        }
        for part in [&[][..], &["-s", "999"], &["-s", "99998"], &["-l", "700"]] {
            entries += same_map(folder, "raw", part, "base").unwrap();
        }
    }
    assert!(entries > 500, "{entries}");
}

#[test]
fn a_snapshot_is_mapped_as_the_disk_it_was() {
    if !available("maps of snapshots beside qemu-img", &["qemu-img", "qemu-io"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    img_in(folder, &["create", "-q", "-f", "qcow2", "vm", "4M"]);
    let write = |command: &str| {
        let output = run(folder, "qemu-io", &["-f", "qcow2", "-c", command, "vm"]);
        assert!(output.status.success(), "{output:?}");
    };
    write("write -P 1 0 200k");
    img_in(folder, &["snapshot", "-c", "first", "vm"]);
    write("write -P 2 100k 300k");
    img_in(folder, &["resize", "-q", "-f", "qcow2", "vm", "5M"]);
    let ours = run(folder, ENGINE, &["map", "-f", "qcow2", "--json", "--snapshot", "first", "vm"]);
    let now = run(folder, ENGINE, &["map", "-f", "qcow2", "--json", "vm"]);
    img_in(folder, &["snapshot", "-a", "first", "vm"]);
    let then = run(folder, "qemu-img", &["map", "-f", "qcow2", "--output", "json", "vm"]);
    assert_eq!(text(&ours.stdout), text(&then.stdout));
    assert_ne!(now.stdout, ours.stdout);
    let absent = run(folder, ENGINE, &["map", "--json", "--snapshot", "second", "vm"]);
    assert_eq!((absent.status.code(), absent.stdout.len()), (Some(1), 0), "{absent:?}");
    let error: Value = serde_json::from_slice(&absent.stderr).unwrap();
    assert_eq!(error["error"]["code"], "not-found");
}

#[test]
fn names_in_images_are_followed_where_that_is_allowed() {
    if !available("maps of images elsewhere", &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    for name in ["images", "bases"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    holey(&folder.join("bases/base"), 1 << 20);
    let images = folder.join("images");
    img_in(&images, &["create", "-q", "-f", "qcow2", "-b", "../bases/base", "-F", "raw", "vm"]);
    let refused = run(folder, ENGINE, &["map", "--json", "images/vm"]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{refused:?}");
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(error["error"]["code"], "refused");
    let theirs = run(folder, "qemu-img", &["map", "-f", "qcow2", "images/vm"]);
    for option in [&["--backing-chain"][..], &["--allow", "images/../bases"]] {
        let ours = run(folder, ENGINE, &[&["map", "images/vm"], option].concat());
        assert!(ours.status.success(), "{ours:?}");
        assert_eq!(text(&ours.stdout), text(&theirs.stdout));
    }
}

#[test]
fn info_follows_a_chain_as_qemu_img_does() {
    if !available("info of chains beside qemu-img", &["qemu-img"]) {
        return;
    }
    let place = memory_folder();
    let folder = place.path();
    fs::create_dir(folder.join("sub")).unwrap();
    holey(&folder.join("sub/base"), 999_999);
    let create = ["create", "-q", "-f", "qcow2"];
    for (image, below, format, more) in [
        ("sub/middle", "base", "raw", "cluster_size=4k,lazy_refcounts=on"),
        ("second", "sub/middle", "qcow2", "compat=0.10"),
        ("top", "second", "qcow2", "extended_l2=on,refcount_bits=1,compression_type=zstd"),
    ] {
        img_in(folder, &[&create[..], &["-b", below, "-F", format, "-o", more, image]].concat());
    }
    img_in(folder, &[&create[..], &["-o", "cluster_size=512", "alone", "1000"]].concat());
    for (image, format) in
        [("top", "qcow2"), ("sub/middle", "qcow2"), ("alone", "qcow2"), ("sub/base", "raw")]
    {
        let theirs =
            img_in(folder, &["info", "-f", format, "--backing-chain", "--output", "json", image]);
        let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
        let ours = run(folder, ENGINE, &["info", "-f", format, "--json", image]);
        let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
        let below = ours["backing-chain"].as_array().unwrap();
        assert_eq!(below.len() + 1, theirs.len(), "{image}");
        for (ours, theirs) in std::iter::once(&ours).chain(below).zip(&theirs) {
            for (name, value) in theirs.as_object().unwrap() {
                assert_eq!(&ours[name], value, "{image}, {name}");
            }
        }
        assert!(ours.get("not-followed").is_none());
    }
}
