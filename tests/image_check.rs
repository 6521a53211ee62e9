//! `check` of qcow2 images, beside `qemu-img check`: sound ones, damaged ones, and what repairs leave.
//!
//! ```text
//! image by QEMU ─▶ one field damaged ─┬▶ qemu-img check, our check: the same numbers, or a row below
//!                                     └▶ our repair ─▶ qemu-img check: clean; content: QEMU's or more
//! ```
//!
//! `CHECK_PROGRAMS`, `CHECK_SECONDS`, `CHECK_SEED`: see `testkit::sweep`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use proptest::prelude::any;
use qcow2_format::image::check::Fix;
use testkit::checker;
use testkit::damage::{Map, base, bases, damages};
use testkit::random::Random;
use testkit::sparse::Sparse;
use testkit::sweep::Sweep;
use testkit::tool;
use testkit::verdict::{
    Sectors, Verdict, read_by_qemu, repair_all, repair_by_qemu, unreadable_by_qemu,
};

/// The command, as the suite is built with it.
const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// Why we say something else than qemu-img, and of which damages.
const DIFFERENCES: &[(&str, &[&str])] = &[
    (
        "our readers refuse such a header, and what leads through it is not known",
        &["plain: header_length one more", "plain: extension length"],
    ),
    (
        "a check needs neither data file nor backing file, which QEMU does not find",
        &[
            "plain: external data file bit",
            "backing: NUL in the backing file's name",
            "backing: NUL at the end of the backing file's name",
        ],
    ),
    (
        "the zero bits of what is read as a table there are told as well: such entries have none",
        &[
            "v2: l1_size one cluster more",
            "v2: l1_table_offset 0",
            "v2: l1_table_offset on the refcount table",
            "v2: l1_table_offset on an L2 table",
            "v2: L1 entry: flag of no table",
            "v2: L1 entry: on the refcount block",
            "v2: L1 entry: on a data cluster",
            "extended: L1 entry: flag of no table",
            "extended: L1 entry: on the refcount block",
            "extended: L1 entry: on a data cluster",
            "extended: L1 entry: unaligned",
        ],
    ),
    (
        "version 2 and extended entries have no zero bit: nobody reads such an entry, and qemu-img does not say so",
        &[
            "v2: L2 entry: zero bit",
            "v2: L2 entry: zero cluster",
            "extended: L2 entry: zero bit",
            "extended: L2 entry: zero cluster",
            "extended: L2 entry: unaligned zero cluster",
        ],
    ),
    (
        "QEMU does not open an image whose bitmaps break a rule: we say which, and check the rest",
        &[
            "bitmaps: nb_bitmaps 0",
            "bitmaps: nb_bitmaps 1",
            "bitmaps: nb_bitmaps 3",
            "bitmaps: bitmaps reserved",
            "bitmaps: bitmap_directory_size 24",
            "bitmaps: bitmap_directory_size huge",
            "bitmaps: bitmap_directory_offset unaligned",
            "bitmaps: bitmap_directory_offset far",
            "bitmaps: bitmap: table unaligned",
            "bitmaps: bitmap: table 0",
            "bitmaps: bitmap: no table",
            "bitmaps: bitmap: table longer",
            "bitmaps: bitmap: reserved flag",
            "bitmaps: bitmap: type",
            "bitmaps: bitmap: granularity 3",
            "bitmaps: bitmap: no name",
            "bitmaps: bitmap: long name",
            "bitmaps: bitmap: extra data",
            "bitmaps: bitmap table entry: reserved bit",
        ],
    ),
    (
        "in an external data file a cluster lies where it lies on the disk: QEMU does not read the entry, and qemu-img does not say so",
        &[
            "data-file: L1 entry: flag of no table",
            "data-file: L1 entry: on the refcount table",
            "data-file: L1 entry: on the refcount block",
            "data-file: L1 entry: on the L1 table",
            "data-file: L1 entry: on a data cluster",
            "data-file: L2 entry: far",
            "data-file: L2 entry: far, without COPIED",
            "data-file: L2 entry: at the end of the file",
            "data-file: L2 entry: another's cluster",
            "data-file: L2 entry: on the refcount block",
            "data-file: L2 entry: on the L1 table",
            "data-file: L2 entry: on its L2 table",
            "data-file: L2 entry: unaligned",
            "data-file: L2 entry: unaligned zero cluster",
            "data-file: empty L2 entry: flag",
            "data-file: empty L2 entry: another's cluster",
        ],
    ),
];

