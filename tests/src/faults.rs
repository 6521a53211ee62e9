//! A command struck at each of its calls, one run a call: failing, cut short, killed.
//!
//! ```text
//! clean run ─▶ its calls ─▶ for each call, for each fault it can have, and for a kill:
//!     new folder ─▶ the command, struck ─▶ judge ─▶ the command again, in peace ─▶ judge
//!
//! judged at once      an exit code of ours, never a panic, signal or hang; an error that names what
//!                     was being done and the file, under the right code; nothing half-made under a
//!                     final name; no left-overs and nothing new outside of the cache, unless it
//!                     was killed or a removal failed
//! judged at the end   success, the right content, no left-overs; what could not be synced was made
//!                     anew
//! ```
//!
//! A scenario is one command and what is right about it. Suites hold a table of them.

mod calls;
pub mod commands;
mod tracer;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use serde_json::Value;

use crate::tool;
pub use calls::{Call, Fault};
pub use tracer::{Strike, Watched, can_watch, watch};

/// Set to `all`, it has every point tried; to a number, that many a scenario.
pub const POINTS: &str = "FAULT_POINTS";
/// How many are tried otherwise.
const POINTS_DEFAULT: usize = 50;

/// What a check found wrong.
pub type Verdict = Result<(), String>;

/// A command to strike, and what is right about it.
#[derive(Clone)]
pub struct Scenario {
    /// What it is called where it fails.
    pub name: &'static str,
    /// The command's arguments; it runs in [`Place::work`].
    pub arguments: Vec<OsString>,
    /// Puts into the empty folder what the command is to find.
    pub setup: fn(&Place),
    /// Whatever happened: what stands under a final name is whole.
    pub whole: fn(&Place) -> Verdict,
    /// What a success must have made.
    pub done: fn(&Place) -> Verdict,
    /// What a success is and has to say, where that is more than having made it.
    pub answer: Option<Answer>,
}

/// What a command says that is asked, or that finds something wrong.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The exit code of a run that has found what there is to find.
    pub code: i32,
    /// Whether its report, after a strike, is true. Judged in place of [`Scenario::done`].
    pub right: fn(&Place, &Value) -> Verdict,
}

/// What a command finds.
#[derive(Debug, Default)]
pub struct Found {
    left_overs: Vec<PathBuf>,
    outside: Vec<PathBuf>,
}

/// The folders of one scenario.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Removed with the value.
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    /// An empty place in `folder`.
    #[must_use]
    pub fn new(folder: tempfile::TempDir) -> Self {
        let path = folder.path().canonicalize().expect("a folder just made");
        let place = Self { path, _folder: Some(folder) };
        fs::create_dir(place.fixed()).expect("a new folder");
        fs::create_dir(place.work()).expect("a new folder");
        place
    }

    /// A place in an empty folder, as the root of a file system, that reads the files of another
    /// place.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    #[must_use]
    pub fn beside(other: &Self, path: &Path) -> Self {
        let place =
            Self { path: path.canonicalize().expect("a folder that is there"), _folder: None };
        symlink(other.fixed(), place.fixed()).expect("an empty folder");
        fs::create_dir(place.work()).expect("an empty folder");
        place
    }

    /// The folder of both.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.path
    }

    /// Where the command runs; emptied before every run.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Files that no run may change.
    #[must_use]
    pub fn fixed(&self) -> PathBuf {
        self.path.join("fixed")
    }

    /// Empties [`Place::work`].
    ///
    /// # Panics
    ///
    /// It cannot be emptied.
    pub fn reset(&self) {
        fs::remove_dir_all(self.work()).expect("a folder of ours");
        fs::create_dir(self.work()).expect("a folder of ours");
    }

    /// Temporaries that were left, wherever they are.
    #[must_use]
    pub fn left_overs(&self) -> Vec<PathBuf> {
        let is_left_over = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let in_tmp = path.parent().is_some_and(|parent| parent.ends_with("v1/tmp"));
            in_tmp || name.ends_with(".partial") || name.ends_with(".probe")
        };
        files(&self.work()).into_iter().filter(is_left_over).collect()
    }

    /// Files and folders outside of the cache.
    fn outside(&self) -> Vec<PathBuf> {
        let mut found = everything(&self.work());
        found.retain(|path| !path.starts_with(self.work().join("cache")));
        found
    }

    /// Left-overs but for those that were found: whoever is struck on his way to remove them need
    /// not have done so.
    fn left_overs_beside(&self, found: &Found) -> Vec<PathBuf> {
        self.left_overs().into_iter().filter(|path| !found.left_overs.contains(path)).collect()
    }

    /// What is outside of the cache but for what was found.
    fn outside_beside(&self, found: &Found) -> Vec<PathBuf> {
        self.outside().into_iter().filter(|path| !found.outside.contains(path)).collect()
    }

    /// Names, sizes and times of what no run may change.
    fn fixed_state(&self) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
        let state = |path: PathBuf| {
            let metadata = fs::symlink_metadata(&path).expect("a file that nobody removes");
            let modified = metadata.modified().expect("a time");
            (path, metadata.len(), modified)
        };
        files(&self.fixed()).into_iter().map(state).collect()
    }
}

