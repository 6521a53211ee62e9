//! Processes that write an image and are killed, some hundreds of times.
//!
//! ```text
//! driver ── starts ─▶ writer   opens the image (and repairs it), threads write, each to its own part
//!   │                   │
//!   ├◀─ stdout ─────────┘      BEGIN 7 · DONE 7: what may be there, what must be there
//!   ├── SIGKILL, at any instant
//!   └─▶ the image: sound, each sector old or new, for QEMU as for us; then the next writer
//! ```
//!
//! The writer is this test binary again: `child` below. Program and shape follow from seeds, so that
//! the driver knows what number 7 is.
//!
//! `KILL_PROGRAMS` (images), `KILL_SECONDS`, `KILL_SEED`: see `testkit::sweep`; `KILL_ROUNDS` is how
//! often an image's writer is killed (12).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use qcow2_format::image::{WritableImage, ZeroMode};
use qcow2_format::{Error, GuestOffset};
use testkit::model::{Change, Model, stamp};
use testkit::program::image::{below, content, open};
use testkit::program::judge::{judge, judge_raw};
use testkit::program::{Call, Durability, Lab, Program, Shape, ops, shape};
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool;

const ROOT: &str = "KILL_CHILD_ROOT";
const SHAPE: &str = "KILL_CHILD_SHAPE";
const ROUND: &str = "KILL_CHILD_ROUND";
/// What stands before each line, whatever the test harness has written to it.
const MARK: &str = "kill: ";
/// Operations of a writer: more than it gets to do.
const OPS: usize = 1500;

// ---------------------------------------------------------------------------------------------
// What driver and writer both know
// ---------------------------------------------------------------------------------------------

/// The image of this seed.
fn shape_of(seed: u64) -> Shape {
    let mut random = Random(seed);
    let mut shape = shape().new_tree(&mut random.runner()).unwrap().current();
    // What a discard leaves is certain then; and a round's work is not one large write.
    if shape.backing.is_some() {
        shape.version = 3;
    }
    shape.disk = shape.disk.min(6 << 20);
    shape.possible()
}

/// The calls of a round by the thread that makes them: each thread has its own clusters.
fn calls_of(shape: &Shape, seed: u64, round: u32) -> Vec<Vec<(u32, Call)>> {
    let mut random = Random(seed ^ u64::from(round));
    let ops = ops(OPS).new_tree(&mut random.runner()).unwrap().current();
    let program = Program { shape: shape.clone(), ops };
    let clusters = shape.disk.div_ceil(shape.cluster());
    let threads = (1 + random.below(3) as u64).min(clusters);
    let share = clusters.div_ceil(threads) * shape.cluster();
    let mut calls = vec![Vec::new(); threads as usize];
    for (number, call) in program.calls() {
        let thread = match call {
            Call::Write { offset, length, .. }
            | Call::Zero { offset, length, .. }
            | Call::Discard { offset, length }
            | Call::Compress { offset, length, .. } => {
                let thread = offset / share;
                // What reaches into another's clusters is nobody's.
                if (offset + length - 1) / share != thread {
                    continue;
                }
                thread
            }
            Call::Flush => u64::from(number) % threads,
            _ => continue,
        };
        calls[thread as usize].push((round << 12 | number, call));
    }
    calls
}

/// What a call makes of the disk.
fn change_of(shape: &Shape, number: u32, call: &Call) -> Option<Change> {
    let (offset, data) = match *call {
        Call::Write { offset, length, fill } | Call::Compress { offset, length, fill } => {
            (offset, stamp(number, offset, length, fill))
        }
        Call::Zero { offset, length, .. } => (offset, vec![0; length as usize]),
        Call::Discard { offset, length } => {
            let (offset, length) = shape.discarded(offset, length)?;
            (offset, vec![0; length as usize])
        }
        _ => return None,
    };
    Some(Change::new(offset, data))
}

