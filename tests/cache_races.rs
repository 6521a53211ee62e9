//! The cache under races that only processes can have: many at one key, killed ones, forked ones,
//! and a cleaner that removes lock files.
//!
//! Each process is this test binary again: `child` below, told by environment variables what to do,
//! prints one word per event. What it prints is counted here.

use std::fs;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use disk_engine::cache::{BaseOptions, ImageCache, KeyPolicy};
use disk_engine::source::Source;
use disk_engine::{Control, ErrorKind, Event};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

// ---------------------------------------------------------------------------------------------
// What a child does
// ---------------------------------------------------------------------------------------------

const TASK: &str = "CACHE_RACES_TASK";
const CACHE: &str = "CACHE_RACES_CACHE";
const SOURCES: &str = "CACHE_RACES_SOURCES";
const KEY: &str = "CACHE_RACES_KEY";

/// Not a test: what a child process runs.
#[test]
#[ignore = "run by the other tests, as a child process"]
fn child() {
    match std::env::var(TASK).as_deref() {
        Ok("threads") => ask_from_threads(),
        Ok("slow") => extract_slowly(),
        Ok("fork") => fork_while_extracting(),
        Ok("umask") => ask_under_each_umask(),
        _ => {}
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn options(control: Control) -> BaseOptions {
    BaseOptions { policy: variable(KEY).parse().unwrap(), control, ..BaseOptions::default() }
}

/// One line, in one write, so that the lines of several threads do not mix.
fn say(line: &str) {
    use std::io::Write;
    io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn speaking() -> Control {
    Control::new().with_observer(|event| {
        if matches!(event, Event::Extracting { .. }) {
            say("EXTRACTING");
        }
    })
}

/// Eight threads ask at once, the sources dealt out among them.
fn ask_from_threads() {
    let sources = variable(SOURCES);
    let sources: Vec<&str> = sources.split(':').collect();
    let start = std::sync::Barrier::new(8);
    thread::scope(|scope| {
        for index in 0..8 {
            let (start, source) = (&start, sources[index % sources.len()]);
            scope.spawn(move || {
                let cache = ImageCache::open(variable(CACHE));
                // Whatever came of it: the others wait for all eight.
                start.wait();
                let base =
                    cache.unwrap().base_with(Source::path(source), &options(speaking())).unwrap();
                assert_eq!(fs::read(base.image.path()).unwrap(), disk());
                say(&format!("GOT {}", base.image.path().display()));
            });
        }
    });
}

/// A stream that trickles, so that a kill finds the extraction at any point.
fn extract_slowly() {
    struct Trickle(Cursor<Vec<u8>>);
    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            thread::sleep(Duration::from_micros(200));
            let length = buffer.len().min(16 << 10);
            self.0.read(&mut buffer[..length])
        }
    }
    let cache = ImageCache::open(variable(CACHE)).unwrap();
    let source = Source::reader(Trickle(Cursor::new(disk())), "trickle");
    say("START");
    cache.base_with(source, &options(speaking())).unwrap();
    say("DONE");
}

/// Forks three children, each with a copy of what the parent holds:
///
/// 1. in the middle of an extraction, one that lives on: it must not keep the key's lock;
/// 2. with the base leased, one that drops its copy of the lease: the parent's must stand;
/// 3. one that lives on with its copy: it must not keep the lease the parent drops.
fn fork_while_extracting() {
    struct Forking {
        content: Cursor<Vec<u8>>,
        forked: bool,
    }
    impl Read for Forking {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if !self.forked {
                self.forked = true;
                let sleeper = fork_child(|| thread::sleep(Duration::from_secs(20)));
                say(&format!("SLEEPER {sleeper}"));
                // Until the driver has looked at the lock.
                io::stdin().read_line(&mut String::new())?;
            }
            self.content.read(buffer)
        }
    }
    let cache = ImageCache::open(variable(CACHE)).unwrap();
    let source = Source::reader(Forking { content: Cursor::new(disk()), forked: false }, "forking");
    let base = cache.base_with(source, &options(speaking())).unwrap();
    say("DONE");
    io::stdin().read_line(&mut String::new()).unwrap();

    let mut base = Some(base);
    let dropper = fork_child(|| drop(base.take()));
    let status = waitpid(Pid::from_raw(dropper), None).unwrap();
    assert_eq!(status, WaitStatus::Exited(Pid::from_raw(dropper), 0));
    say("DROPPED");
    io::stdin().read_line(&mut String::new()).unwrap();

    let carrier = fork_child(|| thread::sleep(Duration::from_secs(20)));
    say(&format!("CARRIER {carrier}"));
    drop(base.take());
    say("RELEASED");
    io::stdin().read_line(&mut String::new()).unwrap();
}

