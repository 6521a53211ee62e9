//! Measures this workspace beside other programs, in one run, and prints the table of the README.
//!
//! ```text
//! overlays ─▶ images ─▶ convert ─▶ looking
//! archive ─▶ extraction ─▶ preparation ─▶ strategies ─▶ packing ─▶ frames ─▶ verification
//!            each part by itself if asked for └─▶ a picture            └─▶ tables
//!          rounds of A B C, A B C, …: medians, and their ratios
//! ```
//!
//! Nothing is dropped from the page cache. What one contender wrote is on the medium, and removed,
//! before the next one starts; neither is timed. Programs that are not installed are named.

mod convert;
mod extraction;
mod framed;
mod images;
mod looking;
mod machine;
mod overlay;
mod packing;
mod picture;
mod preparation;
mod samples;
mod strategy;
mod table;
mod verification;

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
    /// Measure only these: overlays, images, convert, looking, extraction, preparation, strategies,
    /// packing, frames, verification.
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    only: Vec<Part>,
    /// Draw the strategies into this SVG file.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Only write the generated archive to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "archive")]
    generate: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Overlays,
    Images,
    Convert,
    Looking,
    Extraction,
    Preparation,
    Strategies,
    Packing,
    Frames,
    Verification,
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
    let setting = Setting {
        scratch: scratch.path(),
        archive,
        quick: options.quick,
        rounds: options.rounds.unwrap_or(if options.quick { 3 } else { 5 }).max(1),
        tar: machine::gnu_tar(),
        qemu_img: Tool::find("qemu-img"),
    };

    let wants = |part| options.only.is_empty() || options.only.contains(&part);
    let mut tables = Vec::new();
    if wants(Part::Overlays) {
        tables.push(overlay::measure(&setting, &setting.scratch.join("base.img")));
    }
    if wants(Part::Images) {
        tables.extend(images::measure(&setting));
    }
    if wants(Part::Convert) {
        tables.push(convert::measure(&setting));
    }
    if wants(Part::Looking) {
        tables.push(looking::measure(&setting));
    }
    let alone = [Part::Overlays, Part::Images, Part::Convert, Part::Looking];
    let facts = if options.only.is_empty() || !options.only.iter().all(|it| alone.contains(it)) {
        archived(&setting, &options, &mut tables)
    } else {
        machine::facts(&setting, None)
    };
    facts.print(options.markdown);
    tables.iter().for_each(|table| table.print(options.markdown));
}

/// Measures what needs an archive; returns the table of facts.
fn archived(setting: &Setting, options: &Options, tables: &mut Vec<Table>) -> Table {
    let extents = if options.archive.is_none() {
        eprintln!("packing an image");
        let map = image::pack(&Shape::REAL, setting.archive);
        Some(map.expect("the archive can be written").len())
    } else {
        None
    };
    scratch::settle(setting.scratch);
    let wants = |part| options.only.is_empty() || options.only.contains(&part);
    let report = extraction::one(setting);
    if wants(Part::Extraction) {
        tables.push(extraction::measure(setting, &report));
    }
    if wants(Part::Preparation) {
        tables.push(preparation::measure(setting));
    }
    if wants(Part::Strategies) {
        let (table, bars) = strategy::measure(setting);
        tables.push(table);
        if let Some(path) = &options.picture {
            let title =
                format!("What disks for {} VMs cost, from a warm cache", strategy::vms(setting));
            std::fs::write(path, picture::draw(&title, &bars)).expect("the picture is written");
        }
    }
    if wants(Part::Packing) {
        tables.push(packing::measure(setting, &report.destination));
    }
    if wants(Part::Frames) {
        let archive = framed::archive(setting, &report.destination);
        tables.push(framed::measure(setting, &archive));
    }
    std::fs::remove_file(&report.destination).expect("a disk can be removed");
    if wants(Part::Verification) {
        tables.push(verification::measure(setting));
    }
    machine::facts(setting, Some((&report.transfer, extents)))
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
