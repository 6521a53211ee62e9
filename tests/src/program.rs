//! Random programs for a disk image, run against the image and against the model beside it.
//!
//! ```text
//! Program = Shape (options of image and writer) + Ops       drawn and shrunk by proptest
//!     │ each op ─ resolve ─▶ Call at offsets of that disk
//!     ▼
//! run ─▶ Target (an image, a flat file, a recorded image)   after each call: what it touched is read
//!     └▶ Model                                              after flush and reopen: everything
//!     ▼
//! History: per call what may be seen, what is, between which events ─▶ Timeline: the model at any
//! event, for whoever looks at the image as a crash left it
//! ```
//!
//! Callers: `image_crash`, `image_model`, `image_differential`, `image_faults`.

mod draw;
pub mod image;
pub mod judge;
mod lab;
mod run;
mod shape;

use std::fmt;

use crate::model::Fill;

pub use draw::{growing, ops, program, programs_of, shape};
pub use lab::Lab;
pub use run::{Failure, FlatTarget, History, Kept, Step, Target, Timeline, run};
pub use shape::{Backing, Durability, Settles, Shape};

/// What is done to which image.
#[derive(Clone, Debug)]
pub struct Program {
    /// The image.
    pub shape: Shape,
    /// What is done to it.
    pub ops: Vec<Op>,
}

impl Program {
    /// The calls of this program, numbered from 1.
    pub fn calls(&self) -> impl Iterator<Item = (u32, Call)> {
        let calls = self.ops.iter().enumerate();
        calls.filter_map(|(number, op)| Some((number as u32 + 1, op.resolve(&self.shape)?)))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.shape)?;
        for (number, call) in self.calls() {
            writeln!(f, "  {number:3} {call}")?;
        }
        Ok(())
    }
}

/// Where something starts, whatever the size of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Which cluster.
    pub cluster: u16,
    /// How far into it, in 65536ths.
    pub inside: u16,
    /// Rounded down to what.
    pub unit: Unit,
}

/// How long something is, whatever the size of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// How many.
    pub count: u16,
    /// Of what.
    pub unit: Unit,
}

/// What places and spans are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Clusters.
    Cluster,
    /// 32nd parts of clusters, at least a sector.
    Subcluster,
    /// 512 bytes.
    Sector,
    /// Bytes.
    Byte,
    /// Eighths of the disk.
    Disk,
}

/// A part of a program.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Data.
    Write(Place, Span, Fill),
    /// Zeros, the space kept or not.
    Zero(Place, Span, bool),
    /// Content nobody needs.
    Discard(Place, Span),
    /// Data to be compressed.
    Compress(Place, Span, Fill),
    /// Make it durable.
    Flush,
    /// Close, and open again.
    Close,
    /// Drop it without closing, and open again.
    Drop,
    /// Open it again where a killed process has left it.
    Kill,
    /// `qemu-img snapshot -c` in between.
    Snapshot,
    /// `qemu-img snapshot -d` of the oldest one in between.
    Forget,
}

/// An [`Op`] for a certain disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Data.
    Write { offset: u64, length: u64, fill: Fill },
    /// Zeros.
    Zero { offset: u64, length: u64, unmap: bool },
    /// Content nobody needs.
    Discard { offset: u64, length: u64 },
    /// Whole clusters of data to be compressed.
    Compress { offset: u64, length: u64, fill: Fill },
    /// Make it durable.
    Flush,
    /// Close, and open again.
    Close,
    /// Drop it without closing, and open again.
    Drop,
    /// Open it again where a killed process has left it.
    Kill,
    /// A snapshot, made by QEMU.
    Snapshot,
    /// The oldest snapshot away, by QEMU.
    Forget,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, length, fill } => {
                write!(f, "write {offset:#x} {length:#x} {fill:?}")
            }
            Self::Zero { offset, length, unmap } => {
                write!(f, "zero {offset:#x} {length:#x}{}", if *unmap { " unmap" } else { "" })
            }
            Self::Discard { offset, length } => write!(f, "discard {offset:#x} {length:#x}"),
            Self::Compress { offset, length, fill } => {
                write!(f, "compress {offset:#x} {length:#x} {fill:?}")
            }
            Self::Flush => f.write_str("flush"),
            Self::Close => f.write_str("close, open"),
            Self::Drop => f.write_str("drop, open"),
            Self::Kill => f.write_str("killed, open"),
            Self::Snapshot => f.write_str("close, snapshot by qemu-img, open"),
            Self::Forget => f.write_str("close, oldest snapshot deleted by qemu-img, open"),
        }
    }
}

impl Op {
    /// What it is for a disk of this shape, if anything.
    #[must_use]
    pub fn resolve(&self, shape: &Shape) -> Option<Call> {
        let range = |place: &Place, span: &Span| {
            let unit = |unit| match unit {
                Unit::Cluster => shape.cluster(),
                Unit::Subcluster => (shape.cluster() / 32).max(512),
                Unit::Sector => 512,
                Unit::Byte => 1,
                Unit::Disk => (shape.disk / 8).max(512),
            };
            let clusters = shape.disk.div_ceil(shape.cluster());
            let inside = (u64::from(place.inside) * shape.cluster()) >> 16;
            let step = unit(place.unit).min(shape.cluster());
            let offset =
                u64::from(place.cluster) % clusters * shape.cluster() + inside / step * step;
            let offset = if offset < shape.disk { offset } else { 0 };
            let most = match span.unit {
                Unit::Cluster if shape.cluster_bits > 16 => 3,
                Unit::Cluster | Unit::Disk => 8,
                Unit::Subcluster => 40,
                Unit::Sector => 20,
                Unit::Byte => 3000,
            };
            let length = (1 + u64::from(span.count) % most) * unit(span.unit);
            (offset, length.min(shape.disk - offset))
        };
        Some(match self {
            Self::Write(place, span, fill) => {
                let (offset, length) = range(place, span);
                Call::Write { offset, length, fill: *fill }
            }
            Self::Zero(place, span, unmap) => {
                let (offset, length) = range(place, span);
                Call::Zero { offset, length, unmap: *unmap }
            }
            Self::Discard(place, span) => {
                let (offset, length) = range(place, span);
                Call::Discard { offset, length }
            }
            Self::Compress(place, span, fill) if shape.data_file.is_none() => {
                let whole = |unit| if unit == Unit::Disk { Unit::Disk } else { Unit::Cluster };
                let (offset, length) = range(
                    &Place { inside: 0, ..*place },
                    &Span { unit: whole(span.unit), ..*span },
                );
                let end = (offset + length).next_multiple_of(shape.cluster()).min(shape.disk);
                Call::Compress { offset, length: end - offset, fill: *fill }
            }
            Self::Flush => Call::Flush,
            Self::Close => Call::Close,
            Self::Drop => Call::Drop,
            Self::Kill => Call::Kill,
            Self::Snapshot if shape.can_snapshot() => Call::Snapshot,
            Self::Forget if shape.can_snapshot() => Call::Forget,
            Self::Compress(..) | Self::Snapshot | Self::Forget => return None,
        })
    }
}
