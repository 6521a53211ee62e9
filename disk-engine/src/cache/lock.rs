//! Waiting for a lock file in `locks/`: politely, audibly, and not for longer than wanted.
//!
//! ```text
//! who                                   length lock   key lock    base file
//! finds a base                          —             —           shared: the lease
//! extracts a file of known digest       shared        exclusive   —
//! extracts under a name                 —             exclusive   —
//! extracts a stream of stated digest    —             exclusive   —
//! learns a file's digest, extracting    exclusive     exclusive, for the moment of publishing
//! learns a stream's digest, extracting  —             exclusive, for the moment of publishing
//! ```
//!
//! Locks are taken from left to right and never the other way, so no two wait for each other. The
//! kernel releases them all when their process ends, however it ends. Every acquisition opens the
//! lock file anew: `flock` belongs to the open file, and so excludes threads too.
//!
//! A lock file says who holds it in four lines of text. It stays when it is released; `prune` removes
//! those without a base, holding them. Whoever locks a file that has lost its name, to `prune` or to a
//! cleaner, notices and tries the one that has it now.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::holder;
use crate::control::{Control, Event, Holder};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::{self, FileLock, LockMode};
use crate::sys::{host, open};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A held lock file. Dropping it releases it, in the process that took it.
#[derive(Debug)]
pub(crate) struct CacheLock {
    lock: FileLock,
    mode: LockMode,
}

/// How waiting for a lock ended.
#[derive(Debug)]
pub(crate) enum Acquired<T> {
    /// The lock is held.
    Locked(CacheLock),
    /// What the lock was wanted for has been done by someone else.
    Done(T),
}

/// One caller's patience, over all the locks one request needs.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    control: &'a Control,
    timeout: Option<Duration>,
    spent: Duration,
    told: Option<Option<Holder>>,
}

impl<'a> Waiter<'a> {
    /// Waits for `timeout` at most, or for as long as it takes.
    pub(crate) fn new(control: &'a Control, timeout: Option<Duration>) -> Self {
        Self { control, timeout, spent: Duration::ZERO, told: None }
    }

    /// Whether there was anyone to wait for.
    pub(crate) fn has_waited(&self) -> bool {
        !self.spent.is_zero()
    }

