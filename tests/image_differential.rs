//! The same program by QEMU and by us.
//!
//! ```text
//! program ─┬▶ qemu-io ─▶ image of qemu-img's ──┬▶ the same disk, for QEMU and for our reader
//!          ├▶ writer ──▶ image of ours ────────┤
//!          └▶ both ────▶ one image, in turns ──┘   each goes on where the other has closed
//! ```
//!
//! `DIFFERENTIAL_PROGRAMS`, `DIFFERENTIAL_SECONDS`, `DIFFERENTIAL_SEED`: see `testkit::sweep`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;

use testkit::checker::check;
use testkit::faulty::Faults;
use testkit::model::{Change, differ};
use testkit::program::image::{ImageTarget, content};
use testkit::program::{Call, Failure, Lab, Op, Program, Shape, Target, program, run};
use testkit::qemu;
use testkit::sparse::Sparse;
use testkit::sweep::Sweep;
use testkit::tool;

#[test]
fn qemu_and_we_do_the_same() {
    if !tool::available("images by QEMU and by us", &["qemu-img", "qemu-io"]) {
        return;
    }
    let sweep = Sweep::new("DIFFERENTIAL", 200, 35);
    let (calls, turns) = (Cell::new(0), Cell::new(0));
    let programs = sweep.run(program(24), |program, random| {
        let program = plain(program);
        let shape = &program.shape;

        // Ours.
        let lab = Lab::new(shape);
        let mut ours = ImageTarget::new(&lab, shape, lab.create(), Faults::default());
        let history = run(&program, &mut ours, false)?;
        ours.close().map_err(|error| format!("close: {error}"))?;
        let truth = history.model.now();
        let files = ours.recording.files();
        lab.store(&files);
        lab.holds(truth).map_err(|error| format!("ours, read by QEMU: {error}"))?;
        calls.set(calls.get() + history.steps.len());

        // QEMU's.
        let theirs = Lab::new(shape);
        let mut qemu = Turns::new(&theirs, shape, theirs.create_by_qemu());
        qemu.by_qemu = Box::new(|_| true);
        run(&program, &mut qemu, false).map_err(|error| format!("by QEMU: {error}"))?;
        qemu.switch(None)?;
        agree(&theirs, shape, truth).map_err(|error| format!("by QEMU: {error}"))?;

        // One image in turns.
        let both = Lab::new(shape);
        let files = if random.once_in(2) { both.create_by_qemu() } else { both.create() };
        let mut mixed = Turns::new(&both, shape, files);
        let pattern = random.word();
        mixed.by_qemu = Box::new(move |turn| pattern >> (turn % 64) & 1 == 1);
        run(&program, &mut mixed, false).map_err(|error| format!("in turns: {error}"))?;
        mixed.switch(None)?;
        turns.set(turns.get() + mixed.turn);
        agree(&both, shape, truth).map_err(|error| format!("in turns: {error}"))?;
        let findings = check(&both.load()[0])?;
        findings.sound().map_err(|error| format!("in turns: {error}"))?;
        both.sound(false).map_err(|error| format!("in turns: {error}"))
    });
    sweep.tell(&format!(
        "{programs} programs, {} calls by each; {} turns on shared images",
        calls.get(),
        turns.get()
    ));
    assert!(programs > 0);
}

/// That QEMU and our reader find this on the image in the folder.
fn agree(lab: &Lab, shape: &Shape, truth: &[u8]) -> Result<(), String> {
    lab.holds(truth)?;
    let disk = content(&lab.load(), &shape.base(), None).map_err(|error| error.to_string())?;
    differ(&disk, truth, 0).map_err(|foreign| format!("our reader: {foreign}"))
}

/// The program without what only we can do, or what QEMU does by options we have no words for.
fn plain(program: &Program) -> Program {
    let keep = |op: &&Op| !matches!(op, Op::Kill | Op::Drop | Op::Snapshot | Op::Forget);
    let mut shape = program.shape.clone();
    shape.ignore_discards = false;
    // What QEMU leaves of a discard over a backing file is its own affair in version 2.
    let keeps = shape.may_keep_discarded();
    let ops = program.ops.iter().filter(keep).filter(|op| !keeps || !matches!(op, Op::Discard(..)));
    Program { ops: ops.copied().collect(), shape }
}

