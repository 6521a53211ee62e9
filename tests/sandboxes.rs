//! Every command where tests run: with a root that is read-only, a single user, nothing in the
//! environment, no `/proc`, a cache nobody may write to. All of them succeed there, and what cannot
//! be done is an error that says so.
//!
//! ```text
//! unshare (namespaces) ─▶ sh (mounts) ─▶ the command
//! ```
//!
//! Making namespaces needs a privilege or a kernel that gives it to all; what cannot be made is left
//! out with a line.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use disk_engine::strategy::Strategy;
use disk_engine::{BaseFormat, BaseImage};
use testkit::faults::commands::{self, fill, one_base, whole_cache};
use testkit::faults::{Place, Scenario, files};
use testkit::tool::{self, left_out, memory_folder, tell};

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");
/// A user that owns nothing but its files here.
const SOMEBODY: u32 = 54_321;

/// A place to run in, and who runs there.
struct Sandbox<'a> {
    what: &'a str,
    /// Arguments of `unshare`; none: no namespaces.
    unshare: &'a [&'a str],
    /// What the shell does before the command; `$WORK` is the folder it runs in.
    prepare: &'a str,
    /// Not root.
    somebody: bool,
    /// There is no `/proc`.
    no_proc: bool,
}

impl Sandbox<'_> {
    /// A place for it, with a copy of the program that anybody may run.
    fn place(&self) -> Place {
        let place = Place::new(memory_folder());
        fill(&place);
        let program = program(&place);
        fs::copy(ENGINE, &program).unwrap();
        for path in [&program, place.root()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    /// The words before the command's.
    fn command(&self, place: &Place, words: &[&OsStr]) -> Command {
        let script = format!("set -e\n{}\nexec \"$@\"", self.prepare);
        let mut command = if self.unshare.is_empty() {
            Command::new("sh")
        } else {
            let mut command = Command::new("unshare");
            command.args(self.unshare).arg("sh");
            command
        };
        command.args(["-c", &script, "sh"]).args(words);
        command.env("WORK", place.work()).env("PATH", path()).current_dir(place.work());
        command.stdin(Stdio::null());
        if self.somebody {
            command.uid(SOMEBODY).gid(SOMEBODY);
        }
        command
    }

    /// Whether it can be made here; if not, says so.
    fn works(&self, place: &Place) -> bool {
        if !tool::available(self.what, &["unshare", "sh"]) {
            return false;
        }
        let root = nix::unistd::geteuid().is_root();
        if self.somebody && !root {
            left_out(self.what, "only root can become another user");
            return false;
        }
        let output = self.command(place, &["true".as_ref()]).output().unwrap();
        if !output.status.success() {
            left_out(self.what, String::from_utf8_lossy(&output.stderr).trim());
        }
        output.status.success()
    }

    fn run(&self, scenario: &Scenario, place: &Place) -> Output {
        if self.somebody {
            give(place);
        }
        let program = program(place);
        let words: Vec<&OsStr> = [program.as_os_str(), "--json".as_ref()]
            .into_iter()
            .chain(scenario.arguments.iter().map(AsRef::as_ref))
            .collect();
        self.command(place, &words).output().unwrap()
    }

    /// Every command succeeds, and its product is right.
    fn takes_all(&self) {
        let place = self.place();
        if !self.works(&place) {
            return;
        }
        let mut count = 0;
        for mut scenario in commands::all() {
            if self.no_proc && scenario.name == "base_that_is_there" {
                // Nobody tells which boot it is: what was not synced is made anew.
                (scenario.whole, scenario.done) = (whole_cache, one_base);
            }
            let found = scenario.begin(&place);
            let output = self.run(&scenario, &place);
            scenario
                .judge_confined(&place, &found, &output, &[])
                .unwrap_or_else(|why| panic!("{}: {why}", self.what));
            count += 1;
        }
        tell(&format!("{}: {count} commands", self.what));
    }
}

fn program(place: &Place) -> PathBuf {
    place.fixed().join("engine")
}

/// Gives all that was set up to the user who is to use it.
fn give(place: &Place) {
    fn folders(folder: &Path) {
        chown(folder, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders(&entry.path());
            }
        }
    }
    folders(&place.work());
    for path in files(&place.work()) {
        chown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
}

/// Where `mount` is, too, which not every user looks for.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Everything is read-only but the folder the command works in.
const READ_ONLY_ROOT: &str = "mount --make-rprivate /
mount --bind \"$WORK\" \"$WORK\"
mount -o remount,bind,ro /dev/shm 2>/dev/null || true
mount -o remount,bind,ro /tmp 2>/dev/null || true
mount -o remount,bind,ro /
cd \"$WORK\"
! touch /dev/shm/x 2>/dev/null
! touch /x 2>/dev/null";

#[test]
fn a_read_only_root() {
    let prepare = READ_ONLY_ROOT;
    Sandbox {
        what: "a read-only root",
        unshare: &["-m"],
        prepare,
        somebody: false,
        no_proc: false,
    }
    .takes_all();
}

#[test]
fn no_proc() {
    let prepare = "mount -t tmpfs tmpfs /proc";
    Sandbox { what: "no /proc", unshare: &["-m"], prepare, somebody: false, no_proc: true }
        .takes_all();
}

#[test]
fn a_private_pid_namespace() {
    let unshare = &["-p", "-f", "--mount-proc"];
    let what = "a private pid namespace";
    Sandbox { what, unshare, prepare: "", somebody: false, no_proc: false }.takes_all();
}

#[test]
fn an_empty_environment() {
    let prepare = "set -- env -i \"$@\"";
    Sandbox {
        what: "an empty environment",
        unshare: &[],
        prepare,
        somebody: false,
        no_proc: false,
    }
    .takes_all();
}

#[test]
fn a_single_user() {
    for (what, somebody) in [("a single user", false), ("a single user, not root's", true)] {
        Sandbox { what, unshare: &["-U", "-r"], prepare: "", somebody, no_proc: false }.takes_all();
    }
}

/// As a container without a daemon: one user, its own mounts and processes, nothing else.
#[test]
fn all_of_it_at_once() {
    let prepare = format!("{READ_ONLY_ROOT}\nmount -t tmpfs tmpfs /proc\nunset HOME TMPDIR");
    let unshare = &["-U", "-r", "-m", "-p", "-f"];
    let what = "one user, read-only root, no /proc, its own processes";
    Sandbox { what, unshare, prepare: &prepare, somebody: true, no_proc: true }.takes_all();
}

/// Nobody has a number there: no file can be made, and that is said.
#[test]
fn a_user_without_a_number() {
    let what = "a user without a number";
    let sandbox = Sandbox { what, unshare: &["-U"], prepare: "", somebody: true, no_proc: false };
    let place = sandbox.place();
    if !sandbox.works(&place) {
        return;
    }
    for scenario in commands::all() {
        let found = scenario.begin(&place);
        let output = sandbox.run(&scenario, &place);
        let codes = ["io", "permission-denied", "refused"];
        scenario
            .judge_confined(&place, &found, &output, &codes)
            .unwrap_or_else(|why| panic!("{what}: {why}"));
    }
}

/// What is in a cache that nobody can write to is used; what is not is an error that says so.
#[test]
fn a_read_only_cache() {
    let mount = "mount --make-rprivate /
mount --bind \"$WORK/cache\" \"$WORK/cache\"
mount -o remount,bind,ro \"$WORK/cache\"
cd \"$WORK\"";
    let what = "a read-only cache";
    read_only_cache(&Sandbox {
        what,
        unshare: &["-m"],
        prepare: mount,
        somebody: false,
        no_proc: false,
    });
    let what = "a cache without a permission to write";
    let modes = "chmod -R a-w \"$WORK/cache\"";
    read_only_cache(&Sandbox {
        what,
        unshare: &[],
        prepare: modes,
        somebody: true,
        no_proc: false,
    });
}

fn read_only_cache(sandbox: &Sandbox<'_>) {
    let what = sandbox.what;
    let place = sandbox.place();
    fs::create_dir(place.work().join("cache")).unwrap();
    if sandbox.somebody {
        give(&place);
    }
    if !sandbox.works(&place) {
        return;
    }
    let (mut hits, mut errors) = (0, 0);
    for scenario in commands::all() {
        if !scenario.arguments.iter().any(|argument| argument == "--cache") {
            continue;
        }
        let found = scenario.begin(&place);
        fs::create_dir_all(place.work().join("cache")).unwrap();
        // What is not remembered of a source can be learnt without writing.
        let is_complete = COMPLETE.contains(&scenario.name);
        let output = sandbox.run(&scenario, &place);
        let codes: &[&str] = if is_complete { &[] } else { &["permission-denied"] };
        let error = scenario
            .judge_confined(&place, &found, &output, codes)
            .unwrap_or_else(|why| panic!("{what}: {why}"));
        match error {
            None => hits += 1,
            Some(error) => {
                errors += 1;
                let path = error["path"].as_str().unwrap();
                assert!(path.contains("cache"), "{}: {error}", scenario.name);
                if scenario.name == "base_in_place_of_a_damaged_one" && !sandbox.somebody {
                    assert!(error["causes"][0].as_str().unwrap().contains("writ"), "{error}");
                }
            }
        }
    }
    tell(&format!("{what}: {hits} found what they wanted, {errors} were told"));
    assert!(hits >= COMPLETE.len() && errors > 0);
}

/// The commands that ask for a base that is there.
const COMPLETE: [&str; 13] = [
    "base_that_is_there",
    "base_beside_one_of_that_length",
    "prepare_from_a_base",
    "prepare_what_is_there",
    "prepare_copies",
    "prepare_raw",
    "prepare_afresh",
    "cache_ls",
    "cache_verify_sound",
    "cache_verify_sound_in_full",
    "cache_verify_suspected",
    "cache_verify_damaged",
    "cache_verify_damaged_in_full",
];

const TASK: &str = "SANDBOXES_TASK";

/// Not a test: what the next one runs as a child, in a sandbox.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Some(folder) = std::env::var_os(TASK) else { return };
    let folder = Path::new(&folder);
    let base = BaseImage::open(folder.join("base"), BaseFormat::Raw).unwrap();
    for (strategy, name) in [(Strategy::Overlay, "overlay"), (Strategy::Copy, "copy")] {
        for (user, group) in [(Some(SOMEBODY), None), (None, Some(SOMEBODY))] {
            let disk = base.disk(folder.join(name)).strategy(strategy).owner(user, group);
            let error = disk.create().unwrap_err();
            println!("\nOWNER {name} {} {error}", error.kind().code());
        }
    }
}

