//! The operating system, behind one surface. Nobody else in the crate uses `nix`.
//!
//! ```text
//! attribute notes kept beside a file's bytes
//! copy      bytes from file to file inside the kernel
//! fiemap    whether a file shares its storage
//! file_system  what a file lies on: its name, its mount, its size
//! fresh     a block device as a new file
//! host      who and where we are: user, host, boot
//! image_file  the file an image lies in: written, zeroed, punched, flushed
//! image_lock  the byte ranges QEMU locks in an image it has open
//! local_time  a moment as the clock on the wall shows it
//! lock      advisory locks on open files, and who released what
//! mount     what is mounted where, with which options
//! open      files that may not be what their names say
//! owner     giving a new file to another user
//! pending   a new file: unnamed or under a random name, published complete or not at all
//! reflink   two files, one storage
//! sparse    where a file has data and where it has holes
//! space     what a file takes and what its file system has left
//! random    names nobody else picks
//! signal    a limit on file sizes as an error, not as an end; who asks how far work is
//! ```

pub mod attribute;
pub mod copy;
pub mod fiemap;
pub mod file_system;
mod fresh;
pub mod host;
pub mod image_file;
pub mod image_lock;
pub mod local_time;
pub mod lock;
pub mod mount;
pub mod open;
pub mod owner;
pub mod pending;
pub mod random;
pub mod reflink;
pub mod signal;
pub mod space;
pub mod sparse;
