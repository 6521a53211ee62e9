//! Images at every point at which a crash may leave them.
//!
//! ```text
//! program ─▶ writer ─▶ Recording ─▶ for each event:
//!     kill          all events so far, and with part of the next one
//!     power cut     what was flushed, and any part of the rest, torn at sectors (not where
//!                   nothing is ever flushed)
//!   └▶ at each of these   the image is sound, opens, each sector is old or new, snapshots are whole
//!   └▶ at some            a writer opens it, goes on, closes it: sound, and no new leaks
//!   └▶ at some            qemu-img check: no corruption; QEMU reads what we read
//! ```
//!
//! Short programs are stopped after every event, with every subset where few events are unflushed;
//! long ones at as many as are worth the time. QEMU looks at points right after a write of metadata
//! first.
//!
//! `CRASH_PROGRAMS`, `CRASH_SECONDS`, `CRASH_SEED`: see `testkit::sweep`. `CRASH_CHECKS` is at how many
//! points of a program QEMU looks (1). `GROWTH_…` are the same for programs that make the refcount
//! table move.

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::strategy::Strategy;
use testkit::faulty::Faults;
use testkit::model::Model;
use testkit::program::image::{ImageTarget, content};
use testkit::program::judge::{go_on, judge, judge_raw, judge_snapshots};
use testkit::program::{Durability, History, Lab, Program, Timeline, growing, program, run};
use testkit::random::Random;
use testkit::recording::{Action, Event, Replay};
use testkit::sparse::Sparse;
use testkit::sweep::Sweep;
use testkit::tool;

/// States of one program that are looked at, about.
const STATES: usize = 1500;
/// Bytes of disk that are read for one program, about.
const BYTES: u64 = 128 << 20;

/// What was tried.
#[derive(Default)]
struct Counts {
    events: Cell<usize>,
    kills: Cell<usize>,
    cuts: Cell<usize>,
    writers: Cell<usize>,
    checks: Cell<usize>,
    dirty: Cell<usize>,
    leaking: Cell<usize>,
    snapshots: Cell<usize>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

#[test]
fn an_image_is_whole_wherever_its_writer_stops() {
    if tool::available("images at crash points", &["qemu-img"]) {
        crash(&Sweep::new("CRASH", 400, 35), program(12));
    }
}

/// Tables that move are rare, and each way to get them wrong is fatal.
#[test]
fn a_refcount_table_moves_at_one_instant() {
    if tool::available("refcount tables at crash points", &["qemu-img"]) {
        crash(&Sweep::new("GROWTH", 40, 20), growing(4));
    }
}

fn crash(sweep: &Sweep, programs: impl Strategy<Value = Program>) {
    let checks = std::env::var("CRASH_CHECKS").map_or(1, |text| text.parse().unwrap());
    let counts = Counts::default();
    let programs = sweep.run(programs, |program, random| {
        let lab = Lab::new(&program.shape);
        let mut target = ImageTarget::new(&lab, &program.shape, lab.create(), Faults::default());
        let history = run(program, &mut target, false)?;
        target.close().map_err(|error| format!("close: {error}"))?;
        let replay = target.recording.replay();
        counts.events.set(counts.events.get() + replay.events().len());
        let base = program.shape.base();
        let crash = Crash { program, base, lab: &lab, history: &history, counts: &counts };
        crash.everywhere(replay, checks, random)
    });
    let Counts { events, kills, cuts, writers, checks, dirty, leaking, snapshots } = &counts;
    sweep.tell(&format!(
        "{programs} programs, {} events; {} kills and {} power cuts judged ({} dirty, {} leaking), \
         {} snapshots read, {} recovered and written on, {} checked by qemu-img",
        events.get(),
        kills.get(),
        cuts.get(),
        dirty.get(),
        leaking.get(),
        snapshots.get(),
        writers.get(),
        checks.get()
    ));
    assert!(programs > 0 && cuts.get() > 0 && writers.get() > 0);
}

struct Crash<'a> {
    program: &'a Program,
    base: Vec<u8>,
    lab: &'a Lab,
    history: &'a History,
    counts: &'a Counts,
}

