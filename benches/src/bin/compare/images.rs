//! Reading and writing images: ours beside imago, QEMU, and plain reads and writes of a raw file.
//!
//! ```text
//! images ─▶ row: open everybody ─▶ check everybody once ─▶ rounds of A B C, A B C, …
//! ```
//!
//! Everybody reads the same images, made by qemu-img, or writes to new ones of their own, in the same
//! requests. A time is that of one request. Callers: `main`.

mod opening;
mod reading;
mod writing;

use std::fs;
use std::time::Duration;

use benches::images::files::Files;
use benches::scratch;

use crate::samples::{Samples, ratio, with_unit};
use crate::table::Table;
use crate::{Setting, absent};

/// Most rounds of a process: each costs its start as well.
const MOST_PROCESS_ROUNDS: usize = 3;
/// What a row says of somebody who cannot do it.
const NOTHING: &str = "–";

/// Measures everything about images.
pub fn measure(setting: &Setting) -> Vec<Table> {
    if !setting.qemu_img.is_there() {
        let mut table = Table::new("Images", &["", ""]);
        absent(&mut table, "qemu-img, which makes them");
        return vec![table];
    }
    eprintln!("images: making them");
    let folder = scratch::empty(setting.scratch, "images");
    let files = Files::make(&folder, if setting.quick { 256 << 20 } else { 1 << 30 });
    scratch::settle(setting.scratch);
    let tables = vec![
        reading::measure(setting, &files),
        writing::measure(setting, &files, &folder),
        opening::measure(setting, &folder),
    ];
    fs::remove_dir_all(&folder).expect("the images can be removed");
    tables
}

/// How many rounds: a request takes so little time that more of them cost little.
fn rounds(setting: &Setting) -> usize {
    2 * setting.rounds - 1
}

/// Adds the time of one of `count` requests that took `time` together.
fn add(samples: &mut Samples, time: Duration, count: u64) {
    let count = u32::try_from(count).expect("some thousands of requests");
    samples.add(time / count);
}

/// The median, if there is one.
fn told(samples: &Samples) -> String {
    if samples.count() == 0 { NOTHING.into() } else { with_unit(samples.median()) }
}

/// Ours over another one, if there are both.
fn over(ours: &Samples, other: &Samples) -> String {
    if ours.count() == 0 || other.count() == 0 { NOTHING.into() } else { ratio(ours.over(other)) }
}

/// A number of bytes in a power of two.
fn bytes(count: usize) -> String {
    if count < 1 << 20 { format!("{} KiB", count >> 10) } else { format!("{} MiB", count >> 20) }
}
