//! The command lines that the door is asked, and those that it answers otherwise.
//!
//! ```text
//! for each command: its options one by one, in every state that one can be in
//! for each image:   what info, map, measure and compare say of it
//! drawn:            options and operands put together at random
//! ```

use testkit::random::Random;

/// Files that lines make; removed after each.
pub const MADE: &[&str] = &["data", "new", "new2", "new.raw", "sub/data", "sub/new"];

/// Files that lines write to; made what they were after a line with their name.
pub const RESTORED: &[&str] = &["leaky.qcow2", "repair.qcow2", "into.qcow2", "into.raw"];

/// What makes the door answer otherwise, a word or a whole line, and why. Of the lines with such a word some have to be answered
/// otherwise.
pub const DIFFERENCES: &[(&str, &str)] = &[
    ("cut.qcow2", "a header that the file ends in is refused; QEMU reads zeros there"),
    ("cut2.qcow2", "an L1 table past the end of the file is refused; QEMU reads zeros there"),
    ("t-bad-*", "what breaks a rule is refused, also where QEMU does not look; or in other words"),
    (
        "convert --bitmaps -O qcow2 bitmap.qcow2 new",
        "bitmaps are not copied, and an image that has some is refused",
    ),
    (
        "convert --bitmaps -O qcow2 -o compat=0.10 bitmap.qcow2 new",
        "bitmaps are not copied, which is said before the target's fault is",
    ),
    ("guess.qcow2", "a backing file's format is not guessed"),
    (
        "preallocation=falloc",
        "the clusters have the same places, the tables that count them others",
    ),
    ("preallocation=full", "the clusters have the same places, the tables that count them others"),
    ("repair.qcow2", "what is damaged is repaired in place, where QEMU rebuilds or gives up"),
    ("t-corrupt-bit.qcow2", "what is marked corrupt is not copied, unless it is to be salvaged"),
    (
        "convert -n -c -O qcow2 raw.img into.qcow2",
        "what is compressed takes the place of what was stored, where QEMU gives up",
    ),
    ("128G", "a cluster that was freed keeps what it held in QEMU's file"),
];

/// Which of the words that make a difference a line has, if it has one.
pub fn difference(words: &[&str]) -> Option<&'static str> {
    let line = words.join(" ");
    let is = |pattern: &str, word: &str| match pattern.strip_suffix('*') {
        Some(start) => word.starts_with(start),
        None => word == pattern,
    };
    let named = |word: &str| word.strip_prefix("if=").unwrap_or(word).to_owned();
    let has = |pattern: &str| pattern == line || words.iter().any(|word| is(pattern, &named(word)));
    DIFFERENCES.iter().map(|(pattern, _)| *pattern).find(|pattern| has(pattern))
}

/// What is asked of each image; of damaged ones the first four.
const EACH: &[&str] = &[
    "info -f qcow2 {}",
    "map --output json {}",
    "check {}",
    "convert -O qcow2 {} new",
    "info {}",
    "info --output json {}",
    "info -f raw {}",
    "info --backing-chain {}",
    "map {}",
    "map -f raw {}",
    "measure -O qcow2 {}",
    "measure -f qcow2 -O qcow2 --output json {}",
    "check --output json -f qcow2 {}",
    "convert {} new",
    "dd if={} of=new bs=64k",
    "compare {} {}",
    "compare -s raw.img {}",
];

/// Lines of every command.
const LINES: &str = include_str!("lines.txt");

/// What a program that has an image open was told, and a line that is asked meanwhile.
pub const HELD: &str = include_str!("held.txt");

/// Words between spaces; `~` is a space within one.
fn words(line: &str) -> Vec<String> {
    line.split(' ').filter(|word| !word.is_empty()).map(|word| word.replace('~', " ")).collect()
}

/// Sizes as they are written, well and badly.
const SIZES: &str = include_str!("sizes.txt");

/// Values of `-o` for a new image, well and badly.
const CREATE: &str = include_str!("options.txt");

