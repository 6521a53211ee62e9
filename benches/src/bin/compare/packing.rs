//! Packing one disk.

use std::fs;
use std::path::Path;

use benches::{packings, scratch};

use crate::samples::{Samples, ratio};
use crate::table::Table;
use crate::{Setting, absent};

/// Most rounds: each compresses all of the disk three times.
const MOST_ROUNDS: usize = 3;
/// Bytes of the archive in each frame.
pub const FRAME: u64 = 4 << 20;

type Pack = fn(&Path, &Path);

/// The first is ours.
const CONTENDERS: [(&str, Pack); 3] = [
    ("disk-engine", |disk, archive| {
        packings::ours(disk, archive, None);
    }),
    ("disk-engine, frames of 4 MiB", |disk, archive| {
        packings::ours(disk, archive, Some(FRAME));
    }),
    (GNU_TAR, packings::gnu_tar),
];
const GNU_TAR: &str = "`tar -cS` and `zstd -T0`";

/// Measures all contenders on `disk`.
pub fn measure(setting: &Setting, disk: &Path) -> Table {
    let mut samples: [Samples; 3] = Default::default();
    let mut sizes = [0; 3];
    let rounds = setting.rounds.min(MOST_ROUNDS);
    for round in 0..rounds {
        eprintln!("packing: round {} of {rounds}", round + 1);
        for (index, (name, pack)) in CONTENDERS.into_iter().enumerate() {
            if name == GNU_TAR && !setting.tar.is_there() {
                continue;
            }
            let archive = setting.scratch.join("packed.tar.zst");
            scratch::settle(setting.scratch);
            samples[index].time(|| pack(disk, &archive));
            sizes[index] = fs::metadata(&archive).expect("the archive is there").len();
            fs::remove_file(&archive).expect("the archive can be removed");
        }
    }
    let mut table =
        Table::new("Packing a disk", &["", "median", "from, to", "disk-engine", "archive", "runs"]);
    for (index, (name, _)) in CONTENDERS.into_iter().enumerate() {
        if samples[index].count() == 0 {
            absent(&mut table, name);
            continue;
        }
        table.row([
            name.to_owned(),
            samples[index].typical(),
            samples[index].spread(),
            ratio(samples[0].over(&samples[index])),
            format!("{:.1} MiB", sizes[index] as f64 / f64::from(1 << 20)),
            samples[index].count().to_string(),
        ]);
    }
    table.note("All with level 8, a window of 128 MiB, and all cores.");
    table
}
