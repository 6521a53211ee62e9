//! One compressed image archive in, any number of thin VM disks out.
//!
//! ```text
//! source ─▶ transfer ─▶ sink                 an archive or image, extracted to a sparse raw file
//!   cache ─▶ base ◀─ overlay ─▶ attachment   extracted once per host, shared, overlaid, attached
//! ```
//!
//! ```no_run
//! use disk_engine::attachment::{Disk, qemu};
//! use disk_engine::ImageCache;
//!
//! let cache = ImageCache::open("/var/tmp/bases")?;
//! let base = cache.base("disk-img.tar.zst")?; // extracted once, whoever asks; others wait
//! let overlay = base.overlay("vm0.qcow2").min_size(50 << 30).reuse(true).create()?;
//! let disk = Disk::overlay(overlay.path(), &base)?;
//! println!("{:?}", qemu::arguments(&[disk], qemu::Form::Blockdev)?);
//! # Ok::<(), disk_engine::Error>(())
//! ```
//!
//! - [`ops`] has the verbs: [`ops::prepare`] is the main job in one call.
//! - [`cache`] tells how many processes share a folder of bases, and what holds when they are
//!   killed.
//! - [`source`] tells what is read, and within which limits.
//! - [`strategy`] tells how a disk is made of a base: overlay, reflink or copy.
//! - [`overlay`] and [`attachment`] tell what a VM gets.
//! - [`Error`] has a kind to match on, and keeps path, field, offset, hint and cause.
//!
//! # Features
//!
//! `gzip` and `xz` read sources compressed that way; zstd is always there. `cli` is the binary
//! and what only a command line needs. All three are on by default; a library user takes
//! `default-features = false` and adds what it wants. No feature changes what another does.
//!
//! The library prints nothing, starts no process (but [`ops::boot`]), and reads neither `HOME` nor
//! `TMPDIR`. Linux only.
#![deny(unsafe_code)]

pub mod attachment;
pub mod base;
pub mod cache;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config_disk;
pub mod control;
pub mod digest;
pub mod disk;
pub mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod ops;
pub mod overlay;
pub mod sink;
pub mod source;
pub mod strategy;
pub mod sys;
pub mod transfer;

pub use base::{BaseFormat, BaseImage};
pub use cache::{BaseOptions, CachedBase, ImageCache, KeyPolicy, Origin};
pub use control::{CancelToken, Control, Event, Holder};
pub use digest::Sha256Digest;
pub use error::{Error, ErrorKind, Result};
pub use overlay::Overlay;
pub use source::Source;
pub use strategy::{ProvidedDisk, Strategy};
pub use sys::pending::{Durability, Existing};

/// The README's Rust is compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
