//! L2 tables read by several threads, and heard in order.
//!
//! ```text
//! tables, in chunks ─▶ thread ─▶ found ─┐
//!                   ─▶ thread ─▶ found ─┴▶ whoever's turn it is ─▶ sink
//! ```
//!
//! Tables that lie side by side are read in one call. Callers: `check`.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{Error, RequestError, Result};
use crate::image::check::report::{CheckOptions, Sink};
use crate::image::check::scan::{Found, Scan, Tell};
use crate::image::check::tables::Table;
use crate::image::check::tally::Cursor;
use crate::io::{ReadAt, read_table};

/// Bytes of tables that a thread takes at once, one table at least.
const CHUNK_BYTES: u64 = 512 << 10;
/// Tables that are not on a cluster boundary overlap each other: only so many are read.
const UNALIGNED_MAX: usize = 1024;

struct Turn<'s, 'f> {
    next: usize,
    done: u64,
    sink: &'s mut Sink<'f>,
    failed: Option<Error>,
}

/// Whose turn it is to tell.
struct Turns<'s, 'f> {
    turn: Mutex<Turn<'s, 'f>>,
    turned: Condvar,
}

impl<'s, 'f> Turns<'s, 'f> {
    /// Waits for the turn of chunk `index`; `None` if the work has failed before that.
    fn wait(&self, index: usize) -> Option<MutexGuard<'_, Turn<'s, 'f>>> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while turn.next != index && turn.failed.is_none() {
            turn = self.turned.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        turn.failed.is_none().then_some(turn)
    }
}

impl<S: ReadAt + Sync> Scan<'_, S> {
    /// Scans all tables.
    pub(super) fn run(&self, options: &CheckOptions, sink: &mut Sink<'_>) -> Result<()> {
        let chunks = self.chunks();
        let threads = options.threads.min(chunks.len());
        let next = AtomicUsize::new(0);
        let turns = Turns {
            turn: Mutex::new(Turn { next: 0, done: 0, sink, failed: None }),
            turned: Condvar::new(),
        };
        let work = || {
            let mut cursor = Cursor::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = chunks.get(index) else { return };
                let mut tell = |found: &mut Found| match turns.wait(index) {
                    Some(mut turn) => {
                        hear(std::mem::take(found), turn.sink);
                        Ok(())
                    }
                    // Whoever failed says so.
                    None => Err(RequestError::Cancelled.into()),
                };
                let found = self.chunk(chunk.clone(), &mut cursor, &mut tell);
                let Some(mut turn) = turns.wait(index) else { return };
                let heard = found.and_then(|found| {
                    hear(found, turn.sink);
                    turn.done = turn.done.saturating_add(chunk.len() as u64);
                    match &options.progress {
                        Some(progress) if !progress(turn.done, self.tables.len() as u64) => {
                            Err(RequestError::Cancelled.into())
                        }
                        _ => Ok(()),
                    }
                });
                turn.failed = heard.err();
                turn.next += 1;
                drop(turn);
                turns.turned.notify_all();
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // A thread that does not start is one fewer.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let turn = turns.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        turn.failed.map_or(Ok(()), Err)
    }

    /// The tables, as many at a time as a thread takes.
    fn chunks(&self) -> Vec<Range<usize>> {
        let per_chunk = CHUNK_BYTES / self.subject.cluster_bits().bytes();
        let per_chunk = usize::try_from(per_chunk).unwrap_or(usize::MAX).max(1);
        let count = self.tables.len();
        (0..count.div_ceil(per_chunk))
            .map(|chunk| chunk * per_chunk..count.min((chunk + 1) * per_chunk))
            .collect()
    }

    fn chunk(
        &self,
        chunk: Range<usize>,
        cursor: &mut Cursor,
        tell: &mut Tell<'_>,
    ) -> Result<Found> {
        let mut found = Found::default();
        let bytes = self.subject.cluster_bits().bytes();
        let mut tables = self.tables.get(chunk).unwrap_or_default();
        while let Some(first) = tables.first() {
            let together = (0_u64..)
                .zip(tables)
                .take_while(|(index, table)| {
                    table.offset == first.offset.saturating_add(index * bytes)
                })
                .count();
            let (side_by_side, rest) = tables.split_at(together.max(1));
            tables = rest;
            self.read(first.offset, side_by_side, cursor, &mut found, tell)?;
        }
        Ok(found)
    }

    fn read(
        &self,
        offset: u64,
        tables: &[Table],
        cursor: &mut Cursor,
        found: &mut Found,
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        let bits = self.subject.cluster_bits();
        let skips = || self.subject.as_mended || self.is_one_too_many(offset);
        if !bits.is_aligned(offset) && skips() {
            return Ok(());
        }
        let per_table = bits.bytes() / 8;
        let count = per_table.saturating_mul(tables.len() as u64);
        let words = read_table(self.subject.storage, offset, count, "read an L2 table")?;
        let per_table = usize::try_from(per_table).unwrap_or(usize::MAX);
        for (table, words) in tables.iter().zip(words.chunks_exact(per_table)) {
            self.table(table, words, cursor, found, tell)?;
        }
        Ok(())
    }

    /// Whether as many unaligned tables lie before the one at `offset` as are read.
    fn is_one_too_many(&self, offset: u64) -> bool {
        let bits = self.subject.cluster_bits();
        let unaligned = self.tables.iter().filter(|table| !bits.is_aligned(table.offset));
        unaligned.take(UNALIGNED_MAX).all(|table| table.offset < offset)
    }
}

fn hear(found: Found, sink: &mut Sink<'_>) {
    for (finding, times) in found.findings {
        sink.tell(finding, times);
    }
    let (report, stored) = (&mut sink.report, found.stored);
    for (total, more) in [
        (&mut report.allocated_clusters, stored.allocated),
        (&mut report.fragmented_clusters, stored.fragmented),
        (&mut report.compressed_clusters, stored.compressed),
    ] {
        *total = total.saturating_add(more);
    }
}
