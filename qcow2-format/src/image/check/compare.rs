//! What refcounts say, held against what was counted.
//!
//! ```text
//! said  1 1 2 0 1 …      said > used: leaked
//! used  1 1 1 1 1 …      said < used: too low
//! ```
//!
//! Pages that nothing refers to are read here, if a refcount block covers them. Callers: `check`,
//! `repair`.

use crate::address::HostCluster;
use crate::error::Result;
use crate::image::check::counts::{Counts, PAGE_CLUSTERS};
use crate::image::check::finding::Finding;
use crate::image::check::refcounts::Block;
use crate::image::check::report::Sink;
use crate::image::check::tally::{Cursor, Page, Tally};
use crate::image::check::walk::Subject;
use crate::io::ReadAt;
use crate::refcount;

const PER_PAGE: u64 = PAGE_CLUSTERS as u64;

impl<S: ReadAt> Subject<'_, S> {
    /// Whether the refcount of `cluster` is not known.
    pub(super) fn is_unknown(&self, cluster: u64) -> bool {
        self.table.block(cluster / self.table.per_block()) == Block::Unknown
    }

    /// The refcount of `cluster`, if it is known.
    pub(super) fn refcount(
        &self,
        tally: &Tally<'_, S>,
        cursor: &mut Cursor,
        cluster: u64,
    ) -> Result<Option<u64>> {
        if self.is_unknown(cluster) {
            return Ok(None);
        }
        let mut refcount = None;
        // Past the end of the file nothing is counted, so it must not take a page.
        if cluster < self.clusters() {
            tally.visit(cursor, cluster..cluster.saturating_add(1), |page, range, _| {
                refcount = Some(page.said.get(range.start));
                Ok(())
            })?;
        }
        if refcount.is_none() {
            refcount = Some(self.table.one(self.storage, cluster, &mut cursor.piece)?);
        }
        Ok(refcount)
    }

    /// Clusters that are compared: those of the file, and one that begins behind its end if
    /// something in use does.
    pub(super) fn compared(&self, tally: &Tally<'_, S>) -> u64 {
        self.clusters().max(tally.behind())
    }

    /// The first page from `page` on that is referred to or covered by a block.
    pub(super) fn next_page(&self, tally: &Tally<'_, S>, page: u64) -> Option<u64> {
        let referred = tally.next_page(page);
        let per_block = self.table.per_block();
        let block = page.saturating_mul(PER_PAGE) / per_block;
        let covered = self
            .table
            .next_block(block)
            .map(|block| (block.saturating_mul(per_block) / PER_PAGE).max(page));
        referred.into_iter().chain(covered).min()
    }

    /// Shows `each` the pages of this pass that hold a count, of either kind.
    pub(super) fn each_page(
        &self,
        tally: &Tally<'_, S>,
        mut each: impl FnMut(u64, &Page) -> Result<()>,
    ) -> Result<()> {
        let end = tally.end().min(self.compared(tally).div_ceil(PER_PAGE));
        let mut cursor = Cursor::default();
        let mut next = self.next_page(tally, tally.start());
        while let Some(index) = next.filter(|index| *index < end) {
            if tally.next_page(index) == Some(index) {
                let first = index.saturating_mul(PER_PAGE);
                let clusters = first..first.saturating_add(1);
                tally.visit(&mut cursor, clusters, |page, _, _| each(index, page))?;
            } else {
                let said = self.table.load(self.storage, index)?;
                let used = Counts::new().map_err(crate::Error::io("count references", 0))?;
                each(index, &Page { said, used })?;
            }
            next = self.next_page(tally, index.saturating_add(1));
        }
        Ok(())
    }

    /// Tells of every difference in the pages of this pass.
    pub(super) fn compare(&self, tally: &Tally<'_, S>, sink: &mut Sink<'_>) -> Result<()> {
        let compared = self.compared(tally);
        let bits = self.cluster_bits();
        self.unknown(tally, sink);
        self.each_page(tally, |index, page| {
            let first = index.saturating_mul(PER_PAGE);
            let limit = compared.saturating_sub(first).min(PER_PAGE);
            let limit = usize::try_from(limit).unwrap_or(PAGE_CLUSTERS);
            if let Some(last) = self.last_used(page, limit, first) {
                let end = bits.offset_of(HostCluster(last.saturating_add(1))).0;
                let report = &mut sink.report;
                report.image_end_offset = report.image_end_offset.max(end);
            }
            self.each_difference(page, limit, first, |cluster, refcount, references| {
                let counted = self.counted(references);
                if references > counted {
                    let offset = bits.offset_of(HostCluster(cluster));
                    sink.tell(Finding::Overflow { offset }, references - counted);
                }
                if self.is_unknown(cluster) || refcount == counted {
                    return;
                }
                let references = counted;
                sink.tell(
                    match refcount > references {
                        true => Finding::Leaked { cluster, refcount, references },
                        false => Finding::TooLow { cluster, refcount, references },
                    },
                    1,
                );
            });
            Ok(())
        })
    }

    /// The last cluster of the page, below index `limit`, that is counted or used and whose refcount is
    /// known.
    fn last_used(&self, page: &Page, limit: usize, first: u64) -> Option<u64> {
        let mut limit = limit;
        loop {
            let last = page.said.last_used(limit).max(page.used.last_used(limit))?;
            let cluster = first.saturating_add(last as u64);
            if !self.is_unknown(cluster) {
                return Some(cluster);
            }
            let per_block = self.table.per_block();
            let start = (cluster / per_block * per_block).saturating_sub(first);
            limit = usize::try_from(start).unwrap_or(0);
        }
    }

    /// As many references as a refcount counts.
    pub(super) fn counted(&self, references: u64) -> u64 {
        references.min(refcount::max(self.header.geometry.refcount_order))
    }

    /// Shows `each` the clusters below `limit` whose refcount is not the number of references, with
    /// both.
    pub(super) fn each_difference(
        &self,
        page: &Page,
        limit: usize,
        first: u64,
        mut each: impl FnMut(u64, u64, u64),
    ) {
        let mut from = 0;
        while let Some(at) = page.said.first_difference(&page.used, from).filter(|at| *at < limit) {
            each(first.saturating_add(at as u64), page.said.get(at), page.used.get(at));
            from = at + 1;
        }
    }

    /// Tells of clusters whose block is not where a block can be.
    fn unknown(&self, tally: &Tally<'_, S>, sink: &mut Sink<'_>) {
        let per_block = self.table.per_block();
        let (start, end) = (
            tally.start().saturating_mul(PER_PAGE),
            tally.end().saturating_mul(PER_PAGE).min(self.compared(tally)),
        );
        for (index, _) in self.table.entries() {
            let first = index.saturating_mul(per_block).max(start);
            let behind = index.saturating_add(1).saturating_mul(per_block).min(end);
            if behind > first && self.table.block(index) == Block::Unknown {
                let count = behind - first;
                sink.tell(Finding::RefcountUnknown { cluster: first, count }, count);
            }
        }
    }
}
