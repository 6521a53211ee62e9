//! What a lock file says about its holder: four lines, for a person who waits.
//!
//! ```text
//! pid 4711
//! host builder-7
//! since 1700000000        seconds since 1970
//! purpose extracting /images/disk-img.tar.zst
//! ```
//!
//! Information, never evidence: only the lock itself says whether anyone holds it.

use std::fs::File;
use std::io::Read;
use std::time::SystemTime;

use crate::control::Holder;
use crate::sys::host;

/// Longest text that is written or read, in bytes.
const TEXT_MAX: usize = 4096;

/// The text of a holder: this process.
pub(crate) fn describe(purpose: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let purpose = purpose.get(..purpose.floor_char_boundary(TEXT_MAX / 2)).unwrap_or("");
    format!(
        "pid {}\nhost {}\nsince {}\npurpose {}\n",
        std::process::id(),
        host::name(),
        now.as_secs(),
        purpose.replace('\n', " ")
    )
}

/// Whoever the lock file names.
pub(crate) fn read(file: &File) -> Option<Holder> {
    let mut text = String::new();
    file.take(TEXT_MAX as u64).read_to_string(&mut text).ok()?;
    parse(&text)
}

/// Reads the four lines; `None` unless they are all there, since they may be half written.
pub(crate) fn parse(text: &str) -> Option<Holder> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    Some(Holder {
        pid: value("pid")?.parse().ok()?,
        host: value("host")?.to_owned(),
        since: value("since")?.parse().ok()?,
        purpose: value("purpose")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_read_as_they_are_written_and_not_by_halves() {
        let text = describe("extracting a\nb");
        let holder = parse(&text).unwrap();
        assert_eq!(holder.purpose, "extracting a b");
        for at in 0..text.len() {
            assert_eq!(parse(&text[..at]), None, "{at}");
        }
    }
}
