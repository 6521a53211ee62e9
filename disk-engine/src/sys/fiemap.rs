//! Whether a file's storage is its own: the `FS_IOC_FIEMAP` call and its `SHARED` flag.
//!
//! ```text
//! byte 0       8        16      20       24      28          32
//!      [ start ][ length ][ flags ][ mapped ][ count ][ reserved ][ extents, 56 bytes each … ]
//! ```
//!
//! Callers: `strategy`, for its report.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// How many extents are looked at: one call. On btrfs each costs a walk of back references.
const EXTENTS: u32 = 128;
/// `FIEMAP_FLAG_SYNC`: what has no place yet gets one first.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_SHARED`.
const SHARED: u32 = 0x2000;

#[repr(C)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Header>() == 32);

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_long: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}
const _: () = assert!(size_of::<Extent>() == 56);

#[repr(C)]
struct Request {
    header: Header,
    extents: [Extent; EXTENTS as usize],
}
// No padding between them: the kernel writes extents right behind the header.
const _: () = assert!(size_of::<Request>() == 32 + 56 * EXTENTS as usize);

mod call {
    #![allow(unsafe_code, missing_docs, reason = "the macro declares an unsafe function")]
    nix::ioctl_readwrite!(fiemap, b'f', 11, super::Header);
}

/// Whether any of the file's first 128 extents is shared with another file. `None` where the file
/// system does not tell, or the file has no extents. What is not written yet gets its place first.
///
/// # Errors
///
/// What the system says.
pub fn shares_storage(file: &File) -> io::Result<Option<bool>> {
    let mut request = Request {
        header: Header {
            start: 0,
            length: u64::MAX,
            flags: SYNC,
            mapped: 0,
            count: EXTENTS,
            reserved: 0,
        },
        extents: [Extent::default(); EXTENTS as usize],
    };
    #[expect(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: the descriptor is open while the reference lives. The pointer is to the whole
    // request, so the kernel may write the `count` extents it is told of, which lie right behind
    // the header.
    let outcome = unsafe { call::fiemap(file.as_raw_fd(), (&raw mut request).cast::<Header>()) };
    match outcome {
        Ok(_) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mapped = usize::try_from(request.header.mapped.min(EXTENTS)).unwrap_or(0);
    let extents = request.extents.get(..mapped).unwrap_or_default();
    Ok((!extents.is_empty()).then(|| extents.iter().any(|extent| extent.flags & SHARED != 0)))
}
