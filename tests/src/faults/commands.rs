//! The table of commands, what each finds, and what is right about each.
//!
//! ```text
//! name: [arguments], what it finds, what must be whole whatever happens, what a success has made;
//! ```
//!
//! A new command is a new entry. The suites that strike, fill and confine take them all.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use disk_engine::cache::{BaseOptions, ImageCache};
use disk_engine::ops::pack::{PackOptions, pack};
use disk_engine::ops::prepare::{PrepareOptions, prepare};
use disk_engine::ops::{ExtractOptions, extract};
use disk_engine::source::Source;
use disk_engine::strategy::Strategy;
use disk_engine::{BaseFormat, BaseImage};

use super::{Place, Scenario, Verdict, files};
use crate::qemu;

macro_rules! scenarios {
    ($($name:ident: [$($argument:expr),*], $setup:expr, $whole:expr, $done:expr;)*) => {
        vec![$(Scenario {
            name: stringify!($name),
            arguments: vec![$($argument.into()),*],
            setup: $setup,
            whole: $whole,
            done: $done,
        }),*]
    };
}

/// Every command there is.
#[must_use]
#[rustfmt::skip] // Rows.
pub fn all() -> Vec<Scenario> {
    scenarios! {
        // Extraction.
        extract_whole: ["extract", "../fixed/disk.tar.zst", "disk"],
            nothing, |place| absent_or_disk(place, "disk"), |place| is_disk(place, "disk");
        extract_framed: ["extract", "../fixed/framed.tar.zst", "disk"],
            nothing, |place| absent_or_disk(place, "disk"), |place| is_disk(place, "disk");
        extract_in_place_of_another: ["extract", "--force", "--pad", "../fixed/disk.tar.zst", "disk"],
            old_disk, |place| old_or(place, "disk", is_padded), |place| is_padded(place, "disk");

        // Bases.
        base_by_content: ["base", "../fixed/disk.tar.zst", "--cache", "cache"],
            nothing, whole_cache, one_base;
        base_by_content_durably: ["base", "--durable", "../fixed/disk.tar.zst", "--cache", "cache"],
            nothing, whole_cache, one_base;
        base_by_name: ["base", "../fixed/framed.tar.zst", "--cache", "cache", "--key", "name:disk"],
            nothing, whole_cache, one_base;
        base_beside_one_of_that_length: ["base", "../fixed/copy.tar.zst", "--cache", "cache"],
            cached, whole_cache, one_base;
        base_that_is_there: ["base", "../fixed/disk.tar.zst", "--cache", "cache"],
            cached_and_marked, the_same_base, the_same_base;
        base_made_durable_later: ["base", "--durable", "../fixed/disk.tar.zst", "--cache", "cache"],
            cached, whole_cache, one_base;
        base_in_place_of_a_damaged_one: ["base", "../fixed/disk.tar.zst", "--cache", "cache"],
            damaged, |_| Ok(()), one_base;
        base_with_left_overs_of_others: ["base", "../fixed/disk.tar.zst", "--cache", "cache"],
            abandoned, whole_cache, one_base;

        // Disks.
        overlay_new: ["overlay", "base", "vm.qcow2"],
            raw_base, |place| absent_or(place, "vm.qcow2", is_overlay),
            |place| is_overlay(place, "vm.qcow2");
        overlay_in_place_of_another: ["overlay", "--force", "base", "vm.qcow2"],
            old_overlay, |place| old_or(place, "vm.qcow2", is_overlay),
            |place| is_overlay(place, "vm.qcow2");
        overlay_kept: ["overlay", "--reuse", "base", "vm.qcow2"],
            standing_overlay, |place| is_overlay(place, "vm.qcow2"),
            |place| is_overlay(place, "vm.qcow2");
        prepare_from_nothing:
            ["prepare", "--nodes", "2", "--dir", "vms", "--cache", "cache", "../fixed/disk.tar.zst"],
            nothing, whole_disks, two_overlays;
        prepare_from_a_base:
            ["prepare", "--nodes", "2", "--dir", "vms", "--cache", "cache", "../fixed/disk.tar.zst"],
            cached, whole_disks, two_overlays;
        prepare_what_is_there:
            ["prepare", "--nodes", "2", "--dir", "vms", "--cache", "cache", "../fixed/disk.tar.zst"],
            prepared, two_overlays, two_overlays;
        prepare_afresh: ["prepare", "--fresh", "--strategy", "copy", "--nodes", "2", "--dir", "vms",
                "--cache", "cache", "../fixed/disk.tar.zst"],
            prepared, whole_disks, two_copies;
        prepare_copies: ["prepare", "--strategy", "copy", "--nodes", "2", "--dir", "vms",
                "--cache", "cache", "../fixed/disk.tar.zst"],
            cached, whole_disks, two_copies;
        prepare_raw: ["prepare", "--raw", "--nodes", "2", "--dir", "vms", "--cache", "cache",
                "../fixed/disk.tar.zst"],
            cached, whole_disks, two_copies;

        // Archives, config disks, questions.
        pack_one_frame: ["pack", "--durable", "--threads", "2", "../fixed/disk", "a.tar.zst"],
            nothing, |place| absent_or(place, "a.tar.zst", is_archive),
            |place| is_archive(place, "a.tar.zst");
        pack_frames: ["pack", "--force", "--frames", "64k", "--threads", "2", "../fixed/disk",
                "a.tar.zst"],
            old_archive, |place| old_or(place, "a.tar.zst", is_archive),
            |place| is_archive(place, "a.tar.zst");
        config_disk_for_cloud_init: ["config-disk", "--cloud-init", "../fixed/seed", "seed.img"],
            nothing, |place| absent_or(place, "seed.img", is_seed), |place| is_seed(place, "seed.img");
        usage_of_disks: ["usage", "vms"], prepared, two_overlays, two_overlays;
    }
}

