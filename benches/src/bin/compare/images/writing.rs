//! Writing: in place, to new clusters, and to clusters that are in the backing file so far.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use benches::images::files::{self, Files, Kind};
use benches::images::qemu::{self, Doing};
use benches::images::walk::Walk;
use benches::images::{Disk, Imago, OursRead, OursWritten, Raw};
use benches::scratch;
use qcow2_format::image::Durability;

use super::{MOST_PROCESS_ROUNDS, add, bytes, over, rounds, told};
use crate::Setting;
use crate::samples::Samples;
use crate::table::Table;

const CLUSTER: usize = 64 << 10;
/// Requests whose outcome is looked at.
const CHECKED: u64 = 64;

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Clusters that are there.
    Allocated,
    /// An image without any.
    Empty,
    /// An image without any, over a raw file.
    Over,
}

struct Row {
    place: Place,
    walk: Walk,
    /// Whether all is to survive a power cut at the end.
    sync: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    OursNone,
    OursFlush,
    Imago,
    Raw,
    Qemu,
}

const CONTENDERS: [Contender; 5] =
    [Contender::OursNone, Contender::OursFlush, Contender::Imago, Contender::Raw, Contender::Qemu];

/// Where the images are that are written.
struct Targets<'a> {
    scratch: &'a Path,
    folder: &'a Path,
    files: &'a Files,
}

/// Measures all rows.
pub fn measure(setting: &Setting, files: &Files, folder: &Path) -> Table {
    let columns = [
        "",
        "disk-engine, none",
        "disk-engine, flush",
        "imago",
        "`pwrite`, raw",
        "`qemu-img bench`",
        "none over raw",
        "none over imago",
        "flush over imago",
    ];
    let mut table = Table::new("Writing an image, one request", &columns);
    let targets = Targets { scratch: setting.scratch, folder, files };
    targets.make_allocated();
    let rows = all_rows(files);
    for (number, row) in rows.iter().enumerate() {
        eprintln!("images: writing {} of {}, {}", number + 1, rows.len(), row.name());
        // Another byte in each row, so that what the last one wrote is not taken for this one's.
        let byte = u8::try_from(number * CONTENDERS.len() + 1).expect("there are few rows");
        let [none, flush, imago, raw, qemu] = &row.times(setting, &targets, byte);
        table.row([
            row.name(),
            told(none),
            told(flush),
            told(imago),
            told(raw),
            told(qemu),
            over(none, raw),
            over(none, imago),
            over(flush, imago),
        ]);
    }
    table.note(
        "To the page cache, after everything before was on the medium. With durability none there is a \
         whole image in the file after each request. With flush, new metadata stays in memory until a \
         flush, as with QEMU; imago's goes to the file once, at the end. Scattered and over a backing \
         file, a request copies the rest of its cluster; on raw it does not. To hold: new, in order, \
         1.3× raw at most; below 1× imago in every row.",
    );
    table.note(format!("{} rounds, {MOST_PROCESS_ROUNDS} of QEMU at most.", rounds(setting)));
    table
}

fn all_rows(files: &Files) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |place, scattered, block, count: u64, sync| {
        let size = if place == Place::Allocated { files.part } else { files.size };
        let count = count.min(size / block as u64);
        rows.push(Row { place, walk: Walk { scattered, size, block, count, threads: 1 }, sync });
    };
    for place in [Place::Allocated, Place::Empty] {
        // Scattered over new clusters, each takes one.
        let few = if place == Place::Empty { 4096 } else { 16384 };
        for (block, in_order, scattered) in
            [(4 << 10, 16384, few), (64 << 10, 1024, 1024), (1 << 20, 64, 64)]
        {
            add(place, false, block, in_order, false);
            add(place, true, block, scattered, false);
        }
    }
    add(Place::Over, false, 4 << 10, 8192, false);
    add(Place::Over, true, 4 << 10, 1024, false);
    add(Place::Empty, false, 64 << 10, 1024, true);
    add(Place::Over, true, 4 << 10, 1024, true);
    rows
}

impl Row {
    fn name(&self) -> String {
        let order = if self.walk.scattered { "scattered" } else { "in order" };
        let what = match self.place {
            Place::Allocated => "allocated",
            Place::Empty => "new",
            Place::Over => "over a backing file",
        };
        let sync = if self.sync { ", synced at the end" } else { "" };
        format!("{what}, {}, {order}{sync}", bytes(self.walk.block))
    }

