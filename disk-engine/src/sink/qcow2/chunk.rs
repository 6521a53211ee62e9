//! A stretch of the disk in memory, filled in rising order, zeros wherever nothing was.
//!
//! Callers: `sink::qcow2`, all of its threads.

/// A chunk's memory, as long as a chunk is.
#[derive(Debug)]
pub(super) struct Chunk {
    start: u64,
    memory: Vec<u8>,
    /// Where data ends. What lies behind may be anything until the chunk is closed.
    end: usize,
}

impl Chunk {
    /// The chunk around guest offset `offset`.
    pub(super) fn around(offset: u64, memory: Vec<u8>) -> Self {
        let length = (memory.len() as u64).max(1);
        Self { start: offset - offset % length, memory, end: 0 }
    }

    /// Where it lies on the disk.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether `offset` lies in it.
    pub(super) fn holds(&self, offset: u64) -> bool {
        self.position(offset).is_some()
    }

    /// Memory for data at `offset`, which lies in it and behind all data so far: `most` bytes, or up
    /// to its end.
    pub(super) fn room(&mut self, offset: u64, most: usize) -> &mut [u8] {
        let at = self.position(offset).unwrap_or(self.memory.len());
        self.memory.get_mut(self.end..at).unwrap_or_default().fill(0);
        self.end = at;
        let end = at.saturating_add(most).min(self.memory.len());
        self.memory.get_mut(at..end).unwrap_or_default()
    }

    /// The first `count` bytes of the room given last are data.
    pub(super) fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.memory.len());
    }

    /// No more data comes.
    pub(super) fn close(&mut self) {
        self.memory.get_mut(self.end..).unwrap_or_default().fill(0);
    }

    /// Where the last data ends that was put into it.
    pub(super) fn data_end(&self) -> usize {
        self.end
    }

    /// All of it, once it is closed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// The memory, for the next chunk.
    pub(super) fn into_memory(self) -> Vec<u8> {
        self.memory
    }

    fn position(&self, offset: u64) -> Option<usize> {
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        (at < self.memory.len()).then_some(at)
    }
}
