//! The qcow2 disk image format, in pure Rust: headers, new images, images read and written.
//!
//! The specification is QEMU's `docs/interop/qcow2.txt`; names here are its names, and the docs of
//! each item give its section.
//!
//! ```text
//! bytes ─▶ raw ─▶ header, feature, extension ─┬▶ create ─▶ bytes
//!          records  meaning, checked            │  layout, then writes
//!                  l1, l2, compressed, snapshot ┴▶ image ─▶ runs, guest bytes
//!                                               refcount ─▶ image::write, in order
//! ```
//!
//! Three kinds of trouble are told apart in [`Error`]: the storage failed, the image contradicts
//! the specification, or the image is fine and needs something this library does not do.
//!
//! An overlay in memory, byte for byte what `qemu-img create -f qcow2 -b /images/base.img -F raw`
//! would write:
//!
//! ```
//! use qcow2_format::create::{BackingFile, BackingFormat, CreateOptions};
//! use qcow2_format::{Header, Memory};
//!
//! let image = CreateOptions::new(50 << 30)
//!     .backing(BackingFile::new("/images/base.img", BackingFormat::Raw))
//!     .plan()?;
//! let storage = Memory::default();
//! image.write_to(&storage)?;
//!
//! let header = Header::read(&storage)?;
//! assert_eq!(header.virtual_size(), 50 << 30);
//! assert_eq!(header.backing_file(), Some(&b"/images/base.img"[..]));
//! # Ok::<(), qcow2_format::Error>(())
//! ```
//!
//! An image that is written is whole at every instant: killed anywhere, a process leaves at worst
//! clusters that nobody uses.
//!
//! ```
//! use qcow2_format::image::ZeroMode;
//! use qcow2_format::{CreateOptions, GuestOffset, Memory, WritableImage, WriteOptions};
//!
//! let storage = Memory::default();
//! CreateOptions::new(1 << 30).plan()?.write_to(&storage)?;
//!
//! let image = WritableImage::open(&storage, &WriteOptions::new())?;
//! image.write_at(b"to be kept", GuestOffset(512 << 20))?;
//! image.write_zeroes(GuestOffset(0), 1 << 20, ZeroMode::Unmap)?;
//! image.flush()?;
//!
//! let mut bytes = [0; 10];
//! image.read_at(&mut bytes, GuestOffset(512 << 20))?;
//! assert_eq!(&bytes, b"to be kept");
//! image.close()?;
//! # Ok::<(), qcow2_format::Error>(())
//! ```
//!
//! The library knows no paths, locks or processes: it works on [`ReadAt`] and [`WriteAt`]. Who else
//! has the file open is the caller's to know.
#![forbid(unsafe_code)]

pub mod address;
pub mod bitmap;
pub mod compressed;
pub mod create;
pub mod error;
pub mod feature;
pub mod geometry;
pub mod header;
pub mod image;
pub mod io;
pub mod l1;
pub mod l2;
pub mod luks;
pub mod snapshot;

mod raw;
mod refcount;

pub use address::{GuestCluster, GuestOffset, HostCluster, HostOffset};
pub use create::{CreateOptions, ImageFiller};
pub use error::{Error, Result};
pub use geometry::{ClusterBits, Geometry, RefcountOrder};
pub use header::Header;
pub use image::{Durability, Image, ReadOptions, WritableImage, WriteOptions};
pub use io::{Memory, ReadAt, WriteAt};
