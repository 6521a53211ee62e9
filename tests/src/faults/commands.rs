//! The table of commands, what each finds, and what is right about each.
//!
//! ```text
//! name: [arguments], what it finds, what must be whole whatever happens, what a success has made
//!     (, what a success says)?;
//! ```
//!
//! A new command is a new entry. The suites that strike, fill and confine take them all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use disk_engine::cache::{
    BaseOptions, BaseState, CacheListing, ImageCache, KeyPolicy, ListedBase, OverlayState,
    OverlayUse,
};
use disk_engine::ops::convert::{
    ConvertOptions, ConvertSource, ConvertTarget, TargetFormat, convert,
};
use disk_engine::ops::pack::{PackOptions, pack};
use disk_engine::ops::prepare::{PrepareOptions, prepare};
use disk_engine::ops::{ExtractOptions, extract};
use disk_engine::source::Source;
use disk_engine::strategy::Strategy;
use disk_engine::{BaseFormat, BaseImage, Durability};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use qcow2_format::CreateOptions;

use super::{Answer, Place, Scenario, Verdict, files};
use crate::qemu;

macro_rules! scenarios {
    ($($name:ident: [$($argument:expr),*], $setup:expr, $whole:expr, $done:expr
        $(, $answer:expr)?;)*) => {
        vec![$(Scenario {
            name: stringify!($name),
            arguments: vec![$($argument.into()),*],
            setup: $setup,
            whole: $whole,
            done: $done,
            answer: scenarios!(@ $($answer)?),
        }),*]
    };
    (@) => { None };
    (@ $answer:expr) => { Some($answer) };
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

        // A cache looked at, verified, pruned.
        cache_ls: ["cache", "ls", "--cache", "cache"],
            under_overlays_and_a_quarantined, base_under_overlays, base_under_overlays, LISTED;
        cache_verify_sound: ["cache", "verify", "--cache", "cache"],
            two_bases, both_bases, both_bases, INTACT;
        cache_verify_sound_in_full: ["cache", "verify", "--full", "--cache", "cache"],
            two_bases, both_bases, both_bases, INTACT;
        cache_verify_suspected: ["cache", "verify", "--cache", "cache"],
            suspected, both_bases, both_bases, INTACT;
        cache_verify_damaged: ["cache", "verify", "--cache", "cache"],
            one_overwritten, damage_is_kept, damage_is_quarantined, DAMAGED;
        cache_verify_damaged_in_full: ["cache", "verify", "--full", "--cache", "cache"],
            one_altered, damage_is_kept, damage_is_quarantined, DAMAGED;
        cache_verify_damaged_in_use: ["cache", "verify", "--cache", "cache"],
            one_overwritten_in_qemu, damage_is_in_its_place, damage_is_not_served, DAMAGED;
        cache_prune_by_age: ["cache", "prune", "--cache", "cache", "--max-age", "7d"],
            one_of_last_week, second_stays, second_alone;
        cache_prune_to_a_size: ["cache", "prune", "--cache", "cache", "--max-size", "700000"],
            second_used_last, second_stays, second_alone;
        cache_prune_everything: ["cache", "prune", "--cache", "cache", "--max-size", "0"],
            two_bases_and_a_quarantined, whole_cache, empty_cache;
        cache_prune_nothing: ["cache", "prune", "--cache", "cache", "--max-size", "0", "--dry-run"],
            two_bases, both_bases, both_bases;
        cache_prune_under_overlays: ["cache", "prune", "--cache", "cache", "--max-size", "0"],
            under_one_overlay_of_two, base_under_overlays, base_under_overlays;
        cache_prune_in_qemu: ["cache", "prune", "--cache", "cache", "--max-size", "0"],
            in_qemu, one_base, one_base;
        cache_prune_left_overs: ["cache", "prune", "--cache", "cache"],
            left_overs, second_stays, second_alone_and_tidy;

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
        convert_to_qcow2: ["convert", "-f", "raw", "-O", "qcow2", "--durable", "--threads", "2",
                "../fixed/disk", "vm.qcow2"],
            nothing, |place| absent_or(place, "vm.qcow2", is_image),
            |place| is_image(place, "vm.qcow2");
        convert_to_compressed_in_place_of_another: ["convert", "-f", "raw", "-O", "qcow2", "-c",
                "--threads", "2", "--force", "../fixed/disk", "vm.qcow2"],
            old_image, |place| old_or(place, "vm.qcow2", is_image),
            |place| is_image(place, "vm.qcow2");
        convert_from_compressed: ["convert", "-f", "qcow2", "--threads", "2",
                "../fixed/disk.qcow2", "disk"],
            nothing, |place| absent_or_disk(place, "disk"), |place| is_disk(place, "disk");
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
    let image = TargetFormat::Qcow2(CreateOptions::new(0));
    let options = ConvertOptions { compress: true, ..ConvertOptions::new(image) };
    let source = ConvertSource::Packed(Source::path(fixed.join("disk")));
    let target = fixed.join("disk.qcow2");
    convert(source, ConvertTarget::File(&target), &options).unwrap();
    fs::create_dir_all(fixed.join("seed/more")).unwrap();
    for name in ["user-data", "meta-data", "more/file"] {
        fs::write(fixed.join("seed").join(name), name).unwrap();
    }
}

