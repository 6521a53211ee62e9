//! What a check is told to do, what it says, and who hears of what it finds.
//!
//! Callers: the other parts of `check`, `repair`.

use std::fmt;
use std::sync::Arc;

use crate::image::check::finding::{Finding, Severity};

/// Whether work goes on: called now and then with how much is done and how much there is, in L2
/// tables of the pass that is under way.
pub type Progress = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Least memory that a check takes for its counts.
const MEMORY_MIN: u64 = 1 << 20;

/// How an image is checked.
#[derive(Clone)]
pub struct CheckOptions {
    pub(super) memory: u64,
    pub(super) threads: usize,
    pub(super) progress: Option<Progress>,
}

impl Default for CheckOptions {
    /// 256 MiB, a thread for each processor, at most 8, and nobody who watches.
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            threads: crate::image::options::processors().min(8),
            progress: None,
        }
    }
}

impl CheckOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes about `bytes` of memory for counts, and at least 1 MiB. An image with more clusters in
    /// use than that holds, 8 million in 4 MiB, is checked in several passes over its tables.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.max(MEMORY_MIN);
        self
    }

    /// Reads L2 tables with `threads` threads. What is found, and in which order, is the same.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Asks `progress` now and then whether to go on.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }
}

impl fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions")
            .field("memory", &self.memory)
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

/// What a check found, in qemu-img's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// What makes the image dangerous to use or part of it unreadable.
    pub corruptions: u64,
    /// Clusters that are counted more often than they are used.
    pub leaks: u64,
    /// What could not be looked at.
    pub check_errors: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Those that are stored, or have a place to be.
    pub allocated_clusters: u64,
    /// Those that do not lie behind the one before, and all that are compressed.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Where the last host cluster ends that is counted or used, in bytes.
    pub image_end_offset: u64,
}

impl CheckReport {
    /// Whether nothing was found but perhaps leaks.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }
}

/// Who hears of a finding, and how often it is there: a table that is named twice has each of its
/// findings twice.
pub(super) type Listener<'f> = dyn FnMut(&Finding, u64) + Send + 'f;

/// Findings, counted and passed on.
pub(super) struct Sink<'f> {
    pub(super) report: CheckReport,
    listener: &'f mut Listener<'f>,
    /// Whether this is the first pass: what has nothing to do with counts is told there.
    pub(super) first: bool,
    /// Whether a refcount block is used by something else as well, counted or not.
    pub(super) shared_block: bool,
}

impl<'f> Sink<'f> {
    pub(super) fn new(listener: &'f mut Listener<'f>) -> Self {
        Self { report: CheckReport::default(), listener, first: true, shared_block: false }
    }

    pub(super) fn tell(&mut self, finding: Finding, times: u64) {
        let total = match finding.severity() {
            Severity::Corruption => &mut self.report.corruptions,
            Severity::Leak => &mut self.report.leaks,
            Severity::CheckError => &mut self.report.check_errors,
            Severity::Note => return (self.listener)(&finding, times),
        };
        *total = total.saturating_add(times);
        (self.listener)(&finding, times);
    }

    /// As [`Sink::tell`], in the first pass only.
    pub(super) fn tell_first(&mut self, finding: Finding, times: u64) {
        if self.first {
            self.tell(finding, times);
        }
    }
}
