//! Threads that decode whole frames into memory, each on its own.
//!
//! ```text
//! Task { frames, compressed } ──▶ any idle thread ──▶ Done { decoded, or not }, to who waits for it
//! ```
//!
//! A thread says nothing about what is wrong: it gives the bytes back, and the decoder that reads in
//! order finds the same and tells it. They end when the caller lets go of them, at the latest after
//! the frame they are at. Caller: `zstd::frames`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use zstd::zstd_safe::DCtx;

/// Frames to decode.
struct Task {
    frames: Vec<u8>,
    /// Bytes they decode to at the most.
    room: usize,
    /// Empty, with memory that was used before if there is some.
    into: Vec<u8>,
    reply: SyncSender<Done>,
}

/// What became of them.
pub(super) struct Done {
    /// The bytes as they were given.
    pub(super) frames: Vec<u8>,
    /// What they decode to, all checksums verified; `None` if that failed for whatever reason.
    pub(super) decoded: Option<Vec<u8>>,
}

/// The threads, from this side.
pub(super) struct Workers {
    tasks: Option<Sender<Task>>,
    waiting: Arc<Mutex<Receiver<Task>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
}

impl Workers {
    /// No threads yet; `most` will be started, as work comes in.
    pub(super) fn new(most: usize) -> Self {
        let (tasks, waiting) = mpsc::channel();
        Self {
            tasks: Some(tasks),
            waiting: Arc::new(Mutex::new(waiting)),
            stop: Arc::default(),
            threads: Vec::new(),
            most,
        }
    }

    /// How many threads were started.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Has `frames` decoded, to at most `room` bytes, into the memory of `into`. Gives the frames back
    /// if there is no thread to do it.
    pub(super) fn decode(
        &mut self,
        frames: Vec<u8>,
        room: usize,
        into: Vec<u8>,
    ) -> Result<Receiver<Done>, Vec<u8>> {
        if self.threads.len() < self.most {
            self.start();
        }
        match &self.tasks {
            Some(tasks) if !self.threads.is_empty() => {
                let (reply, done) = mpsc::sync_channel(1);
                let sent = tasks.send(Task { frames, room, into, reply });
                sent.map(|()| done).map_err(|unsent| unsent.0.frames)
            }
            _ => Err(frames),
        }
    }

    fn start(&mut self) {
        let (waiting, stop) = (Arc::clone(&self.waiting), Arc::clone(&self.stop));
        let thread = thread::Builder::new()
            .name(format!("zstd-decode-{}", self.threads.len()))
            .spawn(move || work(&waiting, &stop));
        match thread {
            Ok(thread) => self.threads.push(thread),
            // Those that are there do it, or the caller's own.
            Err(_) => self.most = self.threads.len(),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.tasks = None;
        for thread in self.threads.drain(..) {
            // One that panicked has told so on its own.
            let _ = thread.join();
        }
    }
}

fn work(waiting: &Mutex<Receiver<Task>>, stop: &AtomicBool) {
    let mut context = DCtx::try_create();
    loop {
        let task = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Task { frames, room, mut into, reply }) = task else { return };
        if stop.load(Ordering::Acquire) {
            return;
        }
        let decoded = context.as_mut().and_then(|context| {
            into.clear();
            into.try_reserve_exact(room).ok()?;
            context.decompress(&mut into, &frames).ok().map(|_| into)
        });
        // Nobody waits any more after an error.
        let _ = reply.send(Done { frames, decoded });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_end_with_the_one_who_asked_even_with_work_left() {
        let frames = ::zstd::encode_all(&vec![7; 1 << 20][..], 1).unwrap();
        let mut workers = Workers::new(3);
        let stop = Arc::clone(&workers.stop);
        let replies: Vec<_> = (0..100)
            .map(|_| workers.decode(frames.clone(), 1 << 20, Vec::new()).ok().unwrap())
            .collect();
        assert_eq!(workers.count(), 3);
        assert!(replies[0].recv().unwrap().decoded.is_some());
        drop(workers);
        // Each thread holds one of its own.
        assert_eq!(Arc::strong_count(&stop), 1);
        assert!(replies.last().unwrap().recv().is_err(), "all was decoded, and nobody waited");
    }

    #[test]
    fn what_cannot_be_decoded_comes_back_as_it_was() {
        let frames = ::zstd::encode_all(&[7; 5000][..], 1).unwrap();
        let mut damaged = frames.clone();
        damaged.truncate(frames.len() - 1);
        let mut workers = Workers::new(1);
        for (frames, room) in [(frames.clone(), 4999), (damaged, 5000), (b"no zstd".to_vec(), 5000)]
        {
            let done = workers.decode(frames.clone(), room, Vec::new()).ok().unwrap();
            let done = done.recv().unwrap();
            assert!(done.decoded.is_none() && done.frames == frames);
        }
        let done = workers.decode(frames, 5000, Vec::new()).ok().unwrap().recv().unwrap();
        assert_eq!(done.decoded.unwrap(), [7; 5000]);
    }
}
