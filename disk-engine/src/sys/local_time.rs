//! A moment as the clock on the wall shows it: `localtime_r`.
//!
//! Callers: `cli::qemu_img`.

use nix::libc;

/// Seconds since 1970 as `2026-11-23 13:08:25`, in the time zone of this process. A moment that no
/// calendar has is its number.
#[must_use]
pub fn of(seconds: i64) -> String {
    // All zeros is a valid `tm`: numbers, and a pointer that may be null.
    #[expect(unsafe_code, reason = "there is no safe form")]
    // SAFETY: see above; `localtime_r` reads one number and writes one `tm`, both ours, and keeps neither.
    let broken_down = unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        (!libc::localtime_r(&raw const seconds, &raw mut time).is_null()).then_some(time)
    };
    match broken_down {
        None => seconds.to_string(),
        Some(time) => format!(
            "{}-{:02}-{:02} {:02}:{:02}:{:02}",
            i64::from(time.tm_year) + 1900,
            time.tm_mon + 1,
            time.tm_mday,
            time.tm_hour,
            time.tm_min,
            time.tm_sec
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_a_date() {
        // Wherever we are, that is in one of two years.
        let text = of(0);
        assert!(text.starts_with("1970-01-01 ") || text.starts_with("1969-12-31 "), "{text}");
        assert_eq!(text.len(), 19);
        assert_ne!(of(1), of(0));
    }
}
