//! New images of ours against `qemu-img create`, over the whole option space.
//!
//! For each set of options both make an image, and then:
//!
//! - the files have the same length, and every cluster in use has the same bytes (clusters
//!   qemu-img freed on its way may hold anything);
//! - `qemu-img check` finds ours clean;
//! - for every fourth one, `qemu-img check` says the same of both, image end offset included, and so does
//!   `qemu-img info`, but for names and space taken;
//! - for every eighth one, `qemu-img map` says the same and `qemu-img compare` finds the same content
//!   (all this follows from equal bytes, and QEMU takes its time).

use std::fs;
use std::path::Path;

use disk_engine::ops::create::{CreateFileOptions, create};
use qcow2_format::create::{BackingFile, BackingFormat, CreateOptions, DataFile};
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::{ClusterBits, Memory, RefcountOrder, WriteAt};
use serde_json::Value;
use testkit::qemu::img_in;
use testkit::tool::memory_folder;

/// One point of the option space, in qemu-img's words.
#[derive(Clone, Copy, Debug)]
struct Point {
    size: u64,
    cluster_bits: u32,
    refcount_bits: u32,
    extended_l2: bool,
    lazy_refcounts: bool,
    zstd: bool,
    compat: &'static str,
    backing: Option<&'static str>,
}

impl Point {
    fn qemu_options(&self) -> String {
        let mut options = format!(
            "compat={},cluster_size={},refcount_bits={}",
            self.compat,
            1 << self.cluster_bits,
            self.refcount_bits
        );
        for (set, option) in [
            (self.extended_l2, ",extended_l2=on"),
            (self.lazy_refcounts, ",lazy_refcounts=on"),
            (self.zstd, ",compression_type=zstd"),
        ] {
            if set {
                options.push_str(option);
            }
        }
        options
    }

    fn ours(&self, storage: &(impl WriteAt + Sync)) -> Result<(), qcow2_format::Error> {
        let mut options = CreateOptions::new(self.size)
            .version(if self.compat == "0.10" { Version::V2 } else { Version::V3 })
            .cluster_bits(ClusterBits::new(self.cluster_bits).unwrap())
            .refcount_order(RefcountOrder::from_bits(self.refcount_bits).unwrap())
            .extended_l2(self.extended_l2)
            .lazy_refcounts(self.lazy_refcounts)
            .compression_type(if self.zstd {
                CompressionType::Zstd
            } else {
                CompressionType::Zlib
            });
        if let Some(name) = self.backing {
            options = options.backing(BackingFile::new(name, BackingFormat::Raw));
        }
        options.plan()?.write_to(storage)
    }
}

/// Every combination of the small options, and for each cluster size disks from nothing to the
/// largest QEMU makes, with the sizes around which the layout changes.
fn option_space() -> Vec<Point> {
    let mut points = Vec::new();
    for cluster_bits in 9..=21 {
        for refcount_bits in [1_u32, 2, 4, 8, 16, 32, 64] {
            for extended_l2 in [false, true] {
                if extended_l2 && cluster_bits < 14 {
                    continue;
                }
                // Bits rotate with the other options, so that each pair of options meets.
                let turn = cluster_bits + refcount_bits.trailing_zeros();
                let base = Point {
                    size: 0,
                    cluster_bits,
                    refcount_bits,
                    extended_l2,
                    lazy_refcounts: turn % 2 == 0,
                    zstd: turn % 3 == 0,
                    compat: "1.1",
                    backing: (turn % 4 == 0).then_some("base.raw"),
                };
                let geometry = qcow2_format::Geometry {
                    cluster_bits: ClusterBits::new(cluster_bits).unwrap(),
                    refcount_order: RefcountOrder::from_bits(refcount_bits).unwrap(),
                    extended_l2,
                };
                let span = geometry.l1_entry_span();
                let max = geometry.max_virtual_size();
                let mut sizes = vec![512, span + 512];
                if matches!(refcount_bits, 1 | 16 | 64) {
                    sizes.extend([0, span, 64 << 20]);
                }
                // The largest L1 table takes 32 MiB; over tiny clusters it moves the refcount table.
                if refcount_bits == 16 || (refcount_bits == 64 && cluster_bits <= 11) {
                    sizes.push(max);
                }
                // L1 tables that just fill the first refcount block, then one cluster more.
                let clusters_left = geometry.refcounts_per_block() - 3;
                for l1_clusters in [clusters_left, clusters_left + 1] {
                    if let Some(size) = (l1_clusters << cluster_bits).checked_mul(span / 8) {
                        sizes.push(size);
                    }
                }
                sizes.retain(|size| *size <= max);
                points.extend(sizes.into_iter().map(|size| Point { size, ..base }));
            }
        }
        for (size, backing) in [(0, None), (1 << 30, Some("base.raw"))] {
            points.push(Point {
                size,
                cluster_bits,
                refcount_bits: 16,
                extended_l2: false,
                lazy_refcounts: false,
                zstd: false,
                compat: "0.10",
                backing,
            });
        }
    }
    points
}

