//! The command lines that the door is asked, and those that it answers otherwise.
//!
//! ```text
//! for each command: its options one by one, in every state that one can be in
//! for each image:   what info, map, measure and compare say of it
//! drawn:            options and operands put together at random
//! ```

use testkit::random::Random;

/// Files that lines make; removed after each.
pub const MADE: &[&str] = &["new", "new2", "new.raw"];

/// What makes the door answer otherwise, and why. Of the lines with such a word some have to be answered
/// otherwise.
pub const DIFFERENCES: &[(&str, &str)] = &[
    ("cut.qcow2", "a header that the file ends in is refused; QEMU reads zeros there"),
    ("cut2.qcow2", "an L1 table past the end of the file is refused; QEMU reads zeros there"),
    ("t-bad-*", "what breaks a rule is refused, also where QEMU does not look; or in other words"),
    ("t-backing-without-format.qcow2", "a backing file's format is not guessed"),
    ("9223372036854775807", "a raw disk that failed leaves nothing; QEMU leaves an empty file"),
    ("preallocation=metadata", "a raw disk that failed leaves nothing; QEMU leaves an empty file"),
    (
        "preallocation=falloc",
        "the clusters have the same places, the tables that count them others",
    ),
    ("preallocation=full", "the clusters have the same places, the tables that count them others"),
    ("128G", "a cluster that was freed keeps what it held in QEMU's file"),
];

/// Which of the words that make a difference a line has, if it has one.
pub fn difference(words: &[&str]) -> Option<&'static str> {
    let is = |pattern: &str, word: &str| match pattern.strip_suffix('*') {
        Some(start) => word.starts_with(start),
        None => word == pattern,
    };
    let has = |pattern: &str| words.iter().any(|word| is(pattern, word));
    DIFFERENCES.iter().map(|(pattern, _)| *pattern).find(|pattern| has(pattern))
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').filter(|word| !word.is_empty()).map(|word| word.replace('~', " ")).collect()
}

/// Sizes as they are written, well and badly.
const SIZES: &[&str] = &[
    "0",
    "1",
    "511",
    "512",
    "513",
    "4096",
    "64k",
    "1K",
    "1M",
    "1m",
    "1.5M",
    "0.5k",
    ".5k",
    "1.k",
    "1.",
    "1.0",
    "0x200",
    "0X200",
    "0x",
    "0.1k",
    "1.23456789G",
    "7.99T",
    "010",
    "+5",
    "~5",
    "5~",
    "1b",
    "1B",
    "1e3",
    "1kb",
    "1KiB",
    "1G",
    "k",
    "",
    "abc",
    "1.5",
    "1..5k",
    "1.5.k",
    "9E",
    "8E",
    "7E",
    "16E",
    "-1",
    "-0",
    "-1k",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999k",
    "1,5",
    "1_0",
    "nan",
    "inf",
    "0.1k",
    "1.23456789G",
    "7.99T",
    "1.999999k",
];

