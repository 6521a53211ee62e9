//! The cache as a busy host uses it: many processes, some of them killed, for as long as one likes.
//!
//! ```text
//!             ┌── extractor   asks for bases, reads them while it holds them
//! driver ─────┼── overlayer   makes disks, removes some, leaves the others behind
//!   │  spawns └── pruner      removes what nobody needs, forgets digests
//!   │  kills
//!   ├── stdout of each ◀── what it did, a line an event
//!   └── inotify ◀── v1/bases and v1/tmp: what the kernel saw
//! ```
//!
//! Each process is this test binary again: `child` below. Six to ten run at a time; whoever ends is
//! replaced, until the time is up. Then everything is looked at that must be true of the cache
//! whatever happened, and the counts are printed.
//!
//! `CACHE_SOAK_SECONDS` says for how long (30), `CACHE_SOAK_SEED` what is drawn. The kernel's
//! scheduling is not drawn, so a seed gives the same processes and not the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use disk_engine::cache::{
    BaseOptions, CachedBase, ImageCache, KeptBase, KeptBecause, KeyPolicy, PruneOptions,
};
use disk_engine::ops::pack::{PackOptions, pack};
use disk_engine::ops::prepare::{PrepareOptions, prepare};
use disk_engine::source::Source;
use disk_engine::strategy::Strategy;
use disk_engine::{Control, Event};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use qcow2_format::Header;
use testkit::disks::sha256;
use testkit::{qemu, tool};

const ROOT: &str = "CACHE_SOAK_ROOT";
const ROLE: &str = "CACHE_SOAK_ROLE";
const SEED: &str = "CACHE_SOAK_SEED";
const SECONDS: &str = "CACHE_SOAK_SECONDS";

/// The disk each source holds. Sources 0 and 1 are the same bytes, and so are 3 and 4; source 5 is
/// the disk of source 2 in another archive.
const SOURCES: [usize; 6] = [0, 0, 1, 2, 2, 1];
/// Only overlays on this disk are left behind for ever: the other bases shall go and come again.
const PINNED_DISK: usize = 0;
/// What stands before each event, whatever the test harness has written to the same line.
const MARK: &str = "soak: ";
/// How long the processes may take to end once nobody is started any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// Not a test: what a child process runs.
#[test]
#[ignore = "run by the other test, as a child process"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let place = Place(PathBuf::from(std::env::var_os(ROOT).unwrap()));
    let actor = Actor { random: Random(seed), cache: place.open_cache(), place };
    match &*role {
        "extractor" => actor.extract(),
        "overlayer" => actor.overlay(seed),
        "pruner" => actor.prune(),
        _ => panic!("no such role: {role}"),
    }
}

// ---------------------------------------------------------------------------------------------
// What all processes share
// ---------------------------------------------------------------------------------------------

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// One of `0..count`.
    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// True once in so many.
    fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn micros(&mut self, limit: usize) -> Duration {
        Duration::from_micros(self.below(limit) as u64)
    }
}

/// Where everything lies.
struct Place(PathBuf);

impl Place {
    /// Raw disks to compare with, then the archives of them, each packed or copied.
    fn furnish(&self) {
        for folder in ["truth", "sources", "vms"] {
            fs::create_dir(self.0.join(folder)).unwrap();
        }
        for number in 0..3 {
            fs::write(self.truth(number), disk(number)).unwrap();
        }
        for (source, &number) in SOURCES.iter().enumerate() {
            let first = SOURCES.iter().position(|&other| other == number).unwrap();
            if first != source && source != 5 {
                fs::copy(self.source(first), self.source(source)).unwrap();
                continue;
            }
            let level = if source == 5 { 3 } else { 1 };
            let options = PackOptions { level, window_log: 20, ..PackOptions::default() };
            pack(&self.truth(number), &self.source(source), &options).unwrap();
        }
    }

    fn truth(&self, number: usize) -> PathBuf {
        self.0.join(format!("truth/{number}.img"))
    }

