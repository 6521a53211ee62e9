//! Disks for eight VMs.

use std::fs;
use std::path::{Path, PathBuf};

use benches::{content, extractions, preparations, scratch};

use crate::samples::{Samples, ratio, with_unit};
use crate::table::Table;
use crate::{Setting, absent};

/// Most rounds of what copies disks: each writes ten times the data.
const MOST_ROUNDS: usize = 3;

type Prepare = fn(&Path, &Path, usize);

/// A way to prepare disks, and the number of VMs it is measured with.
struct Contender<'a> {
    name: &'a str,
    needs: &'a [bool],
    vms: usize,
    prepare: Prepare,
    samples: Samples,
    space: u64,
}

impl<'a> Contender<'a> {
    fn new(name: &'a str, needs: &'a [bool], vms: usize, prepare: Prepare) -> Self {
        Self { name, needs, vms, prepare, samples: Samples::default(), space: 0 }
    }
}

/// Measures all contenders, the cold one beside an extraction.
pub fn measure(setting: &Setting) -> Table {
    let few = if setting.quick { 2 } else { 8 };
    let tar = setting.tar.is_there();
    let qemu_img = setting.qemu_img.is_there();
    let (with_tar, with_both) = ([tar], [tar, qemu_img]);
    let mut others = [
        Contender::new("GNU tar for each VM", &with_tar, few, preparations::tar_each),
        Contender::new(
            "GNU tar once, `cp --reflink=auto`",
            &with_tar,
            few,
            preparations::tar_and_copies,
        ),
        Contender::new(
            "GNU tar once, `qemu-img create`",
            &with_both,
            8,
            preparations::tar_and_qemu_img,
        ),
    ];
    let (mut cold, mut warm, mut one) = <(Samples, Samples, Samples)>::default();
    let mut space = 0;
    let mut overlays = Samples::default();

    for round in 0..setting.rounds {
        eprintln!("preparation: round {} of {}", round + 1, setting.rounds);
        for other in &mut others {
            if round < MOST_ROUNDS && other.needs.iter().all(|is_there| *is_there) {
                let folder = fresh(setting, "vms");
                other.samples.time(|| (other.prepare)(setting.archive, &folder, other.vms));
                scratch::settle(setting.scratch);
                other.space = content::allocated(&folder);
                fs::remove_dir_all(&folder).expect("the disks can be removed");
            }
        }
        let folder = fresh(setting, "one");
        let _ = one.time(|| extractions::ours(setting.archive, &folder));
        fs::remove_dir_all(&folder).expect("the disk can be removed");

        let (cache, folder) = (fresh(setting, "cache"), fresh(setting, "vms"));
        let report = cold.time(|| preparations::ours(setting.archive, &cache, &folder, 8));
        assert_eq!(report.base.origin.as_str(), "extracted");
        scratch::settle(setting.scratch);
        space = content::allocated(&cache) + content::allocated(&folder);
        drop(report);
        for _ in 0..if setting.quick { 10 } else { 20 } {
            let folder = fresh(setting, "vms");
            let report = warm.time(|| preparations::ours(setting.archive, &cache, &folder, 8));
            assert_eq!(report.base.origin.as_str(), "hit");
            overlays.add(report.disks_time);
        }
        fs::remove_dir_all(&cache).expect("the cache can be removed");
    }

    let title = "Disks for 8 VMs";
    let mut table =
        Table::new(title, &["", "median", "disk-engine, cold", "and warm", "space", "runs"]);
    for other in &others {
        if other.samples.count() == 0 {
            absent(&mut table, other.name);
            continue;
        }
        let median = other.samples.median();
        let name = match other.vms {
            8 => other.name.to_owned(),
            few => format!("{} (only {few} VMs: `--quick`)", other.name),
        };
        table.row([
            name,
            other.samples.typical(),
            ratio(cold.median() / median),
            ratio(warm.median() / median),
            crate::extraction::gib(other.space),
            other.samples.count().to_string(),
        ]);
    }
    let gib = crate::extraction::gib(space);
    for (name, samples) in [("disk-engine, cold", &cold), ("disk-engine, warm", &warm)] {
        let ratios =
            [ratio(cold.median() / samples.median()), ratio(warm.median() / samples.median())];
        let [to_cold, to_warm] = ratios;
        let count = samples.count().to_string();
        table.row([name.to_owned(), samples.typical(), to_cold, to_warm, gib.clone(), count]);
    }
    table.note(format!(
        "Cold is one extraction ({}) and {}, the median of each round's difference; warm, {} of it \
         are the overlays.",
        one.typical(),
        with_unit(cold.more_than(&one)),
        overlays.typical(),
    ));
    table
}

/// An empty folder, and nothing left to be written.
fn fresh(setting: &Setting, name: &str) -> PathBuf {
    let folder = scratch::empty(setting.scratch, name);
    scratch::settle(setting.scratch);
    folder
}
