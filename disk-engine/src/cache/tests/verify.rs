//! What a verification finds, what it does about it, and what the next request gets.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::cache::manifest::Manifest;
use crate::sys::image_lock;

const MODES: [VerifyMode; 2] = [VerifyMode::Quick, VerifyMode::Full];

fn options(mode: VerifyMode) -> VerifyOptions {
    VerifyOptions { mode, ..VerifyOptions::default() }
}

/// What is done to a file of the cache, and its name.
type Change<'a> = (&'a str, &'a dyn Fn(&Path));

/// The one base in the cache.
fn verify(cache: &ImageCache, mode: VerifyMode) -> VerifiedBase {
    let mut report = cache.verify(&options(mode)).unwrap();
    assert_eq!(report.bases.len(), 1);
    assert_eq!(report.damaged(), usize::from(report.bases[0].verdict == Verdict::Damaged));
    report.bases.remove(0)
}

/// A fixture with one base, which nobody uses, and the base's path.
fn filled() -> (Fixture, PathBuf) {
    let fixture = Fixture::new();
    let path = fixture.named().unwrap().image.path().to_owned();
    (fixture, path)
}

/// Changes a base as someone who knows what a hit looks at: permissions and times are as before.
fn alter(path: &Path, change: impl FnOnce(&File)) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    change(&file);
    file.set_permissions(Permissions::from_mode(0o444)).unwrap();
    file.set_modified(modified).unwrap();
}

fn flip(path: &Path, offset: u64) {
    alter(path, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    });
}

/// Puts `bytes` in the base's place, as a file of its own that looks the same to a hit.
fn swap(path: &Path, bytes: &[u8]) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let other = path.with_extension("other");
    fs::write(&other, bytes).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o444)).unwrap();
    File::open(&other).unwrap().set_modified(modified).unwrap();
    fs::rename(&other, path).unwrap();
}

fn manifest_of(path: &Path) -> PathBuf {
    path.with_extension("manifest")
}

fn edit_manifest(path: &Path, edit: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::parse(&fs::read(path).unwrap()).unwrap();
    edit(&mut manifest);
    rewrite(path, &manifest.encode());
}

fn rewrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn an_intact_base_is_intact_and_only_a_full_look_reads_it() {
    let (fixture, path) = filled();
    let manifest = Manifest::parse(&fs::read(manifest_of(&path)).unwrap()).unwrap();
    assert!(manifest.changed.is_some());
    for mode in MODES {
        let report = fixture.cache.verify(&options(mode)).unwrap();
        let base = &report.bases[0];
        let full = mode == VerifyMode::Full;
        assert_eq!(base.verdict, Verdict::Intact, "{:?}", base.reason);
        assert_eq!((base.path.as_path(), base.virtual_size), (path.as_path(), Some(64 << 10)));
        assert_eq!((base.verified_fully, report.bytes_read > 0), (full, full));
        assert!(base.reason.is_none() && base.quarantined.is_none() && !base.in_use);
    }
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
    assert!(!fixture.cache.path().join("v1/quarantine").exists(), "made only when needed");
}

