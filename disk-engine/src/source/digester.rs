//! SHA-256 of a source as it is given, on a thread of its own so that decoding never waits for it.
//!
//! ```text
//! Input ── chunk (shared) ──▶ decoder
//!    └──── chunk (shared) ──▶ [4 at most] ──▶ hashing thread ── emptied chunk ──▶ Input
//! ```
//!
//! A chunk is shared, not copied; whoever lets go of it last gives its memory back for the next
//! read. Caller: `source::input`.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::error::{Error, ErrorKind, Result};

/// How many chunks may wait for the hashing thread.
const BACKLOG: usize = 4;

/// The hashing thread, from this side.
#[derive(Debug)]
pub(crate) struct Digester {
    chunks: SyncSender<(Arc<Vec<u8>>, usize)>,
    emptied: Receiver<Vec<u8>>,
    thread: JoinHandle<Sha256Digest>,
}

impl Digester {
    pub(crate) fn start() -> Result<Self> {
        let (chunks, work) = mpsc::sync_channel::<(Arc<Vec<u8>>, usize)>(BACKLOG);
        let (give_back, emptied) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("source-digest".into())
            .spawn(move || {
                let mut hash = Sha256::new();
                for (chunk, length) in work {
                    hash.update(chunk.get(..length).unwrap_or(&chunk));
                    if let Some(memory) = Arc::into_inner(chunk) {
                        // Nobody left to read into it: the source has ended.
                        let _ = give_back.send(memory);
                    }
                }
                Sha256Digest(hash.finalize().into())
            })
            .map_err(|error| {
                Error::new(ErrorKind::of_io(&error), "start the hashing thread").with_source(error)
            })?;
        Ok(Self { chunks, emptied, thread })
    }

    /// Hashes the first `length` bytes of `chunk`, after all before it. Waits when behind.
    pub(crate) fn update(&self, chunk: Arc<Vec<u8>>, length: usize) -> Result<()> {
        self.chunks.send((chunk, length)).map_err(|_| stopped())
    }

    /// Memory that was hashed and that nobody looks at any more.
    pub(crate) fn emptied(&self) -> Option<Vec<u8>> {
        self.emptied.try_recv().ok()
    }

    /// The digest of everything given.
    pub(crate) fn finish(self) -> Result<Sha256Digest> {
        drop(self.chunks);
        self.thread.join().map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "the hashing thread stopped")
}
