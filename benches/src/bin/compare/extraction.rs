//! Extracting one disk.

use std::fs;
use std::path::Path;

use benches::{content, extractions, scratch};
use disk_engine::ops::ExtractReport;

use crate::samples::{Samples, ratio};
use crate::table::Table;
use crate::{Setting, absent};

type Extract = fn(&Path, &Path);

/// The first is ours, the last leaves no disk.
const CONTENDERS: [(&str, Extract); 4] = [
    ("disk-engine", |archive, folder| drop(extractions::ours(archive, folder))),
    (GNU_TAR, extractions::gnu_tar),
    ("tar and zstd crates", extractions::tar_crate),
    ("decoding alone", |archive, _| {
        let _ = extractions::decoding_alone(archive);
    }),
];
const GNU_TAR: &str = "GNU tar and zstd";

/// Extracts the disk once, for whoever needs it.
pub fn one(setting: &Setting) -> ExtractReport {
    extractions::ours(setting.archive, &scratch::empty(setting.scratch, "first"))
}

/// Measures all contenders; `report` is what ours said of the disk once.
pub fn measure(setting: &Setting, report: &ExtractReport) -> Table {
    let expected = content::digest(&report.destination);

    let mut samples: [Samples; 4] = Default::default();
    let mut space = [0; 4];
    // The first round warms everything up, and shows that all of them do the same.
    for round in 0..=setting.rounds {
        eprintln!("extraction: round {round} of {}", setting.rounds);
        for (index, (name, extract)) in CONTENDERS.into_iter().enumerate() {
            if name == GNU_TAR && !setting.tar.is_there() {
                continue;
            }
            let folder = scratch::empty(setting.scratch, "extraction");
            scratch::settle(setting.scratch);
            samples[index].time(|| extract(setting.archive, &folder));
            let disk = folder.join(extractions::DISK);
            if round == 0 {
                samples[index] = Samples::default();
                let same = !disk.exists() || content::digest(&disk) == expected;
                assert!(same, "{name} made another disk");
            }
            scratch::settle(setting.scratch);
            space[index] = content::allocated(&folder);
            fs::remove_dir_all(&folder).expect("a disk can be removed");
        }
    }

    let mut table =
        Table::new("One extraction", &["", "median", "from, to", "disk-engine", "space", "runs"]);
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
            gib(space[index]),
            samples[index].count().to_string(),
        ]);
    }
    table.note("All disks read the same, byte by byte. The ratio is the median of each round's.");
    table
}

pub fn gib(bytes: u64) -> String {
    if bytes == 0 { "none".into() } else { format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)) }
}