/// Why a repair of ours does less than QEMU's, and of which damages.
const LEFT: &[(&str, &[&str])] = &[
    (
        "the guest is shown a table there, which a repair changes",
        &[
            "plain: L1 entry: on the L1 table",
            "v2: L1 entry: on the L1 table",
            "large: L1 entry: on the L1 table",
            "snapshots: L1 entry: on the L1 table",
            "compressed: L1 entry: on the L1 table",
            "bitmaps: L1 entry: on the L1 table",
            "wide: L1 entry: on the L1 table",
            "backing: L1 entry: on the L1 table",
            "narrow: L2 entry: on the refcount block",
        ],
    ),
    (
        "QEMU keeps a snapshot whose L1 table is something else, and reads that as one: ours is dropped by name",
        &["snapshots: snapshot: L1 table 0", "snapshots: snapshot: L1 table on the refcount block"],
    ),
    (
        "our readers refuse such a header: it is not repaired, and QEMU does not mind it",
        &["plain: header_length one more"],
    ),
];

/// Why our repair says another number of what was mended than QEMU's, where both mend all, and of which
/// damages: a name without its base is that of all bases.
const MENDED: &[(&str, &[&str])] = &[
    (
        "QEMU makes the file longer for a refcount block past its end, and counts that as well",
        &[
            "refcount table entry: past the end",
            "refcount table entry: at the end of the file",
            "second refcount table entry: past the end",
        ],
    ),
    (
        "QEMU tries to mend what it takes for refcount blocks as well, and counts what that leaks",
        &["plain: refcount_table_offset 0", "v2: refcount_table_offset 0"],
    ),
    (
        "qemu-img does not mend such an entry",
        &[
            "v2: L2 entry: zero bit",
            "v2: L2 entry: zero cluster",
            "extended: L2 entry: zero bit",
            "data-file: L2 entry: far",
            "data-file: L2 entry: far, without COPIED",
            "data-file: L2 entry: at the end of the file",
            "data-file: L2 entry: another's cluster",
            "data-file: L2 entry: on the refcount block",
            "data-file: L2 entry: on the L1 table",
            "data-file: L2 entry: on its L2 table",
            "data-file: empty L2 entry: flag",
            "data-file: empty L2 entry: another's cluster",
        ],
    ),
    (
        "QEMU mends each entry of what is no table, we let go of it",
        &["data-file: L1 entry: on the refcount block"],
    ),
    (
        "QEMU lets go of bitmaps when it opens the image, and does not count that",
        &["bitmaps: bitmaps bit cleared"],
    ),
    (
        "QEMU counts what is wrong with a snapshot's entry in another way",
        &["snapshots: snapshot: long name", "snapshots: snapshot: extra data huge"],
    ),
];

fn row(rows: &'static [(&str, &[&'static str])], name: &str) -> Option<&'static str> {
    rows.iter().flat_map(|(_, names)| *names).find(|row| **row == name).copied()
}

/// What a suite says at its end, of all damages.
#[derive(Default)]
struct Told {
    wrong: Vec<String>,
    used: BTreeSet<&'static str>,
    count: usize,
    /// Clusters that QEMU did not read.
    named: usize,
    /// Repaired by us and not by QEMU.
    cleaner: usize,
    /// Not repaired by us.
    unclean: Vec<String>,
}

#[test]
fn damaged_images_are_judged_and_repaired() {
    if !tool::available("checks of damaged images", &["qemu-img", "qemu-io", "timeout"]) {
        return;
    }
    let folder = tool::memory_folder();
    let mut told = Told::default();
    for name in bases() {
        let bytes = base(folder.path(), name);
        for damage in damages(name, &bytes) {
            told.count += 1;
            one(folder.path(), &damage.name, &damage.bytes, &mut told);
        }
    }
    let rows = DIFFERENCES.iter().chain(LEFT).chain(MENDED).flat_map(|(_, names)| *names);
    let unused: Vec<_> = rows.filter(|row| !told.used.contains(*row)).collect();
    tool::tell(&format!(
        "check suite: {} damages, {} clusters unreadable; repaired by us and not by QEMU: {}; by \
         neither: {}",
        told.count,
        told.named,
        told.cleaner,
        told.unclean.len()
    ));
    assert!(told.wrong.is_empty(), "{}", told.wrong.join("\n"));
    assert!(unused.is_empty(), "no differences any more: {unused:?}");
    assert!(told.count >= 150 && told.named > 0);
}

