//! What a check tells of an image with thousands of findings.
//!
//! ```text
//! thousands of entries damaged ─┬▶ called as qemu-img: its lines, in its order, all of them
//!                               └▶ our command: the first ones, the rest counted; the counts qemu-img's
//! ```

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use testkit::damage::Map;
use testkit::qemu::{img_in, io};
use testkit::tool;

/// The command, as the suite is built with it.
const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// An image of 16,384 clusters: 11,000 flags are wrong, some reserved bits set, some clusters leak.
fn damaged(folder: &Path) {
    let options = "cluster_size=512,preallocation=metadata";
    img_in(folder, &["create", "-q", "-f", "qcow2", "-o", options, "image", "8M"]);
    let mut bytes = fs::read(folder.join("image")).unwrap();
    let map = Map::new(&bytes);
    let tables: Vec<u64> = map.l1().iter().map(|at| map.number(*at, 8) << 8 >> 8).collect();
    let block = map.block();
    let entries = tables.iter().flat_map(|table| (0..64).map(move |entry| table + 8 * entry));
    for (number, at) in entries.enumerate() {
        match number {
            0..11_000 => bytes[at as usize] ^= 0x80,
            11_000..11_700 => bytes[at as usize + 7] ^= 2,
            _ => {}
        }
    }
    // The last clusters that the first block counts.
    for cluster in 200..256 {
        bytes[block as usize + 2 * cluster + 1] += 1;
    }
    fs::write(folder.join("image"), bytes).unwrap();
}

fn start(folder: &Path, program: &str, words: &[&str]) -> Output {
    Command::new(program).current_dir(folder).args(words).output().unwrap()
}

#[test]
fn thousands_of_findings_are_told_as_qemu_img_does_or_counted() {
    if !tool::available("checks with many findings", &["qemu-img"]) {
        return;
    }
    let folder = tool::memory_folder();
    let folder = folder.path();
    damaged(folder);
    let theirs = start(folder, "qemu-img", &["check", "--output=json", "image"]);
    let ours = start(folder, ENGINE, &["qemu-img", "check", "--output=json", "image"]);
    let lines = |output: &Output| {
        String::from_utf8(output.stderr.clone()).unwrap().lines().map(str::to_owned).collect()
    };
    let (ours_said, theirs_said): (Vec<_>, Vec<_>) = (lines(&ours), lines(&theirs));
    assert!(theirs_said.len() > 11_000, "{}", theirs_said.len());
    let first = ours_said.iter().zip(&theirs_said).position(|(ours, theirs)| ours != theirs);
    let at = first.unwrap_or(ours_said.len().min(theirs_said.len()));
    assert!(
        ours_said == theirs_said,
        "line {at}: {:?} {:?}",
        ours_said.get(at),
        theirs_said.get(at)
    );
    assert_eq!((ours.status.code(), &ours.stdout), (theirs.status.code(), &theirs.stdout));

    let counts: serde_json::Value = serde_json::from_slice(&theirs.stdout).unwrap();
    for (list, most) in [(None, 1000), (Some("0"), 0), (Some("7"), 7), (Some("all"), usize::MAX)] {
        let words =
            [&["--json", "check", "image"][..], &[list.map_or("--threads=2", |_| "--list")]];
        let words = [&words.concat()[..], list.as_slice()].concat();
        let ours = start(folder, ENGINE, &words);
        let mut said: Vec<String> = lines(&ours);
        let mut report: serde_json::Value = serde_json::from_slice(&ours.stdout).unwrap();
        let unlisted = report.as_object_mut().unwrap().remove("not-listed");
        assert_eq!((ours.status.code(), &report), (theirs.status.code(), &counts), "{words:?}");
        let total = counts["corruptions"].as_u64().unwrap() + counts["leaks"].as_u64().unwrap();
        if most == usize::MAX {
            assert_eq!((said.len() as u64, unlisted), (total, None));
            continue;
        }
        let kinds = unlisted.unwrap().as_object().unwrap().clone();
        let behind = said.split_off(most);
        assert_eq!(behind.len(), 1 + kinds.len(), "{behind:?}");
        let unlisted: u64 = kinds.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(said.len() as u64 + unlisted, total, "{kinds:?}");
        assert!(kinds.keys().all(|kind| behind.iter().any(|line| line.ends_with(&**kind))));
    }
}

/// What is damaged: bytes of `LAYOUT`, each written where it says.
type Harm = &'static [(u64, &'static [u8])];

/// Refcounts of the first data cluster and of the one behind it: the block is the third cluster.
const COUNT: u64 = 0x2_0000 + 2 * 5;
/// L2 entries: the table is the fifth cluster.
const ENTRY: u64 = 0x4_0000;