/// All files below a folder, sorted.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = everything(folder);
    found.retain(|path| !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()));
    found
}

/// All files and folders below a folder, sorted.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            found.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    calls: usize,
    faults: (usize, usize),
    kills: (usize, usize),
    errors: usize,
    missed: usize,
}

impl Scenario {
    /// The command, to be run in [`Place::work`].
    #[must_use]
    pub fn command(&self, program: &Path, place: &Place) -> Command {
        let mut command = Command::new(program);
        command.arg("--json").args(&self.arguments).current_dir(place.work());
        command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        command
    }

    /// Empties the place, and puts there what the command is to find; says what that is.
    pub fn begin(&self, place: &Place) -> Found {
        place.reset();
        (self.setup)(place);
        Found { left_overs: place.left_overs(), outside: place.outside() }
    }

    /// Judges a run that had to do with less than it may have needed: a success, or an error with
    /// one of `codes`. Says which, the error as JSON. What was `found` by the command may still be
    /// there.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn judge_confined(
        &self,
        place: &Place,
        found: &Found,
        output: &Output,
        codes: &[&str],
    ) -> Result<Option<Value>, String> {
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        let told = |why: String| format!("{}: {why}: {said}", self.name);
        (self.whole)(place).map_err(told)?;
        if output.status.code() == Some(self.code()) {
            self.check_success(place, &output.stdout).map_err(told)?;
        }
        match (output.status.code(), place.left_overs_beside(found)) {
            (_, left) if !left.is_empty() => Err(told(format!("left over: {left:?}"))),
            (Some(code), _) if code == self.code() => Ok(None),
            (Some(0), _) => Err(told("it found nothing".to_owned())),
            (Some(code), _) => {
                self.check_outside(place, found).map_err(told)?;
                let error = check_words(code, &said).map_err(told)?;
                match error["code"].as_str() {
                    Some(code) if codes.contains(&code) => Ok(Some(error)),
                    _ => Err(told("an error of another kind".to_owned())),
                }
            }
            (None, _) => Err(told(format!("{}", output.status))),
        }
    }

    /// Runs the command again, in peace, and judges that.
    ///
    /// # Errors
    ///
    /// What is wrong.
    ///
    /// # Panics
    ///
    /// The program does not start.
    pub fn again(&self, program: &Path, place: &Place, found: &Found) -> Verdict {
        let again = self.command(program, place).output().expect("it started before");
        self.judge_again(place, &again, found).map_err(|why| format!("{}: {why}", self.name))
    }

    /// Strikes `program` at its calls, in `place`. Prints how many points there are, and how many
    /// were tried.
    ///
    /// # Errors
    ///
    /// All that is wrong, a line each.
    ///
    /// # Panics
    ///
    /// It cannot be watched, see [`can_watch`].
    pub fn strike(&self, program: &Path, place: &Place) -> Verdict {
        let command = || self.command(program, place);
        let found = self.begin(place);
        let fixed = place.fixed_state();
        let clean = watch(&mut command(), &place.path, None).expect("it could be watched before");
        let told = String::from_utf8_lossy(&clean.stderr).into_owned();
        if clean.end != Ok(self.code()) || !place.left_overs().is_empty() {
            let (end, left) = (clean.end, place.left_overs());
            return Err(format!("{}, undisturbed: {end:?}, left {left:?}, {told}\n", self.name));
        }
        self.check_success(place, &clean.stdout)
            .and_then(|()| (self.done)(place))
            .map_err(|why| format!("{}, undisturbed: {why}\n", self.name))?;

        let mut tally = Tally { calls: clean.calls.len(), ..Tally::default() };
        let mut wrong = Vec::new();
        for (call, fault) in self.points(&clean.calls, &mut tally) {
            self.begin(place);
            let strike = Strike { at: call, fault, before: Box::new(|| {}) };
            let watched =
                watch(&mut command(), &place.path, Some(strike)).expect("it could be watched");
            if watched.struck.is_none() {
                tally.missed += 1;
            }
            let mut verdict = self.judge(place, call, fault, &watched, &found, &mut tally);
            if verdict.is_ok() {
                let again = command().output().expect("it started before");
                verdict = self.judge_again(place, &again, &found);
                if verdict.is_ok() && watched.end != Ok(self.code()) && !watched.killed() {
                    verdict = check_sync(call, &again);
                }
            }
            if verdict.is_ok() && place.fixed_state() != fixed {
                verdict = Err("a file of others was changed".to_owned());
            }
            if let Err(why) = verdict {
                wrong.push(format!("{call}, {fault:?}: {why}"));
            }
        }
        let Tally { calls, faults, kills, errors, missed } = tally;
        tool::tell(&format!(
            "{}: {calls} calls; {} of {} faults tried, {errors} ended in an error; {} of {} kills \
             tried; {missed} calls not met again",
            self.name, faults.1, faults.0, kills.1, kills.0
        ));
        if wrong.is_empty() {
            return Ok(());
        }
        let mut text = format!("{}: {} points went wrong\n", self.name, wrong.len());
        for line in &wrong {
            let _ = writeln!(text, "  {line}");
        }
        Err(text)
    }

    /// Which points are tried: all, or as many as asked for, evenly spread.
    fn points<'a>(&self, calls: &'a [Call], tally: &mut Tally) -> Vec<(&'a Call, Fault)> {
        let faults: Vec<_> = calls
            .iter()
            .flat_map(|call| call.faults().into_iter().map(move |fault| (call, fault)))
            .collect();
        let kills: Vec<_> = calls.iter().map(|call| (call, Fault::Kill)).collect();
        let asked = std::env::var(POINTS).unwrap_or_default();
        let most = match asked.as_str() {
            "all" => usize::MAX,
            number => number.parse().unwrap_or(POINTS_DEFAULT),
        };
        let all = faults.len() + kills.len();
        let chosen = |points: Vec<(&'a Call, Fault)>| -> Vec<_> {
            let count = points.len();
            let wanted = count.min((count as u128 * most as u128).div_ceil(all as u128) as usize);
            (0..wanted).map(|at| points[at * count / wanted]).collect()
        };
        tally.faults.0 = faults.len();
        tally.kills.0 = kills.len();
        let (faults, kills) = (chosen(faults), chosen(kills));
        tally.faults.1 = faults.len();
        tally.kills.1 = kills.len();
        [faults, kills].concat()
    }

    fn judge(
        &self,
        place: &Place,
        call: &Call,
        fault: Fault,
        watched: &Watched,
        found: &Found,
        tally: &mut Tally,
    ) -> Verdict {
        let said = String::from_utf8_lossy(&watched.stderr).trim_end().to_owned();
        if watched.hung {
            return Err(format!("it hangs; it said {said:?}"));
        }
        (self.whole)(place).map_err(|why| format!("{why}; it said {said}"))?;
        let killed = watched.killed();
        let missed = watched.struck.is_none();
        let left = place.left_overs_beside(found);
        if !killed && !call.removes() && !left.is_empty() {
            return Err(format!("left over: {left:?}; it said {said}"));
        }
        match watched.end {
            _ if killed => Ok(()),
            Ok(code) if code == self.code() => self
                .check_success(place, &watched.stdout)
                .map_err(|why| format!("a success, and {why}")),
            Ok(0) => Err("a success, and it found nothing".to_owned()),
            Ok(code) if missed => Err(format!("not struck, and it ended with {code}: {said}")),
            Ok(code) => {
                tally.errors += 1;
                let new = place.outside_beside(found);
                if call.syncs() && !new.is_empty() {
                    return Err(format!("not synced, and there are {new:?}"));
                }
                if !call.removes() {
                    self.check_outside(place, found).map_err(|why| format!("{why}: {said}"))?;
                }
                check_error(fault, code, &said).map_err(|why| format!("{why}: {said}"))
            }
            Err(signal) => Err(format!("ended by {signal}: {said}")),
        }
    }

    /// How a run ends that has done all there is to do.
    fn code(&self) -> i32 {
        self.answer.map_or(0, |answer| answer.code)
    }

    /// A success has made what it should, or says truly what it has not.
    fn check_success(&self, place: &Place, report: &[u8]) -> Verdict {
        let Some(answer) = &self.answer else { return (self.done)(place) };
        let report = serde_json::from_slice(report).map_err(|error| format!("it said {error}"))?;
        (answer.right)(place, &report).map_err(|why| format!("{why}; it reported {report}"))
    }

    /// After an error there is nothing new outside of the cache, unless all that was to be done was
    /// done before it.
    fn check_outside(&self, place: &Place, found: &Found) -> Verdict {
        let new = place.outside_beside(found);
        if new.is_empty() || (self.done)(place).is_ok() {
            return Ok(());
        }
        Err(format!("an error, and there are {new:?}"))
    }

    fn judge_again(&self, place: &Place, again: &Output, found: &Found) -> Verdict {
        let said = String::from_utf8_lossy(&again.stderr).trim_end().to_owned();
        let error = serde_json::from_str::<Value>(&said).unwrap_or_default();
        // What was struck after it had given its product a name has done its work.
        let done_before = error["error"]["code"] == "already-exists";
        let succeeded = [Some(0), Some(self.code())].contains(&again.status.code());
        if !succeeded && !done_before {
            return Err(format!("the next run failed: {said}"));
        }
        (self.done)(place).map_err(|why| format!("after the next run, {why}"))?;
        match place.left_overs_beside(found) {
            left if left.is_empty() || done_before => Ok(()),
            left => Err(format!("left over after the next run: {left:?}")),
        }
    }
}

