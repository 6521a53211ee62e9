//! The qemu-img door beside the real program: command lines, hundreds of them, wrong ones included.
//!
//! ```text
//! images of every kind ─▶ two equal folders ─▶ each command line in both
//!   each option: as it is meant, without its argument, with a wrong one, twice, with others
//!   seed ─▶ lines put together at random
//! ```
//!
//! What stays different is listed in [`DIFFERENCES`] with the reason, and has to stay so.
//! `DOOR_PROGRAMS` is how many lines are drawn, `DOOR_SEED` which; `DOOR_ONLY` asks only lines that it is
//! in, and `DOOR_REPORT` is a file for all that is different.

#[path = "qemu_img/lines.rs"]
mod lines;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::door::{Alike, Answer, Door};
use testkit::qemu::img_in;
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool::{available, tell};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// How a file ends in the list of differences that is only theirs.
const LEFT: &str = " and None bytes";

/// Images of every kind, and files that are none.
fn make(folder: &Path) {
    let holey = File::create(folder.join("raw.img")).unwrap();
    holey.set_len(1 << 20).unwrap();
    holey.write_all_at(&[7; 70_000], 200_000).unwrap();
    fs::write(folder.join("odd.raw"), [1; 700]).unwrap();
    fs::write(folder.join("txt"), "no image\n").unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::create_dir(folder.join("dir")).unwrap();
    let create = |options: &[&str]| {
        img_in(folder, &[&["create", "-q", "-f", "qcow2"], options].concat());
    };
    create(&["a.qcow2", "1M"]);
    create(&["-o", "compat=0.10", "v2.qcow2", "1M"]);
    create(&["-o", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1", "small.qcow2", "3M"]);
    create(&["-o", "extended_l2=on,compression_type=zstd", "ext.qcow2", "2M"]);
    create(&["-o", "preallocation=metadata", "meta.qcow2", "1M"]);
    create(&["-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]);
    create(&["-b", "over.qcow2", "-F", "qcow2", "over2.qcow2", "2M"]);
    create(&["-b", "raw.img", "-F", "raw", "overraw.qcow2"]);
    create(&["-u", "-b", "nope.img", "-F", "raw", "lost.qcow2", "1M"]);
    create(&["-b", "lost.qcow2", "-F", "qcow2", "-u", "lost2.qcow2", "1M"]);
    create(&["snap.qcow2", "1M"]);
    create(&["bitmap.qcow2", "1M"]);
    create(&["-o", "data_file=guest.raw,data_file_raw=on", "data.qcow2", "1M"]);
    let write = |image: &str, commands: &[&str]| {
        let mut io = Command::new("qemu-io");
        io.current_dir(folder).args(["-f", "qcow2", image]).stdin(Stdio::null());
        for command in commands {
            io.args(["-c", command]);
        }
        assert!(io.output().unwrap().status.success(), "{io:?}");
    };
    write("a.qcow2", &["write -P 1 64k 128k", "write -z 256k 64k", "write -P 2 600k 3k"]);
    write("v2.qcow2", &["write -P 1 0 10k", "write -P 9 512k 64k"]);
    write("small.qcow2", &["write -P 3 1M 20k", "write -P 3 2M 512"]);
    write("ext.qcow2", &["write -P 4 3k 2k", "write -z 100k 8k", "write -P 1 1M 200k"]);
    write("over.qcow2", &["write -P 5 0 64k", "write -P 6 192k 10k"]);
    write("snap.qcow2", &["write -P 1 0 100k"]);
    img_in(folder, &["snapshot", "-c", "first", "snap.qcow2"]);
    write("snap.qcow2", &["write -P 2 50k 100k"]);
    img_in(folder, &["snapshot", "-c", "second one", "snap.qcow2"]);
    img_in(folder, &["bitmap", "--add", "bitmap.qcow2", "dirty"]);
    img_in(folder, &["bitmap", "--add", "-g", "512", "--disable", "bitmap.qcow2", "off"]);
    img_in(folder, &["convert", "-c", "-O", "qcow2", "-f", "raw", "raw.img", "comp.qcow2"]);
    create(&["into.qcow2", "2M"]);
    img_in(folder, &["create", "-q", "into.raw", "2M"]);
    write("into.qcow2", &["write -P 8 0 2M"]);
    fs::create_dir(folder.join("sub")).unwrap();
    create(&["-u", "-b", "../a.qcow2", "-F", "qcow2", "sub/over.qcow2", "1M"]);
    create(&["-o", "data_file=guest.raw", "other.qcow2", "1M"]);
    // Its data file is looked for where the program works.
    create(&["-o", "data_file=named.raw", "sub/named.qcow2", "1M"]);
    write("sub/named.qcow2", &["write -P 7 64k 64k"]);
    symlink("a.qcow2", folder.join("link.qcow2")).unwrap();
    let edit = |image: &str, bytes: &[u8], offset: u64| {
        let file = File::options().write(true).open(folder.join(image)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    };
    // A cluster that is counted and not used, one that is used and not counted, and one whose entry
    // says that it is shared.
    for image in ["leaky.qcow2", "wrong.qcow2", "repair.qcow2"] {
        create(&[image, "1M"]);
        write(image, &["write -P 1 0 64k", "write -P 2 64k 64k"]);
    }
    let counts = 2 * 65536;
    edit("leaky.qcow2", &1_u16.to_be_bytes(), counts + 2 * 7);
    for image in ["wrong.qcow2", "repair.qcow2"] {
        edit(image, &0_u16.to_be_bytes(), counts + 2 * 5);
        edit(image, &2_u16.to_be_bytes(), counts + 2 * 6);
    }
    // An image whose bitmap says of itself that it may be wrong: its entry is in the first directory.
    create(&["unsure.qcow2", "1M"]);
    img_in(folder, &["bitmap", "--add", "unsure.qcow2", "x"]);
    let bytes = fs::read(folder.join("unsure.qcow2")).unwrap();
    let starts = |at: usize| bytes[at..].starts_with(&0x2385_2875_u32.to_be_bytes());
    let extension = (104..4096).find(|at| starts(*at)).unwrap();
    let directory = bytes[extension + 24..extension + 32].try_into().unwrap();
    edit("unsure.qcow2", &3_u32.to_be_bytes(), u64::from_be_bytes(directory) + 12);
    // Snapshots of disks that had another size: behind their end there is nothing, or what lies below.
    create(&["resized.qcow2", "1M"]);
    create(&["shrunken.qcow2", "3M"]);
    create(&["-b", "raw.img", "-F", "raw", "overgrown.qcow2", "128k"]);
    write("resized.qcow2", &["write -P 1 0 1M"]);
    write("shrunken.qcow2", &["write -P 1 0 3M"]);
    write("overgrown.qcow2", &["write -P 1 64k 64k"]);
    for (image, size) in
        [("resized.qcow2", "3M"), ("shrunken.qcow2", "1M"), ("overgrown.qcow2", "1M")]
    {
        img_in(folder, &["snapshot", "-c", "s1", image]);
        img_in(folder, &["resize", "-q", "--shrink", image, size]);
    }
    // A snapshot whose L1 table is too large, and one with a table in a wrong place.
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    for (image, at, bytes) in
        [("sub/large.qcow2", 8, 0x1000_0000_u32), ("sub/odd.qcow2", 4, 0x1234)]
    {
        create(&[image, "1M"]);
        img_in(folder, &["snapshot", "-c", "s1", image]);
        let header = fs::read(folder.join(image)).unwrap();
        edit(image, &bytes.to_be_bytes(), number(&header[64..72]) + at);
    }
    // Bitmaps with a flag that there is not, of another kind, and with a table that is too long.
    let directory = number(&bytes[extension + 24..extension + 32]);
    for (name, at, wrong) in [("flag", 15, 4), ("kind", 16, 2), ("long", 11, 2)] {
        let image = format!("sub/{name}.qcow2");
        create(&[&image, "1M"]);
        img_in(folder, &["bitmap", "--add", &image, "x"]);
        edit(&image, &[wrong], directory + at);
    }
    // A name that looks like a protocol.
    create(&["-b", "a.qcow2", "-F", "qcow2", "./in:side.qcow2"]);
    // An image that names a backing file without its format.
    create(&["-b", "raw.img", "-F", "raw", "guess.qcow2"]);
    edit("guess.qcow2", &[0x12, 0x34, 0x56, 0x78], 112);
    let header = fs::read(folder.join("a.qcow2")).unwrap();
    fs::write(folder.join("cut.qcow2"), &header[..300]).unwrap();
    fs::write(folder.join("cut2.qcow2"), &header[..70_000]).unwrap();
    let images = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/images");
    for entry in fs::read_dir(images).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".qcow2") {
            fs::copy(entry.path(), folder.join(format!("t-{name}"))).unwrap();
        }
    }
}

/// Both answers, and what became of the files, as far as they differ.
fn compare(door: &Door, words: &[&str]) -> Result<Answer, String> {
    let [theirs, ours] = door.ask(words);
    // What is copied may lie elsewhere; what is made lies where qemu-img puts it.
    let copies = words.iter().any(|word| matches!(*word, "convert" | "dd" | "check"));
    let alike = match (copies, words.contains(&"-C")) {
        (false, _) => Alike::Bytes,
        (true, false) => Alike::Content,
        // The kernel copies what qemu-img reads and finds to be zeros, where it cannot have it copied.
        (true, true) => Alike::OfAnyLength,
    };
    let files = door.differences(alike);
    // What failed leaves nothing of ours, and something of qemu-img's now and then.
    let left = theirs.code != Some(0) && ours.code != Some(0);
    let files: Vec<_> = files.into_iter().filter(|file| !(left && file.ends_with(LEFT))).collect();
    let named = |name: &&&str| words.iter().any(|word| word.contains(**name));
    for name in lines::RESTORED.iter().filter(named) {
        door.restore(name);
    }
    for name in lines::MADE {
        door.remove(name);
    }
    let (theirs, ours) = (drawn_once(theirs), drawn_once(ours));
    if theirs == ours && files.is_empty() {
        return Ok(theirs);
    }
    Err(format!("qemu-img {}\n{}{files:?}\n", quoted(words), told(&theirs, &ours)))
}

/// Progress is drawn as it comes; that it begins and ends is the same.
fn drawn_once(mut answer: Answer) -> Answer {
    let mut text = String::new();
    for piece in answer.stdout.split_inclusive('\r') {
        // What comes before on its line is no progress.
        let at = piece.rfind('\n').map_or(0, |end| end + 1);
        let (before, drawn) = piece.split_at(at);
        text.push_str(before);
        let progress = drawn.starts_with("    (") && drawn.ends_with("/100%)\r");
        let edge = drawn.contains("(0.00/") || drawn.contains("(100.00/");
        if !progress || edge && !text.ends_with(drawn) {
            text.push_str(drawn);
        }
    }
    answer.stdout = text;
    answer
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

fn told(theirs: &Answer, ours: &Answer) -> String {
    let mut text = String::new();
    if theirs.code != ours.code {
        text += &format!("  code {:?}, ours {:?}\n", theirs.code, ours.code);
    }
    for (name, theirs, ours) in
        [("stdout", &theirs.stdout, &ours.stdout), ("stderr", &theirs.stderr, &ours.stderr)]
    {
        if theirs != ours {
            text += &format!("  {name}:\n{theirs}  ours:\n{ours}");
        }
    }
    text
}

/// What became of lines.
#[derive(Default)]
struct Told {
    failed: Vec<String>,
    /// Words that make a difference, of lines that were answered otherwise.
    different: BTreeSet<&'static str>,
    /// Lines that both programs refuse alike.
    errors: usize,
}

fn told_apart<'a>(door: &Door, asked: impl Iterator<Item = &'a Vec<String>>) -> Told {
    let mut told = Told::default();
    for words in asked {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (compare(door, &words), lines::difference(&words)) {
            (Ok(answer), _) => told.errors += usize::from(answer.code != Some(0)),
            (Err(_), Some(word)) => {
                told.different.insert(word);
            }
            (Err(text), None) => told.failed.push(text),
        }
    }
    told
}

#[test]
fn every_line_is_answered_as_qemu_img_answers_it() {
    if !available("the qemu-img door", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, make);
    let another = door.another(ENGINE);
    let mut names: Vec<_> = fs::read_dir(door.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let only = std::env::var("DOOR_ONLY").ok();
    let mut seen = BTreeSet::new();
    let mut asked = lines::all(&names);
    asked.retain(|words| {
        let wanted = only.as_ref().is_none_or(|only| words.join(" ").contains(only));
        wanted && seen.insert(words.join("\u{1}"))
    });
    // Each line is asked in folders that are as they were, so that halves need not wait for each other.
    let [one, other] = [(&door, 0), (&another, 1)]
        .map(|(door, first)| (door, asked.iter().skip(first).step_by(2)));
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| told_apart(other.0, other.1));
        (told_apart(one.0, one.1), other.join().unwrap())
    });
    let mut failed = [one.failed, other.failed].concat();
    let different = &one.different | &other.different;
    let errors = one.errors + other.errors;
    for (word, reason) in lines::DIFFERENCES {
        if only.is_none() && !different.contains(word) {
            failed.push(format!("{word}: every line is answered alike now, and not: {reason}\n"));
        }
    }
    tell(&format!(
        "door suite: {} lines, {errors} of them errors, {} words that make a difference",
        seen.len(),
        different.len()
    ));
    let count = failed.len();
    if let Ok(path) = std::env::var("DOOR_REPORT") {
        fs::write(path, failed.concat()).unwrap();
    }
    assert_eq!(count, 0, "{} …", failed.into_iter().take(12).collect::<String>());
    assert!(only.is_some() || seen.len() > 400 && errors > 100, "{}, {errors}", seen.len());
}

#[test]
fn help_is_asked_for_and_given_as_in_qemu_img() {
    if !available("the help of the qemu-img door", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, |_| {});
    let options = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.starts_with("  -"));
        let words = lines.flat_map(|line| line.split([' ', ',']).map(str::to_owned));
        words.filter(|word| word.starts_with('-')).collect()
    };
    for command in ["check", "compare", "convert", "create", "dd", "info", "map", "measure", ""] {
        for help in ["--help", "-h", "--hel"] {
            let words = [command, help].into_iter().filter(|word| !word.is_empty());
            let [theirs, ours] = door.ask(&words.collect::<Vec<_>>());
            assert_eq!((theirs.code, &theirs.stderr), (ours.code, &ours.stderr), "{command}");
            let usage = |answer: &Answer| {
                let starts = |line: &&str| line.starts_with("  qemu-img ");
                let line = answer.stdout.lines().find(starts).unwrap_or_default().to_owned();
                line.split(" [").next().unwrap_or_default().to_owned()
            };
            assert_eq!(usage(&theirs), usage(&ours));
            // What it lists and does not take itself need not be taken.
            let (listed, known) = (options(&theirs.stdout), options(&ours.stdout));
            for option in listed.difference(&known) {
                let [theirs, ours] = door.ask(&[command, option, "x", "y"]);
                let refused = ["unrecognized option", "invalid option"];
                let is_refused = refused.iter().any(|text| theirs.stderr.contains(text));
                assert!(is_refused, "{command} {option}");
                assert_eq!(theirs, ours, "{command} {option}");
            }
            assert!(known.len() > 1, "{command}: {known:?}");
        }
    }
}