/// Damages, and how they are repaired.
const REPAIRS: &[(&str, &str, Harm)] = &[
    ("nothing", "all", &[]),
    ("nothing, leaks", "leaks", &[]),
    ("an unknown autoclear bit", "all", &[(88, &[0x80])]),
    ("unknown autoclear bits, leaks", "leaks", &[(92, &[0x40])]),
    ("a leak and an unknown autoclear bit", "all", &[(88, &[0x80]), (COUNT, &[0, 2])]),
    ("the dirty bit", "all", &[(79, &[1])]),
    ("the dirty bit, leaks", "leaks", &[(79, &[1])]),
    ("a leak and the dirty bit, leaks", "leaks", &[(79, &[1]), (COUNT, &[0, 2])]),
    ("a leak", "all", &[(COUNT, &[0, 2])]),
    ("leaks", "leaks", &[(COUNT, &[0, 2, 0, 3])]),
    ("leaks without flags", "leaks", &[(COUNT, &[0, 2, 0, 2]), (ENTRY, &[0]), (ENTRY + 8, &[0])]),
    ("a count too low and a leak", "all", &[(ENTRY + 8, &[0, 0, 0, 0, 0, 5, 0, 0])]),
    ("a count too low and a leak, leaks", "leaks", &[(ENTRY + 8, &[0, 0, 0, 0, 0, 5, 0, 0])]),
    ("flags", "all", &[(ENTRY, &[0]), (ENTRY + 8, &[0])]),
    ("flags, leaks", "leaks", &[(ENTRY, &[0]), (ENTRY + 8, &[0])]),
    ("counts of 0", "all", &[(COUNT, &[0, 0, 0, 0])]),
    ("no refcount table", "all", &[(56, &[0, 0, 0, 0])]),
    ("no refcount table, and no place", "all", &[(48, &[0; 12])]),
];

/// Where qemu-img's lines are others: it takes the old refcount structures for leaks, once new ones are
/// written, and says a second time what a repair left.
const OTHER_LINES: &[&str] = &["counts of 0", "a count too low and a leak, leaks"];

/// Where refcount structures are written anew: ours go behind the rest, QEMU's where there is room.
const REBUILT: &[&str] = &["counts of 0", "no refcount table", "no refcount table, and no place"];

#[test]
fn repairs_are_told_as_qemu_img_does() {
    if !tool::available("what repairs say", &["qemu-img", "qemu-io", "timeout"]) {
        return;
    }
    let folder = tool::memory_folder();
    let folder = folder.path();
    img_in(folder, &["create", "-q", "-f", "qcow2", "sound", "64M"]);
    let path = folder.join("sound");
    assert!(
        io(["-f", "qcow2", "-c", "write -P 7 0 256k", path.to_str().unwrap()]).status.success()
    );
    let sound = fs::read(&path).unwrap();
    // Of an image whose content is still the same.
    let feature_bits = |name: &str| {
        img_in(folder, &["compare", "-q", "-f", "qcow2", "-F", "qcow2", "sound", name]);
        fs::read(folder.join(name)).unwrap()[72..96].to_vec()
    };
    let mut wrong = Vec::new();
    for (name, mode, harm) in REPAIRS {
        let mut bytes = sound.clone();
        for (at, what) in *harm {
            bytes[*at as usize..][..what.len()].copy_from_slice(what);
        }
        let repair = ["check", "-r", mode];
        for words in [&["check"][..], &repair, &[&repair[..], &["--output=json"]].concat()] {
            let programs = [("theirs", &["qemu-img"][..]), ("ours", &[ENGINE, "qemu-img"])];
            let [theirs, ours] = programs.map(|(file, program)| {
                fs::write(folder.join("image"), &bytes).unwrap();
                let command = [&["60"], program, words, &["-f", "qcow2", "image"]].concat();
                let mut answer = start(folder, "timeout", &command);
                fs::rename(folder.join("image"), folder.join(file)).unwrap();
                if OTHER_LINES.contains(name) {
                    answer.stderr.clear();
                }
                answer
            });
            let [ours_said, theirs_said] = [&ours, &theirs].map(|answer| {
                let mut said = said(answer);
                if REBUILT.contains(name) {
                    let is_end = |line: &&str| {
                        line.to_lowercase().replace('-', " ").contains("image end offset")
                    };
                    said = said.lines().filter(|line| !is_end(line)).collect::<Vec<_>>().join("\n");
                }
                said
            });
            if ours_said != theirs_said {
                wrong.push(format!("{name}: {words:?}\nqemu {theirs_said}\nours {ours_said}"));
            }
            // Some cannot be read before they are repaired.
            if words.len() > 1 && theirs.status.success() && ours.status.success() {
                let [ours, theirs] = ["ours", "theirs"].map(feature_bits);
                if ours != theirs {
                    wrong.push(format!("{name}: {words:?}: bits {theirs:x?}, ours {ours:x?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn said(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    format!("{:?}\n{out}{err}", output.status.code())
}