/// Values of `-o` for a new image, well and badly.
const CREATE: &[&str] = &[
    "cluster_size=512",
    "cluster_size=2M",
    "cluster_size=4M",
    "cluster_size=256",
    "cluster_size=65537",
    "cluster_size=0",
    "cluster_size=-1",
    "cluster_size=x",
    "cluster_size=",
    "cluster_size",
    "cluster_size=64K",
    "cluster_size=0x1000",
    "cluster_size=1.5k",
    "compat=1.1",
    "compat=0.10",
    "compat=v2",
    "compat=v3",
    "compat=2",
    "compat=",
    "compat",
    "refcount_bits=1",
    "refcount_bits=64",
    "refcount_bits=3",
    "refcount_bits=0",
    "refcount_bits=128",
    "refcount_bits=x",
    "refcount_bits=-1",
    "refcount_bits=0x8",
    "refcount_bits=010",
    "refcount_bits=8k",
    "refcount_bits=",
    "refcount_bits",
    "lazy_refcounts=on",
    "lazy_refcounts=off",
    "lazy_refcounts=yes",
    "lazy_refcounts=no",
    "lazy_refcounts=true",
    "lazy_refcounts=false",
    "lazy_refcounts=y",
    "lazy_refcounts=n",
    "lazy_refcounts=1",
    "lazy_refcounts=ON",
    "lazy_refcounts=",
    "lazy_refcounts",
    "nolazy_refcounts",
    "extended_l2=on",
    "extended_l2=off",
    "extended_l2=x",
    "extended_l2",
    "extended_l2=on,cluster_size=8k",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,compat=0.10",
    "compression_type=zlib",
    "compression_type=zstd",
    "compression_type=lzma",
    "compression_type=",
    "compression_type=zstd,compat=v2",
    "lazy_refcounts=on,compat=0.10",
    "refcount_bits=8,compat=0.10",
    "preallocation=off",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "preallocation=x",
    "preallocation=",
    "preallocation=FULL",
    "preallocation=metadata,cluster_size=4k",
    "preallocation=metadata,extended_l2=on",
    "size=2M",
    "size=x",
    "backing_fmt=raw",
    "backing_fmt=x",
    "backing_file=",
    "backing_file=new",
    "backing_file=a.qcow2",
    "backing_file=a.qcow2,backing_fmt=qcow2",
    "backing_file=raw.img,backing_fmt=raw",
    "backing_file=raw.img,backing_fmt=qcow2",
    "backing_file=txt,backing_fmt=raw",
    "backing_file=lost.qcow2,backing_fmt=qcow2",
    "data_file_raw=on",
    "data_file_raw=off",
    "encryption=off",
    "encryption=x",
    "nocow=on",
    "nocow=off",
    "nocow=x",
    "extent_size_hint=0",
    "extent_size_hint=x",
    "bla=1",
    "bla",
    "=1",
    "=",
    "a,,b",
    "cluster_size=64k,cluster_size=4k",
    "cluster_size=4k,lazy_refcounts=on,refcount_bits=8",
    ",",
    "",
    "a,",
    ",a",
    "cluster_size=4k,",
    "cluster_size=4k,,",
    "cluster_size=4k,,,",
    "help",
    "?",
    "cluster_size=4k,help",
    "help,x=1",
    "help=1",
    "list",
    "id=x",
    "id=x,cluster_size=4k",
    "Cluster_size=4k",
    "cluster-size=4k",
    "cluster_size=4k~",
    "encrypt.format=x",
    "size=1M,size=2M",
];

