//! Standard output as the target of what is no text.
//!
//! Callers: `convert`, `pack`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::open;

/// Standard output past the library's own buffer, which looks for ends of lines. `what` goes there, and
/// `label` is what errors call it.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if it is a terminal; that it was closed.
pub(crate) fn for_bytes(what: &str, label: &Path) -> Result<File> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{what} is nothing for a terminal"),
        )
        .with_hint("name a file, or send standard output to one"));
    }
    let file = stdout.as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| open::was_open(&file).map(|()| file))
        .map_err(|error| Error::io(format!("write {what}"), label, error))
}