/// A base that could not be synced is not taken for a durable one by whoever comes next.
fn check_sync(call: &Call, again: &Output) -> Verdict {
    let is_base = call.path.as_ref().is_some_and(|path| {
        path.ends_with("bases") || path.extension().is_some_and(|extension| extension == "img")
    });
    if !call.syncs() || !is_base {
        return Ok(());
    }
    let report: Value = serde_json::from_slice(&again.stdout).unwrap_or_default();
    match report["origin"].as_str() {
        None | Some("extracted") => Ok(()),
        Some(origin) => Err(format!("{origin}, after a sync had failed")),
    }
}

/// Whether an error tells a person what to do and a program what it was; the error.
fn check_words(code: i32, said: &str) -> Result<Value, String> {
    let mut value: Value = serde_json::from_str(said).map_err(|_| "no error in JSON".to_owned())?;
    let error = value["error"].take();
    let kind = error["code"].as_str().unwrap_or_default();
    let expected = match kind {
        "invalid-input" => 2,
        "corrupt" | "mismatch" => 3,
        "no-space" => 4,
        "busy" => 5,
        "" => return Err("an error without a code".to_owned()),
        _ => 1,
    };
    if code != expected {
        return Err(format!("exit code {code} for {kind}"));
    }
    if error["message"].as_str().is_none_or(str::is_empty) {
        return Err("an error without a message".to_owned());
    }
    if error["path"].as_str().is_none_or(str::is_empty) {
        return Err("an error without a path".to_owned());
    }
    Ok(error)
}

