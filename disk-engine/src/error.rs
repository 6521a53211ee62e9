//! What can go wrong, told so that a person can act on it and a program can match on it.
//!
//! ```text
//! kind     what sort of trouble it is, with a stable code   ErrorKind::NoSpace, "no-space"
//! message  what was being done, or what contradicts what    "write 1 MiB of the base"
//! place    file, field and byte offset, where known         /cache/…, "GNU.sparse.map", 0x1200
//! hint     what the person can do about it                  "free 1.2 GiB or choose another folder"
//! source   the error underneath, `io::Error` included
//! ```
//!
//! Each error says its own part; the chain is printed once, by whoever is on top.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The sort of trouble. New kinds may be added, so a `match` needs a `_` arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense, whatever the files hold.
    InvalidInput,
    /// A named file, folder or member does not exist.
    NotFound,
    /// Something stands where a new file was to be made.
    AlreadyExists,
    /// The operating system does not let us.
    PermissionDenied,
    /// The input contradicts its own format: truncated, damaged or lying.
    Corrupt,
    /// The input is valid, and of a kind this crate does not handle.
    Unsupported,
    /// The input is larger or more complex than a stated limit.
    Limit,
    /// Two things that should be the same are not: a digest, a chain, a size.
    Mismatch,
    /// A policy of the caller forbids it, such as following a name found inside an image.
    Refused,
    /// The file system is full, or a quota is.
    NoSpace,
    /// Someone else holds a lock for longer than the caller wanted to wait.
    Busy,
    /// The caller cancelled the work.
    Cancelled,
    /// Any other failure of the operating system.
    Io,
}

impl ErrorKind {
    /// A stable word for the kind, as `--json` prints it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid-input",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::PermissionDenied => "permission-denied",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Limit => "limit",
            Self::Mismatch => "mismatch",
            Self::Refused => "refused",
            Self::NoSpace => "no-space",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
            Self::Io => "io",
        }
    }

    /// The kind an error of the operating system has.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists => Self::AlreadyExists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::PermissionDenied
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

/// An error of this crate. Small to pass around: one pointer.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    path: Option<PathBuf>,
    field: Option<Cow<'static, str>>,
    offset: Option<u64>,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is one plain clause without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            path: None,
            field: None,
            offset: None,
            hint: None,
            source: None,
        }))
    }

    /// A failed call of the operating system; `doing` says what was being tried, as in
    /// "create the overlay".
    pub fn io(
        doing: impl Into<Cow<'static, str>>,
        path: impl AsRef<Path>,
        source: io::Error,
    ) -> Self {
        Self::new(ErrorKind::of_io(&source), doing).with_path(path).with_source(source)
    }

    /// Names the file concerned.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path = Some(path.as_ref().to_path_buf());
        self
    }

    /// Names the file concerned, unless one is named already.
    #[must_use]
    pub fn or_path(self, path: impl AsRef<Path>) -> Self {
        if self.0.path.is_some() { self } else { self.with_path(path) }
    }

    /// Names the field of the format that is at fault.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Says where, in bytes from the start of the file or stream.
    #[must_use]
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Says what the person can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the error underneath.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The sort of trouble.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done, or what contradicts what, without path, offset and cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file concerned, where one is.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The field of the format at fault, under its name in the specification.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// Where, in bytes from the start of the file or stream.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What the person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The operating system's own error, however deep it lies.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return Some(io);
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.write_str(&inner.message)?;
        if let Some(field) = &inner.field {
            write!(f, ", field {field}")?;
        }
        if let Some(offset) = inner.offset {
            write!(f, ", at offset {offset:#x}")?;
        }
        if let Some(path) = &inner.path {
            // Debug escapes newlines, terminal controls and bytes that are not UTF-8.
            write!(f, ": {path:?}")?;
        }
        if let Some(hint) = &inner.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("message", &inner.message)
            .field("path", &inner.path)
            .field("field", &inner.field)
            .field("offset", &inner.offset)
            .field("hint", &inner.hint)
            .field("source", &inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_and_its_errno_stays_reachable() {
        let error = Error::io("write", "/x", io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.io_error().and_then(io::Error::raw_os_error), Some(28));
    }

    #[test]
    fn hostile_names_are_escaped() {
        let error = Error::new(ErrorKind::Corrupt, "bad").with_path("a\n\u{1b}[31mb");
        assert!(!error.to_string().contains(['\n', '\u{1b}']));
    }
}
