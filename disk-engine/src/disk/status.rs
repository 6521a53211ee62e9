//! What QEMU says of a place on a disk: its block status, piece by piece as QEMU gives it.
//!
//! ```text
//! guest    │ slice of an L2 table │ slice … │      a piece ends with its slice, its cluster if that is
//!          │ data ──────────────┤ │ data ─┤        compressed, its extent if the image is raw
//! ```
//!
//! The runs of `map` are longer and tell the same of the bytes. Who has to say of two disks whether
//! QEMU sees a difference between them needs the pieces: the one that ends a disk is marked.
//!
//! Callers: `ops::compare`, when it is strict.

use crate::disk::layer::Layer;
use crate::disk::layers::Layers;
use crate::disk::sectors::whole_sectors;
use crate::error::Result;
use qcow2_format::image::{Run, RunKind};
use qcow2_format::{GuestOffset, HostOffset};

/// QEMU's cache holds this many bytes of an L2 table in one piece.
const SLICE_BYTES: u64 = 4096;

/// The status of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "these are QEMU's flags, one by one")]
pub struct BlockStatus {
    /// How long the piece is, in bytes; at least one.
    pub length: u64,
    /// Whether an image of the chain has it, be it as zeros.
    pub allocated: bool,
    /// Whether it is stored.
    pub data: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
    /// Whether it has a place in a file.
    pub placed: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// Whether the disk ends with it.
    pub last: bool,
}

impl BlockStatus {
    /// Whether QEMU says the same of both, lengths aside.
    #[must_use]
    pub fn is_like(self, other: Self) -> bool {
        Self { length: 0, ..self } == Self { length: 0, ..other }
    }

    /// What is past the end of an image that was to have it.
    const fn past_end(length: u64) -> Self {
        Self {
            length,
            allocated: true,
            data: false,
            zero: true,
            placed: false,
            compressed: false,
            last: false,
        }
    }

    fn of(run: Run) -> Self {
        let (allocated, data, zero, placed, compressed) = match run.kind {
            RunKind::Unallocated { host } => (false, false, true, host.is_some(), false),
            RunKind::Zero { host } => (true, false, true, host.is_some(), false),
            RunKind::Data { .. } => (true, true, false, true, false),
            RunKind::Compressed => (true, true, false, false, true),
        };
        Self { length: run.length, allocated, data, zero, placed, compressed, last: false }
    }
}

impl Layers {
    /// The status of the piece that starts at `offset`, which lies in the disk's sectors.
    pub(super) fn status_at(&self, offset: u64) -> Result<BlockStatus> {
        let mut limit = whole_sectors(self.size()).saturating_sub(offset).max(1);
        // Where the top ends, if it leaves the piece to the next one and ends with it.
        let mut end = None;
        let mut found = BlockStatus::past_end(limit);
        for depth in 0.. {
            let Some(layer) = self.layer(depth) else { break };
            let size = whole_sectors(layer.size());
            if depth > 0 && offset >= size {
                found = BlockStatus::past_end(limit);
                break;
            }
            found = layer.status_at(offset, limit.min(size.saturating_sub(offset)).max(1))?;
            let reached = offset.saturating_add(found.length);
            let ends = reached == size;
            if found.allocated {
                found.last = ends && depth == 0;
                break;
            }
            // The last image says it of itself, too; one in between has no say.
            found.last = ends;
            if ends && depth == 0 {
                end = Some(reached);
            }
            limit = found.length;
        }
        found.last |= end == Some(offset.saturating_add(found.length));
        Ok(found)
    }
}

impl Layer {
    /// What this image alone says of the piece that starts at `offset`, at most `limit` bytes long.
    fn status_at(&self, offset: u64, limit: u64) -> Result<BlockStatus> {
        if offset >= self.size() {
            // The rest of the last sector.
            let kind = RunKind::Zero { host: Some(HostOffset(offset)) };
            return Ok(BlockStatus::of(Run { start: GuestOffset(offset), length: limit, kind }));
        }
        let Some(header) = self.header() else {
            let run = self.run_at(offset, limit)?;
            let hole_to_end = matches!(run.kind, RunKind::Zero { .. })
                && offset.saturating_add(run.length) == self.size();
            let length = if hole_to_end { limit } else { run.length };
            return Ok(BlockStatus::of(Run { length, ..run }));
        };
        let geometry = header.geometry();
        let cluster = geometry.cluster_bits.bytes();
        let entries = cluster.min(SLICE_BYTES) / geometry.l2_entry_bytes();
        let slice = entries.saturating_mul(cluster);
        let left = |unit: u64| unit - offset % unit;
        let mut run = self.run_at(offset, limit.min(left(slice)))?;
        if run.kind == RunKind::Compressed {
            run.length = run.length.min(left(cluster));
        }
        let (run, hole) = self.hole(run)?;
        let status = BlockStatus::of(run);
        Ok(BlockStatus { zero: status.zero || hole, ..status })
    }
}