/// An image that QEMU and we write in turns; a turn ends at a flush or when the image is closed.
struct Turns<'a> {
    lab: &'a Lab,
    shape: Shape,
    /// Who has which turn.
    by_qemu: Box<dyn Fn(usize) -> bool>,
    turn: usize,
    /// Our image, in our turns.
    ours: Option<ImageTarget<'a>>,
    /// What QEMU is to do in its turn.
    commands: Vec<String>,
    /// Clusters that anything was done to, or that were preallocated: QEMU compresses into others only.
    touched: BTreeSet<u64>,
    /// Those that were compressed in this turn.
    compressed: BTreeSet<u64>,
    /// Whether one of those was changed since. QEMU 10.0 goes on putting payloads behind the last
    /// one, even if that has lost its cluster to an L2 table since, and finds the image corrupt.
    stale: bool,
    /// The disk as it will be, since QEMU does all its commands at the end.
    disk: Vec<u8>,
}

impl<'a> Turns<'a> {
    fn new(lab: &'a Lab, shape: &Shape, files: Vec<Sparse>) -> Self {
        lab.store(&files);
        let preallocated =
            if shape.preallocated { shape.disk.div_ceil(shape.cluster()) } else { 0 };
        Self {
            lab,
            shape: shape.clone(),
            by_qemu: Box::new(|_| false),
            turn: 0,
            ours: None,
            commands: Vec::new(),
            touched: (0..preallocated).collect(),
            compressed: BTreeSet::new(),
            stale: false,
            disk: shape.content(),
        }
    }

    /// Ends a turn: what was done is in the folder.
    fn switch(&mut self, next: Option<usize>) -> Result<(), String> {
        if let Some(mut ours) = self.ours.take() {
            ours.close().map_err(|error| format!("close: {error}"))?;
            self.lab.store(&ours.recording.files());
        }
        if !self.commands.is_empty() {
            let image = self.lab.path("image");
            let mut arguments = vec!["-f", "qcow2", "-d", "unmap", "-t", "writeback"];
            for command in &self.commands {
                arguments.extend(["-c", command]);
            }
            arguments.push(image.to_str().unwrap());
            let said = qemu::io(arguments);
            let failed = said.stdout.contains("failed") || said.stderr.contains("failed");
            if !said.status.success() || failed {
                return Err(format!("{said:#?}"));
            }
            self.commands.clear();
        }
        self.compressed.clear();
        self.stale = false;
        self.turn = next.unwrap_or(self.turn);
        Ok(())
    }

    fn clusters(&self, offset: u64, length: u64) -> std::ops::Range<u64> {
        offset / self.shape.cluster()..(offset + length).div_ceil(self.shape.cluster())
    }

    fn command(&mut self, call: &Call, data: &[u8]) -> String {
        let source = |what: &str, offset: u64, lab: &Lab, number: usize| {
            let path = lab.path(&format!("data-{number}"));
            fs::write(&path, data).unwrap();
            format!("write {what}-s {} {offset} {}", path.display(), data.len())
        };
        let number = self.commands.len();
        match *call {
            Call::Write { offset, .. } => source("", offset, self.lab, number),
            Call::Compress { offset, length, .. } => {
                let mut clusters = self.clusters(offset, length);
                let plain = self.stale || clusters.any(|cluster| self.touched.contains(&cluster));
                let what = if plain { "" } else { "-c " };
                source(what, offset, self.lab, number)
            }
            Call::Zero { offset, length, unmap } => {
                format!("write -z {}{offset} {length}", if unmap { "-u " } else { "" })
            }
            Call::Discard { offset, length } => format!("discard {offset} {length}"),
            _ => "flush".to_owned(),
        }
    }
}

impl Target for Turns<'_> {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        match &mut self.ours {
            Some(ours) => ours.read(buffer, offset)?,
            None => {
                buffer.copy_from_slice(&self.disk[offset as usize..][..buffer.len()]);
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &Call, change: Option<&Change>, name: &str) -> Result<bool, Failure> {
        if let Some(change) = change {
            self.disk[change.offset as usize..change.end() as usize].copy_from_slice(&change.data);
        }
        if (self.by_qemu)(self.turn) {
            let data = change.map_or(&[][..], |change| &change.data);
            let command = self.command(call, data);
            self.commands.push(command);
        } else {
            if self.ours.is_none() {
                let files = self.lab.load();
                let ours = ImageTarget::new(self.lab, &self.shape, files, Faults::default());
                self.ours = Some(ours);
            }
            self.ours.as_mut().unwrap().call(call, change, name)?;
        }
        if let Some(change) = change {
            let clusters = self.clusters(change.offset, change.data.len() as u64);
            self.stale |= clusters.clone().any(|cluster| self.compressed.contains(&cluster));
            if matches!(call, Call::Compress { .. }) {
                self.compressed.extend(clusters.clone());
            }
            self.touched.extend(clusters);
        }
        if matches!(call, Call::Flush | Call::Close) {
            self.switch(Some(self.turn + 1))?;
        }
        Ok(true)
    }
}
