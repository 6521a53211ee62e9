//! A new qcow2 image: clusters examined by several threads, laid out by one, in guest order.
//!
//! ```text
//! this thread                     examining threads                     writing thread
//! lend ─▶ chunk ─▶ [a few wait] ─▶ zeros? as below? compress ─▶ results ─▶ in order ─▶ filler
//!           ▲                                                                   │
//!           └───────────────────────── memory of a chunk ◀──────────────────────┘
//! ```
//!
//! A chunk is 256 KiB of the disk, or a cluster if that is more. Where nothing is compressed and nothing lies
//! below, this thread examines as well. The layout is decided in guest order by one thread, so that the bytes
//! are the same with any number of them.
//!
//! ```text
//! chunk    memory of the disk, and where it lies
//! examine  what each cluster of a chunk is: nothing, zeros, data, compressed
//! writer   chunks put in order and into the image
//! streamed an image on a pipe, of which all is known beforehand
//! ```
//!
//! Caller: `ops::convert`.

mod chunk;
mod examine;
mod streamed;
mod writer;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};

use qcow2_format::{CreateOptions, WriteAt};

use crate::control::Control;
use crate::disk::StoredRun;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::offload::Offload;
use crate::sink::{ExtentSink, lend_zeros};
use crate::source::extent::DiskShape;
use crate::source::input;
use chunk::Chunk;
pub(crate) use examine::Rules;
use examine::{Examined, Examiner};
pub(crate) use streamed::StreamedSink;
pub(crate) use writer::Qcow2Writer;

/// Chunks that wait for an examining thread, besides one for each.
const BACKLOG: usize = 4;

/// What the sending side has to say to the writing side, in this order.
enum Order {
    Begin(DiskShape),
    Chunk(Examined),
    /// Whole clusters from this offset on, which lie in a file.
    Share(u64, File, Range<u64>),
    Finish(u64),
}

/// What an examining thread has to do.
struct Task {
    number: u64,
    chunk: Chunk,
}

/// The side that lends memory.
pub(crate) struct Qcow2Sink<'a> {
    rules: &'a Rules<'a>,
    /// Straight to the writing thread; chunks go through `tasks` if there are examining threads.
    orders: SyncSender<(u64, Result<Order>)>,
    tasks: Option<SyncSender<Task>>,
    free: Receiver<Vec<u8>>,
    made: usize,
    most: usize,
    next: u64,
    chunk: Option<Chunk>,
    /// Looks at chunks where no other thread does.
    examiner: Examiner,
    offload: &'a Offload,
    /// Where the image will be.
    folder: &'a Path,
    written: &'a AtomicU64,
}

/// The threads of a sink, to be run beside the one that uses the sink.
pub(crate) struct Examiners<'a> {
    rules: &'a Rules<'a>,
    tasks: Mutex<Receiver<Task>>,
    orders: Mutex<SyncSender<(u64, Result<Order>)>>,
    control: Control,
}

/// All sides of a sink that fills `storage`, and the data file's beside it, as `image` says. `threads`
/// examine; none of them leaves it to the one that uses the sink.
pub(crate) fn qcow2<'a, S: WriteAt>(
    image: &'a CreateOptions,
    storage: (S, Option<S>),
    rules: &'a Rules<'a>,
    threads: usize,
    (offload, folder): (&'a Offload, &'a Path),
    written: &'a AtomicU64,
    control: &Control,
) -> (Qcow2Sink<'a>, Option<Examiners<'a>>, Qcow2Writer<'a, S>) {
    let most = threads.saturating_mul(2).saturating_add(BACKLOG);
    let (orders, arrived) = mpsc::sync_channel(most);
    let (give_back, free): (Sender<Vec<u8>>, _) = mpsc::channel();
    let (tasks, examiners) = if threads > 0 {
        let (tasks, queue) = mpsc::sync_channel(BACKLOG);
        let (tasks_queue, orders) = (Mutex::new(queue), Mutex::new(orders.clone()));
        let control = control.clone();
        let examiners = Examiners { rules, tasks: tasks_queue, orders, control };
        (Some(tasks), Some(examiners))
    } else {
        (None, None)
    };
    let sink = Qcow2Sink {
        folder,
        rules,
        orders,
        tasks,
        free,
        made: 0,
        most,
        next: 0,
        chunk: None,
        examiner: Examiner::default(),
        offload,
        written,
    };
    (
        sink,
        examiners,
        Qcow2Writer::new(image, storage, rules, arrived, give_back, (offload, written)),
    )
}

