//! The operating system, behind one surface. Nobody else in the crate uses `nix`.
//!
//! ```text
//! image_lock  the byte ranges QEMU locks in an image it has open
//! lock      advisory locks on open files, and who released what
//! pending   a new file: unnamed or under a random name, published complete or not at all
//! space     what a file takes and what its file system has left
//! random    names nobody else picks
//! ```

pub mod image_lock;
pub mod lock;
pub mod pending;
pub mod random;
pub mod space;
