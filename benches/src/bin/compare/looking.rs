//! Looking at images without changing them: check, map and compare, beside `qemu-img`.
//!
//! ```text
//! a disk of 1 GiB ─▶ qcow2 · zlib · torn into clusters of 4 KiB ┐
//! nothing ─▶ 1 TiB, every cluster of it preallocated            ┴▶ check · map · compare
//! ```
//!
//! Caller: `main`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use benches::conversions::{self, Form};
use benches::images::qemu;
use benches::scratch;
use disk_engine::BaseFormat;
use disk_engine::ops::check::{CheckOptions, check};
use disk_engine::ops::compare::{CompareOptions, compare};
use disk_engine::ops::create::{CreateFileOptions, create};
use disk_engine::ops::map::{MapOptions, map};
use qcow2_format::image::Preallocation;
use qcow2_format::{ClusterBits, CreateOptions};

use crate::convert::make;
use crate::samples::{Samples, ratio, with_unit};
use crate::table::Table;
use crate::{Setting, absent};

/// A row: what it is called, our way, and the words for qemu-img.
type Row<'a> = (&'a str, Box<dyn Fn() + 'a>, Vec<&'a dyn AsRef<OsStr>>);

/// Measures all rows.
pub fn measure(setting: &Setting) -> Table {
    let columns = ["", "disk-engine", "qemu-img", "over qemu-img"];
    let mut table = Table::new("Looking at an image", &columns);
    if !setting.qemu_img.is_there() {
        absent(&mut table, "qemu-img");
        return table;
    }
    eprintln!("looking: making images");
    let folder = scratch::empty(setting.scratch, "looking");
    let raw = make(&folder);
    let in_form = |name: &str, form| {
        let path = folder.join(name);
        conversions::qemu_img(&raw, BaseFormat::Raw, &path, form);
        path
    };
    let (plain, zlib) = (in_form("plain", Form::Qcow2), in_form("zlib", Form::Zlib));
    let torn = torn(&folder, &raw);
    let whole = folder.join("whole");
    let preallocated = CreateOptions::new(1 << 40).preallocation(Preallocation::Metadata);
    create(&whole, &preallocated, &CreateFileOptions::default()).expect("an image");
    scratch::settle(setting.scratch);

    let mut rows: Vec<Row<'_>> = Vec::new();
    for (name, image) in [
        ("check, 300 MiB in clusters of 64 KiB", &plain),
        ("check, the same compressed", &zlib),
        ("check, in clusters of 4 KiB", &torn),
        ("check, 1 TiB preallocated", &whole),
    ] {
        rows.push((name, Box::new(|| checked(image)), vec![&"check", &"-f", &"qcow2", image]));
    }
    for (name, image) in [
        ("map, clusters of 64 KiB", &plain),
        ("map, in clusters of 4 KiB", &torn),
        ("map, compressed", &zlib),
    ] {
        let words: Vec<&dyn AsRef<OsStr>> = vec![&"map", &"--output=json", &"-f", &"qcow2", image];
        rows.push((name, Box::new(|| mapped(image)), words));
    }
    for (name, image) in [("compare, qcow2 and raw", &plain), ("compare, zlib and raw", &zlib)] {
        let words: Vec<&dyn AsRef<OsStr>> =
            vec![&"compare", &"-f", &"qcow2", &"-F", &"raw", image, &raw];
        rows.push((name, Box::new(|| compared(image, &raw)), words));
    }
    for (name, ours, theirs) in &rows {
        let mut samples: [Samples; 2] = Default::default();
        eprintln!("looking: {name}");
        for _ in 0..setting.rounds * 2 {
            samples[0].time(ours);
            samples[1].time(|| qemu::img(theirs));
        }
        let [ours, theirs] = samples;
        table.row([
            (*name).to_owned(),
            with_unit(ours.median()),
            with_unit(theirs.median()),
            ratio(ours.over(&theirs)),
        ]);
    }
    let mut start = Samples::default();
    for _ in 0..setting.rounds * 2 {
        start.time(|| qemu::img(&[&"--version"]));
    }
    std::fs::remove_dir_all(&folder).expect("the images can be removed");
    table.note(format!(
        "From the page cache. Ours are library calls, qemu-img is a process, whose start alone takes \
         {}. To hold: below 1× in every row.",
        with_unit(start.median())
    ));
    table.note(format!("{} rounds.", setting.rounds * 2));
    table
}

/// The disk in clusters of 4 KiB, of which every other lies elsewhere.
fn torn(folder: &Path, raw: &Path) -> PathBuf {
    let path = folder.join("torn");
    let image = CreateOptions::new(1 << 30).cluster_bits(ClusterBits::new(12).expect("a size"));
    create(&path, &image, &CreateFileOptions::default()).expect("an image");
    let disk = benches::images::OursWritten::open(&path, None, qcow2_format::Durability::None);
    let bytes = std::fs::read(raw).expect("the disk");
    for turn in 0..2 {
        for (number, cluster) in bytes.chunks(4096).enumerate().skip(turn).step_by(2) {
            if cluster.iter().any(|byte| *byte != 0) {
                benches::images::Disk::write(&disk, cluster, number as u64 * 4096);
            }
        }
    }
    path
}

fn checked(image: &Path) {
    let report = check(image, BaseFormat::Qcow2, &CheckOptions::default(), |_| {});
    let report = report.expect("it is checked");
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0));
}

/// As JSON, as qemu-img prints it.
fn mapped(image: &Path) {
    let mut said = String::new();
    map(image, BaseFormat::Qcow2, &MapOptions::default(), |entry| {
        let _ = writeln!(
            said,
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
             \"data\": {}, \"compressed\": {}, \"offset\": {:?} }},",
            entry.start,
            entry.length,
            entry.depth,
            entry.present,
            entry.zero,
            entry.data,
            entry.compressed,
            entry.offset
        );
        Ok(())
    })
    .expect("it is mapped");
    assert!(!said.is_empty());
}

fn compared(image: &Path, raw: &Path) {
    let options = CompareOptions::default();
    let report = compare((image, BaseFormat::Qcow2), (raw, BaseFormat::Raw), &options);
    assert!(report.expect("they are compared").identical);
}
