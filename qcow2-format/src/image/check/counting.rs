//! References counted for who sets refcounts itself.
//!
//! ```text
//! header ─▶ Counting ─▶ pass: differences, clusters that nothing uses ─▶ write::rebuild
//! ```
//!
//! Callers: `write`.

use std::ops::Range;

use crate::error::Result;
use crate::header::Header;
use crate::image::check::counts::PAGE_CLUSTERS;
use crate::image::check::finding::Finding;
use crate::image::check::refcounts::RefcountTable;
use crate::image::check::report::{CheckOptions, Sink};
use crate::image::check::tally::{Cursor, Tally};
use crate::image::check::walk::Subject;
use crate::io::ReadAt;

/// An image whose references are counted, or a pass of that.
pub(in crate::image) struct Counting<'s, 'a, S> {
    subject: &'s Subject<'a, S>,
    tally: &'s Tally<'s, S>,
}

/// An image whose references are to be counted.
pub(in crate::image) struct Start<'a, 'h, S> {
    subject: Subject<'a, S>,
    options: &'a CheckOptions,
    hear: &'h (dyn Fn(&Finding) + Sync),
}

impl<'a, S: ReadAt + Sync> Counting<'_, 'a, S> {
    /// Looks where the structures of the image with this `header` are. References to the first
    /// `clusters` are counted, whether the file holds them or not; `hear` is told what is found.
    pub(in crate::image) fn start<'h>(
        storage: &'a S,
        header: &Header,
        clusters: u64,
        options: &'a CheckOptions,
        hear: &'h (dyn Fn(&Finding) + Sync),
    ) -> Result<Start<'a, 'h, S>> {
        let mut listener = |finding: &Finding, _| hear(finding);
        let mut sink = Sink::new(&mut listener);
        let table = RefcountTable::read(storage, header)?;
        let mut subject = Subject::of(storage, header.clone(), table, false, &mut sink)?;
        let bits = subject.cluster_bits();
        let covered = bits.offset_of(crate::HostCluster(clusters)).0;
        subject.file_length = subject.file_length.max(covered);
        Ok(Start { subject, options, hear })
    }
}

impl<S: ReadAt + Sync> Start<'_, '_, S> {
    /// Counts, and shows each pass to `each`.
    pub(in crate::image) fn each_pass(
        &self,
        mut each: impl FnMut(&Counting<'_, '_, S>) -> Result<()>,
    ) -> Result<()> {
        let mut listener = |finding: &Finding, _| (self.hear)(finding);
        let mut sink = Sink::new(&mut listener);
        let subject = &self.subject;
        subject.each_pass(self.options, &mut sink, |tally, sink| {
            subject.compare(tally, sink)?;
            each(&Counting { subject, tally })
        })
    }
}

impl<S: ReadAt> Counting<'_, '_, S> {
    /// Whether this pass counts everything.
    pub(in crate::image) fn is_all(&self) -> bool {
        self.tally.start() == 0 && self.tally.end() == u64::MAX
    }

    /// Shows `each` the clusters whose refcount is not the number of references, in order, with that
    /// number.
    pub(in crate::image) fn each_difference(
        &self,
        mut each: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        self.subject.each_page(self.tally, |index, page| {
            let first = index.saturating_mul(PAGE_CLUSTERS as u64);
            let mut result = Ok(());
            self.subject.each_difference(page, PAGE_CLUSTERS, first, |cluster, _, references| {
                if result.is_ok() {
                    result = each(cluster, references);
                }
            });
            result
        })
    }

    /// The first of `clusters` that nothing refers to, among those of this pass.
    pub(in crate::image) fn first_unused(&self, clusters: Range<u64>) -> Result<Option<u64>> {
        let mut cursor = Cursor::default();
        let mut at = clusters.start;
        while at < clusters.end {
            // A page at a time, as most have one.
            let per_page = PAGE_CLUSTERS as u64;
            let end = (at / per_page + 1).saturating_mul(per_page).min(clusters.end);
            let mut found = None;
            self.tally.visit(&mut cursor, at..end, |page, mut range, first| {
                let start = range.start;
                let free = range.find(|index| page.used.get(*index) == 0);
                found = free.map(|index| first.saturating_add((index - start) as u64));
                Ok(())
            })?;
            if found.is_some() {
                return Ok(found);
            }
            at = end;
        }
        Ok(None)
    }
}
