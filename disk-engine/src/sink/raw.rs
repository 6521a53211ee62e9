//! A sparse raw file: guest offset is file offset, and what is zero is not stored.
//!
//! ```text
//! this thread                                        writing thread
//! lend ─▶ window ─ full or left behind ─▶ [4 at most] ─▶ scan for zeros, CRC-32, pwrite
//!            ▲                                                    │
//!            └────────────────── memory of a window ◀─────────────┘
//! ```
//!
//! The file's size is set once, before anything is written, or at the end where nobody knew it.
//! Written are whole blocks of 4 KiB in as few calls as possible; a block of zeros stays a hole,
//! whoever claimed it was data. When writing fails, the queue closes, and the next call on this side
//! fails; the reason is what the writing thread returns.
//!
//! Caller: [`crate::transfer`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use crate::disk::StoredRun;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::checksum::{ExtentSum, ExtentSums};
use crate::sink::offload::Offload;
use crate::sink::window::{GRAIN, WINDOW, Window};
use crate::sink::{ExtentSink, lend_zeros};
use crate::source::extent::DiskShape;
use crate::source::input;
use crate::sys::space;

/// How many windows may wait for the writing thread.
const BACKLOG: usize = 4;
/// How many windows there are: those that wait, one being filled and one being written.
const WINDOWS: usize = BACKLOG + 2;

/// How a raw file is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRules {
    /// Fewer zeros in a row are written, and 0 writes all of them; in bytes.
    pub(crate) sparse: usize,
    /// Whether what is written is summed up.
    pub(crate) sums: bool,
}

impl Default for RawRules {
    fn default() -> Self {
        Self { sparse: GRAIN, sums: true }
    }
}

enum Work {
    Begin(DiskShape),
    Window(Window),
    Size(u64),
}

/// The side that lends memory.
#[derive(Debug)]
pub(crate) struct RawSink<'a> {
    work: SyncSender<Work>,
    free: Receiver<Vec<u8>>,
    made: usize,
    window: Option<Window>,
    size: Option<u64>,
    rules: RawRules,
    target: Option<(&'a File, &'a Path, &'a Offload)>,
    written: &'a AtomicU64,
}

/// The side that writes, to be [run](RawWriter::run) on a thread of its own.
#[derive(Debug)]
pub(crate) struct RawWriter<'a> {
    work: Receiver<Work>,
    free: Sender<Vec<u8>>,
    file: &'a File,
    path: &'a Path,
    rules: RawRules,
    written: &'a AtomicU64,
}

/// Both sides of a sink into `file`, which is open for writing and empty. `path` is what errors
/// call it; `written` counts.
pub(crate) fn raw<'a>(
    file: &'a File,
    path: &'a Path,
    rules: RawRules,
    written: &'a AtomicU64,
) -> (RawSink<'a>, RawWriter<'a>) {
    let (work, queue) = mpsc::sync_channel(BACKLOG);
    let (give_back, free) = mpsc::channel();
    (
        RawSink { work, free, made: 0, window: None, size: None, rules, target: None, written },
        RawWriter { work: queue, free: give_back, file, path, rules, written },
    )
}

impl<'a> RawSink<'a> {
    /// Leaves to the kernel what can be, of what goes into `file`.
    pub(crate) fn offload(mut self, file: &'a File, path: &'a Path, offload: &'a Offload) -> Self {
        self.target = Some((file, path, offload));
        self
    }

    fn send(&self, work: Work) -> Result<()> {
        self.work.send(work).map_err(|_| stopped())
    }

    /// Hands the current window over.
    fn flush(&mut self) -> Result<()> {
        match self.window.take() {
            Some(mut window) => {
                window.close(self.size);
                self.send(Work::Window(window))
            }
            None => Ok(()),
        }
    }

    fn memory(&mut self) -> Result<Vec<u8>> {
        if let Ok(memory) = self.free.try_recv() {
            return Ok(memory);
        }
        if self.made < WINDOWS {
            self.made += 1;
            return input::zeroed(WINDOW);
        }
        self.free.recv().map_err(|_| stopped())
    }
}

