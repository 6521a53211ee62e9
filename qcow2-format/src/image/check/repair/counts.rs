//! Refcounts made the number of references, where they stand.
//!
//! ```text
//! said  1 1 2 0 1 …                      said  1 1 1 1 1 …
//! used  1 1 1 1 1 …   the pieces that  ▶
//!                     differ, written
//! ```
//!
//! Callers: `repair`.

use crate::error::{Error, Result};
use crate::image::check::counts::PAGE_CLUSTERS;
use crate::image::check::refcounts::Block;
use crate::image::check::repair::fix::Fix;
use crate::image::check::repair::{Fixes, Mender};
use crate::image::check::tally::Tally;
use crate::io::{WriteAt, zeroed};
use crate::refcount;

/// Bytes of a block that are read and written at once.
const PIECE_BYTES: u64 = 4096;

/// Part of a refcount block, to be written.
struct Piece {
    at: u64,
    bytes: Vec<u8>,
}

impl<S: WriteAt + Sync> Mender<'_, S> {
    /// Makes the refcounts of this pass the number of references; only lowers them if `lower` says
    /// so.
    pub(super) fn mend_counts(
        &self,
        tally: &Tally<'_, S>,
        lower: bool,
        fixes: &mut Fixes<'_>,
    ) -> Result<()> {
        let subject = &self.subject;
        let order = subject.header.geometry.refcount_order;
        let piece_bytes = PIECE_BYTES.min(subject.cluster_bits().bytes());
        let per_piece = piece_bytes * 8 / u64::from(order.bits());
        let per_block = subject.table.per_block();
        let compared = subject.compared(tally);
        let mut piece: Option<Piece> = None;
        subject.each_page(tally, |index, page| {
            let first = index.saturating_mul(PAGE_CLUSTERS as u64);
            let limit = compared.saturating_sub(first).min(PAGE_CLUSTERS as u64);
            let limit = usize::try_from(limit).unwrap_or(PAGE_CLUSTERS);
            let mut changes = Vec::new();
            subject.each_difference(page, limit, first, |cluster, from, references| {
                let to = subject.counted(references);
                if from != to && (from > to || !lower) {
                    changes.push((cluster, from, to));
                }
            });
            for (cluster, from, to) in changes {
                let Block::At(block) = subject.table.block(cluster / per_block) else { continue };
                let number = cluster % per_block;
                let at = block.saturating_add(number / per_piece * piece_bytes);
                if piece.as_ref().is_none_or(|piece| piece.at != at) {
                    self.write(piece.take())?;
                    let length = usize::try_from(piece_bytes).unwrap_or(usize::MAX);
                    let failed = || Error::io("read refcounts", at);
                    let mut bytes = zeroed(length).map_err(failed())?;
                    subject.storage.read_full_at(&mut bytes, at).map_err(failed())?;
                    piece = Some(Piece { at, bytes });
                }
                if let Some(Piece { bytes, .. }) = &mut piece {
                    let index = usize::try_from(number % per_piece).unwrap_or(usize::MAX);
                    refcount::set(order, bytes, index, to);
                    fixes.tell(&Fix::Refcount { cluster, from, to });
                }
            }
            Ok(())
        })?;
        self.write(piece)
    }

    fn write(&self, piece: Option<Piece>) -> Result<()> {
        let Some(Piece { at, bytes }) = piece else { return Ok(()) };
        let failed = Error::io("write refcounts", at);
        self.subject.storage.write_all_at(&bytes, at).map_err(failed)
    }
}
