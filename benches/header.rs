//! Parsing and encoding the header of an overlay.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use qcow2_format::create::{BackingFile, BackingFormat};
use qcow2_format::{CreateOptions, Header};

/// As long as an overlay is.
const LENGTH: u64 = 256 << 10;

fn header(criterion: &mut Criterion) {
    let options = CreateOptions::new(50 << 30)
        .backing(BackingFile::new("/var/tmp/bases/v1/bases/disk.img", BackingFormat::Raw));
    let bytes = options.plan().expect("an overlay is planned").header().encode().expect("encoded");
    let header = Header::parse(&bytes, LENGTH).expect("what was encoded is parsed");

    let mut group = criterion.benchmark_group("header");
    group.bench_function("plan", |bencher| bencher.iter(|| black_box(&options).plan()));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| Header::parse(black_box(&bytes), LENGTH));
    });
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(&header).encode()));
    group.finish();
}

criterion_group!(benches, header);
criterion_main!(benches);
