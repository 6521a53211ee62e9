//! What needs a base, what goes, and what a listing says of it.

use std::time::SystemTime;

use super::*;
use crate::sys::image_lock;
use crate::{BaseFormat, Existing};

fn removed(report: &PruneReport) -> usize {
    report.removed.len()
}

fn everything() -> PruneOptions {
    PruneOptions { max_age: Some(Duration::ZERO), ..PruneOptions::default() }
}

impl Fixture {
    fn prune(&self, options: &PruneOptions) -> PruneReport {
        self.cache.prune(options).unwrap()
    }

    /// Why the only base stays.
    fn because(&self, options: &PruneOptions) -> KeptBecause {
        let report = self.prune(options);
        assert_eq!((removed(&report), report.kept.len()), (0, 1), "{report:?}");
        report.kept[0].because.clone()
    }

    /// Makes a base, an overlay of it, and then damages the base; the overlay's path.
    fn damaged_under_an_overlay(&self) -> PathBuf {
        let base = self.named().unwrap();
        let overlay = self.overlay("vm.qcow2");
        base.image.overlay(&overlay).create().unwrap();
        fs::set_permissions(base.image.path(), fs::Permissions::from_mode(0o644)).unwrap();
        overlay
    }

    fn overlay(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }
}

/// Marks a base as last used so many seconds ago.
fn age(fixture: &Fixture, key: &str, seconds: u64) {
    let path = fixture.cache.path().join("v1/uses").join(key);
    let then = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn a_base_goes_when_nobody_needs_it_and_comes_back_when_asked_for() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    assert_eq!(fixture.because(&everything()), KeptBecause::Leased);
    drop(base);
    let dry = PruneOptions { dry_run: true, ..everything() };
    assert_eq!(removed(&fixture.prune(&dry)), 1);
    assert_eq!(fixture.names("bases").len(), 2);
    let report = fixture.prune(&everything());
    assert_eq!(removed(&report), 1);
    assert!(report.removed[0].allocated > 0);
    for part in ["bases", "uses", "tmp"] {
        assert_eq!(fixture.names(part), Vec::<String>::new(), "{part}");
    }
    assert_eq!(fixture.names("locks"), ["probe.lock"]);
    assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
}

#[test]
fn what_stands_in_place_of_the_record_keeps_the_base() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    base.image.overlay(fixture.overlay("vm.qcow2")).create().unwrap();
    drop(base);
    let uses = fixture.cache.path().join("v1/uses");
    let name = fixture.names("uses").remove(0);
    fs::remove_file(uses.join(&name)).unwrap();
    symlink("/dev/null", uses.join(&name)).unwrap();
    assert_eq!(fixture.because(&everything()), KeptBecause::RecordDamaged);
}

#[test]
fn without_a_reason_nothing_good_goes() {
    let fixture = Fixture::new();
    drop(fixture.named().unwrap());
    assert_eq!(fixture.because(&PruneOptions::default()), KeptBecause::Wanted);
}

#[test]
fn an_overlay_keeps_its_base_until_it_is_gone() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    let path = fixture.overlay("vm.qcow2");
    base.image.overlay(&path).create().unwrap();
    base.image.overlay(fixture.overlay("other.qcow2")).create().unwrap();
    drop(base);
    let KeptBecause::Overlays(overlays) = fixture.because(&everything()) else { panic!() };
    assert_eq!(overlays.len(), 2);
    fs::remove_file(fixture.overlay("other.qcow2")).unwrap();
    let KeptBecause::Overlays(overlays) = fixture.because(&everything()) else { panic!() };
    assert_eq!((overlays.len(), &overlays[0].path), (1, &path));
    // The other one is forgotten for good.
    let listing = fixture.cache.list().unwrap();
    assert_eq!(listing.bases[0].overlays.len(), 1);
    assert_eq!(listing.bases[0].overlays[0].state, OverlayState::Stands);
    // Something else under the overlay's name needs no base.
    fs::write(&path, b"no image").unwrap();
    assert_eq!(removed(&fixture.prune(&everything())), 1);
}