    fn times(&self, setting: &Setting, targets: &Targets<'_>, byte: u8) -> [Samples; 5] {
        let mut times: [Samples; 5] = Default::default();
        // The round before the first one is checked.
        for round in 0..=rounds(setting) {
            for (index, contender) in (0_u8..).zip(CONTENDERS) {
                let late = contender == Contender::Qemu && round > MOST_PROCESS_ROUNDS;
                if late || self.sync && contender == Contender::OursNone {
                    continue;
                }
                let byte = byte + index;
                let path = targets.renew(self.place, contender);
                scratch::settle(targets.scratch);
                let samples = &mut times[usize::from(index)];
                self.run(targets, contender, &path, byte, samples);
                if round == 0 {
                    *samples = Samples::default();
                    self.check(targets, contender, &path, byte);
                }
                if self.place != Place::Allocated {
                    fs::remove_file(&path).expect("what was written can be removed");
                }
            }
        }
        times
    }

    fn run(
        &self,
        targets: &Targets<'_>,
        contender: Contender,
        path: &Path,
        byte: u8,
        samples: &mut Samples,
    ) {
        let backing = targets.backing(self.place);
        let ours = |durability| Box::new(OursWritten::open(path, backing.as_deref(), durability));
        let disk: Box<dyn Disk> = match contender {
            Contender::OursNone => ours(Durability::None),
            Contender::OursFlush => ours(Durability::Flush),
            Contender::Imago => Box::new(Imago::open(path, true)),
            Contender::Raw => Box::new(Raw::open(path, true)),
            Contender::Qemu => {
                let doing = if self.sync { Doing::WriteAndFlush(byte) } else { Doing::Write(byte) };
                return add(samples, qemu::bench(path, &self.walk, doing), self.walk.count);
            }
        };
        let start = Instant::now();
        self.walk.write(disk.as_ref(), byte);
        if self.sync {
            disk.sync();
        } else {
            disk.bring_down();
        }
        add(samples, start.elapsed(), self.walk.count);
    }

    /// Reads what was written with a library that did not write it.
    fn check(&self, targets: &Targets<'_>, contender: Contender, path: &Path, byte: u8) {
        let backing = targets.backing(self.place);
        let disk: Box<dyn Disk> = match contender {
            Contender::OursNone | Contender::OursFlush => Box::new(Imago::open(path, false)),
            Contender::Imago | Contender::Qemu => {
                Box::new(OursRead::open(path, backing.as_deref()))
            }
            Contender::Raw => Box::new(Raw::open(path, false)),
        };
        if contender != Contender::Raw {
            qemu::img(&[&"check", &"-q", &"-f", &"qcow2", &path]);
        }
        let written: HashSet<u64> = (0..self.walk.count).map(|it| self.walk.offset(it)).collect();
        let below = backing.filter(|_| contender != Contender::Raw);
        let below = below.map(|path| Raw::open(&path, false));
        let unit = CLUSTER.max(self.walk.block);
        let (mut found, mut wanted) = (vec![0; unit], vec![0; unit]);
        for index in 0..self.walk.count.min(CHECKED) {
            let offset = self.walk.offset(index);
            let start = offset - offset % unit as u64;
            disk.read(&mut found, start);
            wanted.fill(0);
            if let Some(below) = &below {
                below.read(&mut wanted, start);
            }
            let blocks = found.chunks(self.walk.block).zip(wanted.chunks_mut(self.walk.block));
            for (number, (found, wanted)) in (0_u64..).zip(blocks) {
                let place = start + number * self.walk.block as u64;
                if written.contains(&place) {
                    wanted.fill(byte);
                } else if self.place == Place::Allocated {
                    // Earlier rows were there.
                    continue;
                }
                assert!(found == wanted, "{contender:?}: wrong at {place}: {}", self.name());
            }
        }
    }
}

impl Targets<'_> {
    fn allocated(&self, contender: Contender) -> PathBuf {
        let raw = contender == Contender::Raw;
        self.folder.join(if raw { "written.raw" } else { "written.qcow2" })
    }

    fn make_allocated(&self) {
        let truth = self.files.truth(Kind::Zlib);
        let image = self.allocated(Contender::Qemu);
        fs::copy(&truth, self.allocated(Contender::Raw)).expect("a raw file is copied");
        qemu::img(&[&"convert", &"-f", &"raw", &"-O", &"qcow2", &truth, &image]);
    }

    /// What is written to next: a new file, unless clusters are to be there.
    fn renew(&self, place: Place, contender: Contender) -> PathBuf {
        if place == Place::Allocated {
            return self.allocated(contender);
        }
        let path = self.folder.join("new");
        if contender == Contender::Raw {
            let file = File::create_new(&path).expect("a new file is made");
            file.set_len(self.files.size).expect("it has a size");
        } else if let Some(backing) = self.backing(place) {
            files::overlay(&path, &backing);
        } else {
            files::empty(&path, self.files.size);
        }
        path
    }

    fn backing(&self, place: Place) -> Option<PathBuf> {
        (place == Place::Over).then(|| self.files.truth(Kind::Backed))
    }
}