impl Qcow2Sink<'_> {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    fn send(&mut self, order: Order) -> Result<()> {
        let number = self.number();
        self.orders.send((number, Ok(order))).map_err(|_| stopped())
    }

    /// Hands the current chunk over.
    fn flush(&mut self) -> Result<()> {
        let Some(mut chunk) = self.chunk.take() else { return Ok(()) };
        chunk.close();
        let number = self.number();
        match &self.tasks {
            Some(tasks) => tasks.send(Task { number, chunk }).map_err(|_| stopped()),
            None => {
                let examined = self.examiner.examine(self.rules, chunk)?;
                self.orders.send((number, Ok(Order::Chunk(examined)))).map_err(|_| stopped())
            }
        }
    }

    fn memory(&mut self) -> Result<Vec<u8>> {
        if let Ok(memory) = self.free.try_recv() {
            return Ok(memory);
        }
        if self.made < self.most {
            self.made += 1;
            return input::zeroed(self.rules.chunk);
        }
        self.free.recv().map_err(|_| stopped())
    }
}

impl ExtentSink for Qcow2Sink<'_> {
    fn begin(&mut self, shape: DiskShape) -> Result<()> {
        // What was not handed over yet need not be: it is taken back.
        if self.chunk.take().is_some() {
            self.made -= 1;
        }
        self.send(Order::Begin(shape))
    }

    fn lend(&mut self, offset: u64, most: u64) -> Result<&mut [u8]> {
        if !self.chunk.as_ref().is_some_and(|chunk| chunk.holds(offset)) {
            self.flush()?;
        }
        let chunk = match self.chunk.take() {
            Some(chunk) => chunk,
            None => Chunk::around(offset, self.memory()?),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(self.chunk.insert(chunk).room(offset, most))
    }

    fn filled(&mut self, count: usize) -> Result<()> {
        if let Some(chunk) = &mut self.chunk {
            chunk.filled(count);
        }
        Ok(())
    }

    /// Nothing is stored for zeros, unless there is something below to be hidden, or they are to be
    /// compressed. The writing thread takes their space where it is to be taken.
    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.rules.compresses_zeros() {
            return lend_zeros(self, offset, length);
        }
        let Some(below) = self.rules.below else { return Ok(()) };
        let end = offset.saturating_add(length).min(below.size());
        let mut at = offset;
        while at < end {
            let run = below.run_at(at)?;
            let run_end = at.saturating_add(run.length).min(end);
            if !run.zero {
                lend_zeros(self, at, run_end - at)?;
            }
            at = run_end;
        }
        Ok(())
    }

    fn shares(&self) -> bool {
        self.offload.is_possible() && !self.rules.is_heavy() && !self.rules.stores_zeros()
    }

    /// Whole clusters. Their place is decided when all before them have theirs.
    fn share(&mut self, offset: u64, stored: StoredRun<'_>) -> Result<u64> {
        let cluster = self.rules.cluster as u64;
        let length = stored.length - stored.length % cluster.max(1);
        if length == 0 || !offset.is_multiple_of(cluster) || !Offload::suits(stored, cluster) {
            return Ok(0);
        }
        // What the writing thread finds out would be too late: zeros are looked for here.
        if !self.offload.works(stored, self.folder) {
            return Ok(0);
        }
        self.flush()?;
        let file = stored.file.try_clone();
        let file = file.map_err(|error| {
            Error::new(ErrorKind::of_io(&error), "duplicate the source's descriptor")
                .with_source(error)
        })?;
        let range = stored.offset..stored.offset.saturating_add(length);
        self.send(Order::Share(offset, file, range))?;
        Ok(length)
    }

    fn finish(&mut self, size: u64) -> Result<()> {
        self.flush()?;
        self.send(Order::Finish(size))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Examiners<'_> {
    /// Examines until the other side is dropped, or the writing side. Run it on as many threads as
    /// there are to be.
    pub(crate) fn run(&self) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut examiner = Examiner::default();
        while let Some(Task { number, chunk }) = self.next_task() {
            let outcome = self.control.check().and_then(|()| examiner.examine(self.rules, chunk));
            let failed = outcome.is_err();
            // Nobody listens once another error was told.
            if orders.send((number, outcome.map(Order::Chunk))).is_err() || failed {
                break;
            }
        }
    }

    fn next_task(&self) -> Option<Task> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "the writing thread stopped")
}