fn one(folder: &Path, name: &str, bytes: &[u8], told: &mut Told) {
    let (ours, theirs) = (folder.join("ours.qcow2"), folder.join("theirs.qcow2"));
    fs::write(&ours, bytes).unwrap();
    fs::write(&theirs, bytes).unwrap();
    let (by_qemu, by_us) = (Verdict::of_qemu(&ours), Verdict::of_ours(&File::open(&ours).unwrap()));
    match (row(DIFFERENCES, name), by_us.agrees(&by_qemu)) {
        (Some(row), false) => {
            told.used.insert(row);
        }
        (None, true) => {}
        (row, _) => told.wrong.push(format!(
            "DIFF {name} (row {row:?})\n  qemu {} {:?}\n{}  ours {} {:?}\n{}",
            by_qemu.exit, by_qemu.counts, by_qemu.words, by_us.exit, by_us.counts, by_us.words
        )),
    }
    let unreadable = if by_us.exit == 0 { Vec::new() } else { unreadable_by_qemu(&ours) };
    let mended_by_qemu = repair_by_qemu(&theirs);
    let repaired = repair_all(&ours);
    // What could not be read and can be now is named.
    let still = if unreadable.is_empty() { Vec::new() } else { unreadable_by_qemu(&ours) };
    let named = |start: &u64| match &repaired {
        Ok((_, fixes)) => fixes
            .iter()
            .filter_map(Fix::lost)
            .any(|(at, length)| (at.0..at.0.saturating_add(length)).contains(start)),
        Err(_) => true,
    };
    let unnamed = unreadable.iter().find(|start| !still.contains(start) && !named(start));
    if let Some(start) = unnamed {
        told.wrong.push(format!("NAMED {name}: not guest offset {start:#x}: {repaired:?}"));
    }
    told.named += unreadable.len();
    let after = Verdict::of_qemu(&ours);
    let sound = match repaired {
        Ok(_) => checker::check(&Sparse::load(&ours).unwrap()).and_then(|mut found| {
            // That two share a cluster is counted, and allowed.
            found.corruptions.retain(|what| !what.contains(" and "));
            found.sound()
        }),
        Err(_) => Ok(()),
    };
    let mut less = None;
    for snapshot in [None, Some("1"), Some("2")] {
        if let Some(kept) = Sectors::read(&theirs, snapshot) {
            let own = Sectors::read(&ours, snapshot);
            let sector = own.map_or(Some(0), |own| own.first_less_than(&kept));
            // QEMU reads some entries that we refuse until they are repaired.
            let other = snapshot.is_none() && !kept.is_whole() && {
                let whole = read_by_qemu(&theirs);
                whole.is_some() && whole != read_by_qemu(&ours)
            };
            less = less.or(sector.map(|sector| (snapshot, sector))).or(other.then_some((None, 0)));
        }
    }
    // What QEMU cannot repair either is no worse for us.
    let by_qemu = Verdict::of_qemu(&theirs);
    let clean = repaired.is_ok() && after.exit == 0 && sound.is_ok();
    if let (Ok((report, _)), Some(theirs_mended)) = (&repaired, mended_by_qemu)
        && clean
        && by_qemu.exit == 0
    {
        let mended = [report.corruptions_fixed, report.leaks_fixed];
        let of_all = || row(MENDED, name.split_once(": ")?.1);
        match (row(MENDED, name).or_else(of_all), mended == theirs_mended) {
            (Some(row), false) => {
                told.used.insert(row);
            }
            (None, true) => {}
            (row, _) => told.wrong.push(format!(
                "MENDED {name} (row {row:?}): corruptions, leaks: qemu {theirs_mended:?}, ours {mended:?}"
            )),
        }
        let [ours, theirs] = [&ours, &theirs].map(|path| feature_bits(path));
        if ours != theirs {
            told.wrong.push(format!("BITS {name}: qemu {theirs:x?}, ours {ours:x?}"));
        }
    }
    let good = (clean || by_qemu.exit != 0) && less.is_none();
    told.cleaner += usize::from(clean && by_qemu.exit != 0);
    told.unclean.extend((!clean).then(|| name.to_owned()));
    match (row(LEFT, name), good) {
        (Some(row), false) => {
            told.used.insert(row);
        }
        (None, true) => {}
        (row, _) => told.wrong.push(format!(
            "REPAIR {name} (row {row:?})\n  before {} {:?}\n{}  {:?}\n  after {} {:?}\n{}  checker {sound:?}, less at {less:?}, theirs {}",
            by_us.exit, by_us.counts, by_us.words, repaired.map(|(_, fixes)| fixes.iter().take(8).map(ToString::to_string).collect::<Vec<_>>()), after.exit, after.counts, after.words, by_qemu.exit
        )),
    }
}

