//! One window of a disk: 256 KiB at a multiple of 256 KiB, filled out of order never, with gaps often.
//!
//! ```text
//! block  │0       │4096    │8192    │12288   │16384   │        a block is all data and zeros, or
//! data   │  ▒▒▒▒▒▒│▒▒   ▒▒▒│        │        │▒▒      │        was never touched
//! run    ├────────┴────────┤                 ├────────┤        untouched blocks are in no run
//! ```
//!
//! A gap inside touched blocks is filled with zeros: writing through it is cheaper than a second
//! write. Memory is reused without being cleared, so only runs are ever looked at. Callers:
//! `sink::raw`, both sides of its queue.

use crate::source::content::{at_most, is_zero};

/// Bytes of a window. From 128 KiB to 1 MiB extraction takes the same time, so the size is chosen for
/// memory: six windows are 1.5 MiB.
pub(crate) const WINDOW: usize = 256 << 10;
/// What is left out of a file at the least: the block of every common file system.
pub(crate) const GRAIN: usize = 4096;

/// A window's memory and what of it belongs to the disk.
#[derive(Debug)]
pub(crate) struct Window {
    start: u64,
    memory: Vec<u8>,
    /// Touched ranges, each from a block's start; the last one's end is where data ended.
    runs: Vec<(usize, usize)>,
}

impl Window {
    /// The window around guest offset `offset`, in `memory` of [`WINDOW`] bytes.
    pub(crate) fn around(offset: u64, memory: Vec<u8>) -> Self {
        Self { start: offset - offset % WINDOW as u64, memory, runs: Vec::new() }
    }

    /// Whether guest offset `offset` lies in it.
    pub(crate) fn holds(&self, offset: u64) -> bool {
        self.position(offset).is_some()
    }

    /// Memory for data at `offset`, which lies in the window and past all data so far: `most`
    /// bytes, or up to the window's end.
    pub(crate) fn room(&mut self, offset: u64, most: usize) -> &mut [u8] {
        let at = self.position(offset).unwrap_or(WINDOW);
        let block = at - at % GRAIN;
        match self.runs.last_mut() {
            Some((_, end)) if block <= end.next_multiple_of(GRAIN) => {
                let gap = (*end, at);
                *end = at;
                self.clear(gap);
            }
            last => {
                let tail = last.map(|(_, end)| {
                    let tail = (*end, end.next_multiple_of(GRAIN));
                    *end = tail.1;
                    tail
                });
                self.runs.push((block, at));
                self.clear(tail.unwrap_or_default());
                self.clear((block, at));
            }
        }
        let end = at.saturating_add(most).min(WINDOW);
        self.memory.get_mut(at..end).unwrap_or_default()
    }

    /// The first `count` bytes of the room given last are data.
    pub(crate) fn filled(&mut self, count: usize) {
        if let Some((_, end)) = self.runs.last_mut() {
            *end = end.saturating_add(count).min(WINDOW);
        }
    }

    /// Completes the last block, unless the disk ends before it does. With no size known the disk
    /// ends where the data does.
    pub(crate) fn close(&mut self, size: Option<u64>) {
        let Some((_, end)) = self.runs.last_mut() else { return };
        let disk = size.map_or(*end, |size| at_most(size.saturating_sub(self.start), WINDOW));
        let tail = (*end, end.next_multiple_of(GRAIN).min(disk).max(*end));
        *end = tail.1;
        self.clear(tail);
    }

    /// Calls `write` with each piece of the disk that is to be written, ascending: whole blocks,
    /// and between two pieces at least `sparse` zeros. With none all is written.
    pub(crate) fn pieces<E>(
        &self,
        sparse: usize,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (start, end) in self.runs.iter().copied() {
            let run = self.memory.get(start..end).unwrap_or_default();
            let (mut piece, mut at) = (0..0, 0);
            for block in run.chunks(GRAIN) {
                let end = at + block.len();
                if sparse == 0 || !is_zero(block) {
                    if at - piece.end >= sparse.max(1) {
                        self.piece(start, run, &piece, &mut write)?;
                        piece.start = at;
                    }
                    piece.end = end;
                }
                at = end;
            }
            self.piece(start, run, &piece, &mut write)?;
        }
        Ok(())
    }

    /// The memory, for the next window.
    pub(crate) fn into_memory(self) -> Vec<u8> {
        self.memory
    }

    fn piece<E>(
        &self,
        start: usize,
        run: &[u8],
        piece: &std::ops::Range<usize>,
        write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match run.get(piece.clone()) {
            Some(bytes) if !bytes.is_empty() => {
                write(self.start + (start + piece.start) as u64, bytes)
            }
            _ => Ok(()),
        }
    }

    fn position(&self, offset: u64) -> Option<usize> {
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        (at < WINDOW).then_some(at)
    }

    fn clear(&mut self, (start, end): (usize, usize)) {
        self.memory.get_mut(start..end).unwrap_or_default().fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills extents of ones into a window of dirty memory and says what would be written.
    fn written(extents: &[(u64, usize)], size: Option<u64>) -> Vec<(u64, Vec<u8>)> {
        let mut window = Window::around(5 << 20, vec![0xee; WINDOW]);
        for (offset, length) in extents {
            let room = window.room((5 << 20) + offset, *length);
            assert_eq!(room.len(), *length);
            room.fill(1);
            window.filled(*length);
        }
        window.close(size);
        let mut pieces = Vec::new();
        window
            .pieces(GRAIN, |offset, bytes| {
                pieces.push((offset - (5 << 20), bytes.to_vec()));
                Ok::<_, ()>(())
            })
            .unwrap();
        pieces
    }

    fn block(data: &[(usize, usize)], length: usize) -> Vec<u8> {
        let mut block = vec![0; length];
        data.iter().for_each(|(offset, count)| block[*offset..offset + count].fill(1));
        block
    }

    #[test]
    fn gaps_inside_touched_blocks_are_zeros_and_whole_blocks_are_left_out() {
        assert_eq!(written(&[(0, 4096)], Some(1 << 40)), [(0, block(&[(0, 4096)], 4096))]);
        assert_eq!(
            written(&[(512, 512), (5000, 512), (16384, 512)], Some(1 << 40)),
            [(0, block(&[(512, 512), (5000, 512)], 8192)), (16384, block(&[(0, 512)], 4096)),]
        );
    }

    #[test]
    fn the_last_block_ends_where_the_disk_does() {
        let size = (5 << 20) + 1000;
        assert_eq!(written(&[(0, 512)], Some(size)), [(0, block(&[(0, 512)], 1000))]);
        assert_eq!(written(&[(0, 512)], None), [(0, block(&[(0, 512)], 512))]);
    }

    #[test]
    fn zeros_that_were_stored_are_left_out() {
        let mut window = Window::around(0, vec![0xee; WINDOW]);
        let room = window.room(0, 3 * GRAIN);
        room.fill(0);
        room[GRAIN] = 1;
        window.filled(3 * GRAIN);
        window.close(Some(1 << 40));
        let mut pieces = Vec::new();
        window
            .pieces(GRAIN, |offset, bytes| {
                pieces.push((offset, bytes.len()));
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(pieces, [(4096, 4096)]);
    }
}
