//! What the cache promises, one promise a test. Races between processes are in a suite of their own.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use sha2::{Digest, Sha256};

use super::*;
use crate::control::{CancelToken, Event};
use crate::error::{Error, ErrorKind};

/// A cache in a folder of its own, and a source beside it.
struct Fixture {
    folder: tempfile::TempDir,
    cache: ImageCache,
    source: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(folder.path().join("cache")).unwrap();
        let source = folder.path().join("disk.img");
        fs::write(&source, disk(1)).unwrap();
        Self { folder, cache, source }
    }

    fn source(&self) -> Source {
        Source::path(&self.source)
    }

    fn get(&self, source: Source, policy: &KeyPolicy) -> Result<CachedBase> {
        self.cache.base_with(source, &BaseOptions { policy: policy.clone(), ..impatient() })
    }

    fn named(&self) -> Result<CachedBase> {
        self.get(self.source(), &KeyPolicy::Named("disk".into()))
    }

    /// The names in one folder of the cache.
    fn names(&self, part: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.cache.path().join("v1").join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn assert_untouched(&self) {
        assert_eq!(self.names("bases"), Vec::<String>::new());
        assert_eq!(self.names("tmp"), Vec::<String>::new());
    }
}

fn impatient() -> BaseOptions {
    BaseOptions { timeout: Some(Duration::ZERO), ..BaseOptions::default() }
}

/// Data, a hole, data: different for each seed.
fn disk(seed: u8) -> Vec<u8> {
    let mut disk = vec![0; 64 << 10];
    disk[..4096].fill(seed);
    disk[40_000..41_000].fill(seed.wrapping_add(1));
    disk
}

fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

fn stated(seed: u8) -> KeyPolicy {
    KeyPolicy::Stated(digest(&disk(seed)))
}

/// Counts extractions and reads.
#[derive(Clone, Default)]
struct Counts(Arc<(AtomicUsize, AtomicUsize)>);

impl Counts {
    fn control(&self) -> Control {
        let counts = self.clone();
        Control::new().with_observer(move |event| {
            match event {
                Event::Extracting { .. } => counts.0.0.fetch_add(1, Ordering::Relaxed),
                Event::Progress { .. } => counts.0.1.fetch_add(1, Ordering::Relaxed),
                Event::Waiting { .. } => 0,
            };
        })
    }

    fn extractions(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }

    fn reads(&self) -> usize {
        self.0.1.load(Ordering::Relaxed)
    }
}

#[test]
fn a_base_is_extracted_once_and_found_ever_after() {
    let fixture = Fixture::new();
    let policies =
        [KeyPolicy::Content, stated(1), KeyPolicy::Named("a".into()), KeyPolicy::Named("b".into())];
    for (policy, origin) in policies.iter().zip(["extracted", "hit", "extracted", "extracted"]) {
        let first = fixture.get(fixture.source(), policy).unwrap();
        assert_eq!(first.origin.as_str(), origin, "{policy:?}");
        let second = fixture.get(fixture.source(), policy).unwrap();
        assert_eq!(second.origin.as_str(), "hit", "{policy:?}");
        assert_eq!(first.image.path(), second.image.path());
        let path = second.image.path();
        assert_eq!(fs::read(path).unwrap(), disk(1));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o444);
        assert!(path.starts_with(fixture.cache.path().join("v1/bases")));
        assert!(second.allocated < 64 << 10, "holes are kept");
    }
    assert_eq!(fixture.names("bases").len(), 6);
    assert_eq!(fixture.names("tmp"), Vec::<String>::new());
}

#[test]
fn one_line_gives_a_base_that_knows_its_size_and_key() {
    let fixture = Fixture::new();
    let base = fixture.cache.base(fixture.source()).unwrap();
    assert_eq!(base.virtual_size(), 64 << 10);
    assert!(base.path().ends_with(format!("{}.img", base.key().unwrap())));
}

#[test]
fn the_same_content_is_one_base_under_any_path_and_as_a_stream() {
    let fixture = Fixture::new();
    let counts = Counts::default();
    let options = BaseOptions { control: counts.control(), ..impatient() };
    let first = fixture.cache.base_with(fixture.source(), &options).unwrap();
    let other = fixture.folder.path().join("other");
    fs::copy(&fixture.source, &other).unwrap();
    let link = fixture.folder.path().join("link");
    symlink(&fixture.source, &link).unwrap();
    for path in [other, link] {
        let again = fixture.cache.base_with(Source::path(path), &options).unwrap();
        assert_eq!(again.origin.as_str(), "hit");
        assert_eq!(again.image.path(), first.image.path());
    }
    assert_eq!(counts.extractions(), 1);

    let stream = Source::reader(io::Cursor::new(disk(1)), "a stream");
    let again = fixture.cache.base_with(stream, &options).unwrap();
    assert_eq!((again.origin.as_str(), counts.extractions()), ("hit", 2));
    assert_eq!(again.image.path(), first.image.path());
    assert_eq!(fixture.names("tmp"), Vec::<String>::new());
}

