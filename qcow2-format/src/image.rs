//! An image that is read: which part of the guest's disk is what, and its bytes.
//!
//! ```text
//! guest offset ─▶ L1 table ─▶ L2 slice ─▶ run    unallocated   the backing's, not known here
//!                 in memory   cached      │      zero          zeros
//!                                         │      data          the image's or data file's bytes
//!                                         └────▶ compressed    decoded, cached
//! ```
//!
//! Everything is positional and takes `&self`. What memory it takes is the active L1 table, two
//! caches of stated size and a request's own buffers.
//!
//! As in QEMU, what lies past the end of the file reads as zeros: a table there maps nothing, a
//! cluster there is zeros, a payload there does not decode. Whoever writes at the same time must
//! be another's worry: tables are read once and kept.
//!
//! Callers: disk-engine's `disk`.

mod cache;
pub mod check;
mod map;
mod options;
mod payload;
mod read;
mod tables;
mod usage;
mod write;

use crate::address::HostOffset;
use crate::error::{RequestError, Result, Unsupported};
use crate::feature::IncompatibleFeatures;
use crate::geometry::Geometry;
use crate::header::{CryptMethod, Header};
use crate::io::ReadAt;
use crate::l1::{L1Place, L1Table};
use crate::l2::L2Rules;
use crate::snapshot::Snapshot;

pub use map::{Run, RunKind, Runs};
pub use options::{ReadOptions, SnapshotSize};
pub use write::{
    DetectZeroes, Discard, Durability, LiveRuns, Preallocation, WritableImage, WriteOptions,
    ZeroMode,
};

use payload::Payloads;
use tables::Tables;

/// An image, or one of its snapshots, open for reading.
#[derive(Debug)]
pub struct Image<S> {
    storage: S,
    /// Where the guest's clusters lie, if not in the image.
    data: Option<S>,
    header: Header,
    snapshot: Option<Snapshot>,
    virtual_size: u64,
    tables: Tables,
    payloads: Payloads,
    threads: usize,
}

impl<S: ReadAt> Image<S> {
    /// Opens the image in `storage`, which holds its clusters itself.
    ///
    /// # Errors
    ///
    /// As [`Header::read`]; [`Error::Corrupt`](crate::Error::Corrupt) if the snapshot asked for or
    /// its L1 table breaks a rule; [`Unsupported::Encryption`];
    /// [`RequestError::NoSuchSnapshot`], [`RequestError::DataFileNeeded`].
    pub fn open(storage: S, options: &ReadOptions) -> Result<Self> {
        Self::open_parts(storage, None, options)
    }

    /// Opens the image in `storage`, whose guest clusters lie in `data`.
    ///
    /// # Errors
    ///
    /// As [`Image::open`]; [`RequestError::DataFileUnexpected`] if the image has no data file.
    pub fn open_with_data(storage: S, data: S, options: &ReadOptions) -> Result<Self> {
        Self::open_parts(storage, Some(data), options)
    }

    fn open_parts(storage: S, data: Option<S>, options: &ReadOptions) -> Result<Self> {
        let header = Header::read(&storage)?;
        let method = match header.crypt_method() {
            CryptMethod::None => None,
            CryptMethod::Aes => Some("aes"),
            CryptMethod::Luks => Some("luks"),
        };
        if let Some(method) = method {
            return Err(Unsupported::Encryption { method }.into());
        }
        header.check_data_file()?;
        let external = IncompatibleFeatures::EXTERNAL_DATA_FILE;
        let external_data = header.incompatible_features().contains(external);
        match (external_data, data.is_some()) {
            (true, false) => return Err(RequestError::DataFileNeeded.into()),
            (false, true) => return Err(RequestError::DataFileUnexpected.into()),
            _ => {}
        }
        let snapshot = match &options.snapshot {
            None => None,
            Some(name) => Some(Snapshot::find(&storage, &header, name)?),
        };
        let (place, size) = match &snapshot {
            None => (active_l1(&header), None),
            Some(snapshot) => match options.size {
                SnapshotSize::Own => (snapshot.l1_place(), snapshot.disk_size),
                SnapshotSize::Active => (snapshot.l1_place(), None),
            },
        };
        let geometry = header.geometry();
        // A size no L1 table maps is a lie; what it exceeds would be unallocated anyway.
        let virtual_size = size.unwrap_or(header.virtual_size()).min(geometry.max_virtual_size());
        let l1 = L1Table::read(&storage, place, geometry, virtual_size)?;
        let rules = L2Rules { geometry, version: header.version(), external_data };
        Ok(Self {
            tables: Tables::new(l1, rules, options),
            payloads: Payloads::new(header.compression_type(), geometry, options),
            threads: options.threads,
            storage,
            data,
            header,
            snapshot,
            virtual_size,
        })
    }

    /// The image's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The snapshot that is read, if it is one.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Size of the disk in bytes: the snapshot's own, if one is read and no other is asked for.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Whether refcounts may be wrong. That does not change what is read.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.header.incompatible_features().contains(IncompatibleFeatures::DIRTY)
    }

    /// Whether the image is marked corrupt: what is read may be anything.
    #[must_use]
    pub fn is_marked_corrupt(&self) -> bool {
        self.header.incompatible_features().contains(IncompatibleFeatures::CORRUPT)
    }

    /// The storage of the image itself.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage that [`RunKind::Data`] lies in: the external data file, else the image.
    #[must_use]
    pub fn data_storage(&self) -> &S {
        self.data.as_ref().unwrap_or(&self.storage)
    }

    fn geometry(&self) -> Geometry {
        self.header.geometry()
    }

    /// That `length` bytes from `offset` on are on the disk.
    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.virtual_size;
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(RequestError::OutOfRange { offset, length, size }.into())
    }
}

fn active_l1(header: &Header) -> L1Place {
    L1Place {
        at: HostOffset(header.l1_table_offset().to_u64()),
        entries: header.l1_size(),
        offset_field: ("l1_table_offset", 40),
        size_field: ("l1_size", 36),
    }
}

#[cfg(test)]
mod tests;