#[test]
fn an_image_that_another_program_has_is_told_of_as_qemu_img_tells() {
    if !available("images held, and the qemu-img door", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, make);
    let mut failed = Vec::new();
    for row in lines::HELD.lines().filter(|row| !row.starts_with('#')) {
        let (holder, line) = row.split_once('|').unwrap();
        let (holder, line): (Vec<_>, Vec<_>) =
            (holder.split_whitespace().collect(), line.split_whitespace().collect());
        let held = door.hold(&holder);
        if let Err(text) = compare(&door, &line) {
            failed.push(format!("{row}\n{text}"));
        }
        drop(held);
    }
    assert!(failed.is_empty(), "{}", failed.concat());
}

#[test]
fn lines_drawn_are_answered_as_qemu_img_answers_them() {
    if !available("lines drawn for the qemu-img door", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, make);
    let sweep = Sweep::new("DOOR", 300, 60);
    let mut random = Random(sweep.seed);
    let (mut failed, mut answered) = (Vec::new(), 0);
    for _ in 0..sweep.programs {
        let words = lines::drawn(&mut random);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match compare(&door, &words) {
            _ if lines::difference(&words).is_some() => {}
            Ok(_) => answered += 1,
            Err(text) => failed.push(text),
        }
    }
    sweep.tell(&format!("{answered} lines"));
    let count = failed.len();
    if let Ok(path) = std::env::var("DOOR_REPORT") {
        fs::write(path, failed.concat()).unwrap();
    }
    let first = failed.into_iter().take(12).collect::<String>();
    assert_eq!(count, 0, "DOOR_SEED={}: {first} …", sweep.seed);
}

