//! A full verification judged by other programs: it says "intact" exactly where `cmp` says "the same",
//! whatever the shape of the disk, and within little address space.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk_engine::cache::{CacheKey, ImageCache, Verdict, VerifyMode, VerifyOptions, VerifyReport};
use disk_engine::{ErrorKind, Source};
use testkit::tool::{available, left_out};

const CACHE: &str = "CACHE_VERIFY_CACHE";
const MIB: u64 = 1 << 20;

/// A disk: its size, and where data lies.
type Shape = (u64, Vec<(u64, u64)>);

fn shapes() -> Vec<Shape> {
    vec![
        (512, vec![(0, 1)]),
        (40 * MIB, vec![]),
        (3 * MIB + 77, vec![(0, 3 * MIB + 77)]),
        // Over the edges of windows, to the last byte.
        (50 * MIB + 511, vec![(15 * MIB, 2 * MIB + 1), (48 * MIB - 1, 2), (50 * MIB, 511)]),
        // Many small pieces, off the grid of blocks.
        (64 * MIB, (0..500).map(|at| (at * 131_000 + 7, 1 + at % 9_000)).collect()),
        // One long extent over many windows.
        (70 * MIB, vec![(5, 69 * MIB)]),
        // Nothing for a long time.
        (200 * MIB, vec![(4096, 4096), (200 * MIB - 5, 5)]),
    ]
}

/// Makes the disk; its data has zeros in it, too.
fn make(path: &Path, (size, data): &Shape) {
    let file = File::create(path).unwrap();
    file.set_len(*size).unwrap();
    // Of a length that shares no factor with any block, so that no two blocks are alike.
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..65_521)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let [high, ..] = state.to_be_bytes();
            high
        })
        .collect();
    for &(offset, length) in data {
        let length = usize::try_from(length).unwrap();
        let mut bytes = noise.repeat(length.div_ceil(noise.len()));
        bytes.truncate(length);
        file.write_all_at(&bytes, offset).unwrap();
    }
}

fn full(cache: &ImageCache, keep: bool) -> VerifyReport {
    let options = VerifyOptions { mode: VerifyMode::Full, keep, ..VerifyOptions::default() };
    cache.verify(&options).unwrap()
}

/// Changes one byte and nothing that a hit looks at.
fn flip(path: &Path, offset: u64) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x80], offset).unwrap();
    file.set_permissions(Permissions::from_mode(0o444)).unwrap();
    file.set_modified(modified).unwrap();
}

/// Whether `cmp` finds no difference.
fn same(one: &Path, other: &Path) -> bool {
    let status = Command::new("cmp").arg("-s").args([one, other]).status().unwrap();
    status.code().unwrap() == 0
}

fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").stdin(File::open(path).unwrap()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_says_intact_exactly_where_cmp_says_the_same() {
    if !available("verification against cmp and sha256sum", &["cmp", "sha256sum"]) {
        return;
    }
    for (number, shape) in shapes().into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("disk");
        make(&source, &shape);
        let cache = ImageCache::open(folder.path().join("cache")).unwrap();
        let base = cache.base(Source::path(&source)).unwrap();
        let path = base.path().to_owned();
        drop(base);
        let size = shape.0;
        assert!(same(&source, &path), "shape {number}");
        assert_eq!(sha256sum(&source), sha256sum(&path), "shape {number}");
        assert_eq!(full(&cache, true).bases[0].verdict, Verdict::Intact, "shape {number}");
        let mut places: Vec<u64> = shape
            .1
            .iter()
            .step_by(1 + shape.1.len() / 8)
            .flat_map(|&(offset, length)| [offset, offset + length / 2, offset + length - 1])
            .chain([0, size / 3, size / 2, size.saturating_sub(1)])
            .filter(|&offset| offset < size)
            .collect();
        places.sort_unstable();
        places.dedup();
        for offset in places {
            flip(&path, offset);
            let base = &full(&cache, true).bases[0];
            assert_eq!(base.verdict, Verdict::Damaged, "shape {number} at {offset}");
            let reason = base.reason.as_ref().unwrap();
            assert_eq!(reason.kind(), ErrorKind::Corrupt, "{reason}");
            assert!(reason.offset().unwrap() <= offset, "shape {number} at {offset}: {reason}");
            assert!(!same(&source, &path), "shape {number} at {offset}");
            flip(&path, offset);
            let base = &full(&cache, true).bases[0];
            assert_eq!(base.verdict, Verdict::Intact, "shape {number} at {offset}: {base:?}");
        }
        assert!(same(&source, &path), "shape {number}");
        if size > 0 {
            flip(&path, size - 1);
            let report = full(&cache, false);
            let place = report.bases[0].quarantined.as_ref().unwrap();
            assert!(!same(&source, place), "shape {number}");
            let again = cache.base(Source::path(&source)).unwrap();
            assert!(same(&source, again.path()), "shape {number}");
        }
    }
}

/// What the child of the next test does.
#[test]
#[ignore = "a part of another test, which runs it with little address space"]
fn verify_in_a_child() {
    let cache = ImageCache::open(std::env::var_os(CACHE).unwrap()).unwrap();
    assert_eq!(full(&cache, true).bases[0].verdict, Verdict::Intact);
}

#[test]
fn a_base_of_a_gibibyte_is_verified_in_256_mib_of_address_space() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk");
    make(&source, &(1 << 30, vec![(0, 20 * MIB), (300 * MIB, 40 * MIB), ((1 << 30) - 9, 9)]));
    let cache = ImageCache::open(folder.path().join("cache")).unwrap();
    drop(cache.base(Source::path(&source)).unwrap());
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 262144 && exec \"$0\" --exact verify_in_a_child --ignored"])
        .arg(std::env::current_exe().unwrap())
        .env(CACHE, cache.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

/// A folder seen through a mount that nobody can write to, until it is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(folder: &Path) -> Option<Self> {
        let mount = |arguments: &[&str]| {
            let mut command = Command::new("mount");
            let status = command.args(arguments).arg(folder).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        if !mount(&["--bind", folder.to_str()?]) {
            return None;
        }
        let mounted = Self(folder.to_owned());
        mount(&["-o", "remount,ro,bind"]).then_some(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn in_a_read_only_cache_damage_is_reported_and_nothing_moved() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk");
    make(&source, &(MIB, vec![(0, MIB)]));
    let cache = ImageCache::open(folder.path().join("cache")).unwrap();
    let path = cache.base(Source::path(&source)).unwrap().path().to_owned();
    flip(&path, 4711);
    let Some(mounted) = ReadOnly::new(cache.path()) else {
        left_out("verification of a read-only cache", "nothing can be mounted");
        return;
    };
    let cache = ImageCache::open(&mounted.0).unwrap();
    let report = full(&cache, false);
    let base = &report.bases[0];
    assert_eq!(base.verdict, Verdict::Damaged);
    assert_eq!(base.obstacle.as_ref().unwrap().kind(), ErrorKind::PermissionDenied);
    assert!(base.quarantined.is_none() && path.is_file());
    let key: CacheKey = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!(base.key, key);
    drop(mounted);
    assert!(full(&cache, false).bases[0].quarantined.as_ref().unwrap().is_file());
}
