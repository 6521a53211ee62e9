//! `disk-engine measure` beside `qemu-img measure`: sizes, images and options, drawn.
//!
//! ```text
//! seed ─▶ options, a size or an image ─┬─▶ qemu-img measure ────▶ numbers ─┐
//!                                      └─▶ disk-engine measure ─▶ numbers ─┴─▶ equal
//! ```
//!
//! `MEASURE_PROGRAMS` is how many, `MEASURE_SEED` what is drawn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool::available;

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

fn run(folder: &Path, program: &str, arguments: &[String]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn one_of<'a>(random: &mut Random, words: &[&'a str]) -> &'a str {
    words[random.below(words.len())]
}

/// Options of an image, legal or nearly so.
fn options(random: &mut Random) -> String {
    let mut options = Vec::new();
    let extended = random.once_in(4);
    let sizes: &[&str] = match extended {
        true => &["16k", "64k", "2M", "8k"],
        false => &["512", "4k", "16k", "64k", "128k", "1M", "2M", "3k"],
    };
    if extended {
        options.push("extended_l2=on".to_owned());
    }
    if !random.once_in(3) {
        options.push(format!("cluster_size={}", one_of(random, sizes)));
    }
    if random.once_in(2) {
        let bits = one_of(random, &["1", "2", "4", "8", "16", "32", "64", "5"]);
        options.push(format!("refcount_bits={bits}"));
    } else if !extended && random.once_in(3) {
        options.push("compat=0.10".to_owned());
    }
    if random.once_in(2) {
        let how = one_of(random, &["off", "metadata", "falloc", "full"]);
        options.push(format!("preallocation={how}"));
    }
    if random.once_in(4) {
        options.push("backing_file=below".to_owned());
    }
    options.join(",")
}

/// A size of a disk, small, large or too large.
fn size(random: &mut Random) -> String {
    let bits = random.below(64);
    let near = random.word() % 3;
    let size = match random.below(3) {
        0 => random.word() >> (63 - bits),
        _ => (1_u64 << bits).saturating_add(near).saturating_sub(1),
    };
    size.min(i64::MAX.unsigned_abs()).to_string()
}

#[test]
fn a_new_image_is_measured_as_qemu_img_measures_it() {
    if !available("measures of images beside qemu-img", &["qemu-img"]) {
        return;
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/images");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut images: Vec<_> = names
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.ends_with(".qcow2") && !name.starts_with("bad-"))
        .collect();
    images.sort();
    let (mut good, mut wrong) = (0, 0);
    let sweep = Sweep::new("MEASURE", 400, 60);
    let mut random = Random(sweep.seed);
    for _ in 0..sweep.programs {
        let mut arguments = vec!["measure".to_owned(), "-O".to_owned()];
        let raw = random.once_in(6);
        arguments.push(if raw { "raw" } else { "qcow2" }.to_owned());
        let options = options(&mut random);
        if !raw && !options.is_empty() {
            arguments.extend(["-o".to_owned(), options]);
        }
        let mut ours = arguments.clone();
        if random.once_in(2) {
            let format = one_of(&mut random, &["raw", "qcow2", "qcow2"]).to_owned();
            let image = images[random.below(images.len())].clone();
            arguments.extend(["-f".to_owned(), format, image]);
            ours.clone_from(&arguments);
            ours.push("--data-files".to_owned());
        } else {
            arguments.extend(["--size".to_owned(), size(&mut random)]);
            ours.clone_from(&arguments);
        }
        let theirs = run(&folder, "qemu-img", &arguments);
        let ours = run(&folder, ENGINE, &ours);
        let what = format!("MEASURE_SEED={} {arguments:?}: {ours:?} {theirs:?}", sweep.seed);
        assert_eq!(ours.status.success(), theirs.status.success(), "{what}");
        assert_eq!(ours.stdout, theirs.stdout, "{what}");
        *(if theirs.status.success() { &mut good } else { &mut wrong }) += 1;
    }
    sweep.tell(&format!("{good} measured, {wrong} refused"));
    assert!(sweep.programs < 200 || good > 100 && wrong > 10, "{good}, {wrong}");
}