/// What `qemu-img` says, without the fields that must differ.
fn said(folder: &Path, arguments: &[&str]) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for field in ["filename", "actual-size"] {
                    fields.remove(field);
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let output = img_in(folder, arguments);
    let mut value = serde_json::from_str(&output).expect("qemu-img prints JSON");
    strip(&mut value);
    value
}

fn assert_same_bytes(point: &Point, ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len(), "file length of {point:?}");
    let header = qcow2_format::Header::parse(ours, ours.len() as u64).unwrap();
    let plan = CreateOptions::new(point.size)
        .cluster_bits(header.geometry().cluster_bits)
        .refcount_order(header.geometry().refcount_order)
        .extended_l2(header.geometry().extended_l2)
        .plan()
        .unwrap();
    let cluster = 1 << point.cluster_bits;
    for (index, (a, b)) in ours.chunks(cluster).zip(theirs.chunks(cluster)).enumerate() {
        let used = plan.layout().used.get(index).copied().unwrap_or(false);
        assert!(!used || a == b, "cluster {index} of {point:?}");
    }
}

#[test]
fn new_images_with_clusters_up_to_16_kib_are_qemu_imgs_own() {
    compare_with_img_in(|point| point.cluster_bits <= 14);
}

#[test]
fn new_images_with_clusters_from_32_kib_are_qemu_imgs_own() {
    compare_with_img_in(|point| point.cluster_bits > 14);
}

fn compare_with_img_in(chosen: impl Fn(&Point) -> bool) {
    let folder = memory_folder();
    let folder = folder.path();
    fs::File::create(folder.join("base.raw")).unwrap().set_len(1 << 20).unwrap();
    let points: Vec<_> = option_space().into_iter().filter(chosen).collect();
    for (number, point) in points.iter().enumerate() {
        let (theirs, ours) = (folder.join("theirs.qcow2"), folder.join("ours.qcow2"));
        let options = point.qemu_options();
        let size = point.size.to_string();
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some(backing) = point.backing {
            arguments.extend(["-b", backing, "-F", "raw"]);
        }
        arguments.extend(["theirs.qcow2", &size]);
        img_in(folder, &arguments);
        point.ours(&fs::File::create(&ours).unwrap()).unwrap();
        assert_same_bytes(point, &fs::read(&ours).unwrap(), &fs::read(&theirs).unwrap());
        let say = |arguments: &[&str], name| said(folder, &[arguments, &[name]].concat());
        let check = ["check", "-f", "qcow2", "--output=json"];
        let ours = say(&check, "ours.qcow2");
        if number % 4 == 0 {
            assert_eq!(ours, say(&check, "theirs.qcow2"), "check of {point:?}");
            let info = ["info", "-f", "qcow2", "--output=json"];
            let (ours, theirs) = (say(&info, "ours.qcow2"), say(&info, "theirs.qcow2"));
            assert_eq!(ours, theirs, "info of {point:?}");
        }
        // Mapping and comparing exabytes takes QEMU minutes.
        if number % 8 == 0 && point.size <= 128 << 30 && point.cluster_bits >= 12 {
            let map = |name| said(folder, &["map", "-f", "qcow2", "--output=json", name]);
            assert_eq!(map("ours.qcow2"), map("theirs.qcow2"), "map of {point:?}");
            img_in(
                folder,
                &["compare", "-q", "-f", "qcow2", "-F", "qcow2", "ours.qcow2", "theirs.qcow2"],
            );
        }
    }
    println!("{} option sets compared with qemu-img", points.len());
}