/// The disk that all of it is about, of one megabyte: data, a hole, data, a hole, a last block that
/// is not whole.
pub fn disk() -> &'static [u8] {
    static DISK: OnceLock<Vec<u8>> = OnceLock::new();
    DISK.get_or_init(|| {
        let mut disk = vec![0; (1 << 20) + 512];
        let mut state = 1_u64;
        for byte in &mut disk[..300_000] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        disk[600_000..700_000].fill(7);
        disk[1 << 20..].fill(9);
        disk
    })
}

// ---------------------------------------------------------------------------------------------
// What a command finds
// ---------------------------------------------------------------------------------------------

/// Puts the files that every command reads into [`Place::fixed`].
///
/// # Panics
///
/// They cannot be made.
pub fn fill(place: &Place) {
    let fixed = place.fixed();
    fs::write(fixed.join("disk"), disk()).unwrap();
    for (name, frame_size) in [("disk.tar.zst", None), ("framed.tar.zst", Some(64 << 10))] {
        let options = PackOptions { frame_size, level: 1, ..PackOptions::default() };
        pack(&fixed.join("disk"), &fixed.join(name), &options).unwrap();
    }
    fs::copy(fixed.join("disk.tar.zst"), fixed.join("copy.tar.zst")).unwrap();
    fs::create_dir_all(fixed.join("seed/more")).unwrap();
    for name in ["user-data", "meta-data", "more/file"] {
        fs::write(fixed.join("seed").join(name), name).unwrap();
    }
}

fn nothing(_: &Place) {}

fn old_disk(place: &Place) {
    fs::write(place.work().join("disk"), b"old").unwrap();
}

fn old_archive(place: &Place) {
    fs::write(place.work().join("a.tar.zst"), b"old").unwrap();
}

fn old_overlay(place: &Place) {
    raw_base(place);
    fs::write(place.work().join("vm.qcow2"), b"old").unwrap();
}

