//! Signals that would end the process where an error can be told.

use nix::sys::signal::{SigSet, Signal};

/// Blocks `SIGXFSZ` in this thread and those it starts: a file that grows past `ulimit -f` then is an
/// error of the call that grows it (`EFBIG`). For programs; a library leaves signals alone.
pub fn survive_file_size_limit() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    // Where it cannot be blocked, it ends the process as before.
    let _ = signals.thread_block();
}
