//! Images against flat disks, over the whole option space.
//!
//! ```text
//! program ─▶ writer ─▶ image ─▶ closed ─┬▶ qemu-img check: clean, no leaks
//!     └────▶ model ─────────────────────┴▶ qemu-img compare, convert of each snapshot: equal
//! ```
//!
//! `MODEL_PROGRAMS` or `MODEL_CASES`, `MODEL_SECONDS`, `MODEL_SEED`: see `testkit::sweep`.

use std::cell::Cell;

use proptest::strategy::Strategy;
use qcow2_format::GuestOffset;
use qcow2_format::image::ZeroMode;
use testkit::checker::check;
use testkit::faulty::Faults;
use testkit::model::Fill::{Noise, Word};
use testkit::model::{differ, stamp};
use testkit::program::image::{ImageTarget, content, open};
use testkit::program::judge::{judge_raw_where_touched, judge_snapshots};
use testkit::program::{
    Backing, Call, Durability, Lab, Op, Place, Program, Shape, Span, Unit, program, run,
};
use testkit::sparse::{Sparse, SparseStorage};
use testkit::sweep::Sweep;
use testkit::tool;

#[test]
fn an_image_is_what_the_flat_disk_is() {
    if !tool::available("images against flat disks", &["qemu-img"]) {
        return;
    }
    let sweep = Sweep::new("MODEL", 400, 35);
    let (calls, snapshots) = (Cell::new(0), Cell::new(0));
    let programs = sweep.run(program(30), |program, _| {
        let lab = Lab::new(&program.shape);
        let (done, kept) = model(program, &lab, lab.create())?;
        calls.set(calls.get() + done);
        snapshots.set(snapshots.get() + kept);
        Ok(())
    });
    sweep.tell(&format!(
        "{programs} programs, {} calls; {programs} images checked and compared by qemu-img, and {} \
         snapshots",
        calls.get(),
        snapshots.get()
    ));
    assert!(programs > 0);
}

/// A crash between data and entry leaves a raw data file that holds more than the disk does: here it is
/// noise from end to end. Calls end that wherever they touch it.
#[test]
fn a_raw_data_file_at_odds_takes_the_disks_side() {
    if !tool::available("raw data files at odds with the disk", &["qemu-img"]) {
        return;
    }
    let sweep = Sweep::new("ODDS", 150, 15);
    let programs = program(12).prop_map(|Program { shape, ops }| {
        let shape = Shape { version: 3, backing: None, data_file: Some(true), ..shape };
        Program { shape: shape.possible(), ops }
    });
    let tried = sweep.run(programs, |program, _| {
        let lab = Lab::new(&program.shape);
        // Made with a raw data file, an image names all of it; it has to say zeros first.
        let storages: Vec<_> = lab.create().into_iter().map(SparseStorage::new).collect();
        let image = open(&program.shape, storages.iter().collect()).unwrap();
        image.write_zeroes(GuestOffset(0), program.shape.disk, ZeroMode::Keep).unwrap();
        image.close().unwrap();
        let mut files: Vec<_> = storages.iter().map(SparseStorage::snapshot).collect();
        files[1] = Sparse::new(&stamp(0x7000_0000, 0, program.shape.disk, Noise));
        model(program, &lab, files).map(|_| ())
    });
    sweep.tell(&format!("{tried} programs"));
    assert!(tried > 0);
}

/// How many calls there were, and snapshots. If the raw data file among `files` holds what the disk does
/// not, it may keep that where nothing touches it.
fn model(program: &Program, lab: &Lab, files: Vec<Sparse>) -> Result<(usize, usize), String> {
    let even = files
        .get(1)
        .is_none_or(|data| data.bytes(0, program.shape.disk as usize) == program.shape.content());
    let shape = &program.shape;
    let mut target = ImageTarget::new(lab, shape, files, Faults::default());
    let history = run(program, &mut target, false)?;
    target.close().map_err(|error| format!("close: {error}"))?;
    let files = target.recording.files();
    let findings = check(&files[0])?;
    let clean = (findings.sound(), findings.leaks, findings.dirty) == (Ok(()), 0, false);
    // A killed writer may leave clusters that are counted and not used, and nothing else.
    let killed = history.steps.iter().any(|step| step.call == Call::Kill);
    let by_a_kill = killed && !findings.dirty && findings.sound().is_ok();
    if !clean && !by_a_kill {
        return Err(format!("closed: {findings:?}"));
    }
    let disk = content(&files, &shape.base(), None).map_err(|error| format!("closed: {error}"))?;
    history.model.compare(&disk, 0).map_err(|foreign| format!("closed: {foreign}"))?;
    judge_snapshots(&history, &shape.base(), &files, usize::MAX - 1)?;
    lab.store(&files);
    if findings.leaks == 0 {
        lab.clean()?
    } else {
        lab.sound(false)?
    }
    lab.holds(history.model.now())?;
    let mut kept = 0;
    for snapshot in history.kept.iter().filter(|kept| kept.events.end == usize::MAX) {
        let found = lab.converted(Some(&snapshot.name))?;
        differ(&found, &snapshot.content, 0)
            .map_err(|foreign| format!("QEMU, snapshot {}: {foreign}", snapshot.name))?;
        kept += 1;
    }
    // A killed writer may leave old data on the disk and new data in the raw file, or the other way
    // round: two files do not change at once.
    judge_raw_where_touched(shape, &history, &files)?;
    if shape.data_file == Some(true) && even && !killed {
        let raw = files[1].bytes(0, history.model.now().len());
        history.model.compare(&raw, 0).map_err(|foreign| format!("raw data file: {foreign}"))?;
    }
    Ok((history.steps.len(), kept))
}

