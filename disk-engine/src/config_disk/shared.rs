//! Storage that `fatfs` works on and we look over its shoulder.
//!
//! ```text
//! fatfs 0.3 makes a folder    │ long name of "." │ "." │ long name of ".." │ ".." │ 0 …
//! the specification wants     │ "." │ ".." │ 0 …
//! ```
//!
//! Those two have no long names, and `fsck.fat` takes the folder for broken. Where a folder's entries
//! lie `fatfs` does not tell, but the last thing it writes when it makes one is the entry `..`. So the
//! place of the last write is kept, and the entries are put right there, before anything follows them.
//! If what stands there is not what is drawn above, nothing is changed and the disk is given up.
//! Caller: `image`.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes of an entry.
const ENTRY: usize = 32;
/// Where an entry has its attributes, and those of a piece of a long name and of a folder.
const ATTRIBUTES: usize = 11;
const LONG_NAME: u8 = 0x0f;
const FOLDER: u8 = 0x10;

/// The storage and the end of the last write to it.
pub(super) struct Shared<S> {
    state: RefCell<(S, u64)>,
}

impl<S: Read + Write + Seek> Shared<S> {
    pub(super) fn new(storage: S) -> Self {
        Self { state: RefCell::new((storage, 0)) }
    }

    /// Puts the first entries of the folder right that was just made.
    pub(super) fn mend_folder(&self) -> io::Result<()> {
        let unexpected = || io::Error::other("a new folder does not begin as expected");
        let mut entries = [0; 4 * ENTRY];
        let mut this = self;
        let start = self.state.borrow().1.checked_sub(entries.len() as u64);
        let start = SeekFrom::Start(start.ok_or_else(unexpected)?);
        this.seek(start)?;
        this.read_exact(&mut entries)?;
        let (first, second) = entries.split_at_mut(2 * ENTRY);
        let (long, dot) = first.split_at_mut(ENTRY);
        let (long_too, dots) = second.split_at(ENTRY);
        let is_long = |entry: &[u8]| entry.get(ATTRIBUTES) == Some(&LONG_NAME);
        let is_folder = |entry: &[u8]| entry.get(ATTRIBUTES) == Some(&FOLDER);
        let expected = is_long(long)
            && is_long(long_too)
            && is_folder(dot)
            && is_folder(dots)
            && dot.starts_with(b".          ")
            && dots.starts_with(b"..         ");
        if !expected {
            return Err(unexpected());
        }
        long.copy_from_slice(dot);
        dot.copy_from_slice(dots);
        second.fill(0);
        this.seek(start)?;
        this.write_all(&entries)
    }
}

impl<S: Read> Read for &Shared<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.state.borrow_mut().0.read(bytes)
    }
}

impl<S: Write + Seek> Write for &Shared<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (storage, end) = &mut *self.state.borrow_mut();
        let written = storage.write(bytes)?;
        *end = storage.stream_position()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.state.borrow_mut().0.flush()
    }
}

impl<S: Seek> Seek for &Shared<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.state.borrow_mut().0.seek(to)
    }
}
