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

use testkit::damage::{base, bases, damages};
use testkit::verdict::{Sectors, Verdict, repair_all, repair_by_qemu};
use testkit::{checker, sparse::Sparse, tool};

/// Damages of which we say something else than qemu-img, and why. The part before the colon is the
/// base, `*` any.
const DIFFERENCES: &[(&str, &str)] = &[];

/// Damages that a repair of ours does not make clean, and why.
const LEFT: &[(&str, &str)] = &[];

fn row(rows: &'static [(&str, &str)], name: &str) -> Option<&'static str> {
    let what = name.split_once(": ").map_or("", |(_, what)| what);
    let found = rows
        .iter()
        .find(|(row, _)| *row == name || row.strip_prefix("*: ").is_some_and(|row| row == what));
    found.map(|(row, _)| *row)
}

/// What a suite says at its end, of all damages.
#[derive(Default)]
struct Told {
    wrong: Vec<String>,
    used: BTreeSet<&'static str>,
    count: usize,
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
    let only = std::env::var("ONLY").unwrap_or_default();
    for name in bases() {
        let bytes = base(folder.path(), name);
        for damage in damages(name, &bytes) {
            if !damage.name.contains(&only) {
                continue;
            }
            told.count += 1;
            let before = told.wrong.len();
            let start = std::time::Instant::now();
            one(folder.path(), &damage.name, &damage.bytes, &mut told);
            for wrong in told.wrong.iter().skip(before) {
                tool::tell(wrong);
            }
            if start.elapsed().as_millis() > 700 {
                tool::tell(&format!("SLOW {} {:?}", damage.name, start.elapsed()));
            }
        }
    }
    let unused: Vec<_> =
        DIFFERENCES.iter().chain(LEFT).filter(|(row, _)| !told.used.contains(row)).collect();
    println!("{} damages, {} wrong, unused rows: {unused:?}", told.count, told.wrong.len());
    println!("cleaner {} unclean {:#?}", told.cleaner, told.unclean);
    assert!(told.wrong.is_empty() && unused.is_empty());
    assert!(told.count >= 150);
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
    repair_by_qemu(&theirs);
    let repaired = repair_all(&ours);
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
            less = less.or(sector.map(|sector| (snapshot, sector)));
        }
    }
    // What QEMU cannot repair either is no worse for us.
    let by_qemu = Verdict::of_qemu(&theirs);
    let clean = repaired.is_ok() && after.exit == 0 && sound.is_ok();
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
