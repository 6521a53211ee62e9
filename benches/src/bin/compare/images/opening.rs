//! Opening an image of 1 TiB.

use std::path::Path;
use std::time::Instant;

use benches::images::files;
use benches::images::{Disk, Imago, OursRead, OursWritten, Raw, qemu};
use qcow2_format::image::Durability;

use super::{MOST_PROCESS_ROUNDS, add, over, rounds, told};
use crate::Setting;
use crate::samples::Samples;
use crate::table::Table;

/// How often it is opened in a round.
const TIMES: u64 = 50;
const BLOCK: usize = 4096;
/// The GiB of the image that is read.
const GIBIBYTE: u64 = 700;

type Open<'a> = Box<dyn Fn() -> Box<dyn Disk> + 'a>;

/// Measures all rows.
pub fn measure(setting: &Setting, folder: &Path) -> Table {
    let image = &folder.join("huge.qcow2");
    files::huge(image);
    let raw = &folder.join("data.raw");
    let columns =
        ["", "disk-engine", "imago", "`open`, raw", "`qemu-img info`", "over raw", "over imago"];
    let mut table = Table::new("Opening an image of 1 TiB, written in 1024 places", &columns);
    for (name, write, read) in [
        ("open", false, false),
        ("open and read 4 KiB", false, true),
        ("open for writing", true, false),
    ] {
        eprintln!("images: opening, {name}");
        let openers: [(Open<'_>, u64); 3] = [
            (
                Box::new(|| {
                    if write {
                        Box::new(OursWritten::open(image, None, Durability::None))
                    } else {
                        Box::new(OursRead::open(image, None))
                    }
                }),
                files::huge_place(GIBIBYTE),
            ),
            (Box::new(|| Box::new(Imago::open(image, write))), files::huge_place(GIBIBYTE)),
            (Box::new(|| Box::new(Raw::open(raw, write))), 0),
        ];
        let [mut ours, mut imago, mut open, mut info] = <[Samples; 4]>::default();
        for round in 0..rounds(setting) {
            for ((opener, place), samples) in openers.iter().zip([&mut ours, &mut imago, &mut open])
            {
                let mut buffer = [0; BLOCK];
                let start = Instant::now();
                for _ in 0..TIMES {
                    let disk = opener();
                    if read {
                        disk.read(&mut buffer, *place);
                    }
                }
                add(samples, start.elapsed(), TIMES);
                assert!(!read || buffer.iter().all(|byte| *byte != 0) || *place == 0);
            }
            if !read && !write && round < MOST_PROCESS_ROUNDS {
                info.time(|| qemu::img(&[&"info", &"-f", &"qcow2", image]));
            }
        }
        table.row([
            name.to_owned(),
            told(&ours),
            told(&imago),
            told(&open),
            told(&info),
            over(&ours, &open),
            over(&ours, &imago),
        ]);
    }
    table.note(
        "Closing included. Raw is a file of 1 GiB. `qemu-img info` is all of a process. To hold: below 1× \
         imago in every row.",
    );
    table
}
