//! Disks for eight VMs by each strategy, on file systems made for it.

use std::fs::File;
use std::path::Path;

use benches::{preparations, scratch};
use disk_engine::strategy::Strategy;
use disk_engine::sys::space;
use testkit::mounts::{Kind, Mount};

use crate::Setting;
use crate::picture::Bar;
use crate::samples::Samples;
use crate::table::Table;

/// Size of each file system, which lies in a sparse file.
const MEBIBYTES: u64 = 24 << 10;
/// Most rounds.
const MOST_ROUNDS: usize = 3;

/// Measures all strategies on all file systems; also returns what the picture shows.
pub fn measure(setting: &Setting) -> (Table, Vec<Bar>) {
    let vms = vms(setting);
    let title = format!("Disks for {vms} VMs from a warm cache, by strategy");
    let columns = ["", "strategy", "median", "from, to", "space", "runs"];
    let mut table = Table::new(title, &columns);
    let mut bars = Vec::new();
    for (name, kind) in [("ext4", Kind::Ext4), ("btrfs", Kind::Btrfs), ("XFS", Kind::Xfs)] {
        eprintln!("strategies: {name}");
        let Some(mount) = Mount::new("strategies", kind, MEBIBYTES, setting.scratch) else {
            table.row([name, "cannot be mounted here"]);
            continue;
        };
        on(setting, &mount.path(), name, vms, &mut table, &mut bars);
    }
    table.note(
        "Each file system lies in a file on the one above. A copy on btrfs or XFS is made by the \
         kernel, which shares storage there.",
    );
    (table, bars)
}

/// For how many VMs disks are made.
pub fn vms(setting: &Setting) -> usize {
    if setting.quick { 2 } else { 8 }
}

fn on(
    setting: &Setting,
    place: &Path,
    name: &str,
    vms: usize,
    table: &mut Table,
    bars: &mut Vec<Bar>,
) {
    let cache = place.join("cache");
    drop(preparations::ours(setting.archive, &cache, &place.join("first"), 0));
    for strategy in [Strategy::Overlay, Strategy::Reflink, Strategy::Copy] {
        let (mut samples, mut taken) = (Samples::default(), 0);
        for _ in 0..setting.rounds.min(MOST_ROUNDS) {
            let folder = scratch::empty(place, "vms");
            scratch::settle(place);
            let before = available(place);
            let report = preparations::by_strategy(strategy, setting.archive, &cache, &folder, vms);
            let Ok(report) = report else { break };
            samples.add(report.disks_time);
            scratch::settle(place);
            taken = before.saturating_sub(available(place));
            std::fs::remove_dir_all(&folder).expect("the disks can be removed");
        }
        if samples.count() == 0 {
            table.row([name, strategy.as_str(), "the file system has none"]);
            continue;
        }
        let words = size(taken);
        table.row([
            name.to_owned(),
            strategy.as_str().to_owned(),
            samples.typical(),
            samples.spread(),
            words.clone(),
            samples.count().to_string(),
        ]);
        bars.push(Bar {
            group: name.to_owned(),
            name: strategy.as_str().to_owned(),
            seconds: samples.median(),
            time: samples.typical(),
            bytes: taken,
            space: words,
        });
    }
}

/// What the file system has left.
fn available(place: &Path) -> u64 {
    let folder = File::open(place).expect("the file system opens");
    space::available(&folder).expect("the file system tells")
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => crate::extraction::gib(bytes),
    }
}
