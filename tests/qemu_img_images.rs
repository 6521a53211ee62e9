//! The qemu-img door beside the real program over images that few programs write: what QEMU puts up with, we
//! put up with, and say the same of it.
//!
//! ```text
//! header edited ─┬─▶ qemu-img info, check, map, … ─▶ code, messages, content ─┐
//!                └─▶ door                         ─▶ code, messages, content ─┴─▶ equal
//! ```

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::door::{Alike, Door};
use testkit::qemu::{img, img_in};
use testkit::tool::{available, memory_folder};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");
/// Extension types.
const FORMAT: u32 = 0xe279_2aca;
const NAMES: u32 = 0x6803_f857;
const DATA: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;
/// Header fields.
const BACKING_NAME: u64 = 8;
const SIZE: u64 = 24;
const INCOMPATIBLE: u64 = 72;
const AUTOCLEAR: u64 = 88;
/// Where extensions begin in what qemu-img makes.
const EXTENSIONS: u64 = 112;

/// An image with 100 KiB of data.
fn image(folder: &Path, name: &str, options: &[&str]) -> File {
    let create = [&["create", "-q", "-f", "qcow2"], options, &[name, "1M"]].concat();
    img_in(folder, &create);
    let mut io = Command::new("qemu-io");
    io.current_dir(folder).args(["-f", "qcow2", name, "-c", "write -P 7 64k 100k"]);
    assert!(io.stdout(Stdio::null()).status().unwrap().success());
    File::options().read(true).write(true).open(folder.join(name)).unwrap()
}

fn put(file: &File, at: u64, value: u64) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

/// Has the image carry `extensions` and no others.
fn carry(file: &File, extensions: &[(u32, &[u8])]) {
    let mut area = Vec::new();
    for (kind, data) in extensions {
        area.extend_from_slice(&kind.to_be_bytes());
        area.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        area.extend_from_slice(data);
        area.resize(area.len().next_multiple_of(8), 0);
    }
    area.resize(1024, 0);
    file.write_all_at(&area, EXTENSIONS).unwrap();
}

/// Where the data of an image's extension lies.
fn extension(file: &File, wanted: u32) -> u64 {
    let number = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        u32::from_be_bytes(bytes)
    };
    let mut at = EXTENSIONS;
    while number(at) != wanted {
        assert_ne!(number(at), 0, "no such extension");
        at += 8 + u64::from(number(at + 4)).next_multiple_of(8);
    }
    at + 8
}

fn make(folder: &Path) {
    carry(&image(folder, "named", &[]), &[(DATA, b"data.raw")]);
    carry(&image(folder, "named with nul", &[]), &[(DATA, b"data\0raw")]);
    carry(&image(folder, "format", &[]), &[(FORMAT, b"qcow2")]);
    carry(&image(folder, "format padded", &[]), &[(FORMAT, b"raw\0\0\0")]);
    carry(
        &image(folder, "twice", &[]),
        &[(FORMAT, b"qcow2"), (DATA, b"a"), (FORMAT, b"raw"), (DATA, b"b")],
    );
    for bits in [1, 2, 3, 5, 1 << 40 | 1] {
        put(&image(folder, &format!("autoclear {bits}"), &[]), AUTOCLEAR, bits);
    }
    fs::write(folder.join("base"), [5; 70000]).unwrap();
    let backed = image(folder, "backed", &["-b", "base", "-F", "raw"]);
    put(&backed, AUTOCLEAR, 1);
    let raw = image(folder, "raw data", &["-o", "data_file=data,data_file_raw=on"]);
    put(&raw, AUTOCLEAR, 3);
    put(&image(folder, "size", &[]), SIZE, 0x5_0001);
    put(&image(folder, "empty name", &[]), BACKING_NAME, 72);
    // An entry for bit 10 without a name ends the table; without it all of them have one.
    let entry = |bit: u8, name: &[u8]| {
        let mut entry = vec![0; 48];
        entry[1] = bit;
        entry[2..2 + name.len()].copy_from_slice(name);
        entry
    };
    let tables = [
        [entry(10, b""), entry(11, b"second"), entry(9, b"third")].concat(),
        [entry(11, b"second"), entry(9, b"third"), entry(11, b"again")].concat(),
        [entry(11, b"second"), entry(9, b"third")].concat()[..52].to_vec(),
    ];
    for (index, table) in tables.iter().enumerate() {
        let file = image(folder, &format!("features {index}"), &[]);
        carry(&file, &[(NAMES, table)]);
        put(&file, INCOMPATIBLE, 1 << 9 | 1 << 10 | 1 << 11);
    }
    let used = image(folder, "bitmap in use", &[]);
    img_in(folder, &["bitmap", "--add", "bitmap in use", "b"]);
    let mut directory = [0; 8];
    used.read_exact_at(&mut directory, extension(&used, BITMAPS) + 16).unwrap();
    let flags = u64::from_be_bytes(directory) + 12;
    used.write_all_at(&1_u32.to_be_bytes(), flags).unwrap();
    drop(image(folder, "snapshots", &[]));
    for name in ["snäp", "日本語", "plain"] {
        img_in(folder, &["snapshot", "-c", name, "snapshots"]);
    }
}