#[test]
fn whichever_way_an_overlay_comes_to_its_base_it_is_noted() {
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = elsewhere.path().join("base");
    fs::write(&stranger, disk(9)).unwrap();
    let stranger = BaseImage::open(&stranger, BaseFormat::Raw).unwrap();
    type Way = fn(&BaseImage, &BaseImage, &Path);
    let ways: [(&str, Way); 4] = [
        ("reused", |base, _, path| {
            base.overlay(path).create().unwrap();
            let uses = base.path().ancestors().nth(2).unwrap().join("uses");
            fs::write(uses.join(base.key().unwrap()), b"").unwrap();
            let again = BaseImage::open(base.path(), BaseFormat::Raw).unwrap();
            assert!(again.overlay(path).reuse(true).create().unwrap().reused());
        }),
        ("by the base's path", |base, _, path| {
            BaseImage::open(base.path(), BaseFormat::Raw).unwrap().overlay(path).create().unwrap();
        }),
        ("by rebase", |base, stranger, path| {
            stranger.overlay(path).create().unwrap();
            let options = crate::overlay::RebaseOptions { force: true, ..Default::default() };
            crate::overlay::rebase(path, base, &options).unwrap();
        }),
        ("replaced", |base, stranger, path| {
            stranger.overlay(path).create().unwrap();
            base.overlay(path).existing(Existing::Replace).create().unwrap();
        }),
    ];
    for (way, make) in ways {
        let fixture = Fixture::new();
        let base = fixture.named().unwrap();
        make(&base.image, &stranger, &fixture.overlay("vm.qcow2"));
        drop(base);
        assert!(matches!(fixture.because(&everything()), KeptBecause::Overlays(_)), "{way}");
    }
}

#[test]
fn an_overlay_on_another_base_now_keeps_the_first_no_more() {
    let fixture = Fixture::new();
    let other = fixture.get(fixture.source(), &KeyPolicy::Named("other".into())).unwrap();
    let base = fixture.named().unwrap();
    let path = fixture.overlay("vm.qcow2");
    base.image.overlay(&path).create().unwrap();
    let options = crate::overlay::RebaseOptions { force: true, ..Default::default() };
    crate::overlay::rebase(&path, &other.image, &options).unwrap();
    let kept = other.image.path().to_path_buf();
    drop((base, other));
    let report = fixture.prune(&everything());
    assert_eq!((removed(&report), report.kept.len()), (1, 1));
    assert_eq!(report.kept[0].path, kept);
}

#[test]
fn a_running_qemu_keeps_a_base_that_nobody_leased() {
    let fixture = Fixture::new();
    let path = fixture.named().unwrap().image.path().to_path_buf();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let running = fs::File::options().read(true).write(true).open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(image_lock::lock_for_writing(&running).unwrap());
    assert_eq!(fixture.because(&everything()), KeptBecause::OpenInQemu);
    assert_eq!(fixture.cache.list().unwrap().bases[0].open_in_qemu, Some(true));
    drop(running);
    assert_eq!(removed(&fixture.prune(&everything())), 1);
}

#[test]
fn the_one_not_asked_for_the_longest_goes_first() {
    let fixture = Fixture::new();
    let keys: Vec<String> = ["a", "b", "c"]
        .map(|name| {
            let base = fixture.get(fixture.source(), &KeyPolicy::Named(name.into())).unwrap();
            base.image.key().unwrap().to_owned()
        })
        .to_vec();
    for (key, seconds) in keys.iter().zip([100, 5000, 1]) {
        age(&fixture, key, seconds);
    }
    let listing = fixture.cache.list().unwrap();
    let order: Vec<_> = listing.bases.iter().map(|base| &base.key).collect();
    assert_eq!(order, [&keys[2], &keys[0], &keys[1]]);
    let each = listing.allocated() / 3;

    let most = PruneOptions { max_size: Some(2 * each), ..PruneOptions::default() };
    let dry = fixture.prune(&PruneOptions { dry_run: true, ..most.clone() });
    let report = fixture.prune(&most);
    for report in [&dry, &report] {
        assert_eq!(report.removed.iter().map(|base| &base.key).collect::<Vec<_>>(), [&keys[1]]);
        assert!(report.goals_met);
    }
    let old = PruneOptions { max_age: Some(Duration::from_secs(60)), ..PruneOptions::default() };
    assert_eq!(fixture.prune(&old).removed[0].key, keys[0]);
    let room = PruneOptions { keep_free: Some(u64::MAX), ..PruneOptions::default() };
    let report = fixture.prune(&room);
    assert_eq!((removed(&report), report.goals_met), (1, false));
}

#[test]
fn a_clock_set_back_makes_no_base_old() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    let key = base.image.key().unwrap().to_owned();
    drop(base);
    let future = SystemTime::now() + Duration::from_secs(86_400);
    let path = fixture.cache.path().join("v1/uses").join(&key);
    fs::File::options().write(true).open(path).unwrap().set_modified(future).unwrap();
    let week = PruneOptions { max_age: Some(Duration::from_secs(1)), ..PruneOptions::default() };
    assert_eq!(fixture.because(&week), KeptBecause::Wanted);
}

