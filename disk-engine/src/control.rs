//! How a caller watches and stops long work: a cancel token and a stream of events.
//!
//! Every long operation takes a [`Control`]. The default one never cancels and tells nobody.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Asks running work to stop, from any thread. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token nobody has cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop at its next check; it ends with [`ErrorKind::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`] once the token is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the caller cancelled the work"));
        }
        Ok(())
    }
}

/// Something worth telling while work goes on. New events may be added.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An extraction has read and written this much so far.
    Progress {
        /// Bytes of the source read, compressed as it is.
        source_bytes: u64,
        /// Length of the source in bytes, where it is known.
        source_length: Option<u64>,
        /// Bytes of disk content written, holes not counted.
        written_bytes: u64,
    },
    /// A disk is being copied from its base and has come this far.
    Copying {
        /// Where the disk will be.
        disk: PathBuf,
        /// The place in the base, in bytes; holes below it count.
        copied_bytes: u64,
        /// Length of the base in bytes.
        total_bytes: u64,
    },
    /// A base is being read and compared with its checksums; told by several threads.
    Verifying {
        /// The base.
        base: PathBuf,
        /// Bytes of this base read so far.
        verified_bytes: u64,
        /// Bytes of this base that have checksums.
        total_bytes: u64,
    },
    /// Two disks are being compared.
    Comparing {
        /// The place up to which nothing different was found or is left to be looked at by another
        /// thread, in bytes.
        compared_bytes: u64,
        /// Size of the larger disk in bytes.
        total_bytes: u64,
    },
    /// An image is being checked. Where counts do not fit into memory there are several rounds, each of
    /// which begins anew.
    Checking {
        /// L2 tables looked at in this round.
        checked_tables: u64,
        /// L2 tables of the image.
        total_tables: u64,
    },
    /// Another thread or process is making the base; the caller waits for it.
    Waiting {
        /// Who holds the lock, as far as it is known.
        holder: Option<Holder>,
    },
    /// The wait is over, or there was none: this caller extracts.
    Extracting {
        /// Where the base will be; the folder, while only the source's end can tell its name.
        base: PathBuf,
    },
}

/// Who holds a lock, as it says itself. Information for a person, never evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id, in the holder's own pid namespace.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// Seconds since the Unix epoch at which the lock was taken.
    pub since: u64,
    /// What it is doing, as in "extracting disk-img.tar.zst".
    pub purpose: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on {}, {}",
            self.pid,
            self.host.escape_debug(),
            self.purpose.escape_debug()
        )
    }
}

/// Receives events; called on the thread that does the work, so it should return soon.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// The caller's hand on long work: cancel it, watch it.
#[derive(Clone, Default)]
pub struct Control {
    cancel: CancelToken,
    observer: Option<Observer>,
}

impl Control {
    /// Neither cancelled nor watched.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops when `cancel` says so.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Tells `observer` what happens.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// The token that stops this work.
    #[must_use]
    pub fn cancel_token(&self) -> &CancelToken {
        &self.cancel
    }

    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`] once the caller has cancelled.
    pub fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    /// Tells the observer, if there is one.
    pub fn emit(&self, event: &Event) {
        if let Some(observer) = &self.observer {
            observer(event);
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("cancel", &self.cancel)
            .field("observed", &self.observer.is_some())
            .finish()
    }
}