impl Crash<'_> {
    fn everywhere(
        &self,
        mut replay: Replay,
        checks: usize,
        random: &mut Random,
    ) -> Result<(), String> {
        let shape = &self.program.shape;
        let total = replay.events().len();
        let states = STATES.min(usize::try_from(BYTES / shape.disk.max(1)).unwrap()).max(20);
        // Each event has about eight states.
        let one_in = (total * 8).div_ceil(states).max(1);
        let metadata = metadata_events(&replay);
        let near_header = near_header(&replay);
        let looks: Vec<usize> = (0..checks.min(metadata.len()))
            .map(|_| metadata[random.below(metadata.len())])
            .collect();
        let mut timeline = Timeline::new(self.history);
        loop {
            let (at, model) = (replay.at(), timeline.advance(replay.at()));
            let look = looks.contains(&at);
            if look || at == total || near_header.contains(&at) || random.once_in(one_in) {
                self.at(&replay, model, look, random).map_err(|error| {
                    format!("after event {at} of {total}{}: {error}", told(&replay))
                })?;
            }
            if !replay.advance() {
                return Ok(());
            }
        }
    }

    fn at(
        &self,
        replay: &Replay,
        model: &Model,
        look: bool,
        random: &mut Random,
    ) -> Result<(), String> {
        let at = replay.at();
        let state = |files: &[Sparse], what: &str, look: bool, random: &mut Random| {
            self.state(files, model, at, look, random).map_err(|error| format!("{what}: {error}"))
        };
        count(&self.counts.kills);
        state(replay.killed(), "killed", look, random)?;
        if let Some(files) = replay.cut_short(random) {
            count(&self.counts.kills);
            state(&files, "killed in the next event", false, random)?;
        }
        if self.program.shape.durability == Durability::None {
            return Ok(());
        }
        let unflushed = replay.unflushed();
        if unflushed <= 4 {
            for mask in 0..1 << unflushed {
                count(&self.counts.cuts);
                let what = format!("power cut, of {unflushed} events kept {mask:#b}");
                state(&replay.power_loss_keeping(mask), &what, look && mask == 0, random)?;
            }
        }
        for number in 0..if unflushed > 0 { 5 } else { 0 } {
            count(&self.counts.cuts);
            let what = format!("power cut, part of {unflushed} events kept");
            state(&replay.power_loss(random), &what, look && number == 0, random)?;
        }
        Ok(())
    }

    /// Looks at one state.
    fn state(
        &self,
        files: &[Sparse],
        model: &Model,
        at: usize,
        look: bool,
        random: &mut Random,
    ) -> Result<(), String> {
        let Self { program, base, lab, history, counts } = self;
        let findings = judge(base, files, model)?;
        if at <= history.smooth() {
            judge_raw(&program.shape, files, model)?;
        }
        counts.dirty.set(counts.dirty.get() + usize::from(findings.dirty));
        counts.leaking.set(counts.leaking.get() + usize::from(findings.leaks > 0));
        if history.kept.iter().any(|kept| kept.events.contains(&at)) && random.once_in(4) {
            count(&counts.snapshots);
            judge_snapshots(history, base, files, at)?;
        }
        if look || random.once_in(12) {
            count(&counts.writers);
            let after = go_on(program, base, files)?;
            judge_snapshots(history, base, &after, at)?;
            if look {
                count(&counts.checks);
                lab.store(&after);
                lab.sound(false).map_err(|error| format!("having gone on: {error}"))?;
            }
        }
        if look {
            count(&counts.checks);
            lab.store(files);
            lab.sound(findings.dirty)?;
            let disk = content(files, base, None).map_err(|error| error.to_string())?;
            lab.holds(&disk)?;
        }
        Ok(())
    }
}

/// Numbers of events right after which metadata is new: writes that hold no stamped data.
fn metadata_events(replay: &Replay) -> Vec<usize> {
    let is_metadata = |action: &Action| match action {
        Action::Write(_, data) => data.first().is_none_or(|byte| *byte != 0x80) || data.len() < 512,
        Action::SetLength(_) => true,
        _ => false,
    };
    let events = replay.events().iter().enumerate();
    let after = events.filter(|(_, event)| is_metadata(&event.action));
    after.map(|(number, _)| number + 1).collect()
}

/// Points around writes of the header, as far as that says where tables are: they are rare.
fn near_header(replay: &Replay) -> BTreeSet<usize> {
    let is_header = |event: &Event| {
        let Action::Write(offset, _) = &event.action else { return false };
        event.file == 0 && (24..72).contains(offset)
    };
    let events = replay.events().iter().enumerate();
    let found = events.filter(|(_, event)| is_header(event));
    found.flat_map(|(number, _)| number.saturating_sub(4)..number + 5).collect()
}

/// The events before this one, shortly.
fn told(replay: &Replay) -> String {
    let end = replay.at();
    let events = replay.events()[..end].iter().enumerate().skip(end.saturating_sub(12));
    let lines = events.map(|(number, event)| {
        let words = match &event.action {
            Action::Write(offset, data) => format!("write {offset:#x} {:#x}", data.len()),
            Action::Replaced(_) => "replaced".to_owned(),
            other => format!("{other:x?}"),
        };
        format!("\n    event {:4} file {}: {words}", number + 1, event.file)
    });
    lines.collect()
}
