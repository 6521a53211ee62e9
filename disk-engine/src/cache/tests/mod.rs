//! What the cache promises, one promise a test. Races between processes are in a suite of their own.

mod damage;
mod prune;
mod waiting;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
                _ => 0,
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
