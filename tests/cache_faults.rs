//! Every command struck at every call it makes: no space, a quota, failing storage, no descriptors,
//! half a transfer, a kill. What must hold each time is in [`testkit::faults`], the table of commands
//! and what is right about each in [`testkit::faults::commands`].
//!
//! ```text
//! FAULT_POINTS=all cargo test -p testkit --test cache_faults     every point, some minutes
//! FAULT_COMMAND=pack …                                           commands with that in their name
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use testkit::faults::commands::{self, fill, one_base};
use testkit::faults::{Call, Fault, Place, Strike, can_watch, watch};
use testkit::mounts::{Kind, Mount};
use testkit::tool::{left_out, memory_folder, tell};

/// The command itself, as a program of this package.
const ENGINE: &str = env!("CARGO_BIN_EXE_engine");
/// How long files are left alone, so that their digests are remembered in every run or in none.
const SETTLED: Duration = Duration::from_millis(2200);

#[test]
fn every_command_is_struck_at_every_call() {
    if let Err(why) = can_watch() {
        return left_out("faults at every call", &why);
    }
    let wanted = std::env::var("FAULT_COMMAND").unwrap_or_default();
    let mut table = commands::all();
    table.retain(|scenario| scenario.name.contains(&wanted));
    let (table, wrong) = (Mutex::new(table), Mutex::new(String::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(scenario) = table.lock().unwrap().pop() else { break };
                    let place = Place::new(memory_folder());
                    fill(&place);
                    if scenario.arguments.iter().any(|argument| argument == "--cache") {
                        thread::sleep(SETTLED);
                    }
                    if let Err(why) = scenario.strike(Path::new(ENGINE), &place) {
                        wrong.lock().unwrap().push_str(&why);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Where storage is shared, other calls are made.
#[test]
fn reflinks_are_struck_at_every_call() {
    if let Err(why) = can_watch() {
        return left_out("faults at every call of reflinks", &why);
    }
    let beside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(mount) = Mount::new("faults at every call", Kind::Btrfs, 128, beside.path()) else {
        return;
    };
    let sources = Place::new(memory_folder());
    fill(&sources);
    thread::sleep(SETTLED);
    let place = Place::beside(&sources, &mount.path());
    for scenario in commands::all().iter().filter(|scenario| scenario.name == "prepare_raw") {
        scenario.strike(Path::new(ENGINE), &place).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// A command that asks for the base under a name.
fn ask(place: &Place, durable: bool) -> Command {
    let mut command = Command::new(ENGINE);
    command.args(["--json", "base", "../fixed/disk.tar.zst", "--cache", "cache"]);
    command.args(["--key", "name:disk"]).current_dir(place.work()).stdin(Stdio::null());
    if durable {
        command.arg("--durable");
    }
    command
}

fn origin(report: &[u8]) -> String {
    let report: serde_json::Value = serde_json::from_slice(report).unwrap();
    report["origin"].as_str().unwrap().to_owned()
}

/// Between the key's lock and the base's name, whoever fails or dies lets the one in who waits.
#[test]
fn who_waits_is_released_by_a_fault_and_by_a_kill() {
    if let Err(why) = can_watch() {
        return left_out("waiters of those who are struck", &why);
    }
    let place = Place::new(memory_folder());
    fill(&place);
    let clean = watch(&mut ask(&place, false), &place.work(), None).unwrap();
    let is_key_lock = |call: &&Call| {
        let path = call.path.as_deref().unwrap_or(Path::new(""));
        call.name == "flock"
            && path.extension().is_some_and(|extension| extension == "lock")
            && path.file_stem().is_some_and(|stem| stem.len() == 64)
    };
    let locked = clean.calls.iter().position(|call| is_key_lock(&call)).unwrap();
    let renames =
        clean.calls.iter().enumerate().filter(|(_, call)| call.name.starts_with("rename"));
    // The last one completes the manifest of the base that was named just before.
    let (named, _) = renames.rev().nth(1).unwrap();
    let held = &clean.calls[locked + 1..=named];
    let (mut taken_over, mut waited) = (0, 0);
    for at in 0..12 {
        let call = &held[at * held.len() / 12];
        for fault in [call.faults()[0], Fault::Kill] {
            place.reset();
            let mut waiter = None;
            let before = Box::new(|| {
                let mut started =
                    ask(&place, false).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
                thread::sleep(Duration::from_millis(60));
                let still = started.as_mut().unwrap().try_wait().unwrap();
                assert_eq!(still, None, "{call}: the lock is held, so it waits");
                waiter = Some(started.unwrap());
            });
            let strike = Strike { at: call, fault, before };
            let struck = watch(&mut ask(&place, false), &place.work(), Some(strike)).unwrap();
            let output = waiter.expect("the call was met").wait_with_output().unwrap();
            assert!(output.status.success(), "{call}, {fault:?}: {output:?}");
            if struck.end == Ok(0) {
                assert_ne!(origin(&output.stdout), "extracted", "{call}, {fault:?}");
                waited += 1;
            } else {
                assert_eq!(origin(&output.stdout), "extracted", "{call}, {fault:?}");
                taken_over += 1;
            }
            one_base(&place).unwrap();
            assert_eq!(place.left_overs(), Vec::<PathBuf>::new(), "{call}, {fault:?}");
        }
    }
    tell(&format!("waiters: {taken_over} took over, {waited} were given the base"));
    assert!(taken_over > 12, "every kill, and some of the faults");
}

/// A base that got its name from a process killed before it could sync the folder is durable only
/// once someone else has.
#[test]
fn a_base_whose_name_was_not_synced_is_synced_by_who_asks_for_a_durable_one() {
    if let Err(why) = can_watch() {
        return left_out("kills before the last sync", &why);
    }
    let place = Place::new(memory_folder());
    fill(&place);
    let syncs_folder = |call: &&Call| {
        call.syncs() && call.path.as_ref().is_some_and(|path| path.ends_with("bases"))
    };
    let clean = watch(&mut ask(&place, true), &place.work(), None).unwrap();
    let last = clean.calls.iter().find(syncs_folder).expect("a durable base syncs its folder");
    place.reset();
    let strike = Strike { at: last, fault: Fault::Kill, before: Box::new(|| {}) };
    let killed = watch(&mut ask(&place, true), &place.work(), Some(strike)).unwrap();
    assert!(killed.killed());
    one_base(&place).unwrap();
    let next = watch(&mut ask(&place, true), &place.work(), None).unwrap();
    assert_eq!(origin(&next.stdout), "hit");
    assert!(next.calls.iter().any(|call| syncs_folder(&call)), "{:#?}", next.calls);
}