/// Every line that is asked for sure. `names` are the files that there are.
pub fn all(names: &[String]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for line in LINES.lines().filter(|line| !line.starts_with('#')) {
        lines.push(words(line));
    }
    let mut add = |line: &str| lines.push(words(line));
    for command in ["check", "compare", "convert", "create", "dd", "info", "map", "measure"] {
        for wrong in [
            "-z",
            "--nope",
            "--nope=1",
            "--o",
            "--quiet=1",
            "--image-opts=1",
            "-f",
            "--format",
            "-o",
            "-O",
            "-l",
            "-s",
            "-F",
            "-T",
            "--output",
            "--object",
            "--output xml a.qcow2",
            "--output= a.qcow2",
            "--output=JSON a.qcow2",
            "--force=1 a.qcow2",
            "-1 a.qcow2",
            "--source-format",
            "--s",
            "--t",
            "--c",
            "-S",
            "-m",
            "-r",
            "-B",
            "-t",
        ] {
            add(&format!("{command} {wrong}"));
        }
    }
    for size in SIZES.lines() {
        for format in ["qcow2", "raw"] {
            lines.push(
                ["create", "-f", format, "new", "--", &size.replace('~', " ")]
                    .map(str::to_owned)
                    .to_vec(),
            );
        }
        for command in [
            &["measure", "--size"][..],
            &["map", "a.qcow2", "-s"],
            &["map", "a.qcow2", "-l"],
            &["measure", "-O", "qcow2", "-s"],
            &["create", "-f", "qcow2", "new", "-o"],
        ] {
            let size = size.replace('~', " ");
            let size = if command[0] == "create" { format!("size={size}") } else { size };
            let mut line: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
            line.push(size);
            lines.push(line);
        }
    }
    let mut add =
        |line: &[&str]| lines.push(line.iter().map(|word| word.replace('~', " ")).collect());
    for options in CREATE.lines() {
        add(&["create", "-f", "qcow2", "-o", options, "new", "1M"]);
        add(&["create", "-f", "qcow2", "-o", options, "new"]);
        add(&["create", "-q", "-f", "raw", "-o", options, "new", "1M"]);
        add(&["measure", "-O", "qcow2", "-o", options, "--size", "1M"]);
        add(&["measure", "-O", "raw", "-o", options, "--size", "1M"]);
        add(&["measure", "-O", "qcow2", "-o", options, "a.qcow2"]);
        add(&["create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "-o", options, "new"]);
    }
    let mut add = |line: &str| lines.push(words(line));
    for name in names {
        // Of an image that is not opened there is not more to say.
        let all = !name.starts_with("t-bad-");
        for line in EACH.iter().take(if all { EACH.len() } else { 4 }) {
            add(&line.replace("{}", name));
        }
    }
    lines
}

fn one_of<'a>(random: &mut Random, words: &[&'a str]) -> &'a str {
    words[random.below(words.len())]
}

fn one_line<'a>(random: &mut Random, lines: &'a str) -> &'a str {
    let lines: Vec<_> = lines.lines().collect();
    lines[random.below(lines.len())]
}

/// A line put together at random.
pub fn drawn(random: &mut Random) -> Vec<String> {
    const IMAGES: &[&str] = &[
        "a.qcow2",
        "v2.qcow2",
        "small.qcow2",
        "ext.qcow2",
        "meta.qcow2",
        "over.qcow2",
        "over2.qcow2",
        "overraw.qcow2",
        "lost.qcow2",
        "snap.qcow2",
        "bitmap.qcow2",
        "comp.qcow2",
        "raw.img",
        "odd.raw",
        "txt",
        "empty",
        "nope",
        "dir",
        "cut.qcow2",
        "data.qcow2",
    ];
    const OPTIONS: &[(&str, &str)] = &[
        (
            "create",
            "-q|-u|-f qcow2|-f qcow2|-f raw|-F qcow2|-F raw|-b a.qcow2|-b raw.img|-fqcow2|-f bla",
        ),
        ("create", "-f qcow2|--format=qcow2|-f qcow2|-qf qcow2|-b over.qcow2|-F qcow2"),
        (
            "info",
            "-U|--backing-chain|-f qcow2|-f raw|--output json|--output=json|--output human|-b",
        ),
        ("map", "-U|-f qcow2|-f raw|--output json|-s 64k|-l 1M|-s 100000|--max-length=3k|-s 1x"),
        ("measure", "-U|-f qcow2|-f raw|-O qcow2|-O qcow2|-O raw|--output json|-l first|--size 1G"),
        ("compare", "-U|-s|-q|-f qcow2|-F qcow2|-f raw|-F raw|-T writeback|-T x|-p"),
        ("check", "-U|-q|-f qcow2|-f raw|--output json|-T writeback|-T x|--output=human"),
        (
            "convert",
            "-U|-q|-p|-f qcow2|-f raw|-O qcow2|-O qcow2|-O raw|-c|-S 0|-S 8k|-m 4|-W|-T unsafe",
        ),
        (
            "convert",
            "-l first|-O qcow2|-f qcow2|-C|--salvage|-m 99|-S 3|-B a.qcow2|-F qcow2|-O bla",
        ),
        (
            "dd",
            "-U|-f qcow2|-f raw|-O qcow2|-O raw|bs=64k|bs=4k|count=7|skip=3|count=1|skip=99|bs=x",
        ),
    ];
    let (command, options) = OPTIONS[random.below(OPTIONS.len())];
    let options: Vec<_> = options.split('|').collect();
    let mut line = vec![];
    for _ in 0..random.below(5) {
        line.extend(words(one_of(random, &options)));
    }
    if matches!(command, "create" | "measure" | "convert") {
        for _ in 0..random.below(if command == "convert" { 2 } else { 3 }) {
            line.extend(["-o".to_owned(), one_line(random, CREATE).replace('~', " ")]);
        }
    }
    let image = |random: &mut Random| one_of(random, IMAGES).to_owned();
    match command {
        "create" => {
            line.push(one_of(random, &["new", "new", "new2", "nodir/new"]).to_owned());
            if !random.once_in(3) {
                line.push(one_line(random, SIZES).replace('~', " ").replace('-', ""));
            }
        }
        "compare" => line.extend([image(random), image(random)]),
        "convert" => line.extend([image(random), "new".to_owned()]),
        "dd" => line.extend([format!("if={}", image(random)), "of=new".to_owned()]),
        "measure" if random.once_in(3) => {
            line.extend(["--size".to_owned(), one_line(random, SIZES).replace('~', " ")])
        }
        _ => line.push(image(random)),
    }
    if random.once_in(4) && command != "convert" {
        let last = line.len() - 1;
        line.swap(0, last);
    }
    line.insert(0, command.to_owned());
    line
}
