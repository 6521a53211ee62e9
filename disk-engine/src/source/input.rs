//! The bytes of a source as they are given: a file, any reader, standard input.
//!
//! ```text
//! file · reader · stdin ── reads of 256 KiB ──▶ chunk ──▶ decoder, in place
//!                                                 └──▶ SHA-256, when asked for
//! ```
//!
//! A path may be a symbolic link; what it leads to must be a regular file, a pipe or a block
//! device. Callers: `source::decompress`.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::digester::Digester;

/// Bytes asked for at once.
pub(crate) const CHUNK: usize = 256 << 10;

/// A source's bytes, each seen once.
pub(crate) struct Input {
    reader: Box<dyn Read + Send>,
    length: Option<u64>,
    chunk: Arc<Vec<u8>>,
    filled: usize,
    taken: usize,
    /// Bytes of the source before the chunk.
    before: u64,
    ended: bool,
    digester: Option<Digester>,
}

impl Input {
    /// The bytes of whatever `path` leads to.
    pub(crate) fn open(path: &Path, hash: bool) -> Result<Self> {
        let look = |error| Error::io("open the source", path, error);
        // Looked at before opening: opening some devices does something.
        check_type(&fs::metadata(path).map_err(look)?, path)?;
        let mut file = File::open(path).map_err(look)?;
        let metadata = file.metadata().map_err(look)?;
        check_type(&metadata, path)?;
        let length = if metadata.is_file() {
            Some(metadata.len())
        } else if metadata.file_type().is_block_device() {
            let length = file.seek(SeekFrom::End(0)).map_err(look)?;
            file.rewind().map_err(look)?;
            Some(length)
        } else {
            None
        };
        Ok(Self { length, ..Self::reader(Box::new(file), hash)? })
    }

    /// The bytes of standard input, read past the standard library's small buffer.
    pub(crate) fn stdin(hash: bool) -> Result<Self> {
        let look = |error| Error::io("open", "standard input", error);
        let mut file = stdin_file().map_err(look)?;
        let metadata = file.metadata().map_err(look)?;
        let length = if metadata.is_file() {
            Some(metadata.len().saturating_sub(file.stream_position().map_err(look)?))
        } else {
            None
        };
        Ok(Self { length, ..Self::reader(Box::new(file), hash)? })
    }

    /// The bytes `reader` gives.
    pub(crate) fn reader(reader: Box<dyn Read + Send>, hash: bool) -> Result<Self> {
        Ok(Self {
            reader,
            length: None,
            chunk: Arc::default(),
            filled: 0,
            taken: 0,
            before: 0,
            ended: false,
            digester: if hash { Some(Digester::start()?) } else { None },
        })
    }

    /// The bytes at hand, read anew if there are none; empty at the end of the source.
    pub(crate) fn fill(&mut self) -> Result<&[u8]> {
        if self.taken == self.filled && !self.ended {
            self.read_chunk()?;
        }
        Ok(self.at_hand())
    }

    /// Marks the first `count` bytes at hand as seen.
    pub(crate) fn consume(&mut self, count: usize) {
        self.taken = self.filled.min(self.taken.saturating_add(count));
    }

