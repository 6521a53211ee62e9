//! A file in memory that costs what was written to it, and whose copy costs next to nothing.
//!
//! ```text
//! Sparse    page number ─▶ Arc<4 KiB>     absent: zeros     copies share their pages
//! SparseStorage   Sparse behind a lock, as ReadAt and WriteAt
//! ```
//!
//! Callers: `recording` (thousands of states of one file), `faults`, `checker`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, RwLock};

use qcow2_format::{ReadAt, WriteAt};

/// Bytes in a page.
pub const PAGE: usize = 4096;

type Page = [u8; PAGE];

/// A file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    pages: BTreeMap<u64, Arc<Page>>,
    length: u64,
}

impl Sparse {
    /// A file that holds `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut file = Self { pages: BTreeMap::new(), length: bytes.len() as u64 };
        for (number, part) in bytes.chunks(PAGE).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                file.write(part, (number * PAGE) as u64);
            }
        }
        file
    }

    /// A copy of the file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&std::fs::read(path)?))
    }

    /// Makes the file at `path` a copy of this one, with its holes.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        for (number, page) in &self.pages {
            file.write_all_at(page.as_slice(), number * PAGE as u64)?;
        }
        file.set_len(self.length)
    }

    /// The length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Cuts or extends the file.
    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            let end = self.length;
            self.zero(length, end - length);
        }
        self.length = length;
    }

    /// The page `number`, unless it is all zeros because nothing was written there.
    #[must_use]
    pub fn page(&self, number: u64) -> Option<&Page> {
        self.pages.get(&number).map(|page| &**page)
    }

    /// Fills `buffer` from `offset` on, with zeros where the file ends.
    pub fn read(&self, buffer: &mut [u8], offset: u64) {
        for (number, start, part) in pieces(offset, buffer.len()) {
            let into = &mut buffer[part.clone()];
            match self.page(number) {
                Some(page) => into.copy_from_slice(&page[start..start + part.len()]),
                None => into.fill(0),
            }
        }
    }

    /// The `length` bytes from `offset` on.
    #[must_use]
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        self.read(&mut buffer, offset);
        buffer
    }

    /// Writes `data`; the file grows if it ends before.
    pub fn write(&mut self, data: &[u8], offset: u64) {
        for (number, start, part) in pieces(offset, data.len()) {
            let page = self.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[start..start + part.len()].copy_from_slice(&data[part]);
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    /// Makes a range zeros, as far as the file goes.
    pub fn zero(&mut self, offset: u64, length: u64) {
        let end = (offset + length).min(self.length);
        let mut at = offset;
        while at < end {
            let (number, start) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let stop = ((end - number * PAGE as u64) as usize).min(PAGE);
            if stop - start == PAGE {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                Arc::make_mut(page)[start..stop].fill(0);
            }
            at = number * PAGE as u64 + stop as u64;
        }
    }
}

/// The pages a range touches: number, where it starts in the page, which part of it that is.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let count = (PAGE - start).min(length - done);
        done += count;
        Some((at / PAGE as u64, start, done - count..done))
    })
}

impl ReadAt for Sparse {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.read(&mut buffer[..count], offset);
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

/// Storage in memory that can be copied at any moment.
#[derive(Debug, Default)]
pub struct SparseStorage(RwLock<Sparse>);

impl SparseStorage {
    /// Storage that holds `file`.
    #[must_use]
    pub fn new(file: Sparse) -> Self {
        Self(RwLock::new(file))
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Sparse {
        self.0.read().unwrap().clone()
    }
}

impl ReadAt for SparseStorage {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read().unwrap().read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.read().unwrap().length)
    }
}

impl WriteAt for SparseStorage {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write().unwrap().write(data, offset);
        Ok(())
    }

    fn write_zeros_at(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut file = self.0.write().unwrap();
        let end = file.length.max(offset + length);
        file.set_length(end);
        file.zero(offset, length);
        Ok(())
    }

    fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.write().unwrap().zero(offset, length);
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.write().unwrap().set_length(length);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_sparse_file_is_what_a_vector_is() {
        let mut random = Random(1);
        let (mut file, mut truth) = (Sparse::default(), Vec::new());
        for step in 0..4000_u32 {
            let (offset, length) = (random.below(40_000), random.below(9000));
            match random.below(4) {
                0 | 1 => {
                    let data: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
                    truth.resize(truth.len().max(offset + length), 0);
                    truth[offset..offset + length].copy_from_slice(&data);
                    file.write(&data, offset as u64);
                }
                2 => {
                    let end = (offset + length).min(truth.len());
                    truth[offset.min(end)..end].fill(0);
                    file.zero(offset as u64, length as u64);
                }
                _ => {
                    truth.resize(offset, 0);
                    file.set_length(offset as u64);
                }
            }
            assert_eq!(file.length(), truth.len() as u64, "{step}");
            assert_eq!(file.bytes(0, truth.len()), truth, "{step}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        file.store(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), truth);
        assert_eq!(Sparse::load(&path).unwrap().bytes(0, truth.len()), truth);
    }
}