/// Incompatible, compatible and autoclear bits, if the header has them.
fn feature_bits(path: &Path) -> Option<[u64; 3]> {
    let bytes = fs::read(path).unwrap();
    let map = Map::new(&bytes);
    (map.number(4, 4) > 2).then(|| [72, 80, 88].map(|at| map.number(at, 8)))
}

/// Flips up to three bits of what is not zero, from `start` on.
fn flipped(bytes: &[u8], start: usize, random: &mut Random) -> (String, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    let is_used = |at: &usize| bytes[at & !7..].iter().take(8).any(|byte| *byte != 0);
    let used: Vec<usize> = (start..bytes.len()).filter(is_used).collect();
    let mut what = String::new();
    for _ in 0..=random.below(3) {
        let (at, bit) = (used[random.below(used.len())], random.below(8));
        bytes[at] ^= 1 << bit;
        what.push_str(&format!(" {at:#x}^{:#x}", 1 << bit));
    }
    (what, bytes)
}

#[test]
fn flipped_bits_are_judged_alike_and_repaired() {
    if !tool::available("checks of images with flipped bits", &["qemu-img", "qemu-io", "timeout"]) {
        return;
    }
    let sweep = Sweep::new("CHECK", 300, 40);
    let folder = tool::memory_folder();
    let images: Vec<_> = bases().map(|name| (name, base(folder.path(), name))).collect();
    let path = folder.path().join("flipped.qcow2");
    let (mut refused, mut repaired) = (0, 0);
    sweep.run(any::<u64>(), |seed, _| {
        let mut random = Random(*seed);
        let (name, bytes) = &images[random.below(images.len())];
        // A third of them in the header, too.
        let in_header = random.once_in(3);
        let start = if in_header { 4 } else { 1 << Map::new(bytes).cluster().ilog2() };
        let (what, bytes) = flipped(bytes, start, &mut random);
        fs::write(&path, &bytes).unwrap();
        let theirs = Verdict::of_qemu(&path);
        let ours = Verdict::of_ours(&File::open(&path).unwrap());
        let said = format!("{name}{what}\nqemu {theirs:?}\nours {ours:?}");
        match (&theirs.counts, &ours.counts) {
            (Some(_), Some(_)) if !has_own_rules(name) => {
                if theirs.exit != ours.exit || !in_header && !theirs.agrees(&ours) {
                    return Err(said);
                }
            }
            // Which headers and bitmaps are followed at all differs.
            (None, _) | (_, Some(_)) => {}
            (Some(_), None) if in_header => {}
            (Some(_), None) => return Err(said),
        }
        match repair_all(&path) {
            Err(_) => refused += 1,
            Ok((report, _)) => {
                let after = Verdict::of_qemu(&path);
                let overflows = *name == "narrow" && report.after.corruptions > 0;
                if after.exit != 0 && theirs.counts.is_some() && !overflows {
                    return Err(format!("{said}\nrepaired: {after:?}"));
                }
                repaired += 1;
            }
        }
        Ok(())
    });
    sweep.tell(&format!("{repaired} repaired, {refused} refused"));
}

/// Whether entries of the base can break rules that qemu-img does not know: see `DIFFERENCES`.
fn has_own_rules(base: &str) -> bool {
    matches!(base, "v2" | "extended" | "data-file" | "bitmaps")
}