    /// Makes at least `count` bytes at hand before anything was taken, unless the source is
    /// shorter. For probing: `count` is far below a chunk.
    pub(crate) fn peek(&mut self, count: usize) -> Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = Arc::new(self.memory()?);
        }
        let mut filled = self.filled;
        // Nobody shares the chunk before it is given to the digester below.
        if let Some(chunk) = Arc::get_mut(&mut self.chunk) {
            while filled < count && !self.ended {
                let room = chunk.get_mut(filled..).unwrap_or_default();
                let read = read_some(&mut *self.reader, room)?;
                self.ended = read == 0;
                filled += read;
            }
        }
        self.filled = filled;
        self.share()?;
        Ok(self.at_hand())
    }

    /// Copies bytes out until `out` is full or the source ends. Large reads of a source that is
    /// not hashed go past the chunk.
    pub(crate) fn copy(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = if self.taken == self.filled
                && self.digester.is_none()
                && rest.len() >= CHUNK
                && !self.ended
            {
                let read = read_some(&mut *self.reader, rest)?;
                self.ended = read == 0;
                self.before += read as u64;
                read
            } else {
                let bytes = self.fill()?;
                let count = copy_start(rest, bytes);
                self.consume(count);
                count
            };
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }

    /// Bytes of the source seen so far.
    pub(crate) fn position(&self) -> u64 {
        self.before + self.taken as u64
    }

    /// Length of the source in bytes, where it is known beforehand.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// How many bytes there were, and their digest if it was asked for. Call at the end.
    pub(crate) fn finish(self) -> Result<(u64, Option<Sha256Digest>)> {
        let position = self.position();
        Ok((position, self.digester.map(Digester::finish).transpose()?))
    }

    fn at_hand(&self) -> &[u8] {
        self.chunk.get(self.taken..self.filled).unwrap_or_default()
    }

    fn read_chunk(&mut self) -> Result<()> {
        self.before += self.filled as u64;
        (self.filled, self.taken) = (0, 0);
        if Arc::get_mut(&mut self.chunk).is_none_or(|chunk| chunk.is_empty()) {
            // The digester still looks at the chunk; let it go, and take another.
            let memory = match Arc::into_inner(std::mem::take(&mut self.chunk)) {
                Some(memory) if !memory.is_empty() => memory,
                _ => self.memory()?,
            };
            self.chunk = Arc::new(memory);
        }
        if let Some(chunk) = Arc::get_mut(&mut self.chunk) {
            self.filled = read_some(&mut *self.reader, chunk)?;
        }
        self.ended = self.filled == 0;
        self.share()
    }

    fn share(&mut self) -> Result<()> {
        match &self.digester {
            Some(digester) if self.filled > 0 => {
                digester.update(Arc::clone(&self.chunk), self.filled)
            }
            _ => Ok(()),
        }
    }

    fn memory(&self) -> Result<Vec<u8>> {
        if let Some(memory) = self.digester.as_ref().and_then(Digester::emptied) {
            return Ok(memory);
        }
        zeroed(CHUNK)
    }
}

/// `decompress` hands an input to decoders that want a `BufRead`. The crate's own errors travel
/// inside the `io::Error`.
impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.copy(out).map_err(io::Error::other)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(io::Error::other)
    }

    fn consume(&mut self, count: usize) {
        Input::consume(self, count);
    }
}

/// What standard input is.
pub(crate) fn stdin_metadata() -> io::Result<fs::Metadata> {
    stdin_file()?.metadata()
}

fn stdin_file() -> io::Result<File> {
    io::stdin().as_fd().try_clone_to_owned().map(File::from)
}

/// Copies as much of the start of `from` as `to` has room for, and says how much that was.
pub(crate) fn copy_start(to: &mut [u8], from: &[u8]) -> usize {
    let count = to.len().min(from.len());
    let (to, from) = (to.split_at_mut(count).0, from.split_at(count).0);
    to.copy_from_slice(from);
    count
}

/// Zeroed memory, or an error where there is none.
pub(crate) fn zeroed(length: usize) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(length).map_err(|error| {
        Error::new(ErrorKind::Limit, format!("no memory for a buffer of {length} bytes"))
            .with_source(error)
    })?;
    while memory.len() < length {
        memory.extend_from_slice(&[0; 4096]);
    }
    memory.truncate(length);
    Ok(memory)
}

fn read_some(reader: &mut dyn Read, out: &mut [u8]) -> Result<usize> {
    loop {
        match reader.read(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::of_io(&error), "read the source").with_source(error)
                );
            }
            // A reader may not claim more than it was given room for.
            Ok(count) => return Ok(count.min(out.len())),
        }
    }
}

fn check_type(metadata: &fs::Metadata, path: &Path) -> Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_file() || kind.is_fifo() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a socket"
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("the source is {what}, not a file, a pipe or a block device"),
    )
    .with_path(path))
}