/// Programs that once went wrong.
#[test]
fn what_was_found_stays_found() {
    if !tool::available("images that once went wrong", &["qemu-img"]) {
        return;
    }
    let at = |cluster| Place { cluster, inside: 0, unit: Unit::Cluster };
    let clusters = |count: u16| Span { count: count - 1, unit: Unit::Cluster };
    let plain = Shape {
        version: 3,
        cluster_bits: 12,
        refcount_bits: 16,
        extended_l2: false,
        lazy_refcounts: false,
        zstd: false,
        disk: 64 << 10,
        backing: None,
        data_file: None,
        preallocated: false,
        durability: Durability::Flush,
        detect_zeroes: 0,
        ignore_discards: false,
        small_caches: false,
    };
    // The encoder panicked at the sixteenth cluster that did not become smaller.
    let noise = vec![Op::Compress(at(0), Span { count: 7, unit: Unit::Disk }, Noise)];
    // What the second call wanted punched was punched at the end, with the third one's data.
    let again = vec![
        Op::Write(at(0), clusters(3), Word),
        Op::Zero(at(0), clusters(3), true),
        Op::Write(at(1), clusters(1), Word),
    ];
    let external = Shape { data_file: Some(false), ..plain.clone() };
    for (shape, ops) in [(plain, noise), (external, again)] {
        let program = Program { shape, ops };
        let lab = Lab::new(&program.shape);
        model(&program, &lab, lab.create()).unwrap_or_else(|error| panic!("{program}{error}"));
    }
}

/// Each cluster size with each refcount width, on both kinds of L2 tables and each kind of backing
/// file: chance alone may leave some out.
#[test]
fn every_geometry_is_tried() {
    if !tool::available("images of every geometry", &["qemu-img"]) {
        return;
    }
    let place = |cluster, inside| Place { cluster, inside, unit: Unit::Sector };
    let span = |count, unit| Span { count, unit };
    let ops = vec![
        Op::Write(place(0, 20_000), span(2, Unit::Sector), Word),
        Op::Compress(place(1, 0), span(1, Unit::Cluster), Word),
        Op::Write(place(1, 30_000), span(0, Unit::Cluster), Noise),
        Op::Snapshot,
        Op::Write(place(0, 0), span(1, Unit::Cluster), Word),
        Op::Zero(place(1, 10_000), span(0, Unit::Cluster), true),
        Op::Flush,
        Op::Discard(place(2, 0), span(0, Unit::Cluster)),
        Op::Kill,
        Op::Zero(place(2, 700), span(9, Unit::Sector), false),
        Op::Compress(place(0, 0), span(0, Unit::Cluster), Noise),
        Op::Forget,
        Op::Write(place(2, 50_000), span(30, Unit::Sector), Word),
    ];
    let sweep = Sweep::new("GEOMETRY", 1, 1);
    let mut tried = 0;
    for cluster_bits in 9..=21_u32 {
        for order in 0..=6_u32 {
            for extended_l2 in [false, true] {
                if extended_l2 && cluster_bits < 14 {
                    continue;
                }
                let turn = cluster_bits + order;
                let disk = (3 << cluster_bits) - 512 * u64::from(turn % 2);
                let shape = Shape {
                    version: 3,
                    cluster_bits,
                    refcount_bits: 1 << order,
                    extended_l2,
                    lazy_refcounts: turn % 5 == 0,
                    zstd: turn % 3 == 0,
                    disk,
                    backing: (turn % 4 > 0).then_some(Backing {
                        qcow2: turn % 8 == 1,
                        length: [disk, disk / 1024 * 512, disk + 4096][turn as usize % 3],
                    }),
                    data_file: None,
                    preallocated: false,
                    durability: Durability::Flush,
                    detect_zeroes: 0,
                    ignore_discards: false,
                    small_caches: turn % 2 == 0,
                };
                let program = Program { shape: shape.possible(), ops: ops.clone() };
                let lab = Lab::new(&program.shape);
                model(&program, &lab, lab.create())
                    .unwrap_or_else(|error| panic!("{program}{error}"));
                tried += 1;
            }
        }
    }
    sweep.tell(&format!("{tried} geometries"));
}