/// How images are made for the comparison of reports: name, options of `qemu-img create`, commands.
const SOUND: &[(&str, &[&str], &[&str])] = &[
    ("empty", &["64M"], &[]),
    ("nothing", &["0"], &[]),
    ("half a sector", &["1000001"], &["write 0 64k"]),
    ("v2", &["-o", "compat=0.10", "64M"], WRITES),
    ("clusters of 512", &["-o", "cluster_size=512", "8M"], WRITES),
    ("clusters of 4096", &["-o", "cluster_size=4096", "8M"], WRITES),
    ("clusters of 2M", &["-o", "cluster_size=2M", "64M"], WRITES),
    ("refcounts of 1", &["-o", "refcount_bits=1", "64M"], WRITES),
    ("refcounts of 8", &["-o", "refcount_bits=8", "64M"], WRITES),
    ("refcounts of 32", &["-o", "refcount_bits=32", "64M"], WRITES),
    ("refcounts of 64", &["-o", "refcount_bits=64,cluster_size=512", "4M"], WRITES),
    ("extended", &["-o", "extended_l2=on", "64M"], WRITES),
    ("extended, 16 KiB", &["-o", "extended_l2=on,cluster_size=16k", "8M"], WRITES),
    ("zlib", &["64M"], PACKED),
    ("zstd", &["-o", "compression_type=zstd", "64M"], PACKED),
    ("lazy", &["-o", "lazy_refcounts=on", "64M"], WRITES),
    ("metadata", &["-o", "preallocation=metadata", "8M"], WRITES),
    ("falloc", &["-o", "preallocation=falloc", "8M"], WRITES),
    ("full", &["-o", "preallocation=full,cluster_size=4096", "4M"], WRITES),
    ("snapshots", &["-o", "cluster_size=4096", "8M"], SNAPSHOTS),
    ("bitmaps", &["-o", "cluster_size=4096", "8M"], BITMAPS),
    ("data file", &["-o", "data_file=sound.data", "8M"], WRITES),
    ("raw data file", &["-o", "data_file=sound.data,data_file_raw=on", "8M"], WRITES),
];

const WRITES: &[&str] = &["write 0 1M", "write 3M 100k", "write 1500k 64k", "write -z 2M 128k"];
const PACKED: &[&str] = &["write -c 0 64k", "write -c 64k 64k", "write 1M 1M", "write -c 8M 64k"];
const SNAPSHOTS: &[&str] = &["write 0 1M", "snapshot one", "write 512k 1M", "snapshot two"];
const BITMAPS: &[&str] = &["bitmap one", "write 0 1M", "bitmap two", "write 3M 8k"];

#[test]
fn reports_are_qemu_imgs_field_by_field() {
    if !tool::available("reports of checks", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tool::memory_folder();
    let start = |program: &str, arguments: &[&str]| {
        Command::new(program).current_dir(folder.path()).args(arguments).output().unwrap()
    };
    for (name, options, commands) in SOUND {
        let create = ["create", "-q", "-f", "qcow2", "sound.qcow2"];
        let (size, options) = options.split_last().unwrap();
        let create = [&create[..4], options, &create[4..], &[*size]].concat();
        let made = start("qemu-img", &create);
        assert!(made.status.success(), "{name}: {made:?}");
        for command in *commands {
            let done = match command.split_once(' ') {
                Some(("snapshot", id)) => start("qemu-img", &["snapshot", "-c", id, "sound.qcow2"]),
                Some(("bitmap", id)) => start("qemu-img", &["bitmap", "--add", "sound.qcow2", id]),
                _ => start("qemu-io", &["-f", "qcow2", "-c", command, "sound.qcow2"]),
            };
            assert!(done.status.success(), "{name}: {command}: {done:?}");
        }
        for form in ["--output=json", "--output=human"] {
            let theirs = start("qemu-img", &["check", form, "sound.qcow2"]);
            let json = form.ends_with("json");
            let ours: &[&str] =
                if json { &["--json", "check", "sound.qcow2"] } else { &["check", "sound.qcow2"] };
            let ours = start(ENGINE, ours);
            assert_eq!(ours.status.code(), theirs.status.code(), "{name}: {ours:?} {theirs:?}");
            if json {
                let fields = |output: &Output| {
                    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
                };
                assert_eq!(fields(&ours), fields(&theirs), "{name}");
            } else {
                assert_eq!(ours.stdout, theirs.stdout, "{name}");
            }
        }
    }
    fs::write(folder.path().join("raw.img"), [1; 4096]).unwrap();
    let (ours, theirs) =
        (start(ENGINE, &["check", "raw.img"]), start("qemu-img", &["check", "raw.img"]));
    assert_eq!((ours.status.code(), theirs.status.code()), (Some(63), Some(63)));
    assert_eq!(start(ENGINE, &["check", "none.img"]).status.code(), Some(1));
    assert_eq!(start(ENGINE, &["check", "-r", "some", "raw.img"]).status.code(), Some(1));
}