/// Whether the error is that of the fault.
fn check_error(fault: Fault, code: i32, said: &str) -> Verdict {
    let error = check_words(code, said)?;
    let kind = error["code"].as_str().unwrap_or_default();
    let Fault::Error(errno) = fault else {
        return Err("an error, and nothing failed for good".to_owned());
    };
    if errno == Errno::EINTR {
        return Err("an interrupted call is made again".to_owned());
    }
    // To whoever starts a thread, there is no memory for its stack.
    let kept = [errno, if errno == Errno::ENOMEM { Errno::EAGAIN } else { errno }];
    let is_limit = errno == Errno::ENOMEM && kind == "limit";
    if !is_limit && !kept.iter().any(|&errno| error["errno"] == errno as i32) {
        return Err(format!("an error that does not keep {errno:?}"));
    }
    let right: &[&str] = match errno {
        Errno::ENOSPC | Errno::EDQUOT => &["no-space"],
        Errno::EROFS | Errno::EACCES | Errno::EPERM => &["permission-denied"],
        Errno::ENOLCK => &["unsupported", "io"],
        Errno::ENOMEM => &["io", "limit"],
        _ => &["io"],
    };
    if right.contains(&kind) { Ok(()) } else { Err(format!("{kind} for {errno:?}")) }
}
