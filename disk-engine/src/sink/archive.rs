//! The way back: a disk as a sparse member of a compressed archive.
//!
//! ```text
//! pass 1   disk ─▶ map        all cores look for blocks that hold anything
//! pass 2   map ─▶ stream ─▶ whole    one zstd frame, compressed by libzstd's threads
//!                        └▶ frames   independent frames, each by one thread, and a seek table
//!
//! uncompressed   ┌─────────────────┬──────┬──────┬─────┬──────┬─────────────────┐
//!                │ header with map │ data │ data │  …  │ data │ zeros to 10,240 │
//!                └─────────────────┴──────┴──────┴─────┴──────┴─────────────────┘
//! ```
//!
//! Once the map is there every byte of the stream has its place, so that any of its ranges can be
//! made alone: that is how frames are made by many threads at once. The bytes depend on the disk's
//! content and the options alone: not on the number of threads, not on which zeros the file system
//! knows to be holes.
//!
//! ```text
//! map       which blocks hold data, and what their bytes summed up to
//! header    tar's headers: GNU sparse, or plain where there is no hole
//! stream    the uncompressed archive, from anywhere
//! zstd      the parameters of libzstd, and its errors
//! whole     one frame
//! frames    many frames, made by many threads, delivered in order
//! seekable  the seek table of the zstd seekable format
//! output    written, counted and hashed
//! ```
//!
//! Caller: `ops::pack`.

pub(crate) mod frames;
pub(crate) mod header;
pub(crate) mod map;
pub(crate) mod output;
pub(crate) mod seekable;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod whole;
pub(crate) mod zstd;
