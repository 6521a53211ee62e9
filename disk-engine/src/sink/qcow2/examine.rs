//! What each cluster of a chunk is: nothing, zeros over something, data, or a payload.
//!
//! ```text
//! all as below (nothing below: all zeros)   nothing is stored, unless zeros are to be
//! all zeros                                 a zero cluster
//! smaller compressed, if that is wanted     a payload
//! otherwise                                 data; with subclusters, each for itself
//! ```
//!
//! Callers: `sink::qcow2`, its examining threads or the one that uses it.

use std::ops::Range;

use qcow2_format::Geometry;
use qcow2_format::compressed::Encoder;
use qcow2_format::header::CompressionType;
use qcow2_format::l2::SubclusterBitmap;

use super::chunk::Chunk;
use crate::disk::DiskContent;
use crate::error::{Error, ErrorKind, Result};
use crate::source::content::is_zero;
use crate::source::input;

/// Bytes of a chunk, unless a cluster is larger.
const CHUNK: usize = 256 << 10;
const GRAIN: usize = 4096;
const SECTOR: usize = 512;

/// How clusters are examined.
pub(crate) struct Rules<'a> {
    pub(super) cluster: usize,
    /// Bytes of a subcluster, if the image has them.
    pub(super) subcluster: Option<usize>,
    pub(super) chunk: usize,
    compression: Option<CompressionType>,
    /// Zeros of fewer bytes are stored as data; 0 stores all of them.
    sparse: u64,
    /// What the image stands on.
    pub(super) below: Option<&'a dyn DiskContent>,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(
        geometry: Geometry,
        compression: Option<CompressionType>,
        sparse: u64,
        below: Option<&'a dyn DiskContent>,
    ) -> Self {
        let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let cluster = length(geometry.cluster_bits.bytes());
        let subcluster = geometry.extended_l2.then(|| length(geometry.subcluster_bytes()));
        Self { cluster, subcluster, chunk: CHUNK.max(cluster), compression, sparse, below }
    }

    /// Whether every cluster is stored, zeros too.
    pub(super) fn stores_zeros(&self) -> bool {
        self.sparse == 0
    }

    /// Whether zeros are looked at as data is: stored, and compressed.
    pub(super) fn compresses_zeros(&self) -> bool {
        self.stores_zeros() && self.compression.is_some() && self.below.is_none()
    }

    /// How many zeros in one piece are a hole of what is stored.
    pub(super) fn hole(&self) -> Option<usize> {
        (!self.stores_zeros()).then(|| usize::try_from(self.sparse).unwrap_or(usize::MAX))
    }

    /// Whether examining is work for threads of its own.
    pub(crate) fn is_heavy(&self) -> bool {
        self.compression.is_some() || self.below.is_some()
    }
}

/// What a cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As below.
    Nothing,
    /// Zeros, where something else lies below.
    Zero,
    /// Subclusters as below or zeros, and none of them stored.
    ZeroSubclusters(SubclusterBitmap),
    /// Stored.
    Data,
    /// Stored, as far as the subclusters say.
    Subclusters(SubclusterBitmap),
    /// Stored as this part of the payloads.
    Payload(Range<usize>),
}

/// A chunk and what its clusters are.
pub(super) struct Examined {
    pub(super) chunk: Chunk,
    /// One for each cluster that holds any data.
    pub(super) verdicts: Vec<Verdict>,
    pub(super) payloads: Vec<u8>,
}

/// What examining takes from one chunk to the next.
#[derive(Default)]
pub(super) struct Examiner {
    encoder: Encoder,
    payload: Vec<u8>,
    /// A cluster of zeros compressed, once there was one.
    zeros: Vec<u8>,
    below: Vec<u8>,
}