#[test]
fn what_qemu_puts_up_with_is_read_alike() {
    if !available("images that few programs write", &["qemu-img", "qemu-io"]) {
        return;
    }
    let door = Door::new(ENGINE, make);
    let mut names: Vec<_> = fs::read_dir(door.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let commands: &[&[&str]] = &[
        &["info"],
        &["info", "--output", "json"],
        &["check"],
        &["map"],
        &["map", "--output", "json"],
        &["measure", "-O", "qcow2"],
        &["convert", "-O", "raw"],
    ];
    let (mut asked, mut refused, mut wrong) = (0, 0, Vec::new());
    for name in names.iter().filter(|name| !["base", "data"].contains(&name.as_str())) {
        for command in commands {
            let mut words = [command, &["-f", "qcow2", name.as_str()][..]].concat();
            if command[0] == "convert" {
                words.push("copy");
            }
            let [theirs, ours] = door.ask(&words);
            if ours != theirs {
                wrong.push(format!("{words:?}: {ours:?}, not {theirs:?}"));
            }
            asked += 1;
            refused += u32::from(theirs.code != Some(0));
            if command[0] == "convert" {
                wrong.extend(
                    door.differences(Alike::Bytes).iter().map(|told| format!("{words:?}: {told}")),
                );
                door.remove("copy");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked > 100 && refused > 10 && refused < asked / 2, "{refused} of {asked}");
}

/// Where QEMU stops in fear of the bitmaps that are not there, we write, and vouch for nothing.
#[test]
fn bits_that_vouch_for_nothing_are_gone_after_a_write() {
    if !available("autoclear bits", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = memory_folder();
    let file = image(folder.path(), "image", &[]);
    put(&file, AUTOCLEAR, 1 << 40 | 1);
    fs::write(folder.path().join("raw"), [9; 1 << 20]).unwrap();
    let mut convert = Command::new(ENGINE);
    convert.args(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", "raw", "image"]);
    let output = convert.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut bits = [1; 8];
    file.read_exact_at(&mut bits, AUTOCLEAR).unwrap();
    assert_eq!(bits, [0; 8]);
    img_in(folder.path(), &["check", "-q", "image"]);
    img_in(folder.path(), &["compare", "-q", "-F", "qcow2", "-f", "raw", "raw", "image"]);
}

/// A cluster of which a part is zeros takes no more space than what qemu-img writes.
#[test]
fn holes_within_clusters_take_no_space() {
    if !available("space of sparse clusters", &["qemu-img"]) {
        return;
    }
    let door = Door::new(ENGINE, |folder| {
        let file = File::create(folder.join("disk")).unwrap();
        file.set_len(8 << 20).unwrap();
        for index in 0..32_u64 {
            let at = index * (256 << 10) + 4096 * (index % 30);
            file.write_all_at(&[u8::try_from(index + 1).unwrap(); 4096], at).unwrap();
        }
        file.write_all_at(&[3; 300 << 10], 5 << 20).unwrap();
    });
    for options in [
        "cluster_size=128k,preallocation=metadata",
        "preallocation=metadata",
        "cluster_size=4k,preallocation=metadata",
        "extended_l2=on",
        "extended_l2=on,cluster_size=32k",
        "extended_l2=on,cluster_size=2M",
        "extended_l2=on,preallocation=metadata",
        "data_file=data,preallocation=metadata",
        "data_file=data,extended_l2=on",
    ] {
        let words = ["convert", "-f", "raw", "-O", "qcow2", "-o", options, "disk", "image"];
        let [theirs, ours] = door.ask(&words);
        assert_eq!(ours, theirs, "{options}");
        let space = |name: &str| fs::metadata(name).map_or(0, |file| file.blocks() * 512);
        let of = |folder: &Path| {
            let path = |name: &str| folder.join(name).display().to_string();
            space(&path("image")) + space(&path("data"))
        };
        let (theirs, ours) = (of(&door.folder().with_file_name("theirs")), of(&door.folder()));
        // Tables may lie in a few more blocks.
        assert!(ours <= theirs + (64 << 10), "{options}: {ours} and {theirs} bytes");
        let folder = door.folder();
        img_in(&folder, &["check", "-q", "image"]);
        img_in(&folder, &["compare", "-q", "-f", "raw", "-F", "qcow2", "disk", "image"]);
        door.remove("image");
        door.remove("data");
    }
    // Zeros that are to be stored are.
    let words =
        ["convert", "-f", "raw", "-O", "qcow2", "-S", "0", "-o", "extended_l2=on", "disk", "image"];
    assert!(door.ask(&words).iter().all(|answer| answer.code == Some(0)));
    let image = door.folder().join("image");
    assert!(fs::metadata(&image).unwrap().blocks() * 512 >= 8 << 20);
    assert!(img(["check", "-q", &image.display().to_string()]).status.success());
}
