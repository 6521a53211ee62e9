//! What a transfer tells of itself when it is done.
//!
//! ```text
//! wrote 65536/65536 bytes at offset 0
//! 64 KiB, 1 ops; 00.00 sec (1.250 GiB/sec and 20000.0000 ops/sec)
//!
//! 65536,1,0:00:00.00,1342177280.000,20000.000                          with -C
//! ```
//!
//! Callers: `read`, `write`.

use std::fmt;
use std::time::Duration;

use crate::cli::io::number::{rate, shown};

/// A transfer that is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// What was done, as qemu-io calls it.
    pub(super) verb: &'static str,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) elapsed: Duration,
    /// Whether a program reads it.
    pub(super) terse: bool,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, offset, length, elapsed, terse } = *self;
        // A clock may not have moved.
        let seconds = elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "few digits are shown")]
        let bytes = length as f64 / seconds;
        let operations = 1.0 / seconds;
        if terse {
            return write!(f, "{length},1,{},{bytes:.3},{operations:.3}", long(elapsed));
        }
        let time = if elapsed.as_secs() < 60 {
            format!("{:02}.{:02} sec", elapsed.as_secs(), hundredths(elapsed))
        } else {
            long(elapsed)
        };
        writeln!(f, "{verb} {length}/{length} bytes at offset {offset}")?;
        write!(
            f,
            "{}, 1 ops; {time} ({}/sec and {operations:.4} ops/sec)",
            shown(length),
            rate(bytes)
        )
    }
}

fn long(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}.{:02}", seconds % 60, hundredths(elapsed))
}

fn hundredths(elapsed: Duration) -> u32 {
    elapsed.subsec_millis() / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_for_people_and_for_programs() {
        let mut done = Done {
            verb: "read",
            offset: 512,
            length: 1536,
            elapsed: Duration::from_millis(1500),
            terse: false,
        };
        assert_eq!(
            done.to_string(),
            "read 1536/1536 bytes at offset 512\n\
             1.500 KiB, 1 ops; 01.50 sec (1 KiB/sec and 0.6667 ops/sec)"
        );
        done.elapsed = Duration::from_secs(3_723);
        assert!(done.to_string().contains("; 1:02:03.00 ("), "{done}");
        done.terse = true;
        assert_eq!(done.to_string(), "1536,1,1:02:03.00,0.413,0.000");
    }
}