#[test]
fn another_content_of_the_same_length_is_another_base() {
    let fixture = Fixture::new();
    let first = fixture.cache.base(fixture.source()).unwrap();
    fs::write(&fixture.source, disk(2)).unwrap();
    let second = fixture.cache.base(fixture.source()).unwrap();
    assert_ne!(first.path(), second.path());
    assert_eq!(fs::read(second.path()).unwrap(), disk(2));
    assert_eq!(fs::read(first.path()).unwrap(), disk(1));
}

#[test]
fn the_second_look_at_a_settled_file_reads_nothing() {
    let fixture = Fixture::new();
    thread::sleep(Duration::from_millis(2100));
    for (reads, extractions) in [(true, 1), (false, 0)] {
        let counts = Counts::default();
        let options = BaseOptions { control: counts.control(), ..impatient() };
        fixture.cache.base_with(fixture.source(), &options).unwrap();
        assert_eq!((counts.reads() > 0, counts.extractions()), (reads, extractions));
    }
    let locks = fixture.names("locks");
    for lock in &locks {
        fs::remove_file(fixture.cache.path().join("v1/locks").join(lock)).unwrap();
    }
    fixture.cache.base_with(fixture.source(), &impatient()).unwrap();
    assert_eq!(fixture.names("locks"), Vec::<String>::new(), "a hit touches no lock file");
}

#[test]
fn a_memory_that_is_wrong_is_forgotten() {
    let fixture = Fixture::new();
    let facts = memo::Facts::of(&fixture.source).unwrap().unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(10);
    memo::remember(&fixture.cache.layout, &facts, later, digest(&disk(9)));
    let base = fixture.cache.base(fixture.source()).unwrap();
    assert_eq!(fs::read(base.path()).unwrap(), disk(1));
    let again = fixture.get(fixture.source(), &stated(1)).unwrap();
    assert_eq!((again.origin.as_str(), again.image.path()), ("hit", base.path()));
}

#[test]
fn a_stated_or_named_base_needs_no_source_once_it_is_there() {
    let fixture = Fixture::new();
    let gone = || Source::path("/nowhere/at/all");
    for policy in [stated(1), KeyPolicy::Named("disk".into())] {
        assert_eq!(fixture.get(gone(), &policy).unwrap_err().kind(), ErrorKind::NotFound);
        fixture.get(fixture.source(), &policy).unwrap();
        assert_eq!(fixture.get(gone(), &policy).unwrap().origin.as_str(), "hit");
    }
}

#[test]
fn what_fails_leaves_nothing_and_frees_its_locks() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let fixture = Fixture::new();
    let named = KeyPolicy::Named("disk".into());
    let failing = || Source::reader(io::Cursor::new(disk(1)).chain(Failing), "a bad medium");
    for (source, policy, kind) in [
        (failing(), &named, ErrorKind::Io),
        (failing(), &KeyPolicy::Content, ErrorKind::Io),
        (fixture.source(), &stated(2), ErrorKind::Mismatch),
        (Source::path("/nowhere"), &named, ErrorKind::NotFound),
        (Source::path("/nowhere"), &KeyPolicy::Content, ErrorKind::NotFound),
        (fixture.source(), &KeyPolicy::Named(String::new()), ErrorKind::InvalidInput),
    ] {
        let error = fixture.get(source, policy).unwrap_err();
        assert_eq!(error.kind(), kind, "{policy:?}: {error}");
        fixture.assert_untouched();
    }
    // Nothing to wait for: with no patience at all, each of these would fail if a lock were held.
    for policy in [named, KeyPolicy::Content, stated(1)] {
        fixture.get(fixture.source(), &policy).unwrap();
    }
}

