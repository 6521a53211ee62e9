//! `compare`: whether two disks hold the same, as `qemu-img compare` answers it.
//!
//! ```text
//! first   │ data │ zeros │ data      │ zeros ──▶ its end
//! second  │ data │ zeros │ zeros│data│ data │            past its end: zeros
//!           read   known   one is read          what is longer has to be zeros there
//! ```
//!
//! Formats and chains may differ; what counts is what a guest reads. What both sides know to be
//! zeros is not read, nor what both have in the same place of the same file, as two overlays of a
//! base have. Strictly compared, the disks also have to be equal in size, and in what QEMU says of
//! each part: whether it is allocated, stored, compressed, has a place.
//!
//! Several threads take the next pieces in turn; what is reported is the first difference, however
//! many they are. Callers: `cli::compare`, `cli::qemu_img`.

mod side;
mod walk;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::Serialize;

use crate::base::BaseFormat;
use crate::control::Control;
use crate::disk::DiskOptions;
use crate::error::Error;
use side::Side;
use walk::{Piece, Trouble, Walk};

/// Bytes that are read of each disk at once.
const PIECE: usize = 256 << 10;
/// Threads, unless the caller says otherwise.
const THREADS: usize = 2;
/// Bytes whose equality is told by one number: those of a sector.
const UNIT: usize = 512;

static ZEROS: [u8; UNIT] = [0; UNIT];

/// How to compare.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CompareOptions {
    /// How the first disk is opened.
    pub first: DiskOptions,
    /// How the second disk is opened.
    pub second: DiskOptions,
    /// Whether sizes and allocation have to be equal, too.
    pub strict: bool,
    /// Threads that read and compare; two unless said otherwise.
    pub threads: Option<NonZeroUsize>,
    /// Stops the work, hears of its progress.
    pub control: Control,
}

/// Where two disks differ first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "difference")]
pub enum Difference {
    /// Their sizes, strictly compared.
    Size,
    /// What QEMU says of a part, strictly compared.
    Status {
        /// Where the part starts, in bytes.
        offset: u64,
    },
    /// What a guest reads.
    Content {
        /// Where the first sector starts that differs, in bytes.
        offset: u64,
    },
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CompareReport {
    /// Whether they are the same.
    pub identical: bool,
    /// Where they are not.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Whether one is longer. If they are identical all the same, the rest of it is zeros.
    pub size_mismatch: bool,
    /// Size of the first disk, in bytes of whole sectors.
    pub first_virtual_size: u64,
    /// Size of the second.
    pub second_virtual_size: u64,
}

impl CompareReport {
    /// Whether all that both disks have was found equal, and one goes on.
    #[must_use]
    pub fn reached_shorter_end(&self) -> bool {
        let shorter = self.first_virtual_size.min(self.second_virtual_size);
        self.size_mismatch
            && match self.difference {
                None => true,
                Some(Difference::Content { offset }) => offset >= shorter,
                Some(Difference::Size | Difference::Status { .. }) => false,
            }
    }
}

/// One of the two disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first.
    First,
    /// The second.
    Second,
}

/// What a comparison was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening a disk.
    Open,
    /// Asking what lies where.
    Map,
    /// Reading.
    Read,
}

/// Why two disks could not be compared.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CompareError {
    /// What was being done.
    pub step: Step,
    /// With which disk.
    pub which: Which,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// What went wrong.
    #[source]
    pub error: Error,
}

/// Compares the disks at `first` and `second`, whose formats the caller states.
///
/// # Errors
///
/// As [`Disk::open`](crate::disk::Disk::open); damaged tables, and what cannot be read, if it comes
/// before any difference.
pub fn compare(
    first: (&Path, BaseFormat),
    second: (&Path, BaseFormat),
    options: &CompareOptions,
) -> Result<CompareReport, CompareError> {
    let open = |which, (path, format): (&Path, _), disk| {
        Side::open(path, format, disk, options.strict).map_err(|error| CompareError {
            step: Step::Open,
            which,
            offset: 0,
            error,
        })
    };
    let first = open(Which::First, first, &options.first)?;
    let second = open(Which::Second, second, &options.second)?;
    let (first_virtual_size, second_virtual_size) = (first.size(), second.size());
    let size_mismatch = first_virtual_size != second_virtual_size;
    let report = |difference: Option<Difference>| CompareReport {
        identical: difference.is_none(),
        difference,
        size_mismatch,
        first_virtual_size,
        second_virtual_size,
    };
    if options.strict && size_mismatch {
        return Ok(report(Some(Difference::Size)));
    }
    let walk = Mutex::new(Walk::new(&first, &second, options)?);
    let threads = options.threads.map_or(THREADS, NonZeroUsize::get);
    thread::scope(|scope| {
        for number in 1..threads {
            let name = thread::Builder::new().name(format!("disk-comparer-{number}"));
            // With fewer threads it takes longer, and comes to the same.
            if name.spawn_scoped(scope, || work(&walk, &first, &second)).is_err() {
                break;
            }
        }
        work(&walk, &first, &second);
    });
    match walk.into_inner().unwrap_or_else(PoisonError::into_inner).trouble() {
        None => Ok(report(None)),
        Some(Trouble::Different(difference)) => Ok(report(Some(difference))),
        Some(Trouble::Failed(error)) => Err(error),
    }
}

/// Takes piece by piece until there is none, or one was found to be different.
fn work(walk: &Mutex<Walk<'_>>, first: &Side, second: &Side) {
    let (mut one, mut other) = (vec![0; PIECE], vec![0; PIECE]);
    let lock = || walk.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(piece) = lock().next_piece() else { return };
        if let Some(trouble) = check(piece, first, second, &mut one, &mut other) {
            lock().report(piece.offset, trouble);
        }
    }
}

fn check(
    piece: Piece,
    first: &Side,
    second: &Side,
    one: &mut [u8],
    other: &mut [u8],
) -> Option<Trouble> {
    let Piece { offset, length, .. } = piece;
    let one = one.get_mut(..length)?;
    let other = other.get_mut(..length)?;
    let failed =
        |which, error| Trouble::Failed(CompareError { step: Step::Read, which, offset, error });
    if piece.first
        && let Err(error) = first.read(one, offset)
    {
        return Some(failed(Which::First, error));
    }
    if piece.second
        && let Err(error) = second.read(other, offset)
    {
        return Some(failed(Which::Second, error));
    }
    let differs = match (piece.first, piece.second) {
        (true, true) if one == other => None,
        (true, true) => one.chunks(UNIT).zip(other.chunks(UNIT)).position(|(a, b)| a != b),
        (true, false) => nonzero(one),
        _ => nonzero(other),
    };
    differs.map(|unit| {
        // An index into a piece fits in 64 bits.
        let offset = offset.saturating_add((unit * UNIT) as u64);
        Trouble::Different(Difference::Content { offset })
    })
}

/// The first sector that is not all zeros.
fn nonzero(bytes: &[u8]) -> Option<usize> {
    bytes.chunks(UNIT).position(|unit| ZEROS.get(..unit.len()) != Some(unit))
}
