//! Converting a disk, beside `qemu-img convert`.
//!
//! ```text
//! a disk of 1 GiB, torn like a real one ─▶ raw · qcow2 · zlib · zstd ─▶ each into each that is asked for
//! ```
//!
//! Caller: `main`.

use std::fs;
use std::path::{Path, PathBuf};

use benches::conversions::{self, Form};
use benches::image::{self, Shape};
use benches::images::qemu;
use benches::scratch;
use disk_engine::BaseFormat;
use disk_engine::ops::{ExtractOptions, extract};
use disk_engine::source::Source;

use crate::samples::{Samples, ratio, with_unit};
use crate::table::Table;
use crate::{Setting, absent};

/// 1 GiB, 300 MiB of data.
const SHAPE: Shape = Shape { virtual_size: 1 << 30, extents: 9_000, runs: 260, groups: 9 };

/// What is converted into what.
const ROWS: [(&str, Form, Form); 8] = [
    ("raw to raw", Form::Raw, Form::Raw),
    ("raw to qcow2", Form::Raw, Form::Qcow2),
    ("qcow2 to raw", Form::Qcow2, Form::Raw),
    ("qcow2 to qcow2", Form::Qcow2, Form::Qcow2),
    ("zlib to raw", Form::Zlib, Form::Raw),
    ("zstd to raw", Form::Zstd, Form::Raw),
    ("raw to zlib", Form::Raw, Form::Zlib),
    ("raw to zstd", Form::Raw, Form::Zstd),
];

/// Measures all rows.
pub fn measure(setting: &Setting) -> Table {
    let columns = ["", "disk-engine", "qemu-img", "over qemu-img", "file", "qemu-img's file"];
    let mut table = Table::new("Converting a disk", &columns);
    if !setting.qemu_img.is_there() {
        absent(&mut table, "qemu-img");
        return table;
    }
    eprintln!("convert: making a disk");
    let folder = scratch::empty(setting.scratch, "convert");
    let disk = make(&folder);
    for (name, from, into) in ROWS {
        let (from, format) = (source(&folder, &disk, from), format_of(from));
        let (ours, theirs) = (folder.join("ours"), folder.join("theirs"));
        let mut samples: [Samples; 2] = Default::default();
        let mut sizes = [0; 2];
        for round in 0..setting.rounds {
            eprintln!("convert: {name}, round {} of {}", round + 1, setting.rounds);
            scratch::settle(setting.scratch);
            samples[0].time(|| conversions::ours(&from, format, &ours, into));
            scratch::settle(setting.scratch);
            samples[1].time(|| conversions::qemu_img(&from, format, &theirs, into));
            if round == 0 {
                let format = format_of(into).as_str();
                qemu::img(&[&"compare", &"-q", &"-f", &format, &"-F", &format, &ours, &theirs]);
                sizes = [&ours, &theirs].map(|path| fs::metadata(path).expect("a file").len());
            }
            for path in [&ours, &theirs] {
                fs::remove_file(path).expect("a file can be removed");
            }
        }
        let [ours, theirs] = samples;
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        table.row([
            name.to_owned(),
            with_unit(ours.median()),
            with_unit(theirs.median()),
            ratio(ours.over(&theirs)),
            mib(sizes[0]),
            mib(sizes[1]),
        ]);
    }
    fs::remove_dir_all(&folder).expect("the disks can be removed");
    table.note(
        "A disk of 1 GiB with 300 MiB of data, from and to the page cache, all cores, clusters of \
         64 KiB. qemu-img is a process of its own, which costs its start. To hold: below 1× in every \
         row, 0.67× at most where it is compressed, and files at most 1 % larger than \
         qemu-img's.",
    );
    table.note(format!("{} rounds.", setting.rounds));
    table
}

/// The disk, as a raw file.
pub fn make(folder: &Path) -> PathBuf {
    let archive = folder.join("disk.tar.zst");
    image::pack(&SHAPE, &archive).expect("the archive can be written");
    let disk = folder.join("raw");
    extract(Source::path(&archive), &disk, &ExtractOptions::default()).expect("the disk is there");
    disk
}

/// The disk in that form, made by qemu-img once.
fn source(folder: &Path, disk: &Path, form: Form) -> PathBuf {
    let path = folder.join(match form {
        Form::Raw => return disk.to_path_buf(),
        Form::Qcow2 => "qcow2",
        Form::Zlib => "zlib",
        Form::Zstd => "zstd",
    });
    if !path.exists() {
        conversions::qemu_img(disk, BaseFormat::Raw, &path, form);
    }
    path
}

fn format_of(form: Form) -> BaseFormat {
    if form == Form::Raw { BaseFormat::Raw } else { BaseFormat::Qcow2 }
}