/// Every line that is asked for sure. `names` are the files that there are.
pub fn all(names: &[String]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let mut add = |line: &str| lines.push(words(line));
    for line in [
        "",
        "-x",
        "--foo",
        "-T",
        "--trace",
        "foo",
        "--",
        "-- foo",
        "-T",
        "--version=1",
        "--help=x",
        "-xV",
        "create",
        "info",
        "map",
        "measure",
        "compare",
    ] {
        add(line);
    }
    for command in ["create", "info", "map", "measure", "compare"] {
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
        ] {
            add(&format!("{command} {wrong}"));
        }
    }
    for size in SIZES {
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
    for options in CREATE {
        add(&["create", "-f", "qcow2", "-o", options, "new", "1M"]);
        add(&["create", "-f", "qcow2", "-o", options, "new"]);
        add(&["create", "-q", "-f", "raw", "-o", options, "new", "1M"]);
        add(&["measure", "-O", "qcow2", "-o", options, "--size", "1M"]);
        add(&["measure", "-O", "raw", "-o", options, "--size", "1M"]);
        add(&["measure", "-O", "qcow2", "-o", options, "a.qcow2"]);
        add(&["create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "-o", options, "new"]);
    }
    let mut add = |line: &str| lines.push(words(line));
    for line in [
        "create new",
        "create -f qcow2 new",
        "create -f qcow2 new 1M extra",
        "create -f qcow2 1M new",
        "create new 1M",
        "create -f raw new 1M",
        "create -fqcow2 new 1M",
        "create --format=qcow2 new 1M",
        "create --form qcow2 new 1M",
        "create new -f qcow2 1M",
        "create new 1M -f qcow2",
        "create -qf qcow2 new 1M",
        "create -f qcow2 -q new 1M",
        "create --quiet -f qcow2 new 1M",
        "create -f qcow2 -- new 1M",
        "create -f bla new 1M",
        "create -f qcow2 -f raw new 1M",
        "create -f raw -f qcow2 new 1M",
        "create -f qcow2 -o cluster_size=4k -o lazy_refcounts=on new 1M",
        "create -f qcow2 file:new 1M",
        "create -f qcow2 bla:new 1M",
        "create -f qcow2 dir/new/x 1M",
        "create -f qcow2 dir 1M",
        "create -f qcow2 nodir/new 1M",
        "create -f raw nodir/new 1M",
        "create -f raw dir 1M",
        "create -f qcow2 -b nope -F raw new",
        "create -f qcow2 -b nope -F raw new 1M",
        "create -f qcow2 -b nope -F raw -u new",
        "create -f qcow2 -b nope -F raw -u new 1M",
        "create -f qcow2 -b nope -u new 1M",
        "create -f qcow2 -b a.qcow2 new",
        "create -f qcow2 -b raw.img new",
        "create -f qcow2 -b a.qcow2 -F qcow2 new",
        "create -f qcow2 -b a.qcow2 -F qcow2 new 5M",
        "create -f qcow2 -b a.qcow2 -F qcow2 new 512",
        "create -f qcow2 -b a.qcow2 -F raw new",
        "create -f qcow2 -b txt -F raw new",
        "create -f qcow2 -b txt -F qcow2 new",
        "create -f qcow2 -b odd.raw -F raw new",
        "create -f qcow2 -b a.qcow2 -F bla new",
        "create -f qcow2 -b a.qcow2 -F bla -u new 1M",
        "create -f qcow2 -b a.qcow2 -F  new",
        "create -f qcow2 -F qcow2 new 1M",
        "create -f raw -b raw.img -F raw new",
        "create -f raw -F raw new 1M",
        "create -f qcow2 -b new -F qcow2 new",
        "create -f qcow2 -b dir -F raw new",
        "create -f qcow2 -b lost.qcow2 -F qcow2 new",
        "create -f qcow2 -b lost2.qcow2 -F qcow2 new",
        "create -f qcow2 -b over2.qcow2 -F qcow2 new",
        "create -f qcow2 -b ./a.qcow2 -F qcow2 new",
        "create -f qcow2 -b dir/../a.qcow2 -F qcow2 new",
        "create -f qcow2 -b empty -F raw new",
        "create -f qcow2 -b cut.qcow2 -F qcow2 new",
        "create --backing a.qcow2 --backing-format qcow2 -f qcow2 new",
        "create -f qcow2 -b bla:x -F raw new 1M",
        "create -f qcow2 -b a.qcow2 -F qcow2 -o backing_file=raw.img new",
        "create -f qcow2 -o backing_file=a.qcow2 -F qcow2 new",
        "create -f qcow2 --object secret,id=x,data=y new 1M",
        "create -f qcow2 new 1M -o cluster_size=4k -q",
        "create -f qcow2 new 8191P",
        "create -f qcow2 new 100T",
        "create -f qcow2 -o cluster_size=512 new 1T",
        "create -f qcow2 -o cluster_size=512 new 128G",
        "create -f qcow2 -o cluster_size=2M new 1P",
        "create -f qcow2 a.qcow2/new 1M",
        "info",
        "info a.qcow2 v2.qcow2",
        "info nope",
        "info -f qcow2 nope",
        "info -f raw nope",
        "info dir",
        "info -f raw dir",
        "info -f bla a.qcow2",
        "info -f qcow2 txt",
        "info -f raw a.qcow2",
        "info --output json -f raw a.qcow2",
        "info -U a.qcow2",
        "info --force-share a.qcow2",
        "info --backing-chain over2.qcow2",
        "info -b over2.qcow2",
        "info --backing-chain --output json over2.qcow2",
        "info --backing-chain lost2.qcow2",
        "info --backing-chain --output json a.qcow2",
        "info --backing-chain raw.img",
        "info -b raw.img --output json",
        "info file:a.qcow2",
        "info bla:a.qcow2",
        "info ./a.qcow2",
        "info --output=json ./over2.qcow2 --backing-chain",
        "info dir/../over2.qcow2",
        "info --output json dir/../over2.qcow2 --backing-chain",
        "info --image-opts driver=qcow2,file.filename=a.qcow2",
        "info --image-opts file.filename=a.qcow2",
        "info --image-opts driver=qcow2,file.driver=file,file.filename=a.qcow2",
        "info --image-opts a.qcow2",
        "info --image-opts driver=raw,file.filename=a.qcow2",
        "info --image-opts driver=bla,file.filename=a.qcow2",
        "info --image-opts driver=qcow2,file.filename=nope",
        "info --image-opts driver=qcow2,file.filename=txt",
        "info --image-opts driver=qcow2,file.filename=a.qcow2,bla=1",
        "info --image-opts driver=qcow2,file.filename=a.qcow2,file.bla=1",
        "info --image-opts driver=qcow2",
        "info --image-opts -f qcow2 a.qcow2",
        "info --image-opts ",
        "info --image-opts driver=qcow2,file.filename=a.qcow2,read-only=on",
        "info json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}}",
        "info json:{'driver':'qcow2','file.filename':'a.qcow2'}",
        "info json:{\"file.filename\":\"a.qcow2\"}",
        "info json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"nope\"}}",
        "info json:{",
        "info json:[]",
        "info json:",
        "info -f qcow2 json:{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\"}",
        "info -f raw json:{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\"}",
        "map",
        "map a.qcow2 v2.qcow2",
        "map nope",
        "map --output json nope",
        "map -f qcow2 txt",
        "map -f bla txt",
        "map lost.qcow2",
        "map lost2.qcow2",
        "map comp.qcow2",
        "map --output json comp.qcow2",
        "map -s 1M a.qcow2",
        "map -s 2M a.qcow2",
        "map -s 64k -l 1k --output json a.qcow2",
        "map -l 0 --output json a.qcow2",
        "map --start-offset=100k --max-length 70k a.qcow2",
        "map --image-opts driver=qcow2,file.filename=a.qcow2",
        "map -f raw --image-opts driver=qcow2,file.filename=a.qcow2",
        "map -U --output json a.qcow2",
        "measure",
        "measure --size 1M a.qcow2",
        "measure a.qcow2 v2.qcow2",
        "measure --size 1M --size 2M",
        "measure -f raw --size 1M",
        "measure -l x --size 1M",
        "measure --image-opts --size 1M",
        "measure -O bla --size 1M",
        "measure -O vmdk --size 1M",
        "measure -O bla a.qcow2",
        "measure nope",
        "measure -f qcow2 txt",
        "measure -f bla a.qcow2",
        "measure -O qcow2 -l first snap.qcow2",
        "measure -O qcow2 -l 1 snap.qcow2",
        "measure -O qcow2 -l snapshot.name=first snap.qcow2",
        "measure -O qcow2 -l snapshot.id=2 snap.qcow2",
        "measure -O qcow2 -l nope snap.qcow2",
        "measure -O qcow2 -l first raw.img",
        "measure -O qcow2 --output json bitmap.qcow2",
        "measure -O qcow2 --size 1E",
        "measure -O qcow2 --size 8191P -o cluster_size=2M",
        "measure --size 1M -o x=1",
        "measure -O qcow2 -U a.qcow2",
        "measure --target-format=qcow2 --size=10G --output=json",
        "measure -O qcow2 --size 1T -o cluster_size=512",
        "measure -O qcow2 -o size=5M",
        "measure -O qcow2 -o size=5M a.qcow2",
        "measure -O qcow2 -o size=5M --size 1M",
        "measure --image-opts driver=qcow2,file.filename=a.qcow2 -O qcow2",
        "measure -O qcow2 lost.qcow2",
        "compare",
        "compare a.qcow2",
        "compare a.qcow2 a.qcow2 a.qcow2",
        "compare a.qcow2 a.qcow2",
        "compare a.qcow2 over.qcow2",
        "compare -s a.qcow2 over.qcow2",
        "compare -q a.qcow2 over.qcow2",
        "compare -p a.qcow2 nope",
        "compare nope a.qcow2",
        "compare a.qcow2 nope",
        "compare -f raw a.qcow2 a.qcow2",
        "compare -F raw a.qcow2 a.qcow2",
        "compare -f raw -F raw a.qcow2 a.qcow2",
        "compare -f bla a.qcow2 a.qcow2",
        "compare -F bla a.qcow2 a.qcow2",
        "compare -T none a.qcow2 a.qcow2",
        "compare -T bla a.qcow2 a.qcow2",
        "compare -T writeback a.qcow2 a.qcow2",
        "compare -U a.qcow2 a.qcow2",
        "compare --strict a.qcow2 over2.qcow2",
        "compare raw.img comp.qcow2",
        "compare -s raw.img comp.qcow2",
        "compare over2.qcow2 a.qcow2",
        "compare a.qcow2 v2.qcow2",
        "compare raw.img overraw.qcow2",
        "compare -s raw.img overraw.qcow2",
        "compare meta.qcow2 raw.img",
        "compare odd.raw empty",
        "compare --a-format qcow2 --b-format qcow2 a.qcow2 a.qcow2",
        "compare --image-opts driver=qcow2,file.filename=a.qcow2 file.filename=a.qcow2",
        "compare lost.qcow2 a.qcow2",
        "compare dir a.qcow2",
    ] {
        add(line);
    }
    for name in names {
        for line in [
            "info {}",
            "info --output json {}",
            "info -f qcow2 {}",
            "info -f raw {}",
            "info --backing-chain {}",
            "map {}",
            "map --output json {}",
            "map -f qcow2 --output json {}",
            "map -f raw {}",
            "measure -O qcow2 {}",
            "measure -f qcow2 -O qcow2 --output json {}",
            "measure -O raw {}",
            "compare {} {}",
            "compare -s raw.img {}",
        ] {
            add(&line.replace("{}", name));
        }
    }
    lines
}

fn one_of<'a>(random: &mut Random, words: &[&'a str]) -> &'a str {
    words[random.below(words.len())]
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
    let command = one_of(random, &["create", "create", "info", "map", "measure", "compare"]);
    let mut line = vec![];
    let options: &[&str] = match command {
        "create" => &[
            "-q",
            "-u",
            "-f qcow2",
            "-f qcow2",
            "-f raw",
            "-F qcow2",
            "-F raw",
            "-b a.qcow2",
            "-b raw.img",
            "--format=qcow2",
            "-fqcow2",
            "-f bla",
        ],
        "info" => &[
            "-U",
            "--backing-chain",
            "-f qcow2",
            "-f raw",
            "--output json",
            "--output=json",
            "--output human",
            "-b",
            "-Uf qcow2",
        ],
        "map" => &[
            "-U",
            "-f qcow2",
            "-f raw",
            "--output json",
            "-s 64k",
            "-l 1M",
            "-s 100000",
            "--max-length=3k",
            "-s 1x",
        ],
        "measure" => &[
            "-U",
            "-f qcow2",
            "-f raw",
            "-O qcow2",
            "-O qcow2",
            "-O raw",
            "--output json",
            "-l first",
            "--size 1G",
        ],
        _ => {
            &["-U", "-s", "-q", "-f qcow2", "-F qcow2", "-f raw", "-F raw", "-T writeback", "-T x"]
        }
    };
    for _ in 0..random.below(5) {
        line.extend(words(one_of(random, options)));
    }
    if matches!(command, "create" | "measure") {
        for _ in 0..random.below(3) {
            line.extend(["-o".to_owned(), one_of(random, CREATE).replace('~', " ")]);
        }
    }
    let image = |random: &mut Random| one_of(random, IMAGES).to_owned();
    match command {
        "create" => {
            line.push(one_of(random, &["new", "new", "new2", "nodir/new"]).to_owned());
            if !random.once_in(3) {
                line.push(one_of(random, SIZES).replace('~', " ").replace('-', ""));
            }
        }
        "compare" => line.extend([image(random), image(random)]),
        "measure" if random.once_in(3) => {
            line.extend(["--size".to_owned(), one_of(random, SIZES).replace('~', " ")])
        }
        _ => line.push(image(random)),
    }
    if random.once_in(4) {
        let last = line.len() - 1;
        line.swap(0, last);
    }
    line.insert(0, command.to_owned());
    line
}
