//! The disk's bytes.
//!
//! ```text
//! request  │ run: data │ run: zero │ run: compressed          │ run: unallocated │
//!          │ one read  │ filled    │ ┌ thread ┐ ┌ thread ┐ …  │ handed below     │
//! ```
//!
//! Compressed clusters of a large request are decoded by several threads, each taking the next
//! cluster. Callers: disk-engine's `disk`.

use std::sync::{Mutex, PoisonError};
use std::{mem, thread, vec};

use crate::address::GuestOffset;
use crate::error::{Error, RequestError, Result};
use crate::image::payload::Wanted;
use crate::image::tables::Part;
use crate::image::{Image, RunKind};
use crate::io::ReadAt;
use crate::l2::ClusterKind;

/// What each thread should have to decode, in bytes: starting one costs as much as decoding some
/// 16 KiB.
const BYTES_PER_THREAD: usize = 128 << 10;

impl<S: ReadAt + Sync> Image<S> {
    /// Fills `buffer` from `offset` on. What the image leaves to its backing file is handed to
    /// `below`, part by part in rising order; it may end before this disk does.
    ///
    /// # Errors
    ///
    /// What `below` says; [`Error::Io`] from the storage; [`Error::Corrupt`] where a table entry
    /// breaks a rule or a compressed cluster does not decode;
    /// [`Unsupported::CompressionLeftOut`](crate::error::Unsupported);
    /// [`RequestError::OutOfRange`](crate::error::RequestError). The buffer may be filled in part.
    pub fn read_over<E: From<Error>>(
        &self,
        buffer: &mut [u8],
        offset: GuestOffset,
        mut below: impl FnMut(&mut [u8], GuestOffset) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_range(offset.0, buffer.len() as u64)?;
        let mut at = offset.0;
        let mut rest = buffer;
        while !rest.is_empty() {
            let run = self.run_at(GuestOffset(at), rest.len() as u64)?;
            let length = usize::try_from(run.length).unwrap_or(usize::MAX).min(rest.len());
            let all = mem::take(&mut rest);
            if run.kind == RunKind::Compressed {
                let filled = self.read_compressed(all.get_mut(..length).unwrap_or_default(), at)?;
                at = at.saturating_add(filled as u64);
                rest = all.get_mut(filled..).unwrap_or_default();
                continue;
            }
            let (part, behind) = all.split_at_mut(length);
            match run.kind {
                RunKind::Unallocated { .. } => below(part, GuestOffset(at))?,
                RunKind::Zero { .. } => part.fill(0),
                RunKind::Data { host } => {
                    let count = self
                        .data_storage()
                        .read_full_at(part, host.0)
                        .map_err(Error::io("read guest data", host.0))?;
                    part.get_mut(count..).unwrap_or_default().fill(0);
                }
                RunKind::Compressed => {}
            }
            at = at.saturating_add(length as u64);
            rest = behind;
        }
        Ok(())
    }

    /// As [`Image::read_over`], of an image that stands alone: what is unallocated reads as zeros.
    ///
    /// # Errors
    ///
    /// As [`Image::read_over`];
    /// [`RequestError::BackingFileNeeded`](crate::error::RequestError) for what the image leaves to
    /// the backing file that its header names.
    pub fn read_at(&self, buffer: &mut [u8], offset: GuestOffset) -> Result<()> {
        self.read_over(buffer, offset, |part, at| self.nothing_below(part, at))
    }

    /// What lies below an image that stands alone.
    pub(super) fn nothing_below(&self, part: &mut [u8], at: GuestOffset) -> Result<()> {
        if self.header.backing_file().is_some() {
            return Err(RequestError::BackingFileNeeded { offset: at.0 }.into());
        }
        part.fill(0);
        Ok(())
    }

    /// Fills as much of `buffer` as is compressed; says how much that was. It may be less than a
    /// look at the tables said before: somebody may write meanwhile.
    fn read_compressed(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let wanted = self.wanted(buffer, offset)?;
        let bytes: usize = wanted.iter().map(|wanted| wanted.into.len()).sum();
        let threads = self.threads.min(wanted.len()).min(bytes / BYTES_PER_THREAD);
        let keep = self.payloads.keeps(wanted.len());
        let wanted = Mutex::new(wanted.into_iter());
        let queue = Queue { wanted, keep, error: Mutex::new(None) };
        if threads < 2 {
            self.work(&queue);
        } else {
            thread::scope(|scope| {
                for _ in 1..threads {
                    // A thread that cannot be had is done without.
                    let _ = thread::Builder::new().spawn_scoped(scope, || self.work(&queue));
                }
                self.work(&queue);
            });
        }
        match queue.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(bytes),
        }
    }

    /// The parts of compressed clusters that fill `buffer`, up to the first that is none.
    fn wanted<'a>(&self, buffer: &'a mut [u8], offset: u64) -> Result<Vec<Wanted<'a>>> {
        let cluster_bits = self.geometry().cluster_bits;
        let mut all = Vec::new();
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let Part::Slice { slice, end } = self.tables.part(&self.storage, at)? else { break };
            while at < end && !rest.is_empty() {
                let ClusterKind::Compressed { descriptor } = slice.entry(at)?.kind else {
                    return Ok(all);
                };
                let skip = cluster_bits.offset_in_cluster(at);
                let length = usize::try_from(cluster_bits.bytes() - skip).unwrap_or(usize::MAX);
                let length = length.min(rest.len());
                let (into, behind) = mem::take(&mut rest).split_at_mut(length);
                let guest = GuestOffset(at - skip);
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                all.push(Wanted { descriptor, guest, skip, into });
                at = at.saturating_add(length as u64);
                rest = behind;
            }
        }
        Ok(all)
    }

    fn work(&self, queue: &Queue<'_>) {
        let mut decoder = self.payloads.decoder();
        while let Some(wanted) = queue.next() {
            let guest = wanted.guest;
            if let Err(error) = self.payloads.read(&self.storage, &mut decoder, wanted, queue.keep)
            {
                queue.fail(guest, error);
            }
        }
        self.payloads.give_back(decoder);
    }
}

/// What is still to be decoded.
struct Queue<'a> {
    wanted: Mutex<vec::IntoIter<Wanted<'a>>>,
    /// Whether whole clusters are kept as well.
    keep: bool,
    /// The error of the lowest cluster, so that the same image gives the same error.
    error: Mutex<Option<(GuestOffset, Error)>>,
}

impl<'a> Queue<'a> {
    /// The next cluster; none after an error: those below it are taken already.
    fn next(&self) -> Option<Wanted<'a>> {
        let failed = self.error.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if failed {
            return None;
        }
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    fn fail(&self, guest: GuestOffset, error: Error) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(before, _)| guest < *before) {
            *first = Some((guest, error));
        }
    }
}