    fn source(&self, number: usize) -> PathBuf {
        self.0.join(format!("sources/{number}.tar.zst"))
    }

    fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }

    /// A part of the cache's layout.
    fn part(&self, name: &str) -> PathBuf {
        self.0.join("cache/v1").join(name)
    }

    fn open_cache(&self) -> ImageCache {
        ImageCache::open(self.0.join("cache")).unwrap()
    }

    /// Every way to ask for `source`.
    fn policies(&self, source: usize) -> [KeyPolicy; 3] {
        let digest = sha256(&self.source(source)).parse().unwrap();
        let name = format!("disk {}", SOURCES[source]);
        [KeyPolicy::Content, KeyPolicy::Stated(digest), KeyPolicy::Named(name)]
    }

    /// The disk each key stands for. A key is the same in every cache, so another one tells.
    fn keys(&self) -> BTreeMap<String, usize> {
        let cache = ImageCache::open(self.0.join("keys")).unwrap();
        let mut keys = BTreeMap::new();
        for (source, &number) in SOURCES.iter().enumerate() {
            for policy in self.policies(source) {
                let options = BaseOptions { policy, ..BaseOptions::default() };
                let base = cache.base_with(Source::path(self.source(source)), &options).unwrap();
                let key = base.image.key().unwrap().to_owned();
                assert!(keys.insert(key, number).is_none_or(|other| other == number));
            }
        }
        // Four different archives and three names.
        assert_eq!(keys.len(), 7);
        keys
    }

    /// Every disk that was made and is still there.
    fn overlays(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.vms());
        files.retain(|path| path.extension().is_some_and(|extension| extension == "qcow2"));
        files
    }
}

/// One, two or four MiB: noise that no two disks share, a hole, and some more.
fn disk(number: usize) -> Vec<u8> {
    let mut disk = vec![0; 1 << (20 + number)];
    let mut random = Random(number as u64);
    let length = disk.len();
    for range in [0..length / 2, length * 3 / 4..length - 4096] {
        for word in disk[range].chunks_exact_mut(8) {
            // Half of it can be compressed.
            word[..4].copy_from_slice(&random.next().to_be_bytes()[..4]);
        }
    }
    disk
}

/// Every file below `folder`; what goes away meanwhile is not there.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// The key of the base an overlay names, and the base.
fn backing_of(overlay: &Path) -> Option<(String, PathBuf)> {
    use std::os::unix::ffi::OsStrExt;
    let header = Header::read(&File::open(overlay).ok()?).ok()?;
    let name = Path::new(std::ffi::OsStr::from_bytes(header.backing_file()?));
    Some((key_of(name, "img")?, overlay.parent()?.join(name)))
}

/// The key in a file name of the cache.
fn key_of(path: &Path, extension: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(extension)?.strip_suffix('.')?.to_owned())
}

/// The keys of the files in `v1/bases` with this extension.
fn keys_in(place: &Place, extension: &str) -> BTreeSet<String> {
    let files = files_below(&place.part("bases"));
    files.iter().filter_map(|path| key_of(path, extension)).collect()
}

/// Which file it is. Inode numbers come again at once; the moment of birth does not, where the file
/// system tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Generation(String);

impl Generation {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let born = metadata.created().unwrap_or(SystemTime::UNIX_EPOCH);
        let born = born.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self(format!("{}-{}", metadata.ino(), born.as_nanos())))
    }
}

// ---------------------------------------------------------------------------------------------
// What a child does
// ---------------------------------------------------------------------------------------------

/// One line, in one write of far less than PIPE_BUF bytes: lines of several threads do not mix, and
/// a killed process says a line whole or not at all.
fn say(line: &str) {
    io::stdout().write_all(format!("{MARK}{line}\n").as_bytes()).unwrap();
}

/// A process in its role.
struct Actor {
    random: Random,
    cache: ImageCache,
    place: Place,
}

