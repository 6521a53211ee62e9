//! Progress as qemu-img shows it.
//!
//! ```text
//! -p          "    (12.34/100%)\r" on standard output, every two percent
//! without     "    (12.34/100%)\n" on standard error, whenever SIGUSR1 asks
//! ```
//!
//! Callers: `convert`, `compare`.

use std::sync::{Mutex, PoisonError};

use super::{print, tell};
use crate::control::{Control, Event};
use crate::sys::signal::ProgressRequests;

/// Shows how far work is, of which `place` tells: how much is done, and of how much. Call it before
/// there are threads.
pub(super) fn shown(
    drawn: bool,
    place: impl Fn(&Event) -> Option<(u64, u64)> + Send + Sync + 'static,
) -> Control {
    let asked = if drawn { None } else { ProgressRequests::listen() };
    let last = Mutex::new(0.0);
    Control::new().with_observer(move |event| {
        let Some((done, whole)) = place(event) else { return };
        #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
        let percent = done as f64 * 100.0 / whole.max(1) as f64;
        if drawn {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if percent >= *last + 2.0 && percent < 100.0 {
                *last = percent;
                print(&format!("    ({percent:.2}/100%)\r"));
            }
        } else if asked.as_ref().is_some_and(ProgressRequests::again) {
            tell(&format!("    ({percent:.2}/100%)\n"));
        }
    })
}
