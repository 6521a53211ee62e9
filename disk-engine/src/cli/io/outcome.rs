//! How a command fails, and where which words go.
//!
//! ```text
//! Said       standard output    Pattern verification failed at offset 0, 512 bytes
//! Told       standard error     command "x" not found
//! Reported   standard error     disk-engine: Block node is read-only
//! Storage    both               write failed: Input/output error, and the reason aside
//! Usage      both               the command's line, and the complaint aside
//! ```
//!
//! The words are qemu-io's. Reasons aside are ours, and only given where qemu-io has none to give.
//! Callers: the commands; `session` prints.

use std::io;

use nix::errno::Errno;

use crate::error::{Error, ErrorKind};

/// How a command ends.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A sentence on standard output.
    Said(String),
    /// A sentence on standard error.
    Told(String),
    /// An error on standard error, as every command of the program reports one.
    Reported(Error),
    /// The disk did not do it; `doing` is qemu-io's word.
    Storage { doing: &'static str, error: Error },
    /// As `Storage`, for a range that does not lie on the disk, which needs no reason.
    OutOfRange { doing: &'static str },
    /// The words of the command were wrong.
    Usage { complaint: Option<String> },
    /// All is said already.
    Shown,
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::Said(sentence)
    }
}

/// What the system calls an error of this kind.
pub(super) fn errno_text(error: &Error) -> String {
    let number = error.io_error().and_then(io::Error::raw_os_error);
    let errno = match error.kind() {
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::PermissionDenied => Errno::EPERM,
        _ => Errno::EIO,
    };
    system_text(number.unwrap_or(errno as i32))
}

/// The system's own words for an error number, without the number.
pub(super) fn system_text(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_systems_words() {
        assert_eq!(system_text(5), "Input/output error");
        let full = io::Error::from_raw_os_error(28);
        assert_eq!(errno_text(&Error::io("write", "/x", full)), "No space left on device");
        for (kind, text) in [
            (ErrorKind::Corrupt, "Input/output error"),
            (ErrorKind::InvalidInput, "Invalid argument"),
            (ErrorKind::Unsupported, "Operation not supported"),
        ] {
            assert_eq!(errno_text(&Error::new(kind, "bad")), text);
        }
    }
}