#[test]
fn a_source_that_changes_while_it_is_read_is_refused() {
    for policy in [KeyPolicy::Content, KeyPolicy::Named("disk".into())] {
        let fixture = Fixture::new();
        let path = fixture.source.clone();
        let control = Control::new().with_observer(move |event| {
            if matches!(event, Event::Extracting { .. }) {
                fs::write(&path, disk(2)).unwrap();
            }
        });
        let options = BaseOptions { policy, control, ..impatient() };
        let error = fixture.cache.base_with(fixture.source(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        fixture.assert_untouched();
    }
}

#[test]
fn a_damaged_base_is_made_anew() {
    let rewrite = |path: &Path, bytes: &[u8]| {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    };
    let truncate = |path: &Path| rewrite(path, &disk(1)[..1000]);
    let grow = |path: &Path| rewrite(path, &[disk(1), vec![0; 512]].concat());
    let edit = |path: &Path| rewrite(path, &disk(2));
    let empty = |path: &Path| rewrite(path, b"");
    let replace = |path: &Path, plant: &dyn Fn(&Path)| {
        fs::remove_file(path).unwrap();
        plant(path);
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 9] = [
        ("truncated", &truncate),
        ("grown", &grow),
        ("edited", &edit),
        ("empty", &empty),
        ("writable", &|path| fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap()),
        ("link", &|path| replace(path, &|path| symlink("/dev/zero", path).unwrap())),
        ("dangling link", &|path| replace(path, &|path| symlink("/nowhere", path).unwrap())),
        ("folder", &|path| replace(path, &|path| fs::create_dir_all(path.join("junk")).unwrap())),
        ("absent", &|path| replace(path, &|_| {})),
    ];
    for (name, damage) in damages {
        for part in ["img", "manifest"] {
            if (name, part) == ("writable", "manifest") {
                continue;
            }
            let fixture = Fixture::new();
            let path = fixture.named().unwrap().image.path().to_owned();
            damage(&path.with_extension(part));
            let base = fixture.named().unwrap();
            assert_eq!(base.origin.as_str(), "extracted", "{name} {part}");
            assert_eq!(base.image.path(), path);
            assert_eq!(fs::read(&path).unwrap(), disk(1), "{name} {part}");
            assert_eq!(fixture.named().unwrap().origin.as_str(), "hit", "{name} {part}");
            assert_eq!(fixture.names("bases").len(), 2, "{name} {part}");
            assert_eq!(fixture.names("tmp"), Vec::<String>::new(), "{name} {part}");
        }
    }
}

#[test]
fn a_manifest_damaged_anywhere_is_noticed_and_made_anew() {
    let fixture = Fixture::new();
    let manifest = fixture.named().unwrap().image.path().with_extension("manifest");
    let length = fs::read(&manifest).unwrap().len();
    for at in 0..length {
        let mut bytes = fs::read(&manifest).unwrap();
        bytes[at] ^= 0x01;
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, bytes).unwrap();
        fs::set_permissions(&manifest, Permissions::from_mode(0o444)).unwrap();
        assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted", "byte {at}");
    }
}

#[test]
fn the_manifest_of_another_base_is_not_believed() {
    let fixture = Fixture::new();
    let one = fixture.named().unwrap().image.path().to_owned();
    let other = fixture.get(fixture.source(), &stated(1)).unwrap().image.path().to_owned();
    fs::rename(other.with_extension("manifest"), one.with_extension("manifest")).unwrap();
    assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
}

#[test]
fn a_base_that_was_not_synced_is_good_for_one_boot() {
    let fixture = Fixture::new();
    let reboot = |manifest: &Path| {
        let mut other = manifest::Manifest::parse(&fs::read(manifest).unwrap()).unwrap();
        let synced = other.boot.is_none();
        other.boot = other.boot.map(|_| crate::sys::host::BootId([0xee; 16]));
        fs::remove_file(manifest).unwrap();
        fs::write(manifest, other.encode()).unwrap();
        fs::set_permissions(manifest, Permissions::from_mode(0o444)).unwrap();
        synced
    };
    let manifest = fixture.named().unwrap().image.path().with_extension("manifest");
    let synced = reboot(&manifest);
    let again = fixture.named().unwrap();
    assert_eq!(again.origin.as_str(), if synced { "hit" } else { "extracted" });

    let durable = BaseOptions {
        policy: KeyPolicy::Named("disk".into()),
        durability: Durability::Full,
        ..impatient()
    };
    let hardened = fixture.cache.base_with(fixture.source(), &durable).unwrap();
    assert_eq!(hardened.origin.as_str(), "hit");
    assert!(reboot(&manifest), "it is synced now");
    assert_eq!(fixture.named().unwrap().origin.as_str(), "hit");
}

#[test]
fn a_leased_base_cannot_be_locked_away_and_a_dropped_one_can() {
    let fixture = Fixture::new();
    let base = fixture.named().unwrap();
    let second = fixture.named().unwrap();
    let prune = File::open(base.image.path()).unwrap();
    drop(base);
    assert!(prune.try_lock().is_err());
    drop(second);
    prune.try_lock().unwrap();
    // A base that is being removed is neither served nor made anew under the remover's hands.
    let error = fixture.named().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    fs::remove_file(fixture.cache.path().join("v1/bases").join(&fixture.names("bases")[0]))
        .unwrap();
    assert_eq!(fixture.named().unwrap().origin.as_str(), "extracted");
}

/// A stream that says when it is first read, and ends when it is told to.
fn held_open() -> (Source, mpsc::Receiver<()>, mpsc::Sender<()>) {
    struct Held(mpsc::Sender<()>, mpsc::Receiver<()>, io::Cursor<Vec<u8>>);
    impl Read for Held {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.2.position() == 0 {
                let _ = self.0.send(());
                let _ = self.1.recv();
            }
            self.2.read(buffer)
        }
    }
    let (began, begun) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    (Source::reader(Held(began, gone, io::Cursor::new(disk(1))), "slow"), begun, go)
}