fn nothing(_: &Place) {}

fn old_disk(place: &Place) {
    fs::write(place.work().join("disk"), b"old").unwrap();
}

fn old_image(place: &Place) {
    fs::write(place.work().join("vm.qcow2"), b"old").unwrap();
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

fn cache(place: &Place) -> ImageCache {
    ImageCache::open(place.work().join("cache")).unwrap()
}

/// Bases of the disk under these names. Synced, they are good wherever it cannot be told which boot
/// this is. Files of these names say where they are.
fn named_bases(place: &Place, names: &[&str]) -> Vec<BaseImage> {
    let cache = cache(place);
    let make = |name: &&str| {
        let options = BaseOptions {
            policy: KeyPolicy::Named((*name).to_owned()),
            durability: Durability::Full,
            ..BaseOptions::default()
        };
        let source = Source::path(place.fixed().join("disk.tar.zst"));
        let image = cache.base_with(source, &options).unwrap().image;
        fs::write(place.work().join(name), image.path().to_str().unwrap()).unwrap();
        image
    };
    names.iter().map(make).collect()
}

/// The base under that name, which may be gone.
fn named(place: &Place, name: &str) -> PathBuf {
    fs::read_to_string(place.work().join(name)).unwrap().into()
}

/// When the base under that name was asked for last.
fn record_of_uses(place: &Place, name: &str) -> PathBuf {
    let base = named(place, name);
    place.work().join("cache/v1/uses").join(base.file_stem().unwrap())
}

fn two_bases(place: &Place) {
    named_bases(place, &["first", "second"]);
}

fn two_bases_and_a_quarantined(place: &Place) {
    two_bases(place);
    quarantined(place);
}

/// A damaged base of long ago.
fn quarantined(place: &Place) {
    let folder = place.work().join("cache/v1/quarantine");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join("0f.0123456789abcdef.img"), b"damaged").unwrap();
}

/// With another change time than was noted.
fn suspected(place: &Place) {
    two_bases(place);
    for mode in [0o400, 0o444] {
        fs::set_permissions(named(place, "first"), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Damage that its size and its permissions tell.
fn one_overwritten(place: &Place) {
    two_bases(place);
    let base = named(place, "first");
    fs::set_permissions(&base, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&base, b"damaged").unwrap();
    fs::copy(&base, place.work().join("damaged")).unwrap();
}

/// Damage that only its bytes tell.
fn one_altered(place: &Place) {
    two_bases(place);
    let base = named(place, "first");
    let modified = fs::metadata(&base).unwrap().modified().unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(&base).unwrap();
    file.write_all_at(&[disk()[4711] ^ 1], 4711).unwrap();
    file.set_modified(modified).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o444)).unwrap();
    fs::copy(&base, place.work().join("damaged")).unwrap();
}

fn one_overwritten_in_qemu(place: &Place) {
    one_overwritten(place);
    open_in_qemu(place, "first");
}

fn in_qemu(place: &Place) {
    named_bases(place, &["first"]);
    open_in_qemu(place, "first");
}

/// Locks a base as a QEMU that reads it, until the place is set up anew.
fn open_in_qemu(place: &Place, name: &str) {
    static OPEN: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
    let file = File::open(named(place, name)).unwrap();
    let range = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).unwrap(),
        l_whence: 0,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&range)).unwrap();
    OPEN.lock().unwrap().insert(place.root().to_path_buf(), file);
}

