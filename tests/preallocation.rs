//! New images whose clusters have their place from the start, beside those that `qemu-img` makes.
//!
//! ```text
//! options ─┬─▶ qemu-img create ─▶ map ─┐
//!          └─▶ ours ────────────▶ map ─┴─▶ equal; check clean; space as promised; written and kept
//! ```

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use disk_engine::ops::create::{CreateFileOptions, create};
use qcow2_format::create::{BackingFile, BackingFormat, DataFile};
use qcow2_format::header::Version;
use qcow2_format::image::Preallocation;
use qcow2_format::{
    ClusterBits, CreateOptions, GuestOffset, RefcountOrder, WritableImage, WriteOptions,
};
use serde_json::Value;
use testkit::qemu::img_in;
use testkit::tool::memory_folder;

const MODES: [(Preallocation, &str); 4] = [
    (Preallocation::Off, "off"),
    (Preallocation::Metadata, "metadata"),
    (Preallocation::Falloc, "falloc"),
    (Preallocation::Full, "full"),
];

struct Row {
    size: u64,
    cluster_bits: u32,
    refcount_bits: u32,
    compat: &'static str,
    extended_l2: bool,
    backing: bool,
    /// Whether there is a data file, and whether it is raw.
    data_file: Option<bool>,
}

impl Row {
    fn ours(&self) -> CreateOptions {
        let mut options = CreateOptions::new(self.size)
            .cluster_bits(ClusterBits::new(self.cluster_bits).unwrap())
            .refcount_order(RefcountOrder::from_bits(self.refcount_bits).unwrap())
            .version(if self.compat == "0.10" { Version::V2 } else { Version::V3 })
            .extended_l2(self.extended_l2);
        if self.backing {
            options = options.backing(BackingFile::new("base", BackingFormat::Raw));
        }
        if let Some(raw) = self.data_file {
            options = options.data_file(DataFile::new("ours.data", raw));
        }
        options
    }

    fn theirs(&self, mode: &str) -> String {
        let mut options = format!(
            "compat={},cluster_size={},preallocation={mode}",
            self.compat,
            1 << self.cluster_bits
        );
        if self.refcount_bits != 16 {
            options += &format!(",refcount_bits={}", self.refcount_bits);
        }
        if self.extended_l2 {
            options += ",extended_l2=on";
        }
        if self.backing {
            options += ",backing_file=base,backing_fmt=raw";
        }
        if let Some(raw) = self.data_file {
            options += if raw {
                ",data_file=theirs.data,data_file_raw=on"
            } else {
                ",data_file=theirs.data"
            };
        }
        options
    }
}

#[rustfmt::skip] // Rows.
const ROWS: [Row; 12] = [
    Row { size: 5 << 20, cluster_bits: 16, refcount_bits: 16, compat: "1.1", extended_l2: false, backing: false, data_file: None },
    Row { size: (5 << 20) + 4096, cluster_bits: 16, refcount_bits: 16, compat: "0.10", extended_l2: false, backing: false, data_file: None },
    Row { size: 5 << 20, cluster_bits: 9, refcount_bits: 64, compat: "1.1", extended_l2: false, backing: false, data_file: None },
    Row { size: 5 << 20, cluster_bits: 9, refcount_bits: 1, compat: "1.1", extended_l2: false, backing: false, data_file: None },
    Row { size: 9 << 20, cluster_bits: 12, refcount_bits: 2, compat: "1.1", extended_l2: false, backing: false, data_file: None },
    Row { size: 9 << 20, cluster_bits: 21, refcount_bits: 16, compat: "1.1", extended_l2: false, backing: false, data_file: None },
    Row { size: 5 << 20, cluster_bits: 14, refcount_bits: 8, compat: "1.1", extended_l2: true, backing: false, data_file: None },
    Row { size: 5 << 20, cluster_bits: 16, refcount_bits: 32, compat: "1.1", extended_l2: true, backing: true, data_file: None },
    Row { size: (5 << 20) + 512, cluster_bits: 16, refcount_bits: 16, compat: "1.1", extended_l2: false, backing: false, data_file: Some(false) },
    Row { size: (5 << 20) + 512, cluster_bits: 16, refcount_bits: 16, compat: "1.1", extended_l2: true, backing: false, data_file: Some(true) },
    Row { size: 3 << 20, cluster_bits: 12, refcount_bits: 1, compat: "1.1", extended_l2: false, backing: false, data_file: Some(true) },
    Row { size: 0, cluster_bits: 16, refcount_bits: 16, compat: "1.1", extended_l2: false, backing: false, data_file: None },
];

