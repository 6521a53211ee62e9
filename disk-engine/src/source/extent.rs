//! Extents: the currency disk content is moved in.
//!
//! ```text
//! Disk { size }   Data { 0, 64 KiB }   Zero { 64 KiB, 1 GiB }   Data { … }   …   (nothing more)
//!                   └ read() into memory the sink lends, as often as it takes
//! ```
//!
//! A source is *pulled*: it names the next extent, and the bytes of a data extent are then read
//! into memory of the sink's choosing. So a decoder writes straight into the window the disk is
//! written from, and neither side knows the other's buffers. Extents come in guest order, without
//! gaps or overlaps, from zero to the disk's end.
//!
//! Caller: `transfer`, which pumps a source into a [`crate::sink::ExtentSink`].

use crate::disk::StoredRun;
use crate::error::{Error, ErrorKind, Result};

/// The next thing a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A disk begins at guest offset zero. Said once more, it takes back all that came before: in a
    /// stream the archive member that counts may be the later one.
    Disk(DiskShape),
    /// Bytes follow, to be read before the next extent is asked for.
    Data {
        /// Where they lie in the disk.
        offset: u64,
        /// How many there are; `None` if the source finds out by reading to its end.
        length: Option<u64>,
    },
    /// A range that reads as zeros.
    Zero {
        /// Where it lies in the disk.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
    },
}

/// What is known of a disk before its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskShape {
    /// Its size, where it is known.
    pub size: Option<u64>,
    /// Bytes its maker took for data and not for holes, where a sparse map says so.
    pub data: Option<u64>,
}

/// Something that holds a disk and is read once, front to back.
pub trait ExtentSource {
    /// The next extent; `None` once everything was said *and* verified to the source's last byte.
    ///
    /// # Errors
    ///
    /// The source is damaged, not handled, over a limit or cannot be read.
    fn next_extent(&mut self) -> Result<Option<Extent>>;

    /// Fills `bytes` with the next bytes of the data extent just named. Fewer mean that an extent
    /// of unknown length has ended; a stated length is kept or an error.
    ///
    /// # Errors
    ///
    /// As for [`ExtentSource::next_extent`].
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize>;

    /// Where the next bytes of the data extent just named lie in a file as they are, if they do.
    ///
    /// # Errors
    ///
    /// As for [`ExtentSource::next_extent`].
    fn stored(&self) -> Result<Option<StoredRun<'_>>> {
        Ok(None)
    }

    /// Passes over the next `count` bytes of the data extent just named, which were
    /// [stored](ExtentSource::stored) and need not be read.
    ///
    /// # Errors
    ///
    /// There are none to pass over.
    fn pass(&mut self, count: u64) -> Result<()> {
        let _ = count;
        Err(Error::new(ErrorKind::Io, "what has to be read was passed over"))
    }

    /// The data of the disk named last, offset and length, ascending, if all of it is known before
    /// its bytes and no other disk will take its place. What is called data may still be zeros.
    fn map(&self) -> Option<Vec<(u64, u64)>> {
        None
    }

    /// Bytes of the source seen so far, and how many there are if that is known: for progress.
    fn progress(&self) -> (u64, Option<u64>);
}