impl Actor {
    /// Asks a few times, from several threads at times.
    fn extract(mut self) {
        let threads = if self.random.once_in(3) { 2 + self.random.below(3) } else { 1 };
        thread::scope(|scope| {
            for _ in 0..threads {
                let mut actor = self.another();
                scope.spawn(move || {
                    for _ in 0..1 + actor.random.below(6) {
                        let (source, policy) = actor.draw();
                        let base = actor.ask(source, policy);
                        actor.hold(&base, SOURCES[source]);
                    }
                });
            }
        });
    }

    /// Makes disks in a folder of its own, and leaves most of them when it ends.
    fn overlay(mut self, seed: u64) {
        self.take_down();
        let (source, policy) = self.draw();
        let pins = SOURCES[source] == PINNED_DISK && self.random.once_in(8);
        let folder = self.place.vms().join(format!("{}{seed}", if pins { "keep-" } else { "" }));
        let _mine = claim(&folder);
        for round in 0..1 + self.random.below(3) {
            if self.random.once_in(2) {
                self.overlay_by_builder(source, policy.clone(), &folder, round);
            } else {
                self.overlay_by_prepare(source, policy.clone(), &folder, round);
            }
            let disks = files_below(&folder);
            for disk in disks.iter().filter(|_| self.random.once_in(4)) {
                fs::remove_file(disk).unwrap();
            }
            thread::sleep(self.random.micros(20_000));
        }
        if self.random.once_in(3) {
            fs::remove_dir_all(&folder).unwrap();
        }
    }

    fn overlay_by_builder(
        &mut self,
        source: usize,
        policy: KeyPolicy,
        folder: &Path,
        round: usize,
    ) {
        let base = self.ask(source, policy);
        say("MAKING");
        for number in 0..1 + self.random.below(4) {
            let path = folder.join(format!("{round}-{number}.qcow2"));
            let min_size = if self.random.once_in(4) { 8 << 20 } else { 0 };
            let builder = base.image.overlay(&path).min_size(min_size);
            builder.relative(self.random.once_in(4)).create().unwrap();
            say_made(&base, &path);
        }
        self.hold(&base, SOURCES[source]);
    }

    fn overlay_by_prepare(
        &mut self,
        source: usize,
        policy: KeyPolicy,
        folder: &Path,
        round: usize,
    ) {
        let options = PrepareOptions {
            nodes: 1 + self.random.below(4),
            folder: folder.join(round.to_string()),
            min_size: 0,
            strategy: Strategy::Overlay,
            raw: false,
            reserve: 0,
            relative: self.random.once_in(4),
            fresh: false,
            base: asking(policy),
        };
        let mut first = None;
        // The second time is a reboot: nobody holds the base in between, but the disks need it.
        for _ in 0..1 + self.random.below(2) {
            say("MAKING");
            let source = Source::path(self.place.source(source));
            let report = prepare(&self.cache, source, &options).unwrap();
            say_got(&report.base);
            for disk in &report.disks {
                say_made(&report.base, disk.disk.path());
            }
            let generation = Generation::of(report.base.image.path()).unwrap();
            let first = first.get_or_insert_with(|| generation.clone());
            assert_eq!(*first, generation, "a base went although disks stand on it");
            thread::sleep(self.random.micros(20_000));
        }
    }

