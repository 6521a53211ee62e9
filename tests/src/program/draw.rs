//! Programs by chance, as proptest strategies: what fails shrinks to few calls on a plain image.
//!
//! ```text
//! shape ─┬─ size class: one table │ several L2 tables │ several refcount blocks, a growing refcount table
//! ops ───┴─ places near each other, so that calls meet
//! ```
//!
//! Callers: the suites of the image writer.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Backing, Durability, Op, Place, Program, Shape, Span, Unit};
use crate::model::Fill;

/// Programs of at most `most` operations for any image.
pub fn program(most: usize) -> impl Strategy<Value = Program> + use<> {
    programs_of(shape(), most)
}

/// Programs of at most `most` operations for images of these shapes.
pub fn programs_of(
    shapes: impl Strategy<Value = Shape>,
    most: usize,
) -> impl Strategy<Value = Program> {
    (shapes, ops(most)).prop_map(|(shape, ops)| Program { shape, ops })
}

/// How many clusters a disk has.
fn clusters(bits: u32, class: u32, number: u32) -> u64 {
    let most = match (class, bits) {
        (_, 19..) => 3,
        (0, _) => 6,
        (1, ..=12) => 300,
        // Over 64 refcount blocks of 64 refcounts of 64 bits: the refcount table has to grow.
        (2, 9) => 6000,
        (2, 10) => 3000,
        (_, ..=16) => 40,
        _ => 8,
    };
    let number = u64::from(number) % most;
    // Large classes are for large disks.
    if class == 2 && bits <= 10 { most - number / 2 } else { number + 1 }
}

/// Any image.
pub fn shape() -> impl Strategy<Value = Shape> + use<> {
    let format = (
        prop_oneof![5 => Just(3_u32), 1 => Just(2)],
        prop_oneof![2 => Just(9_u32), 2 => Just(12), 2 => Just(16), 4 => 9..=21_u32],
        prop_oneof![2 => Just(16_u32), 3 => (0..=6_u32).prop_map(|order| 1 << order)],
        (any::<bool>(), prop::bool::weighted(0.25), any::<bool>()),
    );
    let size = (
        prop_oneof![4 => Just(0_u32), 3 => Just(1), 1 => Just(2)],
        0..6000_u32,
        prop_oneof![Just(0_u32), 1..64_u32],
    );
    let files = (
        prop_oneof![
            2 => Just(None),
            3 => (any::<bool>(), 0..5_u64, 0..8_u64).prop_map(Some),
        ],
        prop_oneof![8 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))],
        prop::bool::weighted(0.15),
    );
    let writer = (
        prop_oneof![
            3 => Just(Durability::Flush),
            2 => Just(Durability::None),
            1 => Just(Durability::Full),
        ],
        prop_oneof![3 => Just(0_u32), 1 => Just(1), 1 => Just(2)],
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.4),
    );
    (format, size, files, writer).prop_map(|(format, size, files, writer)| {
        let (version, cluster_bits, refcount_bits, (extended_l2, lazy_refcounts, zstd)) = format;
        let (class, number, missing) = size;
        let cluster = 1 << cluster_bits;
        let whole = clusters(cluster_bits, class, number) * cluster;
        let disk = whole - (u64::from(missing) * 512) % cluster;
        let backing = files.0.map(|(qcow2, share, sectors)| Backing {
            qcow2,
            // Empty to one and a quarter of the disk, in sectors.
            length: (disk * share / 4 / 512 + sectors) * 512,
        });
        let shape = Shape {
            version,
            cluster_bits,
            refcount_bits,
            extended_l2,
            lazy_refcounts,
            zstd,
            disk,
            backing,
            data_file: files.1,
            preallocated: files.2,
            durability: writer.0,
            detect_zeroes: writer.1,
            ignore_discards: writer.2,
            small_caches: writer.3,
        };
        shape.possible()
    })
}

/// Programs of some operations more than `most` in which the refcount table has to grow: an image of
/// 2 MiB is all that one cluster of it counts.
pub fn growing(most: usize) -> impl Strategy<Value = Program> {
    let small = shape().prop_map(|mut shape| {
        (shape.version, shape.cluster_bits, shape.refcount_bits) = (3, 9, 64);
        (shape.extended_l2, shape.data_file, shape.preallocated) = (false, None, false);
        shape.disk = 2 << 20;
        if let Some(backing) = &mut shape.backing {
            backing.length = backing.length.min(3 << 20);
        }
        shape.possible()
    });
    (small, ops(most), ops(most), 0..4_u16).prop_map(|(shape, first, last, short)| {
        let fill = |cluster, eighths: u16| {
            let place = Place { cluster, inside: 0, unit: Unit::Cluster };
            Op::Write(place, Span { count: eighths - 1, unit: Unit::Disk }, Fill::Noise)
        };
        // Nearly full, and then full.
        let ends = [fill(0, 7), fill(7 * 512 - short * 100, 1)];
        let ops = [&first[..], &ends[..1], &[Op::Flush], &last[..], &ends[1..], &last[..]].concat();
        Program { shape, ops }
    })
}

/// At most `most` operations.
pub fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> + use<> {
    vec(op(), 1..=most)
}

fn op() -> impl Strategy<Value = Op> {
    let fill =
        || prop_oneof![3 => Just(Fill::Word), 2 => Just(Fill::Noise), 1 => Just(Fill::Zeros)];
    prop_oneof![
        10 => (place(), span(), fill()).prop_map(|(place, span, fill)| Op::Write(place, span, fill)),
        3 => (place(), span(), any::<bool>())
            .prop_map(|(place, span, unmap)| Op::Zero(place, span, unmap)),
        3 => (place(), span()).prop_map(|(place, span)| Op::Discard(place, span)),
        3 => (place(), span(), fill())
            .prop_map(|(place, span, fill)| Op::Compress(place, span, fill)),
        3 => Just(Op::Flush),
        1 => Just(Op::Close),
        1 => Just(Op::Drop),
        1 => Just(Op::Kill),
        1 => Just(Op::Snapshot),
        1 => Just(Op::Forget),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    let unit = prop_oneof![
        3 => Just(Unit::Cluster),
        2 => Just(Unit::Subcluster),
        2 => Just(Unit::Sector),
        1 => Just(Unit::Byte),
    ];
    // Few places, so that calls meet; and now and then any.
    let cluster = prop_oneof![4 => 0..6_u16, 1 => any::<u16>()];
    (cluster, any::<u16>(), unit).prop_map(|(cluster, inside, unit)| Place {
        cluster,
        inside,
        unit,
    })
}

fn span() -> impl Strategy<Value = Span> {
    let unit = prop_oneof![
        4 => Just(Unit::Cluster),
        3 => Just(Unit::Sector),
        3 => Just(Unit::Subcluster),
        1 => Just(Unit::Byte),
        1 => Just(Unit::Disk),
    ];
    (any::<u16>(), unit).prop_map(|(count, unit)| Span { count, unit })
}
