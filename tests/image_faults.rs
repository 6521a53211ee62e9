//! Storage that fails at any call of an image's writer.
//!
//! ```text
//! program, undisturbed ─▶ its calls of the storage
//! program again, one call (or all from there on) struck: EIO · ENOSPC · half done and ENOSPC · short reads
//!   ├▶ whoever called is told; a failed flush is told ever after
//!   ├▶ what is read is old or new, and right where nothing failed; later calls work or fail
//!   └▶ the files then, and at the end: no corruption, each sector old or new
//! ```
//!
//! `FAULTS_PROGRAMS`, `FAULTS_SECONDS`, `FAULTS_SEED`: see `testkit::sweep`. `FAULTS_POINTS` is how many
//! calls of a program are struck (40), `all` for all. `MOVES_…` are the same for programs that make the
//! refcount table move.

use std::cell::Cell;

use nix::errno::Errno;
use proptest::strategy::Strategy;
use testkit::faulty::{Fault, Faults, Kind, Plan};
use testkit::model::Fill;
use testkit::program::image::ImageTarget;
use testkit::program::judge::{go_on, judge, judge_raw_where_touched, judge_snapshots};
use testkit::program::{
    Backing, Durability, Lab, Op, Place, Program, Shape, Span, Timeline, Unit, growing, program,
    run,
};
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool;

#[derive(Default)]
struct Counts {
    faults: Cell<usize>,
    failed: Cell<usize>,
    unnoticed: Cell<usize>,
    checks: Cell<usize>,
}

fn add(cell: &Cell<usize>, more: usize) {
    cell.set(cell.get() + more);
}

#[test]
fn a_fault_is_told_and_harms_nothing() {
    if !tool::available("images on failing storage", &["qemu-img"]) {
        return;
    }
    let points = match std::env::var("FAULTS_POINTS").as_deref() {
        Err(_) => 40,
        Ok("all") => usize::MAX,
        Ok(text) => text.parse().unwrap(),
    };
    strike(&Sweep::new("FAULTS", 400, 35), program(12), |calls, random| {
        if points >= calls.len() {
            return (0..calls.len()).collect();
        }
        (0..points).map(|_| random.below(calls.len())).collect()
    });
}

/// Tables that move are rare: what is struck lies around the moment at which the header says so.
#[test]
fn a_fault_while_the_refcount_table_moves_harms_nothing() {
    if !tool::available("refcount tables on failing storage", &["qemu-img"]) {
        return;
    }
    strike(&Sweep::new("MOVES", 40, 20), growing(2), |calls, _| {
        let moves = |call: &(Kind, u64)| call.0 == Kind::Write && (24..72).contains(&call.1);
        let near = |at: usize| at.saturating_sub(20)..(at + 8).min(calls.len());
        calls.iter().position(moves).map_or(0..0, near).collect()
    });
}

/// A short program for which nothing is left to chance: each call fails in each way.
#[test]
fn every_call_may_fail() {
    if !tool::available("images on storage that fails everywhere", &["qemu-img"]) {
        return;
    }
    let at = |cluster| Place { cluster, inside: 0, unit: Unit::Cluster };
    let clusters = |count: u16| Span { count: count - 1, unit: Unit::Cluster };
    // 64 clusters to a refcount block: there is a second one, and a second L2 table.
    let ops = vec![
        Op::Write(at(0), Span { count: 5, unit: Unit::Disk }, Fill::Word),
        // In place: what the call before could not write has to be in the file as well.
        Op::Write(at(1), clusters(1), Fill::Word),
        Op::Snapshot,
        Op::Compress(at(2), clusters(3), Fill::Word),
        Op::Write(at(3), clusters(2), Fill::Noise),
        Op::Flush,
        Op::Zero(at(1), clusters(4), true),
        Op::Discard(at(8), clusters(8)),
        Op::Close,
        Op::Write(at(70), clusters(3), Fill::Word),
    ];
    let counts = Counts::default();
    let mut runs = 0;
    for (durability, lazy_refcounts) in
        [(Durability::None, true), (Durability::Flush, false), (Durability::Full, false)]
    {
        let shape = Shape {
            version: 3,
            cluster_bits: 9,
            refcount_bits: 64,
            extended_l2: false,
            lazy_refcounts,
            zstd: false,
            disk: 48 << 10,
            backing: Some(Backing { qcow2: false, length: 20_480 }),
            data_file: None,
            preallocated: false,
            durability,
            detect_zeroes: 0,
            ignore_discards: false,
            small_caches: lazy_refcounts,
        };
        let program = Program { shape, ops: ops.clone() };
        let lab = Lab::new(&program.shape);
        let files = lab.create();
        let faults = Faults::default();
        let mut target = ImageTarget::new(&lab, &program.shape, files.clone(), faults.clone());
        run(&program, &mut target, false).unwrap();
        target.close().unwrap();
        for (first, (kind, at)) in faults.calls().into_iter().enumerate() {
            let other = if kind == Kind::Read { Fault::Little } else { Fault::Half(Errno::ENOSPC) };
            for fault in [Fault::Error(Errno::EIO), other] {
                let plan = Plan { first, count: 1, only: None, fault };
                struck(&program, &lab, files.clone(), plan, false, &counts).unwrap_or_else(
                    |error| {
                        panic!("{program}{kind:?} of {at:#x} at call {first}, {fault:?}: {error}")
                    },
                );
                runs += 1;
            }
        }
    }
    tool::tell(&format!("faults suite: {runs} runs of one program, each with another fault"));
}