    /// Removes folders of those who have ended, as a host does with the VMs of old tests.
    fn take_down(&mut self) {
        let mut folders: Vec<_> =
            fs::read_dir(self.place.vms()).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("keep-"));
        // A few stay, and their bases with them; if most did, no base would ever go again.
        while folders.len() > 3 {
            let folder = folders.swap_remove(self.random.below(folders.len()));
            // Whoever makes disks in it holds its lock; of two who take it down, one is faster.
            let Ok(handle) = File::open(&folder) else { continue };
            if handle.try_lock().is_ok() {
                let _ = fs::remove_dir_all(&folder);
            }
        }
    }

    fn prune(mut self) {
        for _ in 0..1 + self.random.below(8) {
            if self.random.once_in(4) {
                self.forget();
            }
            let options = match self.random.below(8) {
                // Only what killed processes left.
                0 => PruneOptions::default(),
                1 => PruneOptions { dry_run: true, ..everything() },
                2 => PruneOptions { max_size: Some(4 << 20), ..PruneOptions::default() },
                // No file system has as much.
                3 => PruneOptions { keep_free: Some(u64::MAX), ..PruneOptions::default() },
                _ => everything(),
            };
            say("PRUNING");
            let report = self.cache.prune(&options).unwrap();
            if !options.dry_run {
                say(&format!("PRUNED {}", report.removed.len()));
            }
            thread::sleep(self.random.micros(60_000));
        }
    }

    /// Removes a remembered digest: whoever needs it learns it again.
    fn forget(&mut self) {
        let digests = files_below(&self.place.part("sources"));
        if !digests.is_empty() {
            let _ = fs::remove_file(&digests[self.random.below(digests.len())]);
        }
    }

    /// The same role for another thread.
    fn another(&mut self) -> Self {
        Self {
            random: Random(self.random.next()),
            cache: self.place.open_cache(),
            place: Place(self.place.0.clone()),
        }
    }

    fn draw(&mut self) -> (usize, KeyPolicy) {
        let source = self.random.below(SOURCES.len());
        let [content, stated, named] = self.place.policies(source);
        // Mostly by content, as most callers do.
        let policy = [content.clone(), content, stated, named][self.random.below(4)].clone();
        (source, policy)
    }

    fn ask(&self, source: usize, policy: KeyPolicy) -> CachedBase {
        let source = Source::path(self.place.source(source));
        let base = self.cache.base_with(source, &asking(policy)).unwrap();
        say_got(&base);
        base
    }

    /// Keeps a base for a moment: it must stay, and be right, from the first instant to the last.
    fn hold(&mut self, base: &CachedBase, number: usize) {
        let path = base.image.path();
        let before = Generation::of(path).unwrap();
        let right = fs::read(path).unwrap() == fs::read(self.place.truth(number)).unwrap();
        assert!(right, "the content of {} is wrong", path.display());
        thread::sleep(self.random.micros(30_000));
        let after = Generation::of(path).ok();
        assert_eq!(after, Some(before), "a base was taken away from who holds it");
    }
}

/// Every base that nobody needs at this moment.
fn everything() -> PruneOptions {
    PruneOptions { max_age: Some(Duration::ZERO), ..PruneOptions::default() }
}

fn asking(policy: KeyPolicy) -> BaseOptions {
    let control = Control::new().with_observer(|event| match event {
        Event::Extracting { .. } => say("EXTRACTING"),
        Event::Waiting { .. } => say("WAITING"),
        _ => {}
    });
    BaseOptions { policy, control, ..BaseOptions::default() }
}

fn say_got(base: &CachedBase) {
    say(&format!("GOT {} {}", base.origin.as_str(), base.image.key().unwrap()));
}

/// Said with the base held, so that the generation is the one the overlay was made on.
fn say_made(base: &CachedBase, overlay: &Path) {
    let Generation(generation) = Generation::of(base.image.path()).unwrap();
    say(&format!("MADE {generation} {}", overlay.display()));
}

