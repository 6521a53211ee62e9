//! The machinery on targets that are right, and on some that are not.

use super::*;
use crate::program::{Durability, programs_of, shape};
use crate::random::Random;
use crate::recording::Replay;
use crate::sweep::Sweep;
use proptest::strategy::{Strategy, ValueTree};

fn programs(seed: u64, count: usize, durability: Durability) -> Vec<Program> {
    let small = shape().prop_map(move |mut shape| {
        shape.disk = shape.disk.min(1 << 20);
        shape.durability = durability;
        shape
    });
    let strategy = programs_of(small, 12);
    let mut random = Random(seed);
    let mut draw = || strategy.new_tree(&mut random.runner()).unwrap().current();
    (0..count).map(|_| draw()).collect()
}

/// Judges the states a crash may leave, at every event.
fn crash(history: &History, mut replay: Replay, random: &mut Random) -> Result<usize, String> {
    let (mut timeline, mut points) = (Timeline::new(history), 0);
    loop {
        let model = timeline.advance(replay.at());
        let killed = replay.killed().to_vec();
        let states = [Some(killed), replay.cut_short(random), Some(replay.power_loss(random))];
        for files in states.into_iter().flatten() {
            FlatTarget::judge(&files[0], model).map_err(|foreign| foreign.to_string())?;
            points += 1;
        }
        if !replay.advance() {
            return Ok(points);
        }
    }
}

#[test]
fn a_flat_file_is_right_at_every_point() {
    let (mut points, mut random) = (0, Random(2));
    for program in programs(1, 100, Durability::Flush) {
        let mut target = FlatTarget::new(&program.shape);
        let history = run(&program, &mut target, false).unwrap();
        points += crash(&history, target.recording.replay(), &mut random)
            .unwrap_or_else(|error| panic!("{program}{error}"));
    }
    assert!(points > 1000, "{points}");
}

/// A flat file with a fault of its own.
struct Broken {
    flat: FlatTarget,
    fault: Fault,
    written: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Flushes nothing.
    NoFlush,
    /// Writes every fifth change to another place, and moves it.
    Detour,
    /// Loses the last sector of long writes.
    Short,
}

impl Target for Broken {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        self.flat.read(buffer, offset)
    }

    fn call(&mut self, call: &Call, change: Option<&Change>, name: &str) -> Result<bool, Failure> {
        let is_write = matches!(call, Call::Write { .. });
        match (self.fault, change) {
            (Fault::NoFlush, None) => Ok(true),
            (Fault::Detour, Some(change)) if is_write && change.offset >= 512 => {
                let aside = Change::new(change.offset - 512, change.data.clone());
                let mut before = vec![0; aside.data.len()];
                self.flat.read(&mut before, aside.offset)?;
                self.flat.call(call, Some(&aside), name)?;
                self.flat.call(call, Some(&Change::new(aside.offset, before)), name)?;
                self.flat.call(call, Some(change), name)
            }
            (Fault::Short, Some(change)) if is_write && change.data.len() > 2048 => {
                self.written.push(change.clone());
                let data = &change.data[..change.data.len() - 512];
                self.flat.call(call, Some(&Change::new(change.offset, data)), name)
            }
            _ => self.flat.call(call, change, name),
        }
    }

    fn position(&self) -> usize {
        self.flat.position()
    }
}

#[test]
fn faults_are_noticed() {
    for fault in [Fault::NoFlush, Fault::Detour, Fault::Short] {
        let mut noticed = 0;
        for program in programs(3, 40, Durability::Flush) {
            let flat = FlatTarget::new(&program.shape);
            let mut target = Broken { flat, fault, written: Vec::new() };
            let result = run(&program, &mut target, false).and_then(|history| {
                crash(&history, target.flat.recording.replay(), &mut Random(1))
            });
            noticed += usize::from(result.is_err());
        }
        assert!(noticed > 3, "{fault:?} was noticed {noticed} times");
    }
}

#[test]
fn with_full_durability_every_call_is_kept() {
    // The flat file flushes at a flush only.
    let mut noticed = 0;
    for program in programs(4, 40, Durability::Full) {
        let mut target = FlatTarget::new(&program.shape);
        let history = run(&program, &mut target, false).unwrap();
        let result = crash(&history, target.recording.replay(), &mut Random(1));
        noticed += usize::from(result.is_err());
    }
    assert!(noticed > 20, "{noticed}");
}

#[test]
fn a_sweep_shrinks_a_program() {
    let sweep = Sweep::new("SHRINKING", 200, 60);
    let failed = std::panic::catch_unwind(|| {
        sweep.run(crate::program::program(20), |program, _| {
            let flat = FlatTarget::new(&program.shape);
            let mut target = Broken { flat, fault: Fault::Short, written: Vec::new() };
            run(program, &mut target, false).map(drop)
        })
    });
    let text = *failed.unwrap_err().downcast::<String>().unwrap();
    // The options, one call, the error.
    assert!(text.lines().count() <= 5, "{text}");
}
