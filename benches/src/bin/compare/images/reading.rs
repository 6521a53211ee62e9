//! Reading: clusters as they are, from a backing file, and compressed.

use std::time::Instant;

use benches::images::files::{Files, Kind};
use benches::images::qemu::{self, Doing};
use benches::images::walk::Walk;
use benches::images::{Disk, Imago, OursRead, OursWritten, Raw};
use qcow2_format::image::Durability;

use super::{MOST_PROCESS_ROUNDS, add, bytes, over, rounds, told};
use crate::Setting;
use crate::samples::Samples;
use crate::table::Table;

/// What is read, and how.
struct Row {
    kind: Kind,
    walk: Walk,
    /// Whether our image is open for writing.
    writable: bool,
}

/// Everybody's times.
#[derive(Default)]
struct Times {
    ours: Samples,
    imago: Samples,
    raw: Samples,
    qemu: Samples,
}

/// Measures all rows.
pub fn measure(setting: &Setting, files: &Files) -> Table {
    let columns =
        ["", "disk-engine", "imago", "`pread`, raw", "`qemu-img bench`", "over raw", "over imago"];
    let mut table = Table::new("Reading an image, one request", &columns);
    let rows = all_rows(files);
    for (number, row) in rows.iter().enumerate() {
        eprintln!("images: reading {} of {}, {}", number + 1, rows.len(), row.name());
        let times = row.times(setting, files);
        table.row([
            row.name(),
            told(&times.ours),
            told(&times.imago),
            told(&times.raw),
            told(&times.qemu),
            over(&times.ours, &times.raw),
            over(&times.ours, &times.imago),
        ]);
    }
    table.note(
        "From the page cache; images newly open, but for clusters that repeat, which were read once \
         before. Scattered: in large steps, each place once. Raw is the same disk in a raw file. \
         imago knows no zstd. `qemu-img bench` is a process, which tells the time of its requests; \
         where others have threads, it has as many requests under way. To hold: allocated clusters \
         1.1× raw at most; compressed ones that repeat 1/10 of imago at most; below 1× imago in \
         every row.",
    );
    table.note(format!("{} rounds, {MOST_PROCESS_ROUNDS} of QEMU at most.", rounds(setting)));
    table
}

fn all_rows(files: &Files) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |kind, scattered, block, threads, count: u64, writable| {
        let size = files.size_of(kind);
        // What repeats may come more than once.
        let hot = matches!(kind, Kind::HotZlib | Kind::HotZstd);
        let count = if hot { count } else { count.min(size / block as u64) };
        let walk = Walk { scattered, size, block, count, threads };
        rows.push(Row { kind, walk, writable });
    };
    for kind in [Kind::Allocated, Kind::Backed, Kind::Zlib, Kind::Zstd] {
        let compressed = matches!(kind, Kind::Zlib | Kind::Zstd);
        for (block, plain, packed) in
            [(4 << 10, 16384, 512), (64 << 10, 4096, 512), (1 << 20, 256, 32)]
        {
            let count = if compressed { packed } else { plain };
            add(kind, false, block, 1, count, false);
            add(kind, true, block, 1, count, false);
            add(kind, true, block, 4, count, false);
        }
    }
    for threads in [1, 4] {
        add(Kind::Allocated, true, 4 << 10, threads, 16384, true);
    }
    for kind in [Kind::HotZlib, Kind::HotZstd] {
        for (block, threads) in [(4 << 10, 1), (4 << 10, 4), (64 << 10, 1)] {
            add(kind, true, block, threads, 1024, false);
        }
    }
    rows
}

impl Row {
    fn name(&self) -> String {
        let order = if self.walk.scattered { "scattered" } else { "in order" };
        let what = match self.kind {
            Kind::Allocated => "allocated",
            Kind::Backed => "from the backing file",
            Kind::Zlib => "zlib",
            Kind::Zstd => "zstd",
            Kind::HotZlib => "zlib, repeating",
            Kind::HotZstd => "zstd, repeating",
        };
        let threads = if self.walk.threads > 1 { ", 4 threads" } else { "" };
        let open = if self.writable { ", open for writing" } else { "" };
        format!("{what}, {}, {order}{threads}{open}", bytes(self.walk.block))
    }

    fn times(&self, setting: &Setting, files: &Files) -> Times {
        let mut times = Times::default();
        let raw = || Raw::open(&files.truth(self.kind), false);
        self.walk.check(self.ours(files).as_ref(), &raw());
        if let Some(imago) = self.imago(files) {
            self.walk.check(&imago, &raw());
        }
        for round in 0..rounds(setting) {
            self.round(self.ours(files).as_ref(), &mut times.ours);
            if let Some(imago) = self.imago(files) {
                self.round(&imago, &mut times.imago);
            }
            self.round(&raw(), &mut times.raw);
            if round < MOST_PROCESS_ROUNDS {
                let time = qemu::bench(&files.image(self.kind), &self.walk, Doing::Read);
                add(&mut times.qemu, time, self.walk.count);
            }
        }
        times
    }

    fn ours(&self, files: &Files) -> Box<dyn Disk> {
        let path = files.image(self.kind);
        let truth = files.truth(self.kind);
        let backing = (self.kind == Kind::Backed).then_some(truth.as_path());
        if self.writable {
            Box::new(OursWritten::open(&path, backing, Durability::None))
        } else {
            Box::new(OursRead::open(&path, backing))
        }
    }

    /// imago's image, if it opens such.
    fn imago(&self, files: &Files) -> Option<Imago> {
        let zstd = matches!(self.kind, Kind::Zstd | Kind::HotZstd);
        (!zstd).then(|| Imago::open(&files.image(self.kind), false))
    }

    fn round(&self, disk: &dyn Disk, samples: &mut Samples) {
        if matches!(self.kind, Kind::HotZlib | Kind::HotZstd) {
            self.walk.read(disk);
        }
        let start = Instant::now();
        self.walk.read(disk);
        add(samples, start.elapsed(), self.walk.count);
    }
}
