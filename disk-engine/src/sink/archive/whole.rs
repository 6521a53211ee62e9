//! The whole archive as one zstd frame.
//!
//! ```text
//! disk ─▶ pieces ─▶ libzstd: job │ job │ job │ …  ─▶ 128 KiB at a time ─▶ output
//!                            a worker for each
//! ```
//!
//! Memory: libzstd's window (128 MiB unless told otherwise), and for each worker its tables and
//! the jobs of 4 MiB in flight. Caller: `ops::pack`.

use zstd::zstd_safe::InBuffer;

use super::output::Output;
use super::stream::ArchiveStream;
use super::zstd::{EndDirective, Frame, Parameters};
use crate::control::Control;
use crate::error::Result;

/// Bytes handed on at a time.
const PIECE: usize = 128 << 10;

/// Compresses `stream` into `output` with `threads` workers.
///
/// # Errors
///
/// What reading the disk, compressing, writing or the caller's cancelling gives.
pub(crate) fn compress(
    stream: &ArchiveStream<'_>,
    parameters: Parameters,
    threads: usize,
    output: &mut Output<'_>,
    control: &Control,
) -> Result<()> {
    let mut frame = Frame::new(parameters, stream.length(), Some(threads))?;
    let mut reader = stream.reader(0..stream.length())?;
    let mut memory = output.memory(PIECE)?;
    let mut filled = 0;
    while let Some(piece) = reader.next_piece()? {
        control.check()?;
        let mut input = InBuffer::around(piece);
        while input.pos() < piece.len() {
            let next = EndDirective::ZSTD_e_continue;
            frame.step(&mut input, &mut memory, &mut filled, next)?;
            if filled == memory.len() {
                output.write(memory, filled)?;
                (memory, filled) = (output.memory(PIECE)?, 0);
            }
        }
        output.tell(reader.data_before());
    }
    // Ended by itself, with nothing more to give: where jobs end depends on their size alone.
    loop {
        control.check()?;
        let mut nothing = InBuffer::around(&[]);
        let left = frame.step(&mut nothing, &mut memory, &mut filled, EndDirective::ZSTD_e_end)?;
        if left == 0 || filled == memory.len() {
            output.write(memory, filled)?;
            (memory, filled) = (output.memory(PIECE)?, 0);
        }
        if left == 0 {
            return Ok(());
        }
    }
}