#[test]
fn every_damage_is_found_quarantined_and_made_anew() {
    let plant = |path: &Path, plant: &dyn Fn(&Path)| {
        fs::remove_file(path).unwrap();
        plant(path);
    };
    type Damage<'a> = (&'a str, Option<u64>, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 13] = [
        ("first byte", Some(0), &|path| flip(path, 0)),
        ("last byte of an extent", None, &|path| flip(path, 40_999)),
        ("byte in a hole", Some(20_000), &|path| flip(path, 20_000)),
        ("last byte, in a hole", Some(65_535), &|path| flip(path, 65_535)),
        ("truncated", None, &|path| alter(path, |file| file.set_len(1000).unwrap())),
        ("grown", None, &|path| alter(path, |file| file.set_len(1 << 20).unwrap())),
        ("swapped", Some(0), &|path| swap(path, &disk(2))),
        ("zeroed", Some(0), &|path| swap(path, &[0; 64 << 10])),
        ("writable", None, &|path| {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }),
        ("later", None, &|path| {
            File::open(path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        }),
        ("link", None, &|path| plant(path, &|path| symlink("/dev/zero", path).unwrap())),
        ("folder", None, &|path| {
            plant(path, &|path| fs::create_dir_all(path.join("junk")).unwrap());
        }),
        ("fifo", None, &|path| {
            plant(path, &|path| {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            });
        }),
    ];
    for (name, offset, damage) in damages {
        for mode in MODES {
            let (fixture, path) = filled();
            damage(&path);
            let base = verify(&fixture.cache, mode);
            assert_eq!(base.verdict, Verdict::Damaged, "{name} {mode:?}");
            let reason = base.reason.unwrap();
            assert_eq!(reason.kind(), ErrorKind::Corrupt, "{name}: {reason}");
            assert_eq!(reason.path().unwrap().with_extension("img"), path, "{name}: {reason}");
            if offset.is_some() {
                assert_eq!(reason.offset(), offset, "{name}: {reason}");
            }
            assert!(!base.in_use && base.obstacle.is_none(), "{name} {:?}", base.obstacle);
            let place = base.quarantined.unwrap();
            assert!(fs::symlink_metadata(&place).is_ok(), "{name}");
            assert!(fs::symlink_metadata(&path).is_err(), "{name}");
            assert!(place.with_extension("manifest").is_file(), "{name}");
            let told = fs::read_to_string(place.with_extension("reason")).unwrap();
            assert_eq!(told, format!("{reason}\n"), "{name}");
            assert_eq!(fixture.names("bases"), Vec::<String>::new(), "{name}");

            assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted", "{name}");
            assert_eq!(fs::read(&path).unwrap(), disk(1), "{name}");
            assert_eq!(verify(&fixture.cache, VerifyMode::Full).verdict, Verdict::Intact, "{name}");
            assert_eq!(fixture.names("quarantine").len(), 3, "{name}");
            assert_eq!(fixture.names("tmp"), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn a_manifest_that_is_missing_damaged_or_anothers_condemns_its_base() {
    let other = {
        let (_fixture, path) = filled();
        let mut manifest = Manifest::parse(&fs::read(manifest_of(&path)).unwrap()).unwrap();
        manifest.key = CacheKey::from_bytes([9; 32]);
        manifest.encode()
    };
    let damages: [Change<'_>; 5] = [
        ("missing", &|path| fs::remove_file(path).unwrap()),
        ("damaged", &|path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[0x30] ^= 1;
            rewrite(path, &bytes);
        }),
        ("another's", &|path| rewrite(path, &other)),
        ("claims other bytes", &|path| {
            edit_manifest(path, |manifest| {
                manifest.extents[1].crc32 ^= 1;
                manifest.changed = None;
            });
        }),
        ("folder", &|path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (name, damage) in damages {
        for mode in MODES {
            let (fixture, path) = filled();
            damage(&manifest_of(&path));
            let base = verify(&fixture.cache, mode);
            assert_eq!(base.verdict, Verdict::Damaged, "{name} {mode:?}");
            assert!(base.quarantined.unwrap().is_file(), "{name}");
            assert_eq!(fixture.names("bases"), Vec::<String>::new(), "{name}");
            assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted", "{name}");
            assert_eq!(fs::read(&path).unwrap(), disk(1), "{name}");
        }
    }
}

#[test]
fn a_base_of_another_user_is_damaged() {
    if crate::sys::host::effective_user() != 0 {
        println!("LEFT OUT: only root can give a file away");
        return;
    }
    for mode in MODES {
        let (fixture, path) = filled();
        chown(&path, Some(65_534), None).unwrap();
        let base = verify(&fixture.cache, mode);
        assert_eq!(base.verdict, Verdict::Damaged);
        assert_eq!(fs::metadata(base.quarantined.unwrap()).unwrap().uid(), 65_534);
        assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
    }
}

#[test]
fn suspicion_is_no_proof_and_is_laid_to_rest() {
    let suspicions: [Change<'_>; 4] = [
        ("another inode", &|path| swap(path, &disk(1))),
        ("chmod", &|path| fs::set_permissions(path, Permissions::from_mode(0o440)).unwrap()),
        ("hard link", &|path| fs::hard_link(path, path.with_extension("link")).unwrap()),
        ("killed before it knew", &|path| {
            edit_manifest(&manifest_of(path), |manifest| manifest.changed = None);
        }),
    ];
    for (name, suspicion) in suspicions {
        let (fixture, path) = filled();
        suspicion(&path);
        assert_eq!(fixture.named().unwrap().origin.as_str(), "hit", "{name}");
        // A report alone changes nothing.
        for keep in [true, false] {
            let options = VerifyOptions { keep, ..VerifyOptions::default() };
            let report = fixture.cache.verify(&options).unwrap();
            assert_eq!(report.bases[0].verdict, Verdict::Intact, "{name}");
            assert!(report.bases[0].verified_fully && report.bytes_read > 0, "{name}");
        }
        let report = fixture.cache.verify(&options(VerifyMode::Quick)).unwrap();
        assert_eq!((report.bases[0].verdict, report.bytes_read), (Verdict::Intact, 0), "{name}");
        assert_eq!(fixture.named().unwrap().origin.as_str(), "hit", "{name}");
    }
}

#[test]
fn a_cache_that_was_moved_or_copied_is_told_from_a_damaged_one() {
    for copied in [false, true] {
        for mode in MODES {
            let (fixture, path) = filled();
            let old = fixture.cache.path().to_owned();
            let new = fixture.folder.path().join("elsewhere");
            if copied {
                let status = Command::new("cp").arg("-a").arg(&old).arg(&new).status().unwrap();
                assert!(status.success());
            } else {
                fs::rename(&old, &new).unwrap();
            }
            let cache = ImageCache::open(&new).unwrap();
            let base = verify(&cache, mode);
            assert_eq!(base.verdict, Verdict::Relocated, "{:?}", base.reason);
            assert_eq!(base.verified_fully, copied || mode == VerifyMode::Full);
            let reason = base.reason.unwrap();
            assert!(reason.message().contains(&format!("{old:?}")), "{reason}");
            assert!(reason.hint().unwrap().contains("rebase"), "{reason}");
            assert!(base.quarantined.is_none() && base.path.is_file());
            // It stays relocated, and is read only once.
            assert_eq!(verify(&cache, VerifyMode::Quick).verdict, Verdict::Relocated);
            assert!(!verify(&cache, VerifyMode::Quick).verified_fully);

            flip(&base.path, 0);
            assert_eq!(verify(&cache, mode).verdict, Verdict::Damaged);
            if copied {
                assert_eq!(verify(&fixture.cache, mode).verdict, Verdict::Intact);
                assert_eq!(fs::read(&path).unwrap(), disk(1));
            }
        }
    }
}

#[test]
fn a_base_from_before_a_restart_is_stale_and_left_alone() {
    for mode in MODES {
        let (fixture, path) = filled();
        edit_manifest(&manifest_of(&path), |manifest| {
            manifest.boot = Some(crate::sys::host::BootId([0xee; 16]));
        });
        let base = verify(&fixture.cache, mode);
        assert_eq!(base.verdict, Verdict::Stale);
        assert!(base.quarantined.is_none() && path.is_file());
        assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
    }
}

#[test]
fn a_damaged_base_in_use_stays_but_is_not_served_again() {
    let lease = |fixture: &Fixture, _: &Path| -> Box<dyn std::any::Any> {
        Box::new(fixture.named().unwrap())
    };
    let qemu = |_: &Fixture, path: &Path| -> Box<dyn std::any::Any> {
        let file = File::open(path).unwrap();
        assert!(image_lock::lock_for_writing(&file).unwrap());
        Box::new(file)
    };
    type Use<'a> = (&'a str, &'a dyn Fn(&Fixture, &Path) -> Box<dyn std::any::Any>);
    let uses: [Use<'_>; 2] = [("lease", &lease), ("qemu", &qemu)];
    for (name, hold) in uses {
        let (fixture, path) = filled();
        let user = hold(&fixture, &path);
        flip(&path, 100);
        let inode = fs::metadata(&path).unwrap().ino();
        let base = verify(&fixture.cache, VerifyMode::Quick);
        assert_eq!(base.verdict, Verdict::Damaged, "{name}");
        assert!(base.in_use && base.quarantined.is_none(), "{name}");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "{name}");
        assert!(!manifest_of(&path).exists(), "{name}");
        assert_eq!(fixture.names("quarantine").len(), 2, "{name}: manifest and reason");
        // Once more, there is nothing left to move.
        let again = verify(&fixture.cache, VerifyMode::Full);
        assert!(again.in_use && again.verdict == Verdict::Damaged, "{name}");
        assert_eq!(fixture.names("quarantine").len(), 2, "{name}");

        assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted", "{name}");
        assert_eq!(fs::read(&path).unwrap(), disk(1), "{name}");
        drop(user);
        assert_eq!(verify(&fixture.cache, VerifyMode::Full).verdict, Verdict::Intact, "{name}");
    }
}

#[test]
fn an_intact_base_is_verified_beside_its_users() {
    let (fixture, _) = filled();
    let user = fixture.named().unwrap();
    assert_eq!(verify(&fixture.cache, VerifyMode::Full).verdict, Verdict::Intact);
    drop(user);
}

#[test]
fn what_is_being_made_is_busy_and_not_waited_for() {
    let (fixture, path) = filled();
    let report = fixture.cache.verify(&options(VerifyMode::Quick)).unwrap();
    let key = report.bases[0].key;
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(fixture.cache.layout.key_lock(&key))
        .unwrap();
    lock.lock().unwrap();
    assert_eq!(verify(&fixture.cache, VerifyMode::Full).verdict, Verdict::Intact);
    flip(&path, 0);
    for mode in MODES {
        let base = verify(&fixture.cache, mode);
        assert_eq!(base.verdict, Verdict::Busy);
        assert!(base.quarantined.is_none() && path.is_file() && manifest_of(&path).is_file());
    }
    fs::rename(&path, path.with_extension("away")).unwrap();
    let asked = VerifyOptions { keys: Some(vec![key]), ..VerifyOptions::default() };
    assert_eq!(fixture.cache.verify(&asked).unwrap().bases[0].verdict, Verdict::Busy);
    lock.unlock().unwrap();
    assert_eq!(fixture.cache.verify(&asked).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fixture.cache.verify(&VerifyOptions::default()).unwrap().bases.len(), 0);
}

#[test]
fn a_report_alone_moves_nothing() {
    let (fixture, path) = filled();
    flip(&path, 0);
    let before = fs::read(manifest_of(&path)).unwrap();
    for mode in MODES {
        let options = VerifyOptions { keep: true, ..options(mode) };
        let base = &fixture.cache.verify(&options).unwrap().bases[0];
        assert_eq!(base.verdict, Verdict::Damaged);
        assert!(base.quarantined.is_none() && base.obstacle.is_none() && !base.in_use);
    }
    assert!(path.is_file() && fs::read(manifest_of(&path)).unwrap() == before);
    assert!(!fixture.cache.path().join("v1/quarantine").exists());
}

#[test]
fn what_cannot_be_moved_is_reported_with_the_reason() {
    let (fixture, path) = filled();
    flip(&path, 0);
    let quarantine = fixture.cache.path().join("v1/quarantine");
    symlink("/tmp", &quarantine).unwrap();
    let base = verify(&fixture.cache, VerifyMode::Quick);
    assert_eq!(base.verdict, Verdict::Damaged);
    assert_eq!(base.obstacle.unwrap().kind(), ErrorKind::Refused);
    assert!(base.quarantined.is_none() && path.is_file() && manifest_of(&path).is_file());
    fs::remove_file(quarantine).unwrap();

    let lock = fixture.cache.layout.key_lock(&base.key);
    fs::remove_file(&lock).unwrap();
    symlink("/dev/null", &lock).unwrap();
    let base = verify(&fixture.cache, VerifyMode::Quick);
    assert_eq!(base.verdict, Verdict::Damaged);
    assert_eq!(base.obstacle.unwrap().kind(), ErrorKind::Refused);
    assert!(path.is_file() && manifest_of(&path).is_file());
}

#[test]
fn chosen_bases_alone_are_looked_at_and_other_names_left_alone() {
    let (fixture, path) = filled();
    let other = fixture.get(fixture.source(), &stated(1)).unwrap().image.path().to_owned();
    fs::write(path.with_file_name("README.img"), b"not ours").unwrap();
    flip(&path, 0);
    flip(&other, 0);
    let key: CacheKey = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let options = VerifyOptions { keys: Some(vec![key, key]), ..VerifyOptions::default() };
    let report = fixture.cache.verify(&options).unwrap();
    assert_eq!((report.bases.len(), report.damaged()), (1, 1));
    assert!(other.is_file() && !path.exists());
    let report = fixture.cache.verify(&VerifyOptions::default()).unwrap();
    assert_eq!((report.bases.len(), report.damaged()), (1, 1));
    assert_eq!(fixture.names("bases"), ["README.img"]);
}

#[test]
fn a_large_base_is_read_by_several_threads_watched_and_cancelled() {
    let fixture = Fixture::new();
    // Extents over the edges of windows, holes longer than one, a last window that is not whole.
    let size = (100 << 20) + 12_345;
    let file = File::create(&fixture.source).unwrap();
    file.set_len(size).unwrap();
    let block: Vec<u8> = (1..=253_u8).cycle().take(3_000_000).collect();
    for offset in [0, (16 << 20) - 1_000_000, 32 << 20, 90 << 20, size - 3_000_000] {
        file.write_all_at(&block, offset).unwrap();
    }
    let path = fixture.named().unwrap().image.path().to_owned();
    let key: CacheKey = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    for threads in [1, 3, 16] {
        let counted = Arc::clone(&seen);
        let control = Control::new().with_observer(move |event| {
            if let Event::Verifying { verified_bytes, total_bytes, .. } = event {
                assert!(verified_bytes <= total_bytes);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let options = VerifyOptions {
            threads: std::num::NonZeroUsize::new(threads),
            keys: Some(vec![key]),
            control,
            ..options(VerifyMode::Full)
        };
        let report = fixture.cache.verify(&options).unwrap();
        assert_eq!(report.bases[0].verdict, Verdict::Intact, "{:?}", report.bases[0].reason);
        assert!(report.bytes_read >= 15_000_000 && report.bytes_read < 20 << 20);
    }
    assert!(seen.load(Ordering::Relaxed) >= 3 * 5);

    let cancel = CancelToken::new();
    let token = cancel.clone();
    let control = Control::new().with_cancel(cancel).with_observer(move |_| token.cancel());
    let cancelled = VerifyOptions { control, ..options(VerifyMode::Full) };
    assert_eq!(fixture.cache.verify(&cancelled).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");

    // One byte of each of these is found, and the first of two is named.
    let places = [size - 1, 90 << 20, 60 << 20, (16 << 20) + 5, 1, 3_000_100];
    for offset in places {
        flip(&path, offset);
        let options = VerifyOptions { keep: true, ..options(VerifyMode::Full) };
        let base = &fixture.cache.verify(&options).unwrap().bases[0];
        assert_eq!(base.verdict, Verdict::Damaged, "{offset}");
        let told = base.reason.as_ref().unwrap().offset().unwrap();
        assert!(told <= offset && offset < told + (3 << 20), "{told} {offset}");
        flip(&path, offset);
    }
    flip(&path, 1);
    flip(&path, size - 1);
    assert_eq!(verify(&fixture.cache, VerifyMode::Full).reason.unwrap().offset(), Some(0));
}

#[test]
fn many_verifications_requests_and_damages_at_once_lose_nothing() {
    let (fixture, path) = filled();
    let fixture = &fixture;
    let rounds = 30;
    thread::scope(|scope| {
        for mode in MODES {
            scope.spawn(move || {
                for _ in 0..rounds {
                    fixture.cache.verify(&options(mode)).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let patient = BaseOptions {
                    policy: KeyPolicy::Named("disk".into()),
                    timeout: Some(Duration::from_secs(60)),
                    ..BaseOptions::default()
                };
                for _ in 0..rounds {
                    match fixture.cache.base_with(fixture.source(), &patient) {
                        Ok(base) => assert_eq!(base.image.virtual_size(), 64 << 10),
                        // Its manifest was removed before the new base was looked at.
                        Err(error) => assert_eq!(
                            (error.kind(), error.message()),
                            (ErrorKind::Corrupt, "the base has no manifest"),
                        ),
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                let _ = fs::remove_file(manifest_of(&path));
                thread::sleep(Duration::from_millis(1));
            }
        });
    });
    fixture.named().unwrap();
    assert_eq!(fs::read(&path).unwrap(), disk(1));
    assert_eq!(verify(&fixture.cache, VerifyMode::Full).verdict, Verdict::Intact);
    assert_eq!(fixture.names("tmp"), Vec::<String>::new());
}