/// What `qemu-img map` says, without the places, neighbours merged. Which clusters are holes of the
/// file it says as well, unless `guesses`: below a page that depends on their places, in large
/// ones it takes sparse tables for sparse data, and of a data file it writes the last cluster.
fn map(folder: &Path, image: &str, guesses: bool) -> Vec<(u64, Value)> {
    // QEMU takes a data file's relative name to be in the folder it was started in.
    let text = img_in(folder, &["map", "--output=json", image]);
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut merged: Vec<(u64, Value)> = Vec::new();
    for mut entry in entries {
        let fields = entry.as_object_mut().unwrap();
        fields.remove("start");
        fields.remove("offset");
        if guesses {
            fields.remove("zero");
        }
        let length = fields.remove("length").and_then(|length| length.as_u64()).unwrap();
        match merged.last_mut() {
            Some((before, kind)) if *kind == entry => *before += length,
            _ => merged.push((length, entry)),
        }
    }
    merged
}

#[test]
fn every_mode_gives_what_qemu_img_gives() {
    for (number, row) in ROWS.iter().enumerate() {
        for (mode, name) in MODES {
            // Without a data file that is `create_equality`'s.
            if mode == Preallocation::Off && row.data_file.is_none() {
                continue;
            }
            let place = memory_folder();
            let folder = place.path();
            fs::write(folder.join("base"), vec![9; 3 << 20]).unwrap();
            let size = row.size.to_string();
            let (options, ours) = (row.theirs(name), folder.join("ours"));
            img_in(folder, &["create", "-q", "-f", "qcow2", "-o", &options, "theirs", &size]);
            let image = row.ours().preallocation(mode);
            create(&ours, &image, &CreateFileOptions::default()).unwrap();
            let told = format!("row {number}, {name}");
            img_in(folder, &["check", "-q", "-f", "qcow2", "ours"]);
            let guesses = !(12..=16).contains(&row.cluster_bits) || row.data_file.is_some();
            assert_eq!(map(folder, "ours", guesses), map(folder, "theirs", guesses), "{told}");
            img_in(folder, &["compare", "-q", "-f", "qcow2", "-F", "qcow2", "ours", "theirs"]);

            let space = if row.data_file.is_some() { &folder.join("ours.data") } else { &ours };
            if row.data_file.is_some() {
                let lengths = ["theirs.data", "ours.data", "theirs", "ours"]
                    .map(|name| fs::metadata(folder.join(name)).unwrap().len());
                assert_eq!(lengths[0], lengths[1], "{told}");
                assert_eq!(lengths[2], lengths[3], "{told}");
            }
            let metadata = fs::metadata(space).unwrap();
            assert!(metadata.len() >= row.size, "{told}");
            let taken = metadata.blocks() * 512;
            match mode {
                Preallocation::Off | Preallocation::Metadata => {
                    assert!(taken < (1 << 20).max(row.size / 2), "{told}")
                }
                _ => assert!(taken >= row.size, "{told}: {taken}"),
            }
            if row.size > 0 {
                written_and_kept(&ours, row, space, &told);
            }
        }
    }
}

/// Writing takes no space that was not taken before.
fn written_and_kept(path: &Path, row: &Row, space: &Path, told: &str) {
    let length = fs::metadata(space).unwrap().len();
    let open = |path| File::options().read(true).write(true).open(path).unwrap();
    let below = if row.backing { 3 << 20 } else { 0 };
    let options = WriteOptions::new().below(below);
    let image = match row.data_file {
        None => WritableImage::open(open(path), &options),
        Some(_) => WritableImage::open_with_data(open(path), open(space), &options),
    };
    let image = image.unwrap();
    let data: Vec<u8> = (0..row.size).map(|at| u8::try_from(at % 251).unwrap()).collect();
    image
        .write_over::<qcow2_format::Error>(&data[1000..], GuestOffset(1000), |part, at| {
            part.fill(if at.0 < below { 9 } else { 0 });
            Ok(())
        })
        .unwrap();
    image.close().unwrap();
    assert_eq!(fs::metadata(space).unwrap().len(), length, "{told}");
    let folder = path.parent().unwrap();
    let mut flat = data;
    flat[..1000].fill(if row.backing { 9 } else { 0 });
    fs::write(folder.join("flat"), flat).unwrap();
    img_in(folder, &["check", "-q", "-f", "qcow2", "ours"]);
    img_in(folder, &["compare", "-q", "-f", "qcow2", "-F", "raw", "ours", "flat"]);
}

#[test]
fn what_qemu_img_refuses_is_refused() {
    let place = memory_folder();
    let folder = place.path();
    fs::write(folder.join("base"), vec![9; 1 << 20]).unwrap();
    let row = Row { backing: true, extended_l2: false, ..ROWS[7] };
    for (mode, name) in MODES.into_iter().filter(|(mode, _)| *mode != Preallocation::Off) {
        let image = row.ours().preallocation(mode);
        let refused = create(&folder.join("x"), &image, &CreateFileOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), disk_engine::ErrorKind::InvalidInput);
        assert!(!folder.join("x").exists());
        let options = row.theirs(name);
        let output = std::process::Command::new("qemu-img")
            .current_dir(folder)
            .args(["create", "-q", "-f", "qcow2", "-o", &options, "y", "1M"])
            .output()
            .unwrap();
        assert!(!output.status.success());
    }
}
