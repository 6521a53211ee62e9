//! Making an overlay.
//!
//! Every batch has a folder of its own, and nothing is removed before the last one is over. In a
//! folder that is filled and emptied again, a new file was seen to cost anybody ten times as much:
//! probably because ext4 does not reuse inodes freed in the last seconds, and looks at each.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use benches::image::Shape;
use benches::{content, overlays, scratch};
use disk_engine::base::{BaseFormat, BaseImage};

use crate::samples::{Samples, ratio};
use crate::table::Table;
use crate::{Setting, absent};

/// How often the quick ones are run in a round, and the others.
const MANY: usize = 100;
const SOME: usize = 4;

/// One way, and what came of it.
struct Contender<'a> {
    name: &'a str,
    times: usize,
    make: Box<dyn Fn(&Path) + 'a>,
    samples: Samples,
    space: u64,
}

impl<'a> Contender<'a> {
    fn new(name: &'a str, times: usize, make: impl Fn(&Path) + 'a) -> Self {
        let samples = Samples::default();
        Self { name, times, make: Box::new(make), samples, space: 0 }
    }

    /// Makes overlays in an empty folder, timing each.
    fn round(&mut self, folder: &Path) {
        let paths: Vec<PathBuf> =
            (0..self.times).map(|index| folder.join(format!("{index}.qcow2"))).collect();
        for path in &paths {
            self.samples.time(|| (self.make)(path));
        }
        self.space = content::allocated(folder) / self.times as u64;
    }
}

/// Measures all contenders over a base at `base`, which is made here.
pub fn measure(setting: &Setting, base: &Path) -> Table {
    let file = File::create(base).expect("the base can be made");
    file.set_len(Shape::REAL.virtual_size).expect("the base can be made");
    let base = &BaseImage::open(base, BaseFormat::Raw).expect("the base opens");
    let folder = scratch::empty(setting.scratch, "overlays");

    let mut contenders = vec![
        Contender::new("disk-engine", MANY, |path| overlays::ours(base, path)),
        Contender::new("create, write 512 bytes, close", MANY, overlays::bare),
        Contender::new("imago", MANY, |path| overlays::imago(base, path)),
    ];
    if setting.qemu_img.is_there() {
        let qemu_img = |path: &Path| overlays::qemu_img(base, path);
        contenders.push(Contender::new("qemu-img create", SOME, qemu_img));
    }
    // The first round warms everything up.
    let rounds = if setting.quick { 10 } else { 25 };
    for round in 0..=rounds {
        eprintln!("overlays: round {round} of {rounds}");
        for (index, contender) in contenders.iter_mut().enumerate() {
            let batch = scratch::empty(&folder, &format!("{round}-{index}"));
            scratch::settle(setting.scratch);
            contender.round(&batch);
            if round == 0 {
                contender.samples = Samples::default();
            }
        }
    }
    fs::remove_dir_all(&folder).expect("the overlays can be removed");

    let mut table =
        Table::new("An overlay", &["", "median", "10 % to 90 %", "disk-engine", "space", "runs"]);
    let ours = contenders[0].samples.median();
    for contender in &contenders {
        table.row([
            contender.name.to_owned(),
            contender.samples.typical(),
            contender.samples.spread(),
            ratio(ours / contender.samples.median()),
            format!("{} KiB", contender.space >> 10),
            contender.samples.count().to_string(),
        ]);
    }
    if !setting.qemu_img.is_there() {
        absent(&mut table, "qemu-img create");
    }
    table.note(
        "Library calls over an open base, imago in its synchronous form, and a process of qemu-img.",
    );
    table
}
