//! Making an overlay, and the least that could be done instead.

use std::cell::Cell;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use benches::image::Shape;
use benches::{overlays, scratch};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use disk_engine::base::{BaseFormat, BaseImage};

fn overlay(criterion: &mut Criterion) {
    let scratch = scratch::folder(None);
    let base = scratch.path().join("base.img");
    let file = fs::File::create_new(&base).expect("the base can be made");
    file.set_len(Shape::REAL.virtual_size).expect("the base can be made");
    let base = BaseImage::open(&base, BaseFormat::Raw).expect("the base opens");

    let mut group = criterion.benchmark_group("overlay");
    let mut bench = |name: &str, make: &dyn Fn(&Path)| {
        let number = Cell::new(0);
        let path = || {
            number.set(number.get() + 1);
            Removed(scratch.path().join(format!("{name}-{}", number.get())))
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                path,
                |path| {
                    make(black_box(&path.0));
                    path
                },
                BatchSize::SmallInput,
            );
        });
    };
    bench("disk-engine", &|path| overlays::ours(&base, path));
    bench("bare", &overlays::bare);
    bench("imago", &|path| overlays::imago(&base, path));
    group.finish();
}

/// A file that is removed once it was timed.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

criterion_group!(benches, overlay);
criterion_main!(benches);
