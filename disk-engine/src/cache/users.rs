//! Who has a base open at this moment: asked by everybody who would take it away.
//!
//! ```text
//! leases   flock, tried exclusively      nobody ─▶ held: nobody leases it while the value lives
//! QEMU     its byte-range locks, asked
//! ```
//!
//! What only an overlay knows, [`uses`](super::uses) tells. Callers: `prune`, `quarantine`, `list`.

use std::fs;
use std::io;
use std::path::Path;

use crate::cache::{lock, record};
use crate::error::{Error, Result};
use crate::sys::lock::{FileLock, LockMode, is_unsupported, needs_writer};
use crate::sys::{image_lock, open};

/// Who has a base open.
#[derive(Debug)]
pub(crate) struct Users {
    pub(crate) leases: Leases,
    /// Whether a QEMU has it open; `None` where ranges cannot be locked.
    pub(crate) qemu: Option<bool>,
}

/// Who leases a base.
#[derive(Debug)]
pub(crate) enum Leases {
    /// Nobody, and nobody will while this lives; without a lock, nothing is there to lease.
    None { _lock: Option<FileLock> },
    /// Some process.
    Some,
    /// Nobody can tell: it cannot be opened, or not be locked by us.
    Unknown,
}

/// Looks who has `base` open, and keeps others from leasing it if nobody does.
///
/// # Errors
///
/// What says nothing about the base: no descriptors, failing storage, no answer about a lock.
pub(crate) fn of(base: &Path) -> Result<Users> {
    let nothing = Users { leases: Leases::None { _lock: None }, qemu: Some(false) };
    match fs::symlink_metadata(base) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(nothing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
        Err(error) => return Err(Error::io("look at the base", base, error)),
    }
    let file = match open::existing(base) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
        // Who cannot open it can neither lock it nor ask who did.
        Err(error) if record::untrusted(&error) => {
            return Ok(Users { leases: Leases::Unknown, qemu: None });
        }
        Err(error) => return Err(Error::io("open the base", base, error)),
    };
    let qemu = match image_lock::is_in_use(&file) {
        Ok(is_in_use) => Some(is_in_use),
        Err(error) if image_lock::is_unsupported(&error) => None,
        // It may well be running.
        Err(error) => return Err(Error::io("ask for QEMU's locks on", base, error)),
    };
    let leases = match FileLock::try_acquire_patiently(file, LockMode::Exclusive) {
        Ok(Ok(lock)) => Leases::None { _lock: Some(lock) },
        Ok(Err(_)) => Leases::Some,
        // NFS locks exclusively what is open for writing, and a base never is.
        Err(error) if needs_writer(&error) => Leases::Unknown,
        // As for whoever would lease it: locks there are, or the cache could not have been opened.
        Err(error) if is_unsupported(&error) => return Err(lock::unsupported(base, error)),
        Err(error) => return Err(Error::io("lock the base", base, error)),
    };
    Ok(Users { leases, qemu })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn each_kind_of_user_is_told_and_nobody_comes_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        let lease = || FileLock::try_acquire(File::open(&path).unwrap(), LockMode::Shared).unwrap();
        for there in [false, true] {
            if there {
                fs::write(&path, b"x").unwrap();
            }
            let users = of(&path).unwrap();
            assert_eq!(users.qemu, Some(false));
            assert!(matches!(&users.leases, Leases::None { _lock } if _lock.is_some() == there));
            assert!(!there || lease().is_err(), "held");
        }
        let held = lease().unwrap();
        assert!(matches!(of(&path).unwrap().leases, Leases::Some));
        drop(held);
        let running = File::options().read(true).write(true).open(&path).unwrap();
        assert!(image_lock::lock_for_writing(&running).unwrap());
        assert_eq!(of(&path).unwrap().qemu, Some(true));
        assert!(matches!(of(folder.path()).unwrap().leases, Leases::None { _lock: None }));
    }
}
