//! Which image a program is for, and how it is written.
//!
//! ```text
//! drawn numbers ─▶ Shape::possible ─▶ options QEMU allows together
//!                                      ├▶ CreateOptions        our image
//!                                      ├▶ -o …                 QEMU's image
//!                                      └▶ base content         what a backing file holds
//! ```
//!
//! Callers: `program` and its parts.

use std::fmt;

use qcow2_format::create::{BackingFile, BackingFormat, CreateOptions};
use qcow2_format::header::{CompressionType, Version};
use qcow2_format::image::Preallocation;
use qcow2_format::{ClusterBits, RefcountOrder};

use super::Call;
use crate::model::{Fill, stamp};

/// When what was written is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Never; but every call leaves the file right.
    None,
    /// After a flush.
    Flush,
    /// After every call.
    Full,
}

/// What a call makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settles {
    /// Nothing.
    Nothing,
    /// What it changed.
    Change,
    /// Everything so far.
    All,
}

/// What an overlay stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// qcow2, or else raw.
    pub qcow2: bool,
    /// Its length in bytes.
    pub length: u64,
}

/// The options of an image and of its writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 2 or 3.
    pub version: u32,
    /// The cluster size, as an exponent.
    pub cluster_bits: u32,
    /// The refcount width.
    pub refcount_bits: u32,
    /// 16-byte L2 entries.
    pub extended_l2: bool,
    /// Refcounts postponed.
    pub lazy_refcounts: bool,
    /// zstd, or else deflate.
    pub zstd: bool,
    /// Bytes of the disk, whole sectors.
    pub disk: u64,
    /// What it stands on.
    pub backing: Option<Backing>,
    /// An external data file, raw or not.
    pub data_file: Option<bool>,
    /// Every cluster has its place from the start.
    pub preallocated: bool,
    /// What is durable when.
    pub durability: Durability,
    /// Zeros that are written become holes: never, as zeros, as unmapped zeros.
    pub detect_zeroes: u32,
    /// Discards do nothing.
    pub ignore_discards: bool,
    /// Caches so small that entries are evicted.
    pub small_caches: bool,
}

impl Shape {
    /// The nearest shape that QEMU allows.
    #[must_use]
    pub fn possible(mut self) -> Self {
        if self.version == 2 {
            self.refcount_bits = 16;
            (self.extended_l2, self.lazy_refcounts, self.zstd) = (false, false, false);
            self.data_file = None;
        }
        self.extended_l2 &= self.cluster_bits >= 14;
        if self.data_file == Some(true) {
            self.backing = None;
        }
        self.preallocated &= self.backing.is_none() || self.extended_l2;
        self
    }

    /// Bytes in a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that are written whole, or copied around what is written: a cluster or a subcluster.
    #[must_use]
    pub fn grain(&self) -> u64 {
        if self.extended_l2 { self.cluster() / 32 } else { self.cluster() }
    }

    /// Whether QEMU makes internal snapshots of it.
    #[must_use]
    pub fn can_snapshot(&self) -> bool {
        self.data_file.is_none() && self.refcount_bits > 1
    }

    /// The options in qemu-img's words; files are named as [`super::Lab`] names them.
    #[must_use]
    pub fn qemu_options(&self) -> String {
        let mut options = format!(
            "compat={},cluster_size={},refcount_bits={}",
            if self.version == 2 { "0.10" } else { "1.1" },
            self.cluster(),
            self.refcount_bits
        );
        for (set, option) in [
            (self.extended_l2, ",extended_l2=on"),
            (self.lazy_refcounts, ",lazy_refcounts=on"),
            (self.zstd, ",compression_type=zstd"),
            (self.data_file == Some(true), ",data_file_raw=on"),
            (self.preallocated, ",preallocation=metadata"),
        ] {
            if set {
                options.push_str(option);
            }
        }
        options
    }

    /// The options of a new image of ours. Its external data file is the lab's to name.
    #[must_use]
    pub fn create_options(&self) -> CreateOptions {
        let options = CreateOptions::new(self.disk)
            .version(if self.version == 2 { Version::V2 } else { Version::V3 })
            .cluster_bits(ClusterBits::new(self.cluster_bits).unwrap())
            .refcount_order(RefcountOrder::from_bits(self.refcount_bits).unwrap())
            .extended_l2(self.extended_l2)
            .lazy_refcounts(self.lazy_refcounts)
            .compression_type(if self.zstd { CompressionType::Zstd } else { CompressionType::Zlib })
            .preallocation(match self.preallocated {
                true => Preallocation::Metadata,
                false => Preallocation::Off,
            });
        match self.backing {
            None => options,
            Some(Backing { qcow2: false, .. }) => {
                options.backing(BackingFile::new("base", BackingFormat::Raw))
            }
            Some(Backing { qcow2: true, .. }) => {
                options.backing(BackingFile::new("base", BackingFormat::Qcow2))
            }
        }
    }

    /// What the backing file holds: stamped sectors, and some zeros.
    #[must_use]
    pub fn base(&self) -> Vec<u8> {
        let length = self.backing.map_or(0, |backing| backing.length);
        let mut base = stamp(0x7fff_ffff, 0, length, Fill::Word);
        for part in base.chunks_mut(512 * 7).skip(3).step_by(5) {
            part.fill(0);
        }
        base
    }

    /// What the new disk reads as.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let mut content = self.base();
        content.resize(self.disk as usize, 0);
        content
    }

    /// Which part of a discard must read as zeros afterwards: whole clusters, the disk's last one
    /// counting as whole.
    #[must_use]
    pub fn discarded(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        if self.ignore_discards {
            return None;
        }
        let start = offset.next_multiple_of(self.cluster());
        let end = match offset + length {
            end if end == self.disk => end,
            end => end - end % self.cluster(),
        };
        (start < end).then(|| (start, end - start))
    }

    /// Whether a discard may leave what was there: version 2 has no zero clusters to keep a backing
    /// file from showing through.
    #[must_use]
    pub fn may_keep_discarded(&self) -> bool {
        self.version == 2 && self.backing.is_some()
    }

    /// What is durable once `call` has succeeded, as far as the image promises anything. What an
    /// earlier call has failed to write is another matter, until a flush.
    #[must_use]
    pub fn settles(&self, call: &Call) -> Settles {
        use Call::{Compress, Discard, Kill, Write, Zero};
        match (call, self.durability) {
            (Kill, _) => Settles::Nothing,
            (Write { .. } | Zero { .. } | Discard { .. } | Compress { .. }, durability) => {
                if durability == Durability::Flush {
                    Settles::Nothing
                } else {
                    Settles::Change
                }
            }
            _ => Settles::All,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes, -o {}", self.disk, self.qemu_options())?;
        if let Some(Backing { qcow2, length }) = self.backing {
            write!(f, ", backing {} {length:#x}", if qcow2 { "qcow2" } else { "raw" })?;
        }
        if self.data_file.is_some() {
            f.write_str(", data file")?;
        }
        write!(f, ", durability {:?}", self.durability)?;
        if self.detect_zeroes > 0 {
            write!(f, ", detect-zeroes {}", ["off", "on", "unmap"][self.detect_zeroes as usize])?;
        }
        if self.ignore_discards {
            f.write_str(", discard ignored")?;
        }
        if self.small_caches {
            f.write_str(", small caches")?;
        }
        Ok(())
    }
}