// ---------------------------------------------------------------------------------------------
// The writer
// ---------------------------------------------------------------------------------------------

/// Not a test: what a writer runs.
#[test]
#[ignore = "run by the other test, as a child process"]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (root, seed, round) = (PathBuf::from(root), number(SHAPE), number(ROUND) as u32);
    let shape = shape_of(seed);
    let names = if shape.data_file.is_some() { &["image", "data"][..] } else { &["image"] };
    let file = |name| File::options().read(true).write(true).open(root.join(name)).unwrap();
    let (base, calls) = (shape.base(), calls_of(&shape, seed, round));
    say("OPENING", 0);
    let image = open(&shape, names.iter().map(file).collect()).unwrap();
    say("OPEN", 0);
    thread::scope(|scope| {
        for calls in calls {
            scope.spawn(|| write(&shape, &image, &base, calls));
        }
    });
    image.close().unwrap();
    say("CLOSED", 0);
}

fn write(shape: &Shape, image: &WritableImage<File>, base: &[u8], calls: Vec<(u32, Call)>) {
    let fill = |buffer: &mut [u8], offset| {
        below(base, buffer, offset);
        Ok::<_, Error>(())
    };
    for (number, call) in calls {
        let change = change_of(shape, number, &call);
        let data = change.as_ref().map_or(&[][..], |change| &change.data);
        say("BEGIN", number);
        match call {
            Call::Write { offset, .. } => image.write_over(data, GuestOffset(offset), fill),
            Call::Zero { offset, length, unmap } => {
                let mode = if unmap { ZeroMode::Unmap } else { ZeroMode::Keep };
                image.write_zeroes_over(GuestOffset(offset), length, mode, fill)
            }
            Call::Discard { offset, length } => image.discard(GuestOffset(offset), length),
            Call::Compress { offset, .. } => image.write_compressed(data, GuestOffset(offset)),
            _ => image.flush(),
        }
        .unwrap_or_else(|error| panic!("{number}, {call}: {error}"));
        say("DONE", number);
    }
}

/// One line in one write: a killed process has said it or not.
fn say(what: &str, number: u32) {
    std::io::stdout().lock().write_all(format!("{MARK}{what} {number}\n").as_bytes()).unwrap();
}

// ---------------------------------------------------------------------------------------------
// The driver
// ---------------------------------------------------------------------------------------------

#[derive(Default)]
struct Counts {
    kills: Cell<usize>,
    ended: Cell<usize>,
    opening: Cell<usize>,
    begun: Cell<usize>,
    cut: Cell<usize>,
    dirty: Cell<usize>,
    leaking: Cell<usize>,
}

fn add(cell: &Cell<usize>, more: usize) {
    cell.set(cell.get() + more);
}

/// A seed, printed with the image it stands for.
#[derive(Debug)]
struct Seed(u64);

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}: {}", self.0, shape_of(self.0))
    }
}

#[test]
fn an_image_is_whole_whenever_its_writer_is_killed() {
    if !tool::available("images of killed writers", &["qemu-img"]) {
        return;
    }
    let sweep = Sweep::new("KILL", 60, 35);
    let rounds = std::env::var("KILL_ROUNDS").map_or(12, |text| text.parse().unwrap());
    let counts = Counts::default();
    let seeds = proptest::prelude::any::<u64>().no_shrink().prop_map(Seed);
    let images = sweep.run(seeds, |seed, random| {
        let shape = shape_of(seed.0);
        let lab = Lab::new(&shape);
        lab.store(&lab.create());
        // Of the disk, and of a raw data file by itself.
        let mut models = [Model::new(shape.content()), Model::new(shape.content())];
        for round in 0..rounds {
            models = killed(&lab, &shape, seed.0, round, models, random, &counts)
                .map_err(|error| format!("round {round}: {error}"))?;
        }
        Ok(())
    });
    let Counts { kills, ended, opening, begun, cut, dirty, leaking } = &counts;
    sweep.tell(&format!(
        "{images} images; {} writers killed, {} of them while opening, {} in a call, {} came to an end; \
         {} calls; {} images dirty, {} leaking, each checked by qemu-img",
        kills.get(),
        opening.get(),
        cut.get(),
        ended.get(),
        begun.get(),
        dirty.get(),
        leaking.get()
    ));
    assert!(kills.get() > 0 && cut.get() > 0);
}

