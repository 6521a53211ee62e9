//! Every command with less than it needs: file systems with a little room, few inodes or a quota,
//! small limits of the process. Each run is a success or an error of the right kind, leaves nothing,
//! and is followed by one that succeeds.
//!
//! ```text
//! file system   room from none to what is needed, inodes from none to enough      no-space
//! process       RLIMIT_FSIZE · RLIMIT_NOFILE · RLIMIT_AS · RLIMIT_NPROC           io, limit
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use disk_engine::sys::space;
use nix::sys::resource::{Resource, setrlimit};
use testkit::faults::commands::{self, fill};
use testkit::faults::{Found, Place, Scenario, files};
use testkit::mounts::{Kind, Mount};
use testkit::tool::{left_out, memory_folder, tell};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// Where the images of the file systems are: beside the build's own files.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The files every command reads, away from what is confined.
fn sources() -> Place {
    let place = Place::new(memory_folder());
    fill(&place);
    place
}

/// How often it was tried, and how it ended.
#[derive(Default)]
struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn count(&mut self, ending: &str) {
        *self.0.entry(ending.to_owned()).or_default() += 1;
    }

    /// Judges a run; after an error, lets `relieve` make room and judges the next one.
    fn judge(
        &mut self,
        scenario: &Scenario,
        place: &Place,
        found: &Found,
        (output, codes): (&Output, &[&str]),
        relieve: impl FnOnce(),
    ) -> Result<(), String> {
        let error = scenario.judge_confined(place, found, output, codes)?;
        relieve();
        match error {
            None => self.count("success"),
            Some(error) => {
                self.count(error["code"].as_str().unwrap_or_default());
                scenario.again(Path::new(ENGINE), place, found)?;
            }
        }
        Ok(())
    }

    /// Says it, and that both endings were met.
    fn finish(self, what: &str, error: &str) {
        tell(&format!("{what}: {:?}", self.0));
        assert!(
            self.0.contains_key("success") && self.0.contains_key(error),
            "{what}: {:?}",
            self.0
        );
    }
}

// ---------------------------------------------------------------------------------------------
// File systems
// ---------------------------------------------------------------------------------------------

fn free(folder: &Path) -> u64 {
    let folder = File::open(folder).unwrap();
    // What was freed or written a moment ago is counted by then.
    nix::unistd::syncfs(&folder).unwrap();
    space::available(&folder).unwrap()
}

/// Takes all room but `bytes`, as far as the file system lets itself be counted.
fn leave(mount: &Path, bytes: u64) {
    let ballast = File::create(mount.join("ballast")).unwrap();
    let mut size = free(mount).saturating_sub(bytes);
    while size > 0 {
        let outcome = nix::fcntl::fallocate(
            &ballast,
            nix::fcntl::FallocateFlags::empty(),
            0,
            i64::try_from(size).unwrap(),
        );
        match outcome {
            Ok(()) => break,
            // It said that there was more than it has.
            Err(_) => size -= (size / 16).max(4096).min(size),
        }
    }
}

fn relieve(mount: &Path) {
    let _ = fs::remove_file(mount.join("ballast"));
    free(mount);
}

/// Runs each command with room in `steps` steps, from none to half as much again as it takes.
fn with_little_room(what: &str, kind: Kind, mib: u64, steps: u64, some: &[&str]) {
    let beside = folder();
    let Some(mount) = Mount::new(what, kind, mib, beside.path()) else { return };
    let sources = sources();
    let place = Place::beside(&sources, &mount.path());
    let root = mount.path();
    let mut tally = Tally::default();
    for scenario in commands::all() {
        if !some.is_empty() && !some.contains(&scenario.name) {
            continue;
        }
        scenario.begin(&place);
        let before = free(&root);
        scenario.again(Path::new(ENGINE), &place, &Found::default()).unwrap();
        let takes = before.saturating_sub(free(&root));
        for step in 0..=steps {
            let found = scenario.begin(&place);
            leave(&root, (takes + (128 << 10)) * step / steps);
            let output = scenario.command(Path::new(ENGINE), &place).output().unwrap();
            tally
                .judge(&scenario, &place, &found, (&output, &["no-space"]), || relieve(&root))
                .unwrap_or_else(|why| panic!("{kind:?}, step {step} of {steps}: {why}"));
        }
    }
    tally.finish(&format!("little room on {kind:?}"), "no-space");
}

