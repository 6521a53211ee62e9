//! Extracting a small image shaped like a real one, and decoding it alone.

use std::fs;

use benches::image::{self, Shape};
use benches::{extractions, scratch};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn extraction(criterion: &mut Criterion) {
    let scratch = scratch::folder(None);
    let archive = scratch.path().join("image.tar.zst");
    let map = image::pack(&Shape::SMALL, &archive).expect("the archive is packed");
    let disk = scratch.path().join(extractions::DISK);

    let mut group = criterion.benchmark_group("extraction");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(map.iter().map(|extent| extent.length).sum()));
    group.bench_function("disk-engine", |bencher| {
        bencher.iter_batched(
            || {
                let _ = fs::remove_file(&disk);
            },
            |()| extractions::ours(&archive, scratch.path()),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("decoding alone", |bencher| {
        bencher.iter(|| extractions::decoding_alone(&archive));
    });
    group.finish();
}

criterion_group!(benches, extraction);
criterion_main!(benches);
