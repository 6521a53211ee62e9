//! Giving a new file to another user: what it takes, and what to say where it cannot be done.
//!
//! ```text
//! EPERM    another user's id, and no privilege (CAP_CHOWN)
//! EINVAL   an id that the user namespace does not map: in a sandbox of one user, all but one
//! ```
//!
//! Callers: `overlay`, `strategy`.

use std::fs::File;
use std::os::unix::fs::fchown;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Gives `file` to `user` and `group`, each only if it is stated. `path` is what errors call it.
///
/// # Errors
///
/// What the system says, with a hint at what is missing.
pub fn change(file: &File, path: &Path, user: Option<u32>, group: Option<u32>) -> Result<()> {
    fchown(file, user, group).map_err(|error| {
        let hint = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => Some("giving files away needs a privilege (CAP_CHOWN)"),
            Some(Errno::EINVAL) => Some("no such user or group in this user namespace"),
            _ => None,
        };
        let to = match (user, group) {
            (Some(user), Some(group)) => format!("user {user} and group {group}"),
            (Some(user), None) => format!("user {user}"),
            (None, Some(group)) => format!("group {group}"),
            (None, None) => "nobody else".to_owned(),
        };
        let error = Error::io(format!("give the file to {to}"), path, error);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}
