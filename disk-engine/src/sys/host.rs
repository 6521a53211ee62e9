//! Who and where we are: user, host, boot.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// The user on whose behalf files are opened.
#[must_use]
pub fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The host's name, or `?` where it has none a person could read.
#[must_use]
pub fn name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "?".to_owned())
}

/// The number of the mount namespace this process looks at files in; `None` where `/proc` does not say.
#[must_use]
pub fn mount_namespace() -> Option<u64> {
    static NAMESPACE: OnceLock<Option<u64>> = OnceLock::new();
    *NAMESPACE.get_or_init(|| fs::metadata("/proc/self/ns/mnt").ok().map(|link| link.ino()))
}

/// One boot of one machine, told apart from every other by 128 random bits of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

/// Where the kernel tells the boot.
pub const BOOT_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The running boot; `None` where `/proc` does not say.
///
/// # Errors
///
/// It might have said: no descriptors, no memory.
pub fn boot() -> io::Result<Option<BootId>> {
    match fs::read_to_string(BOOT_PATH) {
        Ok(text) => Ok(parse(&text)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a UUID as the kernel prints it.
fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim_end().chars().filter(|&letter| letter != '-').collect();
    let wanted = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| wanted)?;
    Some(BootId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_named_by_a_whole_uuid_and_nothing_less() {
        assert_eq!(
            parse("00112233-4455-6677-8899-aabbccddeeff\n"),
            Some(BootId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes()))
        );
        for text in ["", "00112233", "+0112233-4455-6677-8899-aabbccddeeff", "é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