    /// Takes the lock file at `path`, unless `done` finds that it is not needed any more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] after the timeout, [`ErrorKind::Cancelled`] if the caller cancelled,
    /// [`ErrorKind::Unsupported`] if the file system cannot lock, [`ErrorKind::Refused`] if no
    /// file of ours stands there; what `done` says.
    pub(crate) fn acquire<T>(
        &mut self,
        path: &Path,
        mode: LockMode,
        purpose: &str,
        mut done: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Acquired<T>> {
        let mut pause = FIRST_PAUSE;
        let mut round = 0_u32;
        loop {
            self.control.check()?;
            let holder =
                match CacheLock::attempt(open_lock(path)?, path, mode, purpose, round == 0)? {
                    Ok(lock) => return Ok(Acquired::Locked(lock)),
                    Err(holder) => holder,
                };
            self.tell(holder, round);
            self.pause(path, &mut pause)?;
            if let Some(done) = done()? {
                return Ok(Acquired::Done(done));
            }
            round = round.saturating_add(1);
        }
    }

    /// Waits for a moment, for something without a holder of its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] after the timeout, [`ErrorKind::Cancelled`] if the caller cancelled.
    pub(crate) fn breathe(&mut self, path: &Path) -> Result<()> {
        self.control.check()?;
        self.pause(path, &mut LONGEST_PAUSE.clone())
    }

    /// Sleeps, longer each time, but not past the timeout.
    fn pause(&mut self, path: &Path, pause: &mut Duration) -> Result<()> {
        let mut length = *pause;
        if let Some(timeout) = self.timeout {
            let left = timeout.saturating_sub(self.spent);
            if left.is_zero() {
                return Err(self.busy(path, timeout));
            }
            length = length.min(left);
        }
        let started = Instant::now();
        thread::sleep(length);
        self.spent = self.spent.saturating_add(started.elapsed());
        *pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// Tells the observer about each holder once. A holder needs a moment to write its name.
    fn tell(&mut self, holder: Option<Holder>, round: u32) {
        let news = match &self.told {
            None => holder.is_some() || round >= 3,
            Some(told) => holder.is_some() && *told != holder,
        };
        if news {
            self.control.emit(&Event::Waiting { holder: holder.clone() });
            self.told = Some(holder);
        }
    }

    fn busy(&self, path: &Path, timeout: Duration) -> Error {
        let holder = match CacheLock::holder(path) {
            Some(holder) => holder.to_string(),
            None => "someone else".to_owned(),
        };
        let waited = match timeout {
            Duration::ZERO => "waiting was not asked for".to_owned(),
            timeout => format!("waited {} s", timeout.as_secs_f64()),
        };
        Error::new(ErrorKind::Busy, format!("the lock is held by {holder}; {waited}"))
            .with_path(path)
            .with_hint("allow more time, or end that process")
    }
}

impl CacheLock {
    /// One try at the file that was opened under `path`; `Err` says who is ahead, as far as it is
    /// known.
    fn attempt(
        file: File,
        path: &Path,
        mode: LockMode,
        purpose: &str,
        patiently: bool,
    ) -> Result<std::result::Result<Self, Option<Holder>>> {
        let outcome = if patiently {
            FileLock::try_acquire_patiently(file, mode)
        } else {
            FileLock::try_acquire(file, mode)
        };
        let lock = match outcome {
            Ok(Ok(lock)) => lock,
            Ok(Err(file)) => return Ok(Err(holder::read(&file))),
            Err(error) if lock::is_unsupported(&error) => return Err(unsupported(path, error)),
            Err(error) => return Err(Error::io("lock", path, error)),
        };
        // A cleaner removed the file between the open and the lock: this one excludes nobody.
        if !lock.still_names(path).map_err(|error| Error::io("look at the lock", path, error))? {
            return Ok(Err(None));
        }
        let held = Self { lock, mode };
        held.sign(purpose);
        Ok(Ok(held))
    }

    /// Whether this is still the lock file others would lock.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn still_names(&self, path: &Path) -> Result<bool> {
        self.lock.still_names(path).map_err(|error| Error::io("look at the lock", path, error))
    }

    /// Whoever says that it holds the lock.
    fn holder(path: &Path) -> Option<Holder> {
        holder::read(&open::existing(path).ok()?)
    }

    /// Says who holds the lock. Information for a person, so a full disk does not matter.
    fn sign(&self, purpose: &str) {
        let file = self.lock.file();
        match self.mode {
            LockMode::Exclusive => {
                let text = holder::describe(purpose);
                let _ = file.set_len(0);
                let _ = file.write_all_at(text.as_bytes(), 0);
            }
            // One of many, which has no name; a killed holder's may still stand there.
            LockMode::Shared => {
                if file.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                    let _ = file.set_len(0);
                }
            }
        }
    }
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // A forked child holds nothing, so it has nothing to take back.
        if self.mode == LockMode::Exclusive && self.lock.is_ours() {
            let _ = self.lock.file().set_len(0);
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let refused = || {
        Error::new(ErrorKind::Refused, "no lock file of ours stands where one belongs")
            .with_path(path)
    };
    let file = open::lock_file(path).map_err(|error| {
        if open::is_misplaced(&error) {
            refused().with_source(error)
        } else {
            Error::io("open the lock", path, error)
        }
    })?;
    let metadata = file.metadata().map_err(|error| Error::io("look at the lock", path, error))?;
    if !metadata.is_file() || metadata.uid() != host::effective_user() {
        return Err(refused());
    }
    Ok(file)
}

/// The error of a file system without locks.
pub(crate) fn unsupported(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unsupported, "the cache's file system cannot lock files")
        .with_path(path)
        .with_hint("put the cache on a local file system, or on NFS with locking")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::CancelToken;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.lock");
        (folder, path)
    }

    fn acquire(path: &Path, mode: LockMode, timeout: Duration) -> Result<CacheLock> {
        let control = Control::new();
        let mut waiter = Waiter::new(&control, Some(timeout));
        match waiter.acquire::<()>(path, mode, "testing", || Ok(None))? {
            Acquired::Locked(lock) => Ok(lock),
            Acquired::Done(()) => unreachable!(),
        }
    }

    #[test]
    fn the_holder_says_who_it_is_until_it_lets_go() {
        let (_folder, path) = place();
        let lock = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap();
        let holder = CacheLock::holder(&path).unwrap();
        assert_eq!((holder.pid, &*holder.purpose), (std::process::id(), "testing"));
        let error = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("process {}", holder.pid)), "{error}");
        drop(lock);
        assert_eq!(fs::read(&path).unwrap(), b"");
        acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap();
    }

    #[test]
    fn shared_holders_do_not_exclude_each_other_and_have_no_name() {
        let (_folder, path) = place();
        fs::write(&path, holder::describe("killed")).unwrap();
        let _first = acquire(&path, LockMode::Shared, Duration::ZERO).unwrap();
        let _second = acquire(&path, LockMode::Shared, Duration::ZERO).unwrap();
        let error = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("someone else"), "{error}");
    }

    #[test]
    fn a_wait_ends_by_timeout_by_cancel_or_by_what_it_waited_for() {
        let (_folder, path) = place();
        let _held = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap();

        let started = Instant::now();
        let patience = Duration::from_millis(80);
        let error = acquire(&path, LockMode::Exclusive, patience).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(started.elapsed() >= patience);

        let cancel = CancelToken::new();
        let control = Control::new().with_cancel(cancel.clone());
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                cancel.cancel();
            });
            Waiter::new(&control, None)
                .acquire::<()>(&path, LockMode::Exclusive, "x", || Ok(None))
                .unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Cancelled);

        let control = Control::new();
        let mut waiter = Waiter::new(&control, None);
        let mut looks = 0;
        let outcome = waiter.acquire(&path, LockMode::Exclusive, "x", || {
            looks += 1;
            Ok((looks == 3).then_some("there"))
        });
        assert!(matches!(outcome, Ok(Acquired::Done("there"))));
        assert!(waiter.has_waited());
    }

    #[test]
    fn each_holder_is_told_once() {
        let (_folder, path) = place();
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&told);
        let control = Control::new().with_observer(move |event| {
            if let Event::Waiting { holder } = event {
                seen.lock().unwrap().push(holder.clone().unwrap().pid);
            }
        });
        fs::write(&path, "").unwrap();
        let other = File::open(&path).unwrap();
        other.lock().unwrap();
        let holder = |pid: u32| format!("pid {pid}\nhost h\nsince 1\npurpose p\n");
        let mut looks = 0;
        Waiter::new(&control, None)
            .acquire(&path, LockMode::Exclusive, "x", || {
                looks += 1;
                // Half written, one holder, the same, another.
                let text = match looks {
                    1 => "pid 1\nho".to_owned(),
                    2 | 3 => holder(1),
                    _ => holder(2),
                };
                fs::write(&path, text).unwrap();
                Ok((looks == 7).then_some(()))
            })
            .unwrap();
        assert_eq!(*told.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn a_lock_file_that_lost_its_name_is_not_believed() {
        let (_folder, path) = place();
        // Removed, or replaced, between the open and the lock.
        for replaced in [false, true] {
            let opened = open_lock(&path).unwrap();
            fs::remove_file(&path).unwrap();
            if replaced {
                fs::write(&path, b"").unwrap();
            }
            let outcome = CacheLock::attempt(opened, &path, LockMode::Exclusive, "x", true);
            assert!(matches!(outcome, Ok(Err(None))));
        }
        // Removed while it is held: it excludes nobody, and its release frees nobody else's.
        let lost = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap();
        assert!(lost.still_names(&path).unwrap());
        fs::remove_file(&path).unwrap();
        let _new = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap();
        assert!(!lost.still_names(&path).unwrap());
        drop(lost);
        assert!(acquire(&path, LockMode::Exclusive, Duration::ZERO).is_err());
    }

    #[test]
    fn what_is_no_lock_file_is_refused() {
        let (folder, path) = place();
        for plant in [
            (|path| symlink("/dev/null", path).unwrap()) as fn(&Path),
            |path| symlink("/nowhere/at/all", path).unwrap(),
            |path| fs::create_dir(path).unwrap(),
            |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        ] {
            plant(&path);
            let error = acquire(&path, LockMode::Exclusive, Duration::ZERO).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        }
        let missing = folder.path().join("gone/some.lock");
        let error = acquire(&missing, LockMode::Exclusive, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