fn strike(
    sweep: &Sweep,
    programs: impl Strategy<Value = Program>,
    choose: impl Fn(&[(Kind, u64)], &mut Random) -> Vec<usize>,
) {
    let counts = Counts::default();
    let programs = sweep.run(programs, |program, random| {
        let lab = Lab::new(&program.shape);
        let files = lab.create();
        let faults = Faults::default();
        let mut target = ImageTarget::new(&lab, &program.shape, files.clone(), faults.clone());
        run(program, &mut target, false)?;
        target.close().map_err(|error| format!("close: {error}"))?;
        let calls = faults.calls();
        for first in choose(&calls, random) {
            let plan = draw(first, calls[first].0, random);
            let look = random.once_in(15);
            struck(program, &lab, files.clone(), plan, look, &counts).map_err(|error| {
                format!("{:?} at call {first}, {plan:?}: {error}", calls[first])
            })?;
        }
        Ok(())
    });
    let Counts { faults, failed, unnoticed, checks } = &counts;
    sweep.tell(&format!(
        "{programs} programs, {} runs with a fault, {} calls failed, {} faults nobody had to notice, {} \
         images checked by qemu-img",
        faults.get(),
        failed.get(),
        unnoticed.get(),
        checks.get()
    ));
    assert!(programs > 0 && failed.get() > 0 && faults.get() > 0);
}

fn draw(first: usize, kind: Kind, random: &mut Random) -> Plan {
    let fault = match (kind, random.below(4)) {
        (Kind::Read, 0 | 1) => Fault::Little,
        (Kind::Read | Kind::Length | Kind::Flush, _) => Fault::Error(Errno::EIO),
        (_, 0) => Fault::Error(Errno::EIO),
        (_, 1) => Fault::Error(Errno::ENOSPC),
        (_, _) => Fault::Half(Errno::ENOSPC),
    };
    let (count, only) = match random.below(4) {
        0 => (3, None),
        // A full disk stays full, and can still be read and flushed.
        1 if fault != Fault::Error(Errno::EIO) => (usize::MAX, Some(kind)),
        _ => (1, None),
    };
    Plan { first, count, only, fault }
}

fn struck(
    program: &Program,
    lab: &Lab,
    files: Vec<testkit::sparse::Sparse>,
    plan: Plan,
    look: bool,
    counts: &Counts,
) -> Result<(), String> {
    let shape = &program.shape;
    let base = shape.base();
    let faults = Faults::new(Some(plan));
    let mut target = ImageTarget::new(lab, shape, files, faults.clone());
    let history = run(program, &mut target, true)?;
    faults.suspend(true);
    if let Some(swallowed) = &target.swallowed {
        return Err(swallowed.clone());
    }
    let failed = history.steps.iter().filter(|step| step.failed.is_some()).count();
    if plan.fault == Fault::Little && failed > 0 {
        return Err("a short or interrupted read made a call fail".to_owned());
    }
    add(&counts.faults, 1);
    add(&counts.failed, failed);
    add(&counts.unnoticed, usize::from(failed == 0));

    // Every state from the first failure on, as a kill leaves it.
    let Some(first) = history.steps.iter().position(|step| step.failed.is_some()) else {
        return Ok(());
    };
    let start = history.steps[first].events.start;
    let mut timeline = Timeline::new(&history);
    let mut replay = target.recording.replay();
    loop {
        let at = replay.at();
        let model = timeline.advance(at);
        let ends = history.steps[first..].iter().any(|step| step.events.end == at);
        if at >= start && (ends || at == start) {
            judge(&base, replay.killed(), model)
                .map_err(|error| format!("after event {at}: {error}"))?;
        }
        if !replay.advance() {
            break;
        }
    }

    // The end, closed as well as may be.
    let closed = target.close();
    let files = target.recording.files();
    let findings = judge(&base, &files, &history.model)
        .map_err(|error| format!("in the end ({closed:?}): {error}"))?;
    judge_snapshots(&history, &base, &files, usize::MAX - 1)?;
    if closed.is_ok() {
        judge_raw_where_touched(shape, &history, &files)?;
    }
    go_on(program, &base, &files).map_err(|error| format!("in the end ({closed:?}): {error}"))?;
    if look {
        add(&counts.checks, 1);
        lab.store(&files);
        lab.sound(findings.dirty)?;
    }
    Ok(())
}