#[test]
fn an_owner_nobody_can_give_a_file_to_is_an_error_that_says_so() {
    for (what, unshare, somebody, hint) in [
        ("an owner, for a single user", &["-U", "-r"] as &[_], false, "user namespace"),
        ("an owner, without the privilege", &[], true, "CAP_CHOWN"),
    ] {
        let sandbox = Sandbox { what, unshare, prepare: "", somebody, no_proc: false };
        let place = sandbox.place();
        if !sandbox.works(&place) {
            continue;
        }
        fs::write(place.work().join("base"), vec![1; 8192]).unwrap();
        let program = place.fixed().join("child");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        // Another user gives to a third one: root's own files are nobody's to give.
        let words = ["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
        let words: Vec<&OsStr> =
            [program.as_os_str()].into_iter().chain(words.iter().map(AsRef::as_ref)).collect();
        fs::set_permissions(place.work(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = sandbox.command(&place, &words);
        command.env(TASK, place.work());
        if somebody {
            command.uid(SOMEBODY + 1).gid(SOMEBODY + 1);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let told: Vec<_> = said.lines().filter(|line| line.starts_with("OWNER")).collect();
        assert_eq!(told.len(), 4, "{what}: {output:?}");
        for line in told {
            assert!(line.contains("54321") && line.contains(hint), "{what}: {line}");
        }
        assert_eq!(files(&place.work()), [place.work().join("base")], "{what}");
    }
}
