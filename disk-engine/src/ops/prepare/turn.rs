//! Whose turn it is in a folder of VMs: a lock on the folder itself.
//!
//! ```text
//! folder made ─▶ opened ─▶ flock ─▶ still under its name? ─▶ disks made, kept or removed ─▶ unlock
//! ```
//!
//! Without it, a call that fails could remove disks that another one has found and kept meanwhile.
//! A file system without locks has no turns, and that gap.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::made::Made;
use crate::cache::BaseOptions;
use crate::control::Event;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::{self, FileLock, LockMode};

/// How often a folder may vanish under our hands.
const TRIES: u32 = 100;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// A turn in a folder, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: Option<FileLock>,
}

impl Turn {
    /// Waits for the turn in `folder`, which is made if it is not there.
    pub(super) fn take(folder: &Path, made: &mut Made, options: &BaseOptions) -> Result<Self> {
        let deadline = options.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut told = false;
        let mut tries = 0;
        loop {
            options.control.check()?;
            made.folder(folder)?;
            let lock = |error| Error::io("lock the folder", folder, error);
            let file = match File::open(folder) {
                Ok(file) => file,
                // Whoever made it has failed, and removed it; or it is a link that leads nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(lock(error)),
            };
            match FileLock::try_acquire(file, LockMode::Exclusive) {
                Ok(Ok(held)) if held.still_names(folder).map_err(lock)? => {
                    return Ok(Self { _lock: Some(held) });
                }
                Ok(Ok(_)) => continue,
                Ok(Err(_)) => {}
                Err(error) if lock::is_unsupported(&error) || lock::needs_writer(&error) => {
                    return Ok(Self { _lock: None });
                }
                Err(error) => return Err(lock(error)),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let message = "another call works in the folder";
                return Err(Error::new(ErrorKind::Busy, message).with_path(folder));
            }
            if !std::mem::replace(&mut told, true) {
                options.control.emit(&Event::Waiting { holder: None });
            }
            thread::sleep(PAUSE);
        }
    }
}