/// Says when a base was asked for last, in seconds from now.
fn used(place: &Place, name: &str, seconds: i64) {
    let (now, distance) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
    let time = if seconds < 0 { now - distance } else { now + distance };
    File::open(record_of_uses(place, name)).unwrap().set_modified(time).unwrap();
}

fn one_of_last_week(place: &Place) {
    two_bases(place);
    used(place, "first", -10 * 24 * 3600);
}

/// By a clock that was set back since. By when they were made, both are older than that.
fn second_used_last(place: &Place) {
    two_bases(place);
    used(place, "first", 3600);
    used(place, "second", 7200);
}

fn under_overlays(place: &Place) {
    let bases = named_bases(place, &["first"]);
    for name in ["vm0.qcow2", "vm1.qcow2"] {
        bases[0].overlay(place.work().join(name)).create().unwrap();
    }
}

fn under_overlays_and_a_quarantined(place: &Place) {
    under_overlays(place);
    quarantined(place);
}

fn under_one_overlay_of_two(place: &Place) {
    under_overlays(place);
    fs::remove_file(place.work().join("vm1.qcow2")).unwrap();
}

/// Of killed extractions, and of a base that lost its file.
fn left_overs(place: &Place) {
    named_bases(place, &["first", "second"]);
    fs::remove_file(named(place, "first")).unwrap();
    fs::write(place.work().join("cache/v1/locks/length-4711.lock"), b"").unwrap();
    abandoned(place);
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

/// What the cache holds; `None` where it belongs to somebody else, who alone may ask.
fn listing(place: &Place) -> Result<Option<CacheListing>, String> {
    let owner = fs::metadata(place.work().join("cache")).map_err(|error| error.to_string())?.uid();
    if owner != nix::unistd::geteuid().as_raw() {
        return Ok(None);
    }
    cache(place).list().map(Some).map_err(|error| error.to_string())
}

/// A request is served by each base in the cache.
fn served(place: &Place) -> Verdict {
    whole_cache(place)?;
    let Some(listing) = listing(place)? else { return Ok(()) };
    match listing.bases.iter().find(|base| base.state != BaseState::Good) {
        None => Ok(()),
        Some(base) => Err(format!("a base is {:?}", base.state)),
    }
}

fn both_bases(place: &Place) -> Verdict {
    served(place)?;
    for name in ["first", "second"] {
        holds(&named(place, name), disk())?;
        if !record_of_uses(place, name).is_file() {
            return Err(format!("nobody knows who needs the {name}"));
        }
    }
    Ok(())
}

fn second_stays(place: &Place) -> Verdict {
    served(place)?;
    holds(&named(place, "second"), disk())
}

/// Of the first, nothing is left.
fn second_alone(place: &Place) -> Verdict {
    second_stays(place)?;
    only(place, &[named(place, "second").file_stem().unwrap().to_str().unwrap()])
}

fn second_alone_and_tidy(place: &Place) -> Verdict {
    second_alone(place)?;
    match place.left_overs().as_slice() {
        [] => Ok(()),
        left => Err(format!("left over: {left:?}")),
    }
}

fn empty_cache(place: &Place) -> Verdict {
    only(place, &[])
}

/// Nothing in the cache is about another base than those of `keys`, or about a file somebody extracts.
fn only(place: &Place, keys: &[&str]) -> Verdict {
    for part in ["bases", "uses", "locks", "quarantine"] {
        for path in files(&place.work().join("cache/v1").join(part)) {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if stem != "probe" && !keys.contains(&stem) {
                return Err(format!("{} is still there", path.display()));
            }
        }
    }
    Ok(())
}

/// What stands on the base is whole, and it is known that it does.
fn base_under_overlays(place: &Place) -> Verdict {
    served(place)?;
    let base = named(place, "first");
    holds(&base, disk())?;
    let listing = listing(place)?;
    for name in ["vm0.qcow2", "vm1.qcow2"] {
        let overlay = place.work().join(name);
        if !overlay.exists() {
            continue;
        }
        is_overlay_of(&overlay, &base)?;
        let stands =
            |known: &OverlayUse| known.path.ends_with(name) && known.state == OverlayState::Stands;
        let knows = |base: &ListedBase| base.overlays.iter().any(stands);
        if listing.as_ref().is_some_and(|listing| !listing.bases.iter().any(knows)) {
            return Err(format!("{name} is not known any more"));
        }
    }
    Ok(())
}

/// Where the damaged base is: under its name, in quarantine.
fn damage(place: &Place) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let content = fs::read(place.work().join("damaged")).unwrap();
    let in_folder = |part: &str| {
        let mut files = files(&place.work().join("cache/v1").join(part));
        files.retain(|path| holds(path, &content).is_ok());
        files
    };
    (in_folder("bases"), in_folder("quarantine"))
}