#[test]
fn waiting_ends_with_the_base_the_timeout_or_the_cancel() {
    let fixture = &Fixture::new();
    let named = || KeyPolicy::Named("disk".into());
    let (slow, begun, go) = held_open();
    thread::scope(|scope| {
        let maker = scope.spawn(move || {
            let options = BaseOptions { policy: named(), ..BaseOptions::default() };
            fixture.cache.base_with(slow, &options).unwrap().origin
        });
        begun.recv().unwrap();

        let error = fixture.named().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");

        let cancel = CancelToken::new();
        let told = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&told);
        let on_wait = cancel.clone();
        let control = Control::new().with_cancel(cancel).with_observer(move |event| {
            if let Event::Waiting { holder } = event {
                assert!(holder.as_ref().unwrap().purpose.contains("slow"));
                seen.fetch_add(1, Ordering::Relaxed);
                on_wait.cancel();
            }
        });
        let options = BaseOptions { policy: named(), control, ..BaseOptions::default() };
        let error = fixture.cache.base_with(fixture.source(), &options).unwrap_err();
        assert_eq!((error.kind(), told.load(Ordering::Relaxed)), (ErrorKind::Cancelled, 1));

        let waiter = scope.spawn(move || {
            let options = BaseOptions { policy: named(), ..BaseOptions::default() };
            fixture.cache.base_with(fixture.source(), &options).unwrap().origin
        });
        thread::sleep(Duration::from_millis(20));
        go.send(()).unwrap();
        assert_eq!(maker.join().unwrap().as_str(), "extracted");
        assert_eq!(waiter.join().unwrap().as_str(), "waited");
    });
}

#[test]
fn a_cancelled_extraction_leaves_nothing() {
    let fixture = Fixture::new();
    let cancel = CancelToken::new();
    let on_start = cancel.clone();
    let control = Control::new().with_cancel(cancel).with_observer(move |event| {
        if matches!(event, Event::Extracting { .. }) {
            on_start.cancel();
        }
    });
    let options = BaseOptions { control, ..impatient() };
    let error: Error = fixture.cache.base_with(fixture.source(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    fixture.assert_untouched();
}

#[test]
fn who_knows_the_digest_and_who_learns_it_extract_once_between_them() {
    // The one who knows is in the middle of it; the one who does not must wait, and then hash.
    let fixture = &Fixture::new();
    let (started, starting) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let knowing = Control::new().with_observer(move |event| {
        if matches!(event, Event::Extracting { .. }) {
            started.send(()).unwrap();
            gone.lock().unwrap().recv().unwrap();
        }
    });
    thread::scope(|scope| {
        let maker = scope.spawn(move || {
            let options =
                BaseOptions { policy: stated(1), control: knowing, ..BaseOptions::default() };
            fixture.cache.base_with(fixture.source(), &options).unwrap().origin
        });
        starting.recv().unwrap();
        let counts = Counts::default();
        let learning = BaseOptions { control: counts.control(), ..BaseOptions::default() };
        let learner = scope
            .spawn(move || fixture.cache.base_with(fixture.source(), &learning).unwrap().origin);
        thread::sleep(Duration::from_millis(30));
        go.send(()).unwrap();
        assert_eq!(maker.join().unwrap().as_str(), "extracted");
        assert_eq!((learner.join().unwrap().as_str(), counts.extractions()), ("waited", 0));
    });
}

#[test]
fn threads_of_one_process_exclude_each_other() {
    let fixture = &Fixture::new();
    for policy in [KeyPolicy::Content, KeyPolicy::Named("disk".into())] {
        let counts = Counts::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let options = BaseOptions {
                        policy: policy.clone(),
                        control: counts.control(),
                        ..BaseOptions::default()
                    };
                    fixture.cache.base_with(fixture.source(), &options).unwrap();
                });
            }
        });
        assert_eq!(counts.extractions(), 1, "{policy:?}");
    }
}