/// With a data file, which both make: in two folders, as its name is among the bytes.
#[test]
fn images_with_a_data_file_are_qemu_imgs_own() {
    let folder = memory_folder();
    let options = CreateOptions::new(3_000_320);
    let v3_extended = options.clone().extended_l2(true).compression_type(CompressionType::Zstd);
    let rows = [
        (options.clone().data_file(DataFile::new("d", false)), "data_file=d"),
        (options.clone().data_file(DataFile::new("d", true)), "data_file=d,data_file_raw=on"),
        (
            options
                .cluster_bits(ClusterBits::MIN)
                .backing(BackingFile::new("base", BackingFormat::Raw))
                .data_file(DataFile::new("a,b", false)),
            "cluster_size=512,backing_file=base,backing_fmt=raw,data_file=a,,b",
        ),
        (
            v3_extended.data_file(DataFile::new("d", true)).lazy_refcounts(true),
            "extended_l2=on,compression_type=zstd,data_file=d,data_file_raw=on,lazy_refcounts=on",
        ),
    ];
    for (number, (options, theirs)) in rows.iter().enumerate() {
        let folders = ["ours", "theirs"].map(|name| folder.path().join(format!("{name}{number}")));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
            fs::File::create(folder.join("base")).unwrap().set_len(1 << 20).unwrap();
        }
        create(&folders[0].join("image"), options, &CreateFileOptions::default()).unwrap();
        img_in(&folders[1], &["create", "-q", "-f", "qcow2", "-o", theirs, "image", "3000320"]);
        let plan = options.plan().unwrap();
        let data = plan.header().external_data_file().unwrap();
        for name in ["image", std::str::from_utf8(data).unwrap()] {
            let [ours, theirs] =
                folders.each_ref().map(|folder| fs::read(folder.join(name)).unwrap());
            assert_eq!(ours.len(), theirs.len(), "{name}, row {number}");
            assert!(ours == theirs, "{name}, row {number}");
        }
    }
}

#[test]
fn qemu_img_refuses_what_we_refuse() {
    let folder = memory_folder();
    let point = Point {
        size: 1 << 30,
        cluster_bits: 16,
        refcount_bits: 16,
        extended_l2: false,
        lazy_refcounts: false,
        zstd: false,
        compat: "1.1",
        backing: None,
    };
    let bad = [
        Point { compat: "0.10", refcount_bits: 8, ..point },
        Point { compat: "0.10", lazy_refcounts: true, ..point },
        Point { compat: "0.10", extended_l2: true, ..point },
        Point { compat: "0.10", zstd: true, ..point },
        Point { extended_l2: true, cluster_bits: 13, ..point },
        Point { cluster_bits: 9, size: (128 << 30) + 512, ..point },
        Point { cluster_bits: 21, size: (2 << 60) + 512, ..point },
    ];
    for point in bad {
        assert!(
            matches!(point.ours(&Memory::default()), Err(qcow2_format::Error::Options(_))),
            "{point:?}"
        );
        let options = point.qemu_options();
        let size = point.size.to_string();
        let status = std::process::Command::new("qemu-img")
            .current_dir(folder.path())
            .args(["create", "-q", "-f", "qcow2", "-o", &options, "bad.qcow2", &size])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "qemu-img makes {point:?}");
    }
}