impl Examiner {
    pub(super) fn examine(&mut self, rules: &Rules<'_>, chunk: Chunk) -> Result<Examined> {
        self.read_below(rules, &chunk)?;
        let mut examined = Examined { chunk, verdicts: Vec::new(), payloads: Vec::new() };
        // Clusters behind the last data are zeros, and may be behind the disk.
        let end = examined.chunk.data_end().next_multiple_of(rules.cluster.max(1));
        let bytes = examined.chunk.bytes().get(..end).unwrap_or_default();
        let mut verdicts = Vec::with_capacity(bytes.len() / rules.cluster.max(1));
        for (index, cluster) in bytes.chunks(rules.cluster).enumerate() {
            let start = index.saturating_mul(rules.cluster);
            let below = self.below.get(start..).and_then(|rest| rest.get(..cluster.len()));
            verdicts.push(verdict(rules, cluster, below));
        }
        keep_short_zeros(rules, &mut verdicts);
        if let Some(compression) = rules.compression {
            let payloads = &mut examined.payloads;
            for (verdict, cluster) in verdicts.iter_mut().zip(bytes.chunks(rules.cluster)) {
                if !matches!(verdict, Verdict::Data | Verdict::Subclusters(_)) {
                    continue;
                }
                // Of zeros there may be very many, and they are always the same.
                let zeros = rules.compresses_zeros() && all_zero(cluster);
                let payload = if zeros { &mut self.zeros } else { &mut self.payload };
                let smaller = zeros && !payload.is_empty()
                    || self.encoder.encode(compression, cluster, payload).map_err(failed)?;
                if smaller {
                    let start = payloads.len();
                    payloads.try_reserve(payload.len()).map_err(|_| no_memory())?;
                    payloads.extend_from_slice(payload);
                    *verdict = Verdict::Payload(start..payloads.len());
                }
            }
        }
        examined.verdicts = verdicts;
        Ok(examined)
    }

    /// Reads what lies below a chunk's data; behind its end are zeros, and what lies behind the data's
    /// last sector is zeros below, too, or behind the disk: that ends with a sector, if its source does
    /// not.
    fn read_below(&mut self, rules: &Rules<'_>, chunk: &Chunk) -> Result<()> {
        let Some(below) = rules.below else { return Ok(()) };
        if self.below.len() != rules.chunk {
            self.below = input::zeroed(rules.chunk)?;
        }
        let there = below.size().saturating_sub(chunk.start());
        let there = usize::try_from(there).unwrap_or(usize::MAX);
        let data_end = chunk.data_end().next_multiple_of(SECTOR);
        let there = there.min(data_end).min(self.below.len());
        let (there, beyond) = self.below.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { below.read_at(there, chunk.start()) }
    }
}

fn verdict(rules: &Rules<'_>, cluster: &[u8], below: Option<&[u8]>) -> Verdict {
    let as_below = |piece: &[u8], below: Option<&[u8]>| match below {
        Some(below) => piece == below,
        None => all_zero(piece),
    };
    if as_below(cluster, below) {
        return if rules.stores_zeros() && below.is_none() {
            Verdict::Data
        } else {
            Verdict::Nothing
        };
    }
    let Some(size) = rules.subcluster else {
        // With nothing below, zeros were as below.
        return if below.is_some() && all_zero(cluster) { Verdict::Zero } else { Verdict::Data };
    };
    let mut bitmap = SubclusterBitmap(0);
    let mut stored = false;
    for (index, piece) in (0..).zip(cluster.chunks(size)) {
        let start = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(size);
        let below = below.and_then(|below| below.get(start..)?.get(..piece.len()));
        if as_below(piece, below) {
            continue;
        }
        let one = index..index + 1;
        if below.is_some() && all_zero(piece) {
            bitmap = bitmap.with_zero(one);
        } else {
            bitmap = bitmap.with_allocated(one);
            stored = true;
        }
    }
    if stored { Verdict::Subclusters(bitmap) } else { Verdict::ZeroSubclusters(bitmap) }
}

/// Makes data of zeros that are not enough to be left out.
fn keep_short_zeros(rules: &Rules<'_>, verdicts: &mut [Verdict]) {
    if rules.below.is_some() || rules.sparse <= rules.cluster as u64 {
        return;
    }
    for run in verdicts.chunk_by_mut(|one, next| is_left_out(one) == is_left_out(next)) {
        let bytes = run.len().saturating_mul(rules.cluster) as u64;
        if run.first().is_some_and(is_left_out) && bytes < rules.sparse {
            run.fill(Verdict::Data);
        }
    }
}

fn is_left_out(verdict: &Verdict) -> bool {
    *verdict == Verdict::Nothing
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(GRAIN).all(is_zero)
}

fn failed(error: qcow2_format::Error) -> Error {
    Error::new(ErrorKind::Unsupported, "a cluster cannot be compressed").with_source(error)
}

fn no_memory() -> Error {
    Error::new(ErrorKind::Limit, "no memory for compressed clusters")
}