impl ExtentSink for RawSink<'_> {
    fn begin(&mut self, shape: DiskShape) -> Result<()> {
        // What was not handed over yet need not be: it is taken back.
        if let Some(window) = self.window.take() {
            self.made -= 1;
            drop(window);
        }
        self.size = shape.size;
        self.send(Work::Begin(shape))
    }

    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]> {
        if !self.window.as_ref().is_some_and(|window| window.holds(offset)) {
            self.flush()?;
        }
        let window = match self.window.take() {
            Some(window) => window,
            None => Window::around(offset, self.memory()?),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(self.window.insert(window).room(offset, most))
    }

    fn filled(&mut self, count: usize) -> Result<()> {
        if let Some(window) = &mut self.window {
            window.filled(count);
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        // A new file is all hole; only what is in the way is written, by `Window`.
        if self.rules.sparse > 0 {
            return Ok(());
        }
        lend_zeros(self, offset, length)
    }

    fn shares(&self) -> bool {
        self.target.is_some_and(|(_, _, offload)| offload.is_possible()) && self.rules.sparse > 0
    }

    /// Whole blocks only, so that no window holds any of it.
    fn share(&mut self, offset: u64, stored: StoredRun<'_>) -> Result<u64> {
        let Some((file, path, offload)) = self.target else { return Ok(0) };
        let taken = offload
            .take(stored, file, offset)
            .map_err(|error| Error::io("copy the disk", path, error).with_offset(offset))?;
        self.written.fetch_add(taken, Ordering::Relaxed);
        Ok(taken)
    }

    fn finish(&mut self, size: u64) -> Result<()> {
        self.flush()?;
        self.send(Work::Size(size))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl RawWriter<'_> {
    /// Writes until the other side is dropped; then says what was written.
    pub(crate) fn run(self) -> Result<Vec<ExtentSum>> {
        let mut sums = ExtentSums::new();
        let mut size_set = None;
        let mut begun = false;
        for work in &self.work {
            match work {
                Work::Begin(shape) => {
                    if std::mem::replace(&mut begun, true) {
                        self.set_size(0)?;
                        self.written.store(0, Ordering::Relaxed);
                        sums = ExtentSums::new();
                    }
                    self.check_space(shape)?;
                    size_set = shape.size;
                    if let Some(size) = shape.size {
                        self.set_size(size)?;
                    }
                }
                Work::Window(window) => {
                    window.pieces(self.rules.sparse, |offset, bytes| {
                        self.write(offset, bytes, &mut sums)
                    })?;
                    // The other side may have ended meanwhile.
                    let _ = self.free.send(window.into_memory());
                }
                Work::Size(size) if size_set != Some(size) => self.set_size(size)?,
                Work::Size(_) => {}
            }
        }
        Ok(sums.finish())
    }

    fn write(&self, offset: u64, bytes: &[u8], sums: &mut ExtentSums) -> Result<()> {
        if self.rules.sums {
            sums.add(offset, bytes);
        }
        self.file.write_all_at(bytes, offset).map_err(|error| {
            let full = ErrorKind::of_io(&error) == ErrorKind::NoSpace;
            let error = Error::io("write the disk", self.path, error).with_offset(offset);
            if full { error.with_hint("free some space or choose another folder") } else { error }
        })?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.file.set_len(size).map_err(|error| {
            let doing = format!("set the size of the disk to {size} bytes");
            Error::io(doing, self.path, error)
        })
    }

    /// Fails before the first write when the data cannot fit. Only a sparse map tells how much
    /// there is: a file stored whole may be zeros from end to end. What a map calls data may still
    /// be zeros, so a disk with less space than the map says is refused although it might just
    /// have fitted; one that passes can still run full.
    fn check_space(&self, shape: DiskShape) -> Result<()> {
        let Some(needed) = shape.data else { return Ok(()) };
        let available = space::available(self.file)
            .map_err(|error| Error::io("look for free space beside", self.path, error))?;
        if needed <= available {
            return Ok(());
        }
        let message = format!("the disk needs {needed} bytes and {available} are available");
        Err(Error::new(ErrorKind::NoSpace, message)
            .with_path(self.path)
            .with_hint("free some space or choose another folder")
            .with_source(io::Error::from(io::ErrorKind::StorageFull)))
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "the writing thread stopped")
}