#[test]
fn little_room_on_ext4() {
    with_little_room("little room", Kind::Ext4, 12, 6, &[]);
}

#[test]
fn little_room_on_tmpfs() {
    with_little_room("little room", Kind::Tmpfs, 12, 6, &[]);
}

/// What a file system with its own ways of taking room is tried with.
const SOME: [&str; 5] = [
    "extract_in_place_of_another",
    "base_by_content",
    "prepare_raw",
    "prepare_copies",
    "pack_frames",
];

#[test]
fn little_room_on_btrfs() {
    with_little_room("little room", Kind::Btrfs, 128, 4, &SOME);
}

#[test]
fn little_room_on_xfs() {
    with_little_room("little room", Kind::Xfs, 320, 4, &SOME);
}

#[test]
fn few_inodes() {
    let beside = folder();
    let Some(mount) = Mount::new("few inodes", Kind::Ext4FewFiles, 12, beside.path()) else {
        return;
    };
    let sources = sources();
    let place = Place::beside(&sources, &mount.path());
    let files = mount.path().join("files");
    fs::create_dir(&files).unwrap();
    let relieve = || {
        for entry in fs::read_dir(&files).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    let mut tally = Tally::default();
    for scenario in commands::all() {
        for left in [0, 1, 2, 3, 5, 8] {
            let found = scenario.begin(&place);
            let mut made = 0;
            while File::create(files.join(made.to_string())).is_ok() {
                made += 1;
            }
            for name in (0..made).take(left) {
                fs::remove_file(files.join(name.to_string())).unwrap();
            }
            let output = scenario.command(Path::new(ENGINE), &place).output().unwrap();
            tally
                .judge(&scenario, &place, &found, (&output, &["no-space"]), relieve)
                .unwrap_or_else(|why| panic!("{left} inodes left: {why}"));
            relieve();
        }
    }
    tally.finish("few inodes", "no-space");
}

#[test]
fn a_quota() {
    let beside = folder();
    let Some(mount) = Mount::new("a quota", Kind::Btrfs, 256, beside.path()) else { return };
    let root = mount.path();
    let run = |arguments: &[&str]| {
        let output = Command::new("btrfs")
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .current_dir(&root)
            .args(arguments)
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    if let Err(why) =
        run(&["quota", "enable", "."]).and_then(|()| run(&["subvolume", "create", "home"]))
    {
        return left_out("a quota", &why);
    }
    let sources = sources();
    let place = Place::beside(&sources, &root.join("home"));
    let mut tally = Tally::default();
    for scenario in commands::all() {
        if !SOME.contains(&scenario.name) {
            continue;
        }
        for kib in [32, 256, 512, 1024, 3072] {
            let found = scenario.begin(&place);
            free(&root);
            let taken: u64 = files(&place.work())
                .iter()
                .map(|path| space::allocated(&fs::symlink_metadata(path).unwrap()))
                .sum();
            let kib = kib + taken / 1024;
            run(&["qgroup", "limit", &format!("{kib}K"), "home"]).unwrap();
            let output = scenario.command(Path::new(ENGINE), &place).output().unwrap();
            let relieve = || {
                run(&["qgroup", "limit", "none", "home"]).unwrap();
                free(&root);
            };
            tally
                .judge(&scenario, &place, &found, (&output, &["no-space"]), relieve)
                .unwrap_or_else(|why| panic!("a quota of {kib} KiB: {why}"));
        }
    }
    tally.finish("a quota on Btrfs", "no-space");
}

// ---------------------------------------------------------------------------------------------
// Processes
// ---------------------------------------------------------------------------------------------

/// The command under a limit.
fn limited(scenario: &Scenario, place: &Place, what: Resource, most: u64) -> Output {
    let mut command = scenario.command(Path::new(ENGINE), place);
    // SAFETY: between fork and exec only one call is made, which takes no memory and no lock.
    unsafe { command.pre_exec(move || setrlimit(what, most, most).map_err(io::Error::from)) };
    command.output().unwrap()
}

#[test]
fn small_files_only() {
    let place = sources();
    let mut tally = Tally::default();
    for scenario in commands::all() {
        for most in [0, 100, 5_000, 70_000, 300_000, 700_000, 1 << 20, 2 << 20] {
            let found = scenario.begin(&place);
            let output = limited(&scenario, &place, Resource::RLIMIT_FSIZE, most);
            tally
                .judge(&scenario, &place, &found, (&output, &["io"]), || {})
                .unwrap_or_else(|why| panic!("files of {most} bytes: {why}"));
        }
    }
    tally.finish("small files", "io");
}

#[test]
fn few_descriptors() {
    let place = sources();
    let mut tally = Tally::default();
    for scenario in commands::all() {
        for most in (3..=16).chain([20, 40]) {
            let found = scenario.begin(&place);
            let output = limited(&scenario, &place, Resource::RLIMIT_NOFILE, most);
            if output.status.code() == Some(127) {
                tally.count("not loaded");
                continue;
            }
            tally
                .judge(&scenario, &place, &found, (&output, &["io"]), || {})
                .unwrap_or_else(|why| panic!("{most} descriptors: {why}"));
        }
    }
    tally.finish("few descriptors", "io");
}

/// In 256 MiB of addresses all of it works, and in however few, no memory is an error.
#[test]
fn few_addresses() {
    let place = sources();
    // The program alone takes 19 MiB of them.
    for mib in [256, 64, 32, 28, 24] {
        let mut tally = Tally::default();
        for scenario in commands::all() {
            let found = scenario.begin(&place);
            let output = limited(&scenario, &place, Resource::RLIMIT_AS, mib << 20);
            if output.status.code() == Some(127) {
                tally.count("not loaded");
                continue;
            }
            let allowed: &[&str] = if mib < 256 { &["io", "limit"] } else { &[] };
            tally.judge(&scenario, &place, &found, (&output, allowed), || {}).unwrap();
        }
        tell(&format!("{mib} MiB of addresses: {:?}", tally.0));
    }
}

/// No thread can be started: `RLIMIT_NPROC`, which binds everybody but root.
#[test]
fn no_threads() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 54_321;
    if !nix::unistd::geteuid().is_root() {
        return left_out("no threads", "only root can become a user without processes");
    }
    let place = sources();
    // The program and all that it reads, where that user may go.
    let program = place.fixed().join("engine");
    fs::copy(ENGINE, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut tally = Tally::default();
    for scenario in commands::all() {
        if ![
            "extract_whole",
            "base_by_name",
            "pack_one_frame",
            "pack_frames",
            "prepare_from_nothing",
            "convert_to_qcow2",
        ]
        .contains(&scenario.name)
        {
            continue;
        }
        for processes in [1, 2, 3] {
            let found = scenario.begin(&place);
            for path in files(&place.work()).into_iter().chain([place.work()]) {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let mut command = scenario.command(&program, &place);
            command.uid(NOBODY).gid(NOBODY);
            let limit = move || {
                setrlimit(Resource::RLIMIT_NPROC, processes, processes).map_err(io::Error::from)
            };
            // SAFETY: between fork and exec only one call is made, which takes no memory and no lock.
            unsafe { command.pre_exec(limit) };
            let output = command.output().unwrap();
            let error = scenario.judge_confined(&place, &found, &output, &["io"]).unwrap();
            tally.count(error.as_ref().map_or("success", |_| "io"));
        }
    }
    tally.finish("no threads", "io");
}