/// A damaged base is in one place, and the other base where it was.
fn damage_is_kept(place: &Place) -> Verdict {
    holds(&named(place, "second"), disk())?;
    let second = named(place, "second");
    let is_good = |base: &ListedBase| base.path == second && base.state == BaseState::Good;
    if listing(place)?.is_some_and(|listing| !listing.bases.iter().any(is_good)) {
        return Err("the other base would not be served".to_owned());
    }
    match damage(place) {
        (here, there) if here.len() + there.len() == 1 => Ok(()),
        both => Err(format!("the damaged base is in {both:?}")),
    }
}

fn damage_is_quarantined(place: &Place) -> Verdict {
    match damage(place) {
        (here, there) if here.is_empty() && there.len() == 1 => Ok(()),
        both => Err(format!("the damaged base is in {both:?}")),
    }
}

fn damage_is_in_its_place(place: &Place) -> Verdict {
    damage_is_kept(place)?;
    holds(&named(place, "first"), b"damaged")
}

/// Nobody is served by a base without a manifest.
fn damage_is_not_served(place: &Place) -> Verdict {
    damage_is_in_its_place(place)?;
    if named(place, "first").with_extension("manifest").exists() {
        return Err("the manifest of the damaged base is still there".to_owned());
    }
    Ok(())
}

const LISTED: Answer = Answer {
    code: 0,
    right: |place, report| {
        base_under_overlays(place)?;
        let base = &report["bases"][0];
        let overlays = base["overlays"].as_array().ok_or("no overlays")?;
        let is_right = base["state"] == "good"
            && base["leased"] == false
            && base["open-in-qemu"] != true
            && overlays.len() == 2
            && report["quarantined"] == 1
            // One that could not be looked at may stand.
            && overlays.iter().all(|overlay| overlay["state"] != "gone");
        if is_right { Ok(()) } else { Err("it lists what is not so".to_owned()) }
    },
};

const INTACT: Answer = Answer {
    code: 0,
    right: |place, report| {
        both_bases(place)?;
        let bases = report["bases"].as_array().ok_or("no bases")?;
        let are_right = bases.len() == 2
            && report["damaged"] == 0
            && bases.iter().all(|base| base["verdict"] == "intact");
        if are_right { Ok(()) } else { Err("it finds damage".to_owned()) }
    },
};

const DAMAGED: Answer = Answer {
    code: 3,
    right: |place, report| {
        let bases = report["bases"].as_array().ok_or("no bases")?;
        let mut damaged = bases.iter().filter(|base| base["verdict"] == "damaged");
        let (Some(base), None) = (damaged.next(), damaged.next()) else {
            return Err("it finds another damage".to_owned());
        };
        let (here, there) = damage(place);
        match base["quarantined"].as_str() {
            Some(path) if there == [Path::new(path)] => Ok(()),
            Some(_) => Err("the damaged base is somewhere else".to_owned()),
            None if here != [named(place, "first")] => {
                Err("the damaged base is not where it was".to_owned())
            }
            None if base["obstacle"].is_string() => Ok(()),
            // Whoever cannot tell whether it is in use leaves it, and sees to it that nobody is served.
            None if base["in-use"] == true => {
                let manifest = here[0].with_extension("manifest");
                if manifest.exists() { Err("it would be served".to_owned()) } else { Ok(()) }
            }
            None => Err("the damaged base was left without a reason".to_owned()),
        }
    },
};

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

/// QEMU finds the image without fault, and the disk in it.
fn is_image(place: &Place, name: &str) -> Verdict {
    is_overlay_of(&place.work().join(name), &place.fixed().join("disk"))
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
