//! Measures this workspace beside other programs, in one run, and prints the table of the README.
//!
//! ```text
//! image ─▶ overlays ─▶ extractions ─▶ preparations ─▶ table
//!          rounds of A B C, A B C, …: medians, and their ratios
//! ```
//!
//! Nothing is dropped from the page cache. What one contender wrote is on the medium, and removed,
//! before the next one starts; neither is timed. Programs that are not installed are named.

mod extraction;
mod machine;
mod overlay;
mod preparation;
mod samples;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use benches::image::{self, Shape};
use benches::scratch;
use clap::Parser;
use machine::Tool;
use table::Table;

/// Measures disk-engine beside other programs and prints a table.
#[derive(Debug, Parser)]
struct Options {
    /// Fewer rounds, and disks for two VMs where copies are made.
    #[arg(long)]
    quick: bool,
    /// Where files are made and removed: 20 GiB on the file system to be measured.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print Markdown rather than aligned columns.
    #[arg(long)]
    markdown: bool,
    /// Rounds of extraction; 5 unless said otherwise.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Measure with this archive rather than a generated one.
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Only write the generated archive to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "archive")]
    generate: Option<PathBuf>,
}

/// What is measured, and with what.
struct Setting<'a> {
    scratch: &'a Path,
    archive: &'a Path,
    quick: bool,
    rounds: usize,
    tar: Tool,
    qemu_img: Tool,
}

fn main() {
    let options = Options::parse();
    if let Some(path) = &options.generate {
        image::pack(&Shape::REAL, path).expect("the archive can be written");
        return;
    }
    let scratch = scratch::folder(options.dir.as_deref());
    let generated = scratch.path().join("image.tar.zst");
    let archive = options.archive.as_ref().unwrap_or(&generated);
    let extents = if options.archive.is_none() {
        eprintln!("packing an image");
        Some(image::pack(&Shape::REAL, archive).expect("the archive can be written").len())
    } else {
        None
    };
    scratch::settle(scratch.path());
    let setting = Setting {
        scratch: scratch.path(),
        archive,
        quick: options.quick,
        rounds: options.rounds.unwrap_or(if options.quick { 3 } else { 5 }).max(1),
        tar: machine::gnu_tar(),
        qemu_img: Tool::find("qemu-img"),
    };

    let base = setting.scratch.join("base.img");
    let overlays = overlay::measure(&setting, &base);
    let (extractions, report) = extraction::measure(&setting);
    let preparations = preparation::measure(&setting);
    machine::facts(&setting, &report.transfer, extents).print(options.markdown);
    overlays.print(options.markdown);
    extractions.print(options.markdown);
    preparations.print(options.markdown);
}

/// Whether a program starts.
fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What stands in a row of somebody who is not there.
fn absent(table: &mut Table, name: &str) {
    table.row([name, "not installed"]);
}