/// Lines of which the second shows what the first one made.
const SEQUENCES: &[&str] = &[
    "create -q -f raw new 1M | map --output json -f raw new",
    "create -q -f raw new 1k | map --output json -f raw new",
    "create -q -f raw new 0 | map --output json -f raw new",
    "create -q -f raw -o preallocation=falloc new 1M | map --output json -f raw new",
    "create -q -f raw into.raw 1M | map --output json -f raw into.raw",
    "create -q -f qcow2 -o data_file=data new 1M | map --output json -f raw data",
    "convert -O raw small.qcow2 new | map --output json -f raw new",
    "convert -O raw a.qcow2 into.raw | map --output json -f raw into.raw",
    "convert -O raw -n a.qcow2 into.raw | map --output json -f raw into.raw",
    "convert -O qcow2 -o data_file=data bitmap.qcow2 new | map --output json -f raw data",
];

#[test]
fn what_was_made_is_shown_alike() {
    if !available("what the qemu-img door made", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, make);
    let mut failed = String::new();
    for sequence in SEQUENCES {
        for line in sequence.split(" | ") {
            let words: Vec<_> = line.split(' ').collect();
            let [theirs, ours] = door.ask(&words);
            if theirs != ours || theirs.code != Some(0) {
                failed += &format!("{sequence}\n{}", told(&theirs, &ours));
            }
        }
        for name in lines::RESTORED {
            door.restore(name);
        }
        for name in lines::MADE {
            door.remove(name);
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

#[test]
fn the_program_is_called_as_it_was() {
    if !available("names of the qemu-img door", &["qemu-img", "qemu-io", "cp"]) {
        return;
    }
    let door = Door::new(ENGINE, |_| {});
    for called in ["/a/folder/qemu-img", "../qemu-img"] {
        for words in [&["info"][..], &["info", "--nope"], &["bogus"], &[], &["-z"], &["dd", "x=y"]]
        {
            let [theirs, ours] = door.ask_as(called, words);
            assert_eq!(theirs, ours, "{called} {words:?}");
        }
    }
}

#[test]
fn what_is_not_supported_is_named() {
    if !available("what the qemu-img door has not", &["cp", "qemu-img"]) {
        return;
    }
    let door = Door::new(ENGINE, |_| {});
    let nested = r#"{"driver": "blkdebug", "image": {"driver": "file", "filename": "a"}}"#;
    for (name, word) in [
        (format!(r#"json:{{"driver": "qcow2", "file": {nested}}}"#), "blkdebug"),
        (format!(r#"json:{{"file": {nested}}}"#), "blkdebug"),
        ("blkdebug::a".to_owned(), "blkdebug"),
        ("fat:.".to_owned(), "fat"),
        ("nbd:unix:a".to_owned(), "nbd"),
    ] {
        let [_, ours] = door.ask(&["info", &name]);
        let said = format!("'{word}' is not supported by this program");
        assert!(ours.code == Some(1) && ours.stderr.contains(&said), "{name}: {ours:?}");
    }
}