/// Makes a folder and locks it, so that nobody takes it down until this process ends.
fn claim(folder: &Path) -> File {
    loop {
        let _ = fs::create_dir(folder);
        let Ok(handle) = File::open(folder) else { continue };
        handle.lock().unwrap();
        let inode = handle.metadata().unwrap().ino();
        if fs::metadata(folder).is_ok_and(|named| named.ino() == inode) {
            return handle;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// What the kernel saw
// ---------------------------------------------------------------------------------------------

/// Counts publications and removals of bases, and sees to it that they alternate.
///
/// `tmp` is watched too, for one reason: inotify drops an event that equals the last one in its
/// queue, and so would two publications of one key look like one. A rename out of `tmp` stands
/// between them.
struct Watch {
    inotify: Inotify,
    bases: WatchDescriptor,
    present: BTreeSet<String>,
    publications: usize,
    removals: usize,
}

impl Watch {
    fn new(place: &Place) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let moves = AddWatchFlags::IN_MOVE;
        let all = moves | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let bases = inotify.add_watch(&place.part("bases"), all).unwrap();
        inotify.add_watch(&place.part("tmp"), moves).unwrap();
        Self { inotify, bases, present: BTreeSet::new(), publications: 0, removals: 0 }
    }

    /// Takes in what has happened since.
    fn look(&mut self) {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return,
                Err(error) => panic!("inotify: {error}"),
            };
            for event in events {
                let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                assert!(!overflow, "the driver was too slow for inotify's queue: no verdict");
                let name = event.name.as_ref().map(Path::new);
                if let Some(key) = name.and_then(|name| key_of(name, "img"))
                    && event.wd == self.bases
                {
                    self.note(key, event.mask);
                }
            }
        }
    }

    fn note(&mut self, key: String, mask: AddWatchFlags) {
        if mask.intersects(AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE) {
            self.publications += 1;
            let first = self.present.insert(key.clone());
            assert!(first, "{key} was published twice without a removal in between");
        } else {
            self.removals += 1;
            assert!(self.present.remove(&key), "{key} was removed and had not been published");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The driver
// ---------------------------------------------------------------------------------------------

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    DiesAt(Duration),
    /// So long after the first event of this name.
    DiesAfter(&'static str, Duration),
}

impl Fate {
    fn draw(role: &str, random: &mut Random) -> Self {
        let event = match role {
            "extractor" => "EXTRACTING",
            "overlayer" => "MAKING",
            _ => "PRUNING",
        };
        match random.below(6) {
            0 => Self::DiesAt(random.micros(400_000)),
            1 | 2 => Self::DiesAfter(event, random.micros(25_000)),
            _ => Self::Lives,
        }
    }
}

/// A child process, and all it said. Dropped, it is killed.
struct Process {
    role: &'static str,
    seed: u64,
    fate: Fate,
    started: Instant,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    dies: Option<Instant>,
    /// Whether the driver has killed it, or tried to.
    shot: bool,
}

/// A process that has ended.
struct Ended {
    killed: bool,
    said: Vec<String>,
}

impl Process {
    fn start(place: &Place, random: &mut Random) -> Self {
        let role = ["extractor", "extractor", "overlayer", "pruner"][random.below(4)];
        let seed = random.next();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .envs([(ROLE, role), (SEED, &seed.to_string())])
            .env(ROOT, &place.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (stdout, kept) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&said));
        let reader = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(at) = line.find(MARK) {
                    kept.lock().unwrap().push(line[at + MARK.len()..].to_owned());
                }
            }
        });
        let fate = Fate::draw(role, random);
        let (started, reader) = (Instant::now(), Some(reader));
        Self { role, seed, fate, started, child, said, reader, dies: None, shot: false }
    }

    /// Kills it if its time has come.
    fn meet_fate(&mut self) {
        if self.dies.is_none() {
            self.dies = match self.fate {
                Fate::Lives => None,
                Fate::DiesAt(after) => Some(self.started + after),
                Fate::DiesAfter(event, after) => {
                    let said = self.said.lock().unwrap();
                    said.iter().any(|line| line == event).then(|| Instant::now() + after)
                }
            };
        }
        if !self.shot && self.dies.is_some_and(|moment| moment <= Instant::now()) {
            self.child.kill().unwrap();
            self.shot = true;
        }
    }

    /// What is known once it has ended: killed by us, or content.
    fn ended(&mut self) -> Option<Ended> {
        let status: ExitStatus = self.child.try_wait().unwrap()?;
        self.reader.take().unwrap().join().unwrap();
        let said = self.said.lock().unwrap().clone();
        let killed = self.shot && status.signal() == Some(nix::libc::SIGKILL);
        let Self { role, seed, .. } = self;
        assert!(killed || status.success(), "{role} {seed}: {status}\n{said:#?}");
        Some(Ended { killed, said })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing to a child that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs processes until the time is up and all have ended.
fn run(place: &Place, watch: &mut Watch, random: &mut Random, length: Duration) -> Vec<Ended> {
    let started = Instant::now();
    let (mut running, mut ended) = (Vec::<Process>::new(), Vec::new());
    let mut wanted = 8;
    loop {
        watch.look();
        running.iter_mut().for_each(Process::meet_fate);
        running.retain_mut(|process| {
            let end = process.ended();
            let goes_on = end.is_none();
            ended.extend(end);
            goes_on
        });
        if started.elapsed() >= length {
            if running.is_empty() {
                return ended;
            }
            let stuck: Vec<_> =
                running.iter().map(|process| (process.role, process.seed)).collect();
            assert!(started.elapsed() < length + PATIENCE, "these never end: {stuck:?}");
        } else if running.len() < wanted {
            running.push(Process::start(place, random));
            wanted = 6 + random.below(5);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// What all processes said they did, added up.
#[derive(Debug, Default)]
struct Counts {
    kills: usize,
    /// Extractions that were begun, by anyone.
    begun: usize,
    extractions: usize,
    /// Of processes that were killed in an extraction, or too soon after it to say so.
    unfinished: usize,
    hits: usize,
    waits: usize,
    pruned: usize,
    made: usize,
}

impl Counts {
    fn of(ended: &[Ended]) -> Self {
        let mut counts = Self::default();
        for process in ended {
            let count = |event: &str| {
                process.said.iter().filter(|line| line.split(' ').eq(event.split(' '))).count()
            };
            let got = |origin: &str| {
                let event = format!("GOT {origin} ");
                process.said.iter().filter(|line| line.starts_with(&event)).count()
            };
            let (begun, extractions) = (count("EXTRACTING"), got("extracted"));
            // Whoever extracts does it for a base that nobody else makes.
            assert!(process.killed || begun == extractions, "{:#?}", process.said);
            counts.kills += usize::from(process.killed);
            counts.begun += begun;
            counts.extractions += extractions;
            counts.unfinished += begun - extractions;
            counts.hits += got("hit");
            counts.waits += got("waited");
            for line in &process.said {
                counts.made += usize::from(line.starts_with("MADE "));
                if let Some(number) = line.strip_prefix("PRUNED ") {
                    counts.pruned += number.parse::<usize>().unwrap();
                }
            }
        }
        counts
    }
}

// ---------------------------------------------------------------------------------------------
// The test
// ---------------------------------------------------------------------------------------------

#[test]
fn whatever_many_processes_do_every_base_is_made_once_and_kept_while_it_is_needed() {
    if !tool::available("the cache soak", &["qemu-img"]) {
        return;
    }
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    let seconds = number(SECONDS).unwrap_or(30);
    let seed = number(SEED).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Random(now.as_secs()).next() >> 32
    });
    tell(&format!("{SEED}={seed} {SECONDS}={seconds}"));

    let folder = tempfile::tempdir().unwrap();
    let place = Place(folder.path().canonicalize().unwrap());
    place.furnish();
    let keys = place.keys();
    let cache = place.open_cache();
    let mut watch = Watch::new(&place);
    let ended = run(&place, &mut watch, &mut Random(seed), Duration::from_secs(seconds));
    watch.look();
    let counts = Counts::of(&ended);

    // The processes' own words, and the kernel's.
    assert_eq!(keys_in(&place, "img"), watch.present);
    assert!(counts.extractions <= watch.publications, "{counts:?}");
    assert!(watch.publications <= counts.begun, "{counts:?}");
    assert!(counts.pruned <= watch.removals, "{counts:?}");

    // What killed processes left.
    let report = cache.prune(&PruneOptions::default()).unwrap();
    assert!(report.removed.is_empty(), "{report:#?}");
    assert_eq!(files_below(&place.part("tmp")), Vec::<PathBuf>::new());
    for path in files_below(&place.0) {
        assert!(path.extension().is_none_or(|extension| extension != "partial"), "{path:?}");
    }
    let bases = keys_in(&place, "img");
    assert_eq!(keys_in(&place, "manifest"), bases, "no manifest without its base");
    assert_eq!(files_below(&place.part("bases")).len(), 2 * bases.len());
    assert_eq!(files_below(&place.part("uses")).len(), bases.len(), "one record for each base");

    let overlays = place.overlays();
    let needed = examine(&place, &keys, &ended, &overlays);
    assert!(needed.is_subset(&bases));
    for key in &bases {
        let path = place.part("bases").join(format!("{key}.img"));
        let right = fs::read(path).unwrap() == fs::read(place.truth(keys[key])).unwrap();
        assert!(right, "{key}");
    }

    // What is needed stays, to the last one, and nothing else.
    for dry_run in [true, false] {
        let report = cache.prune(&PruneOptions { dry_run, ..everything() }).unwrap();
        let removed: BTreeSet<_> = report.removed.iter().map(|base| base.key.clone()).collect();
        assert_eq!(removed, &bases - &needed, "{report:#?}");
        let kept = |base: &KeptBase| matches!(base.because, KeptBecause::Overlays(_));
        assert!(report.kept.iter().all(kept), "{report:#?}");
    }
    assert_eq!(keys_in(&place, "img"), needed);
    fs::remove_dir_all(place.vms()).unwrap();
    assert_eq!(cache.prune(&everything()).unwrap().removed.len(), needed.len());
    for part in ["bases", "uses", "tmp"] {
        assert_eq!(files_below(&place.part(part)), Vec::<PathBuf>::new());
    }

    tell(&format!(
        "{} processes, {} killed; {} extractions, {} cut short, {} publications, {} removals; \
         {} hits, {} waits; {} overlays made, {} left and checked, on {} of {} bases",
        ended.len(),
        counts.kills,
        counts.extractions,
        counts.unfinished,
        watch.publications,
        watch.removals,
        counts.hits,
        counts.waits,
        counts.made,
        overlays.len(),
        needed.len(),
        bases.len()
    ));
    let idle = [counts.kills, counts.hits, watch.removals, overlays.len()].contains(&0);
    assert!(!idle, "a run in which all of that happens takes longer than {seconds} s");
}

/// Has QEMU judge every overlay, and compares its base with the one it was made on. Returns the keys
/// of all those bases.
fn examine(
    place: &Place,
    keys: &BTreeMap<String, usize>,
    ended: &[Ended],
    overlays: &[PathBuf],
) -> BTreeSet<String> {
    let made: BTreeMap<&Path, &str> = ended
        .iter()
        .flat_map(|process| &process.said)
        .filter_map(|line| line.strip_prefix("MADE ")?.split_once(' '))
        .map(|(generation, path)| (Path::new(path), generation))
        .collect();
    let judge = |overlay: &PathBuf| {
        let (key, base) = backing_of(overlay).unwrap();
        let base = base.canonicalize().unwrap_or_else(|error| panic!("{overlay:?}: {error}"));
        assert_eq!(base, place.part("bases").join(format!("{key}.img")));
        if let Some(generation) = made.get(overlay.as_path()) {
            let now = Generation::of(&base).unwrap();
            assert_eq!(now.0, *generation, "{overlay:?} lost its base, and got another one");
        }
        let check = ["check", "-f", "qcow2", overlay.to_str().unwrap()];
        assert!(qemu::img(check).expect_success().contains("No errors were found"));
        let truth = place.truth(keys[&key]);
        let compare = ["compare", "-f", "qcow2", "-F", "raw"].map(Path::new);
        qemu::img(compare.into_iter().chain([overlay.as_path(), &truth])).expect_success();
        key
    };
    let threads = thread::available_parallelism().map_or(1, Into::into);
    let share = overlays.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = overlays
            .chunks(share)
            .map(|overlays| scope.spawn(|| overlays.iter().map(judge).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Past the test harness, which keeps what passing tests print.
fn tell(what: &str) {
    io::stderr().write_all(format!("cache soak: {what}\n").as_bytes()).unwrap();
}
