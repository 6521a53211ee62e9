//! Extracting an archive that is made of frames.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use benches::{content, extractions, packings, scratch};

use crate::samples::{Samples, ratio};
use crate::table::Table;
use crate::{Setting, absent, packing};

const GNU_TAR: &str = "GNU tar and zstd";

/// Packs `disk` in frames.
pub fn archive(setting: &Setting, disk: &Path) -> PathBuf {
    let archive = setting.scratch.join("framed.tar.zst");
    packings::ours(disk, &archive, Some(packing::FRAME));
    archive
}

/// Measures `framed` on one thread and on two, beside GNU tar.
pub fn measure(setting: &Setting, framed: &Path) -> Table {
    let on = |threads: usize| NonZeroUsize::new(threads).expect("at least one");
    type Extract<'a> = Box<dyn Fn(&Path) + 'a>;
    let contenders: [(&str, Extract); 3] = [
        ("disk-engine, 1 thread", Box::new(|to| drop(extractions::ours_on(on(1), framed, to)))),
        ("disk-engine, 2 threads", Box::new(|to| drop(extractions::ours_on(on(2), framed, to)))),
        (GNU_TAR, Box::new(|to| extractions::gnu_tar(framed, to))),
    ];
    let mut samples: [Samples; 3] = Default::default();
    let mut digest = None;
    for round in 0..=setting.rounds {
        eprintln!("frames: round {round} of {}", setting.rounds);
        for (index, (name, extract)) in contenders.iter().enumerate() {
            if *name == GNU_TAR && !setting.tar.is_there() {
                continue;
            }
            let folder = scratch::empty(setting.scratch, "extraction");
            scratch::settle(setting.scratch);
            samples[index].time(|| extract(&folder));
            if round == 0 {
                // It warms everything up, and shows that all of them do the same.
                samples[index] = Samples::default();
                let found = content::digest(&folder.join(extractions::DISK));
                assert_eq!(*digest.get_or_insert(found), found, "{name} made another disk");
            }
            fs::remove_dir_all(&folder).expect("a disk can be removed");
        }
    }
    let title = "Extracting an archive in frames of 4 MiB";
    let mut table = Table::new(title, &["", "median", "from, to", "2 threads", "runs"]);
    for (index, (name, _)) in contenders.iter().enumerate() {
        if samples[index].count() == 0 {
            absent(&mut table, name);
            continue;
        }
        table.row([
            (*name).to_owned(),
            samples[index].typical(),
            samples[index].spread(),
            ratio(samples[1].over(&samples[index])),
            samples[index].count().to_string(),
        ]);
    }
    table
}