#[test]
fn debris_goes_by_its_lock_and_orphans_by_their_keys() {
    let fixture = Fixture::new();
    drop(fixture.named().unwrap());
    let part = |part: &str, name: &str| fixture.cache.path().join("v1").join(part).join(name);
    let orphan = "0f".repeat(32);
    fs::write(part("tmp", "0123456789abcdef"), b"abandoned").unwrap();
    let live = fixture.cache.layout.temporary().unwrap();
    fs::write(part("bases", &format!("{orphan}.manifest")), b"x").unwrap();
    fs::write(part("uses", &orphan), b"").unwrap();
    fs::write(part("locks", &format!("{orphan}.lock")), b"").unwrap();
    fs::write(part("locks", "length-4711.lock"), b"").unwrap();
    fs::write(part("locks", "notes.txt"), b"not ours").unwrap();
    let dry = fixture.prune(&PruneOptions { dry_run: true, ..PruneOptions::default() });
    let report = fixture.prune(&PruneOptions::default());
    for report in [dry, report] {
        assert_eq!((report.debris.temporaries, report.debris.orphans), (1, 4), "{report:?}");
    }
    assert_eq!(fixture.names("tmp").len(), 1);
    assert_eq!(fixture.names("bases").len(), 2);
    assert_eq!(fixture.names("uses").len(), 1);
    let locks = fixture.names("locks");
    assert!(locks.contains(&"notes.txt".to_owned()) && locks.len() == 3, "{locks:?}");
    drop(live);
}

#[test]
fn a_damaged_base_goes_unless_overlays_stand_on_it() {
    let fixture = Fixture::new();
    let overlay = fixture.damaged_under_an_overlay();
    let state = fixture.cache.list().unwrap().bases[0].state.clone();
    assert!(matches!(state, BaseState::Damaged(_)), "{state:?}");
    assert!(matches!(fixture.because(&PruneOptions::default()), KeptBecause::Overlays(_)));
    fs::remove_file(overlay).unwrap();
    assert_eq!(removed(&fixture.prune(&PruneOptions::default())), 1);
}

#[test]
fn what_cannot_be_told_keeps_the_base_unless_it_may_be_forgotten() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    let key = base.image.key().unwrap().to_owned();
    drop(base);
    let log = fixture.cache.path().join("v1/uses").join(key);
    fs::write(&log, b"USE1 and then something else").unwrap();
    assert_eq!(fixture.because(&everything()), KeptBecause::RecordDamaged);
    let forget = PruneOptions { forget_unknown: true, ..everything() };
    assert_eq!(removed(&fixture.prune(&forget)), 1);
}

#[test]
fn where_no_note_can_be_made_no_overlay_is_made() {
    // A log that can hold no more: its size is limited by its reader.
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    let log = fixture.cache.path().join("v1/uses").join(base.image.key().unwrap());
    fs::File::options().write(true).open(&log).unwrap().set_len(65 << 20).unwrap();
    let path = fixture.overlay("vm.qcow2");
    assert_eq!(base.image.overlay(&path).create().unwrap_err().kind(), ErrorKind::Limit);
    assert!(!path.exists());
}

#[test]
fn a_damaged_base_names_its_overlays_and_its_quarantine_goes_when_room_is_wanted() {
    let fixture = Fixture::new();
    let overlay = fixture.damaged_under_an_overlay();
    let report = fixture.cache.verify(&VerifyOptions::default()).unwrap();
    assert_eq!((report.damaged(), &report.bases[0].overlays), (1, &vec![overlay]));
    let listing = fixture.cache.list().unwrap();
    assert_eq!((listing.bases.len(), listing.quarantined), (0, 3));
    assert!(listing.quarantined_bytes >= 8192);
    // The overlay's record stays, for the base that comes again; a free lock file goes.
    assert_eq!(fixture.prune(&PruneOptions::default()).debris.orphans, 1);
    assert_eq!(fixture.names("uses").len(), 1);
    let room = PruneOptions { max_size: Some(0), ..PruneOptions::default() };
    for options in [PruneOptions { dry_run: true, ..room.clone() }, room] {
        assert_eq!(fixture.prune(&options).debris.quarantined, 3);
    }
    assert_eq!(fixture.names("quarantine"), Vec::<String>::new());
    drop(fixture.named().unwrap());
    assert!(matches!(fixture.because(&everything()), KeptBecause::Overlays(_)));
}
