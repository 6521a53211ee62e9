//! Leases, and waiting for others: how it ends, and who makes the base.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;

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

        let (waits, waiting) = mpsc::channel();
        let control = Control::new().with_observer(move |event| {
            if matches!(event, Event::Waiting { .. }) {
                let _ = waits.send(());
            }
        });
        let waiter = scope.spawn(move || {
            let options = BaseOptions { policy: named(), control, ..BaseOptions::default() };
            fixture.cache.base_with(fixture.source(), &options).unwrap().origin
        });
        waiting.recv().unwrap();
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
        let extractions = Arc::new(AtomicUsize::new(0));
        let (waits, waiting) = mpsc::channel();
        let counted = Arc::clone(&extractions);
        let control = Control::new().with_observer(move |event| match event {
            Event::Waiting { .. } => waits.send(()).unwrap(),
            Event::Extracting { .. } => {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        });
        let learning = BaseOptions { control, ..BaseOptions::default() };
        let learner = scope
            .spawn(move || fixture.cache.base_with(fixture.source(), &learning).unwrap().origin);
        waiting.recv().unwrap();
        go.send(()).unwrap();
        assert_eq!(maker.join().unwrap().as_str(), "extracted");
        assert_eq!(learner.join().unwrap().as_str(), "waited");
        assert_eq!(extractions.load(Ordering::Relaxed), 0);
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

#[test]
fn when_an_extraction_fails_the_next_in_line_tries_for_itself() {
    let fixture = &Fixture::new();
    let (slow, begun, go) = held_open();
    let failing = BaseOptions { policy: stated(9), ..BaseOptions::default() };
    thread::scope(|scope| {
        // Its digest turns out not to be the stated one.
        let maker = scope.spawn(|| fixture.cache.base_with(slow, &failing).unwrap_err());
        begun.recv().unwrap();
        fs::write(&fixture.source, disk(9)).unwrap();
        let waiter = scope.spawn(|| {
            let options = BaseOptions { policy: stated(9), ..BaseOptions::default() };
            fixture.cache.base_with(fixture.source(), &options).unwrap()
        });
        thread::sleep(Duration::from_millis(20));
        go.send(()).unwrap();
        assert_eq!(maker.join().unwrap().kind(), ErrorKind::Mismatch);
        let base = waiter.join().unwrap();
        assert_eq!(base.origin.as_str(), "extracted");
        assert_eq!(fs::read(base.image.path()).unwrap(), disk(9));
    });
}

#[test]
fn who_loses_its_lock_file_to_a_cleaner_takes_the_base_the_other_made() {
    let fixture = Fixture::new();
    let (root, source) = (fixture.cache.path().to_owned(), fixture.source.clone());
    let options =
        |control| BaseOptions { policy: KeyPolicy::Named("disk".into()), control, ..impatient() };
    let cleaned = Control::new().with_observer(move |event| {
        if matches!(event, Event::Extracting { .. }) {
            for lock in fs::read_dir(root.join("v1/locks")).unwrap() {
                fs::remove_file(lock.unwrap().path()).unwrap();
            }
            let other = ImageCache::open(&root).unwrap();
            let base = other.base_with(Source::path(&source), &options(Control::new())).unwrap();
            assert_eq!(base.origin.as_str(), "extracted");
        }
    });
    let base = fixture.cache.base_with(fixture.source(), &options(cleaned)).unwrap();
    assert_eq!(base.origin.as_str(), "hit");
    assert_eq!(fixture.names("tmp"), Vec::<String>::new());
}
