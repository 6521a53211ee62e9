//! Refcounts counted anew, for an image whose dirty bit says that they may be wrong.
//!
//! ```text
//! check: everything the header leads to ─▶ used ─▶ refcounts, where they differ
//!                                          └─ a rule is broken: nothing is changed
//! ```
//!
//! Only counts change: an image whose tables break a rule is not opened for writing. Killed in between,
//! it is dirty still. Callers: `write`.

use std::sync::{Mutex, PoisonError};

use crate::address::HostCluster;
use crate::error::{Error, FieldError, Result, Violation};
use crate::feature::IncompatibleFeatures;
use crate::image::check::{CheckOptions, Counting, Finding, Severity};
use crate::image::write::WritableImage;
use crate::image::write::guard::Kind;
use crate::image::write::space::write_zeros;
use crate::image::write::state::State;
use crate::io::WriteAt;

impl<S: WriteAt + Sync> WritableImage<S> {
    pub(super) fn rebuild_refcounts(&self) -> Result<()> {
        let mut state = self.lock();
        let rebuilt = self.rebuild(&mut state);
        if rebuilt.is_err() {
            // Closing must not clear the dirty bit.
            state.failed = Some("its refcounts are not known");
        }
        rebuilt
    }

    fn rebuild(&self, state: &mut State) -> Result<()> {
        let storage = &self.image.storage;
        let options = CheckOptions::new().threads(self.image.threads);
        let bits = self.image.geometry().refcount_order.bits();
        let broken: Mutex<Option<Error>> = Mutex::default();
        let hear = |finding: &Finding| {
            if let Some(error) = violated(finding, bits) {
                let mut broken = broken.lock().unwrap_or_else(PoisonError::into_inner);
                broken.get_or_insert(error);
            }
        };
        let broken = || broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let covered = state.counts.covered();
        let mut counted = false;
        Counting::start(storage, &state.header, covered, &options, &hear)?.each_pass(|pass| {
            // Of several passes only the last knows that no rule is broken.
            counted = pass.is_all() && broken().map_or(Ok(true), Err)?;
            if counted { self.take_over(state, pass) } else { Ok(()) }
        })?;
        if let Some(error) = broken() {
            return Err(error);
        }
        if !counted {
            Counting::start(storage, &state.header, covered, &options, &|_| {})?
                .each_pass(|pass| self.take_over(state, pass))?;
        }
        // Also where no count was wrong.
        self.begin(state)?;
        state.next = 0;
        state.write_counts(storage)?;
        state.barrier(storage)?;
        let clean = IncompatibleFeatures::DIRTY;
        let features = state.header.incompatible.with(clean, false);
        state.set_incompatible(storage, features)?;
        state.barrier(storage)
    }

    /// Makes the refcounts of a pass the number of references.
    fn take_over(&self, state: &mut State, pass: &Counting<'_, '_, S>) -> Result<()> {
        // All is known: nothing was changed so far.
        self.begin(state)?;
        self.add_missing_blocks(state, pass)?;
        let storage = &self.image.storage;
        pass.each_difference(|cluster, references| {
            state.counts.set(storage, HostCluster(cluster), references)?;
            if state.counts.is_crowded() {
                state.write_counts(storage)?;
            }
            Ok(())
        })
    }

    /// Has a block count each cluster that is referred to.
    fn add_missing_blocks(&self, state: &mut State, pass: &Counting<'_, '_, S>) -> Result<()> {
        let storage = &self.image.storage;
        let geometry = self.image.geometry();
        let per_block = geometry.refcounts_per_block();
        let mut missing = Vec::new();
        pass.each_difference(|cluster, _| {
            let block = cluster / per_block;
            if !state.counts.has_block(block) && missing.last() != Some(&block) {
                missing.push(block);
            }
            Ok(())
        })?;
        for block in missing {
            // A block lies among the clusters that it counts.
            let clusters = block * per_block..(block + 1) * per_block;
            let offset = geometry.cluster_bits.offset_of(HostCluster(clusters.start)).0;
            let Some(free) = pass.first_unused(clusters)? else {
                let (field, value, violation) = ("refcount", 0, Violation::UnusedInUse);
                return Err(FieldError { field, value, offset, violation }.into());
            };
            let bytes = geometry.cluster_bits.bytes();
            let offset = geometry.cluster_bits.offset_of(HostCluster(free)).0;
            write_zeros(storage, offset, bytes)?;
            state.counts.add_block(storage, HostCluster(free))?;
            state.guard.add(Kind::RefcountBlock, offset, bytes)?;
            state.fresh = state.fresh.max(offset.saturating_add(bytes));
        }
        Ok(())
    }
}

/// The error for a finding that keeps refcounts from being counted.
fn violated(finding: &Finding, bits: u32) -> Option<Error> {
    let violation = match finding {
        Finding::Overflow { .. } => Violation::RefcountOverflow { bits },
        // What is counted anew, and what is set right when it is next changed.
        Finding::TooLow { .. }
        | Finding::L1Copied { .. }
        | Finding::L2Copied { .. }
        | Finding::CompressedCopied { .. }
        | Finding::SnapshotIncomplete { .. } => return None,
        other if other.severity() == Severity::Corruption => {
            Violation::Inconsistent { finding: other.to_string() }
        }
        _ => return None,
    };
    let offset = match finding {
        Finding::Overflow { offset } | Finding::BeyondFile { offset, .. } => offset.0,
        _ => 0,
    };
    let value = finding.guest().map_or(0, |guest| guest.0);
    Some(FieldError { field: "references", value, offset, violation }.into())
}
