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
//!
//! ```text
//! fatfs 0.3 calls ".env", short, │        .ENV│      no entry may begin with a space
//! we call it                     │~1      .ENV│      and its long name's sum goes with that
//! ```
//!
//! Where the entries of a new name lie is seen as they are written: first the pieces of the long one,
//! by their first byte, then the short one, by its 11. Caller: `image`.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes of an entry.
const ENTRY: usize = 32;
/// Where an entry has its attributes, and those of a piece of a long name and of a folder.
const ATTRIBUTES: usize = 11;
const LONG_NAME: u8 = 0x0f;
const FOLDER: u8 = 0x10;

/// Letters of a short name, and of what stands before its extension.
const SHORT_NAME: usize = 11;
const BASE: usize = 8;
/// Where a piece of a long name has the sum of the short one.
const SUM: usize = 13;

/// The storage, and what was written to it.
pub(super) struct Shared<S> {
    state: RefCell<State<S>>,
}

struct State<S> {
    storage: S,
    /// The end of the last write.
    end: u64,
    /// Where the entries of a name lie, while that is watched.
    places: Option<Places>,
}

/// Where the entries of one name lie.
#[derive(Default)]
pub(super) struct Places {
    long: Vec<u64>,
    short: Option<u64>,
}

impl Places {
    fn see(&mut self, start: u64, bytes: &[u8]) {
        if self.short.is_some() || !start.is_multiple_of(ENTRY as u64) {
            return;
        }
        match bytes.len() {
            1 => self.long.push(start),
            SHORT_NAME => self.short = Some(start),
            _ => {}
        }
    }
}

impl<S: Read + Write + Seek> Shared<S> {
    pub(super) fn new(storage: S) -> Self {
        Self { state: RefCell::new(State { storage, end: 0, places: None }) }
    }

    /// Looks for the entries of the name that is made next.
    pub(super) fn watch(&self) {
        self.state.borrow_mut().places = Some(Places::default());
    }

    /// Where the entries of the name lie that was made since [`Shared::watch`].
    pub(super) fn watched(&self) -> Places {
        self.state.borrow_mut().places.take().unwrap_or_default()
    }

    /// Puts `base` before the extension of a short name that is nothing else.
    pub(super) fn mend_name(&self, places: &Places, base: &str) -> io::Result<()> {
        let unexpected = || io::Error::other("a new name is not as expected");
        let mut this = self;
        let short = SeekFrom::Start(places.short.ok_or_else(unexpected)?);
        let mut name = [0; SHORT_NAME];
        this.seek(short)?;
        this.read_exact(&mut name)?;
        let before = sum(&name);
        let (front, _) = name.split_at_mut(BASE);
        if places.long.is_empty() || front != [b' '; BASE] || base.len() > BASE {
            return Err(unexpected());
        }
        front.iter_mut().zip(base.bytes()).for_each(|(place, byte)| *place = byte);
        for start in &places.long {
            let mut entry = [0; ENTRY];
            this.seek(SeekFrom::Start(*start))?;
            this.read_exact(&mut entry)?;
            if entry.get(ATTRIBUTES) != Some(&LONG_NAME) || entry.get(SUM) != Some(&before) {
                return Err(unexpected());
            }
            this.seek(SeekFrom::Start(start.saturating_add(SUM as u64)))?;
            this.write_all(&[sum(&name)])?;
        }
        this.seek(short)?;
        this.write_all(&name)
    }

    /// Puts the first entries of the folder right that was just made.
    pub(super) fn mend_folder(&self) -> io::Result<()> {
        let unexpected = || io::Error::other("a new folder does not begin as expected");
        let mut entries = [0; 4 * ENTRY];
        let mut this = self;
        let start = self.state.borrow().end.checked_sub(entries.len() as u64);
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
        self.state.borrow_mut().storage.read(bytes)
    }
}

impl<S: Write + Seek> Write for &Shared<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State { storage, end, places } = &mut *self.state.borrow_mut();
        let written = storage.write(bytes)?;
        *end = storage.stream_position()?;
        if let Some(places) = places {
            places.see(end.saturating_sub(written as u64), bytes);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.state.borrow_mut().storage.flush()
    }
}

impl<S: Seek> Seek for &Shared<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.state.borrow_mut().storage.seek(to)
    }
}

/// The sum of a short name that the pieces of its long one have.
fn sum(name: &[u8; SHORT_NAME]) -> u8 {
    name.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}