fn raw_base(place: &Place) {
    let source = Source::path(place.fixed().join("disk"));
    extract(source, &place.work().join("base"), &ExtractOptions::default()).unwrap();
}

fn standing_overlay(place: &Place) {
    raw_base(place);
    let base = BaseImage::open(place.work().join("base"), BaseFormat::Raw).unwrap();
    base.overlay(place.work().join("vm.qcow2")).create().unwrap();
}

fn cached(place: &Place) {
    let cache = ImageCache::open(place.work().join("cache")).unwrap();
    cache.base(Source::path(place.fixed().join("disk.tar.zst"))).unwrap();
}

/// As [`cached`], with a note of which file it is.
fn cached_and_marked(place: &Place) {
    cached(place);
    fs::write(place.work().join("inode"), inode(place).to_string()).unwrap();
}

fn inode(place: &Place) -> u64 {
    fs::metadata(bases(place).remove(0)).unwrap().ino()
}

fn damaged(place: &Place) {
    cached(place);
    let base = bases(place).remove(0);
    fs::set_permissions(&base, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&base, b"damaged").unwrap();
}

fn abandoned(place: &Place) {
    ImageCache::open(place.work().join("cache")).unwrap();
    for (name, mode) in [("0123456789abcdef", 0o600), ("fedcba9876543210", 0o444)] {
        let path = place.work().join("cache/v1/tmp").join(name);
        fs::write(&path, b"abandoned").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn prepared(place: &Place) {
    let cache = ImageCache::open(place.work().join("cache")).unwrap();
    let options = PrepareOptions {
        nodes: 2,
        folder: place.work().join("vms"),
        min_size: 0,
        strategy: Strategy::Auto,
        raw: false,
        reserve: 0,
        relative: false,
        fresh: false,
        base: BaseOptions::default(),
    };
    prepare(&cache, Source::path(place.fixed().join("disk.tar.zst")), &options).unwrap();
}

// ---------------------------------------------------------------------------------------------
// What is right
// ---------------------------------------------------------------------------------------------

fn absent_or(place: &Place, name: &str, right: fn(&Place, &str) -> Verdict) -> Verdict {
    if place.work().join(name).symlink_metadata().is_err() {
        return Ok(());
    }
    right(place, name)
}

fn old_or(place: &Place, name: &str, right: fn(&Place, &str) -> Verdict) -> Verdict {
    match fs::read(place.work().join(name)) {
        Ok(content) if content == b"old" => Ok(()),
        Ok(_) => right(place, name),
        Err(error) => Err(format!("{name}, which stood there: {error}")),
    }
}

fn absent_or_disk(place: &Place, name: &str) -> Verdict {
    absent_or(place, name, is_disk)
}

fn is_disk(place: &Place, name: &str) -> Verdict {
    holds(&place.work().join(name), disk())
}

fn is_padded(place: &Place, name: &str) -> Verdict {
    let mut padded = disk().to_vec();
    padded.resize(padded.len().next_multiple_of(4096), 0);
    holds(&place.work().join(name), &padded)
}

fn holds(path: &Path, content: &[u8]) -> Verdict {
    let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found == content { Ok(()) } else { Err(format!("{} holds something else", path.display())) }
}

fn bases(place: &Place) -> Vec<PathBuf> {
    let files = files(&place.work().join("cache/v1/bases"));
    files.into_iter().filter(|path| path.extension().is_some_and(|word| word == "img")).collect()
}

/// Each base in the cache is the disk, nobody may write to it, and its manifest is there.
///
/// # Errors
///
/// What is wrong.
pub fn whole_cache(place: &Place) -> Verdict {
    for base in bases(place) {
        holds(&base, disk())?;
        let mode = fs::metadata(&base).unwrap().permissions().mode() & 0o7777;
        if mode != 0o444 {
            return Err(format!("the base has mode {mode:o}"));
        }
        if !base.with_extension("manifest").is_file() {
            return Err("a base without a manifest".to_owned());
        }
    }
    Ok(())
}

/// There is one base.
///
/// # Errors
///
/// What is wrong.
pub fn one_base(place: &Place) -> Verdict {
    whole_cache(place)?;
    match bases(place).as_slice() {
        [_] => Ok(()),
        bases => Err(format!("{} bases", bases.len())),
    }
}

/// Nobody has made anew what was good.
fn the_same_base(place: &Place) -> Verdict {
    one_base(place)?;
    let noted = fs::read_to_string(place.work().join("inode")).unwrap();
    if noted == inode(place).to_string() { Ok(()) } else { Err("it is another base".to_owned()) }
}

/// The overlay commands name their base `base`.
fn is_overlay(place: &Place, name: &str) -> Verdict {
    is_overlay_of(&place.work().join(name), &place.work().join("base"))
}

fn is_overlay_of(overlay: &Path, base: &Path) -> Verdict {
    let check = qemu::img(["check".as_ref(), "-q".as_ref(), overlay.as_os_str()]);
    if !check.status.success() {
        return Err(format!("qemu-img check {}: {}", overlay.display(), check.stderr));
    }
    let compare =
        qemu::img(["compare".as_ref(), "-q".as_ref(), overlay.as_os_str(), base.as_os_str()]);
    if !compare.status.success() {
        return Err(format!("qemu-img compare {}: {}", overlay.display(), compare.stderr));
    }
    Ok(())
}

/// Every disk of a VM that is there is whole.
fn whole_disks(place: &Place) -> Verdict {
    whole_cache(place)?;
    for node in ["vm0", "vm1"] {
        let folder = place.work().join("vms").join(node);
        let (overlay, raw) = (folder.join("primary.qcow2"), folder.join("primary.img"));
        if overlay.exists() {
            let base = bases(place);
            let base = base.first().ok_or("an overlay without a base")?;
            is_overlay_of(&overlay, base)?;
        }
        if raw.exists() {
            holds(&raw, disk())?;
        }
    }
    Ok(())
}

fn two_overlays(place: &Place) -> Verdict {
    one_base(place)?;
    whole_disks(place)?;
    two(place, "primary.qcow2", "primary.img")
}

fn two_copies(place: &Place) -> Verdict {
    one_base(place)?;
    whole_disks(place)?;
    two(place, "primary.img", "primary.qcow2")
}

fn two(place: &Place, wanted: &str, other: &str) -> Verdict {
    for node in ["vm0", "vm1"] {
        let folder = place.work().join("vms").join(node);
        if !folder.join(wanted).is_file() || folder.join(other).exists() {
            return Err(format!("{node} holds {:?}", files(&folder)));
        }
    }
    Ok(())
}

/// The archive, read to its end by the decompressor of others, holds the disk.
fn is_archive(place: &Place, name: &str) -> Verdict {
    let path = place.work().join(name);
    let packed = fs::read(&path).map_err(|error| error.to_string())?;
    let plain = zstd::decode_all(packed.as_slice()).map_err(|error| error.to_string())?;
    let mut archive = tar::Archive::new(plain.as_slice());
    let mut entries = archive.entries().map_err(|error| error.to_string())?;
    let mut entry = entries.next().ok_or("an empty archive")?.map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content == disk() { Ok(()) } else { Err("the archive holds something else".to_owned()) }
}

/// `fsck.fat` has no complaint, and the files are there.
fn is_seed(place: &Place, name: &str) -> Verdict {
    let path = place.work().join(name);
    let checked = Command::new("fsck.fat").arg("-n").arg(&path).output().unwrap();
    if !checked.status.success() {
        return Err(format!("fsck.fat: {}", String::from_utf8_lossy(&checked.stdout)));
    }
    let image = fs::read(&path).unwrap();
    let found = image.windows(9).any(|window| window == b"user-data");
    if found { Ok(()) } else { Err("the seed holds no file of its folder".to_owned()) }
}
