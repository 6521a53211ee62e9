//! A storage that is not written to: what would be is kept in memory.
//!
//! ```text
//! write ─▶ pages in memory ◀─ read ─▶ storage, where there is no page
//! ```
//!
//! A repair that is only planned runs on it, so that the plan is made by the code that carries it
//! out. Callers: `repair`.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::io::{ReadAt, WriteAt, zeroed};

const PAGE: usize = 4096;

#[derive(Debug)]
pub(super) struct Draft<'a, S> {
    storage: &'a S,
    written: RwLock<Written>,
    /// Pages at most.
    capacity: usize,
}

#[derive(Debug)]
struct Written {
    pages: BTreeMap<u64, Vec<u8>>,
    length: u64,
}

impl<'a, S: ReadAt> Draft<'a, S> {
    /// Keeps at most about `memory` bytes.
    pub(super) fn new(storage: &'a S, memory: u64) -> io::Result<Self> {
        let written = Written { pages: BTreeMap::new(), length: storage.length()? };
        let capacity = usize::try_from(memory / PAGE as u64).unwrap_or(usize::MAX);
        Ok(Self { storage, written: RwLock::new(written), capacity })
    }

    fn written(&self) -> RwLockReadGuard<'_, Written> {
        self.written.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, Written> {
        self.written.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page of `offset`, and how far behind its start that lies.
fn place(offset: u64) -> (u64, usize) {
    // The rest is below a page.
    (offset / PAGE as u64, usize::try_from(offset % PAGE as u64).unwrap_or(0))
}

impl<S: ReadAt> ReadAt for Draft<'_, S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let written = self.written();
        let left = written.length.saturating_sub(offset);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        let stored = self.storage.read_full_at(buffer, offset)?;
        buffer.get_mut(stored..).unwrap_or_default().fill(0);
        let (first, _) = place(offset);
        let (last, _) = place(offset.saturating_add(count as u64));
        for (number, page) in written.pages.range(first..=last) {
            let start = number.saturating_mul(PAGE as u64);
            let ahead = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
            let skipped = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            let to = buffer.get_mut(ahead..).unwrap_or_default();
            for (to, from) in to.iter_mut().zip(page.get(skipped..).unwrap_or_default()) {
                *to = *from;
            }
        }
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }
}

impl<S: ReadAt> WriteAt for Draft<'_, S> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut written = self.writing();
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            let (number, skipped) = place(at);
            let (part, behind) = rest.split_at(rest.len().min(PAGE - skipped));
            if !written.pages.contains_key(&number) {
                if written.pages.len() >= self.capacity {
                    let what = "a plan of so many changes does not fit in the memory allowed";
                    return Err(io::Error::new(ErrorKind::OutOfMemory, what));
                }
                let mut page = zeroed(PAGE)?;
                self.storage.read_full_at(&mut page, number.saturating_mul(PAGE as u64))?;
                written.pages.insert(number, page);
            }
            let page = written.pages.entry(number).or_default();
            if let Some(place) = page.get_mut(skipped..skipped + part.len()) {
                place.copy_from_slice(part);
            }
            at = at.saturating_add(part.len() as u64);
            rest = behind;
        }
        written.length = written.length.max(at);
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.writing().length = length;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Memory;

    #[test]
    fn what_was_drafted_is_read_and_the_storage_stays() {
        let storage = Memory::new((0..=255).cycle().take(10_000).collect());
        let draft = Draft::new(&storage, 1 << 20).unwrap();
        draft.write_all_at(&[7; 5000], 4000).unwrap();
        draft.write_all_at(&[8; 10], 20_000).unwrap();
        let mut bytes = vec![1; 20_100];
        assert_eq!(draft.read_full_at(&mut bytes, 0).unwrap(), 20_010);
        assert_eq!((bytes[3999], bytes[4000], bytes[8999], bytes[9000]), (159, 7, 7, 40));
        assert_eq!((bytes[9999], bytes[10_000], bytes[19_999], bytes[20_009]), (15, 0, 0, 8));
        let mut part = [0; 3];
        draft.read_full_at(&mut part, 8998).unwrap();
        assert_eq!(part, [7, 7, 40]);
        assert_eq!(storage.into_bytes().len(), 10_000);
        let storage = Memory::default();
        let little = Draft::new(&storage, 4096).unwrap();
        little.write_all_at(&[1], 0).unwrap();
        assert_eq!(little.write_all_at(&[1], 5000).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
}