/// Forks a child that does `work` and ends at once, running no handler of ours.
fn fork_child(work: impl FnOnce()) -> i32 {
    // SAFETY: the child only sleeps, or closes descriptors and frees memory that this very thread
    // owned; both need no lock that another thread could have held at the fork, except the
    // allocator's, which glibc keeps usable in a forked child. It ends by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child.as_raw(),
        ForkResult::Child => {
            work();
            // SAFETY: _exit takes no pointer and does not return.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

fn ask_under_each_umask() {
    for bits in [0o000, 0o777] {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(bits));
        let folder = Path::new(&variable(CACHE)).join(format!("{bits:o}"));
        for expected in ["extracted", "hit"] {
            let cache = ImageCache::open(&folder).unwrap();
            let base =
                cache.base_with(Source::path(variable(SOURCES)), &options(Control::new())).unwrap();
            assert_eq!(base.origin.as_str(), expected, "umask {bits:o}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Helpers of the tests
// ---------------------------------------------------------------------------------------------

/// Two MiB: some data, a hole, some data.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 2 << 20];
    for (index, byte) in disk[..300_000].iter_mut().enumerate() {
        *byte = u8::try_from(index % 251).unwrap();
    }
    disk[1_900_000..].fill(7);
    disk
}

struct Race {
    folder: tempfile::TempDir,
    source: PathBuf,
}

impl Race {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("disk.img");
        fs::write(&source, disk()).unwrap();
        Self { folder, source }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn part(&self, name: &str) -> PathBuf {
        self.cache().join("v1").join(name)
    }

    fn child(&self, task: &str, key: &str, sources: &[&Path]) -> Child {
        let sources: Vec<_> = sources.iter().map(|path| path.to_str().unwrap()).collect();
        Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .envs([(TASK, task), (KEY, key), (SOURCES, &sources.join(":"))])
            .env(CACHE, self.cache())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What a caller without patience gets, from this process.
    fn ask(&self, key: &str) -> disk_engine::Result<disk_engine::cache::CachedBase> {
        let options = BaseOptions {
            policy: key.parse::<KeyPolicy>().unwrap(),
            timeout: Some(Duration::ZERO),
            ..BaseOptions::default()
        };
        ImageCache::open(self.cache())?.base_with(Source::path(&self.source), &options)
    }

    fn assert_right_and_clean(&self, key: &str) {
        let base = self.ask(key).unwrap();
        assert_eq!(fs::read(base.image.path()).unwrap(), disk());
        assert_eq!(names(&self.part("tmp")), Vec::<String>::new());
        let bases = names(&self.part("bases"));
        assert_eq!(bases.len(), 2, "{bases:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits for a child and returns what it said.
fn hear(child: Child) -> (ExitStatus, Vec<String>) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // The harness's own "test child ... " has no newline of its own.
    let words = ["EXTRACTING", "GOT ", "DONE", "START"];
    let lines = text
        .lines()
        .filter_map(|line| words.iter().find_map(|word| line.find(word).map(|at| &line[at..])))
        .map(ToOwned::to_owned)
        .collect();
    (output.status, lines)
}

fn count(lines: &[String], word: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(word)).count()
}

// ---------------------------------------------------------------------------------------------
// The races
// ---------------------------------------------------------------------------------------------

/// Four processes of eight threads each; with `sources` dealt out among the threads.
fn race(race: &Race, key: &str, sources: &[&Path]) {
    let children: Vec<_> = (0..4).map(|_| race.child("threads", key, sources)).collect();
    let mut lines = Vec::new();
    for child in children {
        let (status, said) = hear(child);
        assert!(status.success(), "{said:?}");
        lines.extend(said);
    }
    assert_eq!(count(&lines, "GOT "), 32, "{lines:?}");
    assert_eq!(count(&lines, "EXTRACTING"), 1, "{key}: {lines:?}");
    lines.retain(|line| line.starts_with("GOT "));
    lines.dedup();
    assert_eq!(lines.len(), 1, "one path for all");
}

#[test]
fn one_key_asked_for_by_32_threads_of_4_processes_is_extracted_once() {
    for key in ["name:disk", "content"] {
        for _ in 0..5 {
            let setting = Race::new();
            race(&setting, key, &[&setting.source]);
            setting.assert_right_and_clean(key);
        }
    }
}

#[test]
fn the_same_content_under_two_paths_at_once_is_extracted_once() {
    for _ in 0..5 {
        let setting = Race::new();
        let other = setting.folder.path().join("other.img");
        fs::copy(&setting.source, &other).unwrap();
        race(&setting, "content", &[&setting.source, &other]);
        setting.assert_right_and_clean("content");
    }
}

#[test]
fn whoever_comes_after_a_killed_extractor_succeeds_and_cleans_up() {
    // A small deterministic generator: any spread of moments will do.
    let mut state = 0x9e37_79b9_u64;
    let (mut before, mut during, mut after) = (0, 0, 0);
    for round in 0..60 {
        let setting = Race::new();
        let key = ["name:disk", "content"][round % 2];
        let mut child = setting.child("slow", key, &[]);
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("START") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "the child never started");
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_micros((state >> 33) % 50_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        match (rest.contains("EXTRACTING"), rest.contains("DONE")) {
            (_, true) => after += 1,
            (true, false) => during += 1,
            (false, false) => before += 1,
        }
        setting.assert_right_and_clean(key);
    }
    eprintln!("killed before {before}, during {during}, after {after} extractions");
    assert!(during > 10, "the kills must fall into extractions");
}

#[test]
fn a_waiter_takes_over_from_a_killed_extractor() {
    let setting = Race::new();
    let mut holder = setting.child("fork", "name:disk", &[]);
    let mut said = BufReader::new(holder.stdout.take().unwrap());
    let sleeper = wait_for(&mut said, "SLEEPER");
    let waiter = setting.child("threads", "name:disk", &[&setting.source]);
    thread::sleep(Duration::from_millis(100));
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The forked child still carries the killed one's locks; they go with it.
    end(&sleeper);
    let (status, lines) = hear(waiter);
    assert!(status.success());
    assert_eq!(count(&lines, "EXTRACTING"), 1);
    setting.assert_right_and_clean("name:disk");
}

#[test]
fn a_forked_child_neither_keeps_nor_breaks_its_parents_locks() {
    let setting = Race::new();
    let mut parent = setting.child("fork", "name:disk", &[]);
    let mut said = BufReader::new(parent.stdout.take().unwrap());
    let mut go = {
        use std::io::Write;
        let mut stdin = parent.stdin.take().unwrap();
        move || stdin.write_all(b"\n").unwrap()
    };

    let sleeper = wait_for(&mut said, "SLEEPER");
    assert_eq!(setting.ask("name:disk").unwrap_err().kind(), ErrorKind::Busy, "it is held");
    go();
    wait_for(&mut said, "DONE");
    // The parent has released its locks; the child that inherited them is still alive.
    assert!(alive(&sleeper));
    let lock = names(&setting.part("locks")).remove(0);
    fs::File::open(setting.part("locks").join(lock)).unwrap().try_lock().unwrap();
    end(&sleeper);

    let base = setting.part("bases").join(
        names(&setting.part("bases")).into_iter().find(|name| name.ends_with(".img")).unwrap(),
    );
    let prune = fs::File::open(&base).unwrap();
    assert!(prune.try_lock().is_err(), "leased");
    go();
    wait_for(&mut said, "DROPPED");
    assert!(prune.try_lock().is_err(), "a child dropped its copy, and the parent's lease stands");
    go();
    let carrier = wait_for(&mut said, "CARRIER");
    wait_for(&mut said, "RELEASED");
    assert!(alive(&carrier));
    prune.try_lock().expect("the parent's release counts, whatever a child carries");
    end(&carrier);
    go();
    assert!(parent.wait().unwrap().success());
}

#[test]
fn a_cleaner_that_removes_lock_files_gives_nobody_a_wrong_base() {
    let setting = Race::new();
    ImageCache::open(setting.cache()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let cleaner = {
        let (stop, locks) = (Arc::clone(&stop), setting.part("locks"));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for name in names(&locks) {
                    let _ = fs::remove_file(locks.join(name));
                }
                thread::sleep(Duration::from_micros(300));
            }
        })
    };
    let children: Vec<_> =
        (0..4).map(|_| setting.child("threads", "content", &[&setting.source])).collect();
    for child in children {
        let (status, lines) = hear(child);
        assert!(status.success(), "{lines:?}");
        assert_eq!(count(&lines, "GOT "), 8);
    }
    stop.store(true, Ordering::Relaxed);
    cleaner.join().unwrap();
    setting.assert_right_and_clean("content");
}

#[test]
fn any_umask_gives_the_same_modes() {
    let setting = Race::new();
    let (status, _) = hear(setting.child("umask", "content", &[&setting.source]));
    assert!(status.success());
    for umask in ["0", "777"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let version = setting.cache().join(umask).join("v1");
        assert_eq!(mode(&version), 0o700);
        for part in ["bases", "locks", "sources", "tmp"] {
            assert_eq!(mode(&version.join(part)), 0o700, "{part}");
        }
        for name in names(&version.join("bases")) {
            assert_eq!(mode(&version.join("bases").join(name)), 0o444);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Talking to a child
// ---------------------------------------------------------------------------------------------

/// Reads lines until one holds `word`; returns what follows the word.
fn wait_for(said: &mut impl BufRead, word: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "the child ended before {word}");
        if let Some(at) = line.find(word) {
            return line[at + word.len()..].trim().to_owned();
        }
    }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap())
}

fn alive(text: &str) -> bool {
    kill(pid(text), None).is_ok()
}

/// Ends a grandchild of ours, and waits until it is gone (or a zombie of its own parent's).
fn end(text: &str) {
    let _ = kill(pid(text), Signal::SIGKILL);
    let started = Instant::now();
    while fs::read_to_string(format!("/proc/{text}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    {
        assert!(started.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(1));
    }
}
