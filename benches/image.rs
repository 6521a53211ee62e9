//! Reading and writing an image: ours, imago, and a raw file.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use benches::images::files::{self, Files, Kind};
use benches::images::walk::Walk;
use benches::images::{Disk, Imago, OursRead, OursWritten, Raw};
use benches::scratch;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use qcow2_format::image::Durability;

const SIZE: u64 = 256 << 20;
/// Requests that are timed together.
const COUNT: u64 = 256;

fn read(criterion: &mut Criterion) {
    let scratch = scratch::folder(None);
    let files = Files::make(scratch.path(), SIZE);
    let (image, raw) = (files.image(Kind::Allocated), files.truth(Kind::Allocated));
    let walk = Walk { scattered: true, size: SIZE, block: 4 << 10, count: COUNT, threads: 1 };

    let mut group = criterion.benchmark_group("image/256 reads of 4 KiB, scattered");
    group.throughput(Throughput::Bytes(COUNT * walk.block as u64));
    let mut bench = |name: &str, disk: &dyn Disk| {
        group.bench_function(name, |bencher| bencher.iter(|| walk.read(disk)));
    };
    bench("disk-engine", &OursRead::open(&image, None));
    bench("disk-engine, open for writing", &OursWritten::open(&image, None, Durability::None));
    bench("imago", &Imago::open(&image, false));
    bench("raw", &Raw::open(&raw, false));
    group.finish();
}

fn write(criterion: &mut Criterion) {
    let scratch = scratch::folder(None);
    let empty = scratch.path().join("empty.qcow2");
    files::empty(&empty, SIZE);
    let walk = Walk { scattered: false, size: SIZE, block: 64 << 10, count: COUNT, threads: 1 };

    let mut group = criterion.benchmark_group("image/256 allocating writes of 64 KiB");
    group.throughput(Throughput::Bytes(COUNT * walk.block as u64));
    let mut bench = |name: &str, open: &dyn Fn(&Path) -> Box<dyn Disk>| {
        let number = Cell::new(0);
        let fresh = || {
            number.set(number.get() + 1);
            let path = scratch.path().join(number.get().to_string());
            if name == "raw" {
                let file = File::create_new(&path).expect("a new file is made");
                file.set_len(SIZE).expect("it has a size");
            } else {
                fs::copy(&empty, &path).expect("the empty image is copied");
            }
            (open(&path), Removed(path))
        };
        group.bench_function(name, |bencher| {
            let write = |(disk, path): (Box<dyn Disk>, Removed)| {
                walk.write(disk.as_ref(), 1);
                disk.bring_down();
                (disk, path)
            };
            bencher.iter_batched(fresh, write, BatchSize::PerIteration);
        });
    };
    bench("disk-engine, durability none", &|path| {
        Box::new(OursWritten::open(path, None, Durability::None))
    });
    bench("imago", &|path| Box::new(Imago::open(path, true)));
    bench("raw", &|path| Box::new(Raw::open(path, true)));
    group.finish();
}

/// A file that is removed once it was timed.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

criterion_group!(benches, read, write);
criterion_main!(benches);
