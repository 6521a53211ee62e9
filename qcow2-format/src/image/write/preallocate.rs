//! A place for every cluster of the disk, before anybody writes to it.
//!
//! ```text
//! metadata   tables and refcounts for all of it; the file as long as that needs, and sparse
//! falloc     and the space taken from the file system
//! full       and zeros written to it
//! ```
//!
//! With extended L2 entries clusters have their place and are unallocated all the same, so that a
//! backing file is read through them. Callers: `create`.

use crate::address::HostOffset;
use crate::error::{Error, Result};
use crate::image::write::WritableImage;
use crate::io::WriteAt;
use crate::l2::{L2Entry, SubclusterBitmap};

/// How much of a new image's space is taken when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// None: clusters are taken when they are written.
    #[default]
    Off,
    /// Every cluster has its place; the file is sparse.
    Metadata,
    /// As `Metadata`, and the file system has set the space aside.
    Falloc,
    /// As `Metadata`, and zeros are written to all of it.
    Full,
}

/// What is written at once.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl<S: WriteAt + Sync> WritableImage<S> {
    /// Gives every cluster of the disk, none of which has one, a place.
    pub(crate) fn preallocate(&self, preallocation: Preallocation) -> Result<()> {
        if preallocation == Preallocation::Off {
            return Ok(());
        }
        let (storage, data) = (&self.image.storage, self.image.data_storage());
        let bytes = self.image.geometry().cluster_bits.bytes();
        // Subclusters stay unallocated, as QEMU leaves them: what is below shows through.
        let bitmap = SubclusterBitmap(0);
        let mut state = self.lock();
        self.begin(&mut state)?;
        let (mut guest, end) = (0, self.clusters_end());
        while guest < end {
            let wanted = (self.view(guest)?.end().min(end) - guest) / bytes;
            self.own_table(&mut state, guest)?;
            // In a data file of its own the guest's cluster has the place its offset says.
            let (host, clusters) = match self.image.data {
                Some(_) => (HostOffset(guest), wanted),
                None => {
                    let room = state.allocate(storage, wanted)?;
                    (room.host, room.clusters)
                }
            };
            let entries: Vec<_> = (0..clusters)
                .map(|index| HostOffset(host.0.saturating_add(index * bytes)))
                .map(|host| (L2Entry::standard(host), bitmap))
                .collect();
            self.change_entries(&mut state, guest, &entries)?;
            self.relieve(&mut state)?;
            let (start, length) = (host.0, clusters * bytes);
            // QEMU takes no more of a data file than is ever written, and no more of an image whose
            // clusters are only named.
            let ends = self.image.data.is_some() || preallocation == Preallocation::Metadata;
            let used = self.written_end().saturating_sub(guest);
            let taken = if ends { length.min(used) } else { length };
            take(data, preallocation, start, taken)
                .map_err(Error::io("take space for the image", start))?;
            guest += length;
        }
        self.settle(&mut state)
    }

    /// Where the last subcluster of the disk ends, or the last cluster.
    fn written_end(&self) -> u64 {
        let size = self.image.geometry().subcluster_bytes();
        self.virtual_size().checked_next_multiple_of(size).unwrap_or(u64::MAX)
    }
}

fn take(
    storage: &impl WriteAt,
    preallocation: Preallocation,
    start: u64,
    length: u64,
) -> std::io::Result<()> {
    match preallocation {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => {
            let end = start.saturating_add(length);
            if storage.length()? < end { storage.set_length(end) } else { Ok(()) }
        }
        Preallocation::Falloc => storage.allocate_at(start, length),
        Preallocation::Full => {
            let (mut at, mut left) = (start, length);
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                storage.write_all_at(ZEROS.get(..count).unwrap_or_default(), at)?;
                at = at.saturating_add(count as u64);
                left = left.saturating_sub(count as u64);
            }
            Ok(())
        }
    }
}
