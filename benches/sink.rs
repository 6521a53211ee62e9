//! What comes after decoding: looking for zeros, checksums, writes. The disk is not compressed.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use benches::random::Random;
use benches::scratch;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use disk_engine::source::Source;
use disk_engine::transfer::{TransferOptions, extract_into};

const LENGTH: usize = 64 << 20;

fn sink(criterion: &mut Criterion) {
    let scratch = scratch::folder(None);
    let mut random = Random::new(1);
    let data = (0..LENGTH / 8).flat_map(|_| random.bits().to_ne_bytes()).collect::<Vec<_>>();
    // Every other block of 4 KiB: as many writes as there can be.
    let mut torn = data.clone();
    torn.chunks_mut(4096).skip(1).step_by(2).for_each(|block| block.fill(0));

    let mut group = criterion.benchmark_group("sink");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(LENGTH as u64));
    for (name, disk) in [("zeros", vec![0; LENGTH]), ("data", data), ("torn", torn)] {
        let disk: Arc<[u8]> = disk.into();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || tempfile::tempfile_in(scratch.path()).expect("a file can be made"),
                |file| {
                    let source = Source::reader(Cursor::new(Arc::clone(&disk)), "memory");
                    let options = TransferOptions::default();
                    extract_into(source, &file, Path::new("disk"), &options).expect("written");
                    file
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, sink);
criterion_main!(benches);
