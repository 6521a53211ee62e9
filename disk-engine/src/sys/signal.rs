//! Signals that would end the process where an error or an answer can be told. For programs; a library
//! leaves signals alone.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks `SIGXFSZ` in this thread and those it starts: a file that grows past `ulimit -f` then is an
/// error of the call that grows it (`EFBIG`).
pub fn survive_file_size_limit() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    // Where it cannot be blocked, it ends the process as before.
    let _ = signals.thread_block();
}

/// Whether somebody asks by `SIGUSR1` how far work is; it ends the process no more.
#[derive(Debug)]
pub struct ProgressRequests(SignalFd);

impl ProgressRequests {
    /// From now on, in this thread and those it starts. `None` where there is no descriptor for that:
    /// then the signal is left as it is.
    #[must_use]
    pub fn listen() -> Option<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGUSR1);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let requests = SignalFd::with_flags(&signals, flags).ok()?;
        signals.thread_block().ok()?;
        Some(Self(requests))
    }

    /// Whether it was asked since the last time.
    #[must_use]
    pub fn again(&self) -> bool {
        let mut asked = false;
        while let Ok(Some(_)) = self.0.read_signal() {
            asked = true;
        }
        asked
    }
}
