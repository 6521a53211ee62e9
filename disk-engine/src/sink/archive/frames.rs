//! The archive in independent frames, each compressed by one thread, with a seek table at the end.
//!
//! ```text
//!            tickets: 0, 1, 2, … threads + 2 ahead of what is written
//! caller ──────────────┬──────────────┬─────────────▶
//!                   thread         thread                each reads its range of the stream
//! caller ◀──────── frame 1 ─────── frame 0 ──────────    and sends it compressed
//!   └─▶ written in order; for each one written, one more ticket
//! ```
//!
//! A frame is a fixed number of bytes of the uncompressed archive, the last one what is left, so where
//! frames begin follows from their size alone. The archive's headers lie in the first frame, or in
//! the first ones. Memory: `threads + 2` compressed frames and those that wait for their sum, and per
//! thread libzstd's tables for a frame of that size and one chunk of the disk. Caller: `ops::pack`.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use zstd::zstd_safe::InBuffer;

use super::output::Output;
use super::seekable::{FRAMES_MAX, SeekTable};
use super::stream::{ArchiveStream, Reader};
use super::zstd::{EndDirective, Frame, Parameters};
use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};

/// Least room made for compressed bytes at a time.
const PIECE: usize = 128 << 10;
/// Frames that may wait for an earlier one, besides one for each thread.
const AHEAD: u64 = 2;

/// A compressed frame, and how many bytes of disk content it holds.
type Compressed = (Vec<u8>, u64);

/// Compresses `stream` in frames of `size` bytes into `output` with `threads` threads, and ends it
/// with a seek table. Returns the number of frames.
///
/// # Errors
///
/// [`ErrorKind::Limit`] for more frames than the format counts; what reading the disk, compressing,
/// writing or the caller's cancelling gives.
pub(crate) fn compress(
    stream: &ArchiveStream<'_>,
    size: u64,
    parameters: Parameters,
    threads: usize,
    output: &mut Output<'_>,
    control: &Control,
) -> Result<u64> {
    let count = stream.length().div_ceil(size);
    if count > FRAMES_MAX {
        let message = format!("{count} frames are more than a seek table holds, {FRAMES_MAX}");
        return Err(Error::new(ErrorKind::Limit, message).with_hint("make the frames larger"));
    }
    let (ticket, tickets) = mpsc::channel();
    let (results, arrived) = mpsc::channel();
    let tickets = Mutex::new(tickets);
    let worker = Worker { stream, size, parameters, control, tickets: &tickets };
    let mut table = SeekTable::default();
    thread::scope(|scope| {
        // Dropped at the end, whatever it is: then the threads find no more tickets and end.
        let ticket = ticket;
        for number in 0..threads {
            let (worker, results) = (&worker, results.clone());
            thread::Builder::new()
                .name(format!("pack-zstd-{number}"))
                .spawn_scoped(scope, move || worker.run(&results))
                .map_err(|error| {
                    Error::new(ErrorKind::of_io(&error), "start a compressing thread")
                        .with_source(error)
                })?;
        }
        drop(results);
        let ahead = (threads as u64).saturating_add(AHEAD);
        let give = |number: u64| {
            if number < count {
                // Without threads there are no results either, which is noticed below.
                let _ = ticket.send(number);
            }
        };
        (0..ahead).for_each(give);
        let mut early: BTreeMap<u64, Compressed> = BTreeMap::new();
        let mut data = 0;
        for number in 0..count {
            let (bytes, content) = loop {
                if let Some(frame) = early.remove(&number) {
                    break frame;
                }
                let (other, result) = arrived.recv().map_err(|_| stopped())?;
                early.insert(other, result?);
            };
            control.check()?;
            table.push(&bytes, size.min(stream.length() - number * size))?;
            let length = bytes.len();
            output.write(bytes, length)?;
            data += content;
            output.tell(data);
            give(number.saturating_add(ahead));
        }
        Ok(())
    })?;
    let bytes = table.encode()?;
    let length = bytes.len();
    output.write(bytes, length)?;
    Ok(count)
}

struct Worker<'a> {
    stream: &'a ArchiveStream<'a>,
    size: u64,
    parameters: Parameters,
    control: &'a Control,
    tickets: &'a Mutex<Receiver<u64>>,
}

/// Says that a thread ended before its frame did, unless the frame was sent.
struct Promise<'a> {
    results: &'a Sender<(u64, Result<Compressed>)>,
    number: u64,
    kept: bool,
}

impl Promise<'_> {
    fn keep(mut self, result: Result<Compressed>) {
        self.kept = true;
        // Nobody listens once another error was told.
        let _ = self.results.send((self.number, result));
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.results.send((self.number, Err(stopped())));
        }
    }
}

impl Worker<'_> {
    fn run(&self, results: &Sender<(u64, Result<Compressed>)>) {
        let mut reader = None;
        while let Some(number) = self.next_ticket() {
            let promise = Promise { results, number, kept: false };
            let outcome = self.frame(number, &mut reader);
            let failed = outcome.is_err();
            promise.keep(outcome);
            if failed {
                break;
            }
        }
    }

    fn next_ticket(&self) -> Option<u64> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn frame<'b>(&'b self, number: u64, reader: &mut Option<Reader<'b>>) -> Result<Compressed> {
        let start = number * self.size;
        let end = self.stream.length().min(start.saturating_add(self.size));
        let reader = match reader {
            Some(reader) => {
                reader.restart(start..end);
                reader
            }
            none => none.insert(self.stream.reader(start..end)?),
        };
        let before = reader.data_before();
        let mut frame = Frame::new(self.parameters, end - start, None)?;
        let (mut bytes, mut filled) = (Vec::new(), 0);
        while let Some(piece) = reader.next_piece()? {
            self.control.check()?;
            let mut input = InBuffer::around(piece);
            while input.pos() < piece.len() {
                make_room(&mut bytes, filled)?;
                let next = EndDirective::ZSTD_e_continue;
                frame.step(&mut input, &mut bytes, &mut filled, next)?;
            }
        }
        loop {
            make_room(&mut bytes, filled)?;
            let mut nothing = InBuffer::around(&[]);
            let end = EndDirective::ZSTD_e_end;
            if frame.step(&mut nothing, &mut bytes, &mut filled, end)? == 0 {
                break;
            }
        }
        bytes.truncate(filled);
        Ok((bytes, reader.data_before() - before))
    }
}

/// Makes `bytes` longer than what is filled of it.
fn make_room(bytes: &mut Vec<u8>, filled: usize) -> Result<()> {
    if filled == bytes.len() {
        bytes
            .try_reserve(PIECE)
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory for a compressed frame"))?;
        bytes.resize(filled + PIECE, 0);
    }
    Ok(())
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "a compressing thread stopped")
}