/// One writer's life. Returns what it left.
fn killed(
    lab: &Lab,
    shape: &Shape,
    seed: u64,
    round: u32,
    models: [Model; 2],
    random: &mut Random,
    counts: &Counts,
) -> Result<[Model; 2], String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .envs([(SHAPE, seed.to_string()), (ROUND, round.to_string())])
        .env(ROOT, lab.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if let Some(at) = line.find(MARK) {
                let _ = sender.send(line[at + MARK.len()..].to_owned());
            }
        }
    });
    let errors = child.stderr.take().unwrap();
    let complaints = Mutex::new(String::new());
    let mut heard = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let text = std::io::read_to_string(errors).unwrap_or_default();
            complaints.lock().unwrap().push_str(&text);
        });
        // Sometimes while it opens the image, mostly a while after.
        let lines_before = if random.once_in(8) { 1 } else { 2 };
        let patience = Duration::from_secs(60);
        heard.extend((0..lines_before).map_while(|_| lines.recv_timeout(patience).ok()));
        let limit = [500, 5000, 50_000][random.below(3)];
        thread::sleep(random.micros(limit));
        let _ = child.kill();
    });
    let status = child.wait().unwrap();
    reader.join().unwrap();
    heard.extend(remaining(&lines));
    let complaints = complaints.into_inner().unwrap();
    let ended = status.success();
    if !ended && status.signal() != Some(nix::libc::SIGKILL) {
        return Err(format!("the writer failed: {status}\n{complaints}"));
    }
    add(if ended { &counts.ended } else { &counts.kills }, 1);

    let mut log = Log::new(shape, calls_of(shape, seed, round).into_iter().flatten(), models);
    for line in &heard {
        log.take(line);
    }
    add(&counts.opening, usize::from(heard.len() < 2));
    add(&counts.cut, usize::from(!log.in_flight.is_empty()));
    add(&counts.begun, heard.iter().filter(|line| line.starts_with("BEGIN")).count());
    if ended {
        log.models.iter_mut().for_each(Model::settle);
    }

    let files = lab.load();
    let [model, raw] = &log.models;
    let findings = judge(&shape.base(), &files, model)?;
    judge_raw(shape, &files, raw)?;
    if ended && (findings.dirty || findings.leaks > 0 && round == 0) {
        return Err(format!("closed: {findings:?}"));
    }
    add(&counts.dirty, usize::from(findings.dirty));
    add(&counts.leaking, usize::from(findings.leaks > 0));
    let disk = content(&files, &shape.base(), None).map_err(|error| error.to_string())?;
    lab.holds(&disk)?;
    lab.sound(findings.dirty)?;
    if findings.dirty {
        // QEMU has repaired it; that is for our next writer.
        fs::remove_file(lab.path("image")).unwrap();
        lab.store(&files);
    }
    let raw = files.last().unwrap().bytes(0, disk.len());
    Ok([Model::new(disk), Model::new(raw)])
}

fn remaining(lines: &Receiver<String>) -> Vec<String> {
    lines.try_iter().collect()
}

/// What the writer said, and what that means for the disk.
struct Log<'a> {
    shape: &'a Shape,
    calls: BTreeMap<u32, Call>,
    models: [Model; 2],
    /// Changes that are done and not yet flushed.
    done: Vec<Change>,
    /// Calls that have begun; for a flush, how many changes were done before.
    in_flight: BTreeMap<u32, usize>,
}

