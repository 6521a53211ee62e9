//! Random names: 64 bits from the kernel, so that two containers whose processes have the same
//! small ids never pick the same one.

use std::io;

/// Sixteen hexadecimal digits nobody else picks.
///
/// # Errors
///
/// The kernel gives no random bytes.
pub fn hex64() -> io::Result<String> {
    let word = getrandom::u64().map_err(|error| match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    })?;
    Ok(format!("{word:016x}"))
}