impl<'a> Log<'a> {
    fn new(
        shape: &'a Shape,
        calls: impl IntoIterator<Item = (u32, Call)>,
        models: [Model; 2],
    ) -> Self {
        let calls = calls.into_iter().collect();
        Self { shape, calls, models, done: Vec::new(), in_flight: BTreeMap::new() }
    }

    fn take(&mut self, line: &str) {
        let (what, number) = line.split_once(' ').unwrap();
        let number = number.parse().unwrap();
        let Some(call) = self.calls.get(&number).copied() else { return };
        let change = change_of(self.shape, number, &call);
        let grain = self.shape.grain();
        let [disk, raw] = &mut self.models;
        if what == "BEGIN" {
            if let Some(change) = &change {
                raw.begin_beside(disk, change, grain);
                disk.begin(change);
            }
            self.in_flight.insert(number, self.done.len());
            return;
        }
        let done_before = self.in_flight.remove(&number).unwrap();
        match change {
            Some(change) => {
                disk.apply(&change);
                let whole = raw.apply_beside(disk, &change, grain);
                if self.shape.durability != Durability::Flush {
                    disk.settle_change(&change);
                    raw.settle_change(&whole);
                }
                self.done.push(change);
            }
            None if call == Call::Flush => self.flushed(done_before),
            None => {}
        }
    }

    /// What was done before a flush began is durable, where nobody has begun to write again.
    fn flushed(&mut self, done_before: usize) {
        let later: Vec<Change> = self.done[done_before..].to_vec();
        let current = self.in_flight.keys().filter_map(|number| {
            let call = self.calls.get(number)?;
            change_of(self.shape, *number, call)
        });
        let busy: Vec<Change> = later.into_iter().chain(current).collect();
        let sectors = |change: &Change| (change.offset / 512, change.end().div_ceil(512));
        for change in &self.done[..done_before] {
            let (start, end) = sectors(change);
            let free = |sector: u64| {
                let is_busy = |other: &Change| {
                    let (start, end) = sectors(other);
                    (start..end).contains(&sector)
                };
                !busy.iter().any(is_busy)
            };
            for sector in (start..end).filter(|sector| free(*sector)) {
                let sector = Change::new(sector * 512, [0_u8; 512]);
                self.models.iter_mut().for_each(|model| model.settle_change(&sector));
            }
        }
    }
}

/// The log's rules, on a log by hand.
#[test]
fn a_flush_settles_what_was_done_before_it() {
    let shape = Shape { disk: 8192, durability: Durability::Flush, ..shape_of(1) };
    let fill = testkit::model::Fill::Word;
    let write = |offset| Call::Write { offset, length: 512, fill };
    let calls = [(1, write(0)), (2, write(512)), (3, Call::Flush), (4, write(0))];
    let model = Model::new(vec![0; 8192]);
    let mut log = Log::new(&shape, calls, [model.clone(), model]);
    let sector = |log: &Log, number: u32, offset: u64| {
        let value = if number == 0 { vec![0; 512] } else { stamp(number, offset, 512, fill) };
        log.models[0].judge(&value, offset).is_ok()
    };
    for line in ["BEGIN 1", "DONE 1", "BEGIN 3", "BEGIN 2"] {
        log.take(line);
    }
    assert!(sector(&log, 0, 0) && sector(&log, 1, 0));
    assert!(sector(&log, 0, 512) && sector(&log, 2, 512));
    log.take("DONE 3");
    assert!(!sector(&log, 0, 0) && sector(&log, 1, 0));
    assert!(sector(&log, 0, 512) && sector(&log, 2, 512));
    log.take("DONE 2");
    log.take("BEGIN 4");
    assert!(!sector(&log, 0, 0) && sector(&log, 1, 0) && sector(&log, 4, 0));
    assert!(sector(&log, 0, 512) && sector(&log, 2, 512));
}
