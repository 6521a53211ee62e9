//! References counted, beside what the refcounts say.
//!
//! ```text
//! page 0   said  1 1 1 0 2 …      read when the page is first referred to
//!          used  1 1 1 0 1 …      counted
//! page 7   …                      none between: nothing there is referred to
//! ────────────────────────────    end of this pass: more would not fit in the budget
//! ```
//!
//! A page takes 32 KiB for 64 Ki clusters, more where counts above 3 are among them. What lies past
//! the end of a pass is counted in the next one, which walks the tables once more. Many threads
//! count at once. Callers: `walk`, `scan`, `compare`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::image::check::counts::{Counts, PAGE_CLUSTERS};
use crate::image::check::refcounts::RefcountTable;
use crate::io::ReadAt;

/// What is known of the clusters of a page.
#[derive(Debug)]
pub(in crate::image) struct Page {
    /// Their refcounts.
    pub(in crate::image) said: Counts,
    /// How often they are referred to.
    pub(in crate::image) used: Counts,
}

impl Page {
    fn memory(&self) -> u64 {
        self.said.memory().saturating_add(self.used.memory())
    }
}

type Shared = Arc<Mutex<Option<Page>>>;

#[derive(Debug)]
struct Directory {
    pages: BTreeMap<u64, Shared>,
    /// The first page that is left to the next pass.
    end: u64,
}

#[derive(Debug)]
pub(in crate::image) struct Tally<'a, S> {
    storage: &'a S,
    table: &'a RefcountTable,
    /// The first page of this pass.
    start: u64,
    directory: Mutex<Directory>,
    /// Bytes that the pages take.
    held: AtomicU64,
    budget: u64,
    /// Behind the last cluster that anything refers to.
    behind: AtomicU64,
}

/// What was used last; each thread has its own.
#[derive(Debug, Default)]
pub(in crate::image) struct Cursor {
    page: Option<(u64, Shared)>,
    /// Part of a refcount block.
    pub(super) piece: Option<(u64, Vec<u8>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, S: ReadAt> Tally<'a, S> {
    /// Nothing is counted yet; counts page `start` and those behind it, as far as `budget` bytes
    /// hold them.
    pub(super) fn new(storage: &'a S, table: &'a RefcountTable, start: u64, budget: u64) -> Self {
        let directory = Directory { pages: BTreeMap::new(), end: u64::MAX };
        Self {
            storage,
            table,
            start,
            directory: Mutex::new(directory),
            held: AtomicU64::new(0),
            budget,
            behind: AtomicU64::new(0),
        }
    }

    /// The first page that the next pass counts; `u64::MAX` if none is left.
    pub(super) fn end(&self) -> u64 {
        locked(&self.directory).end
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Behind the last cluster that anything refers to.
    pub(super) fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    /// Something refers to clusters up to `end`.
    pub(super) fn refer(&self, end: u64) {
        self.behind.fetch_max(end, Ordering::Relaxed);
    }

    /// The first page from `page` on that something refers to.
    pub(super) fn next_page(&self, page: u64) -> Option<u64> {
        locked(&self.directory).pages.range(page..).next().map(|(page, _)| *page)
    }

    /// `times` references to each of `clusters`.
    pub(in crate::image) fn add(
        &self,
        cursor: &mut Cursor,
        clusters: Range<u64>,
        times: u64,
    ) -> Result<()> {
        self.refer(clusters.end);
        self.visit(cursor, clusters, |page, range, _| {
            page.used.add(range, times).map_err(Error::io("count references", 0))
        })?;
        Ok(())
    }

    /// Shows `each` the pages of this pass that `clusters` lie in, with which indices of the page
    /// they are and the number of the first one. Returns the first cluster that is left to the next
    /// pass, or where they end.
    pub(super) fn visit(
        &self,
        cursor: &mut Cursor,
        clusters: Range<u64>,
        mut each: impl FnMut(&mut Page, Range<usize>, u64) -> Result<()>,
    ) -> Result<u64> {
        let per_page = PAGE_CLUSTERS as u64;
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let index = cluster / per_page;
            let end = (index + 1).saturating_mul(per_page).min(clusters.end);
            if index >= self.start {
                let Some(page) = self.page(cursor, index) else { return Ok(cluster) };
                let mut page = locked(&page);
                let page = match &mut *page {
                    Some(page) => page,
                    empty => {
                        let said = self.table.load(self.storage, index)?;
                        let used = Counts::new().map_err(Error::io("count references", 0))?;
                        let page = empty.insert(Page { said, used });
                        self.held.fetch_add(page.memory(), Ordering::Relaxed);
                        page
                    }
                };
                let before = page.memory();
                // Both are below the number of clusters of a page.
                let first = usize::try_from(cluster % per_page).unwrap_or(usize::MAX);
                let count = usize::try_from(end - cluster).unwrap_or(0);
                each(page, first..first.saturating_add(count), cluster)?;
                let more = page.memory().saturating_sub(before);
                if more > 0 {
                    self.held.fetch_add(more, Ordering::Relaxed);
                }
            }
            cluster = end;
        }
        Ok(cluster)
    }

    /// Page `index`, unless it is left to the next pass.
    fn page(&self, cursor: &mut Cursor, index: u64) -> Option<Shared> {
        if let Some((at, page)) = &cursor.page
            && *at == index
        {
            return Some(Arc::clone(page));
        }
        let mut directory = locked(&self.directory);
        if index >= directory.end {
            return None;
        }
        if !directory.pages.contains_key(&index) {
            self.make_room(&mut directory, index);
            if index >= directory.end {
                return None;
            }
        }
        let page = Arc::clone(directory.pages.entry(index).or_default());
        cursor.page = Some((index, Arc::clone(&page)));
        Some(page)
    }

    /// Gives up the last pages until one more fits; they are counted in the next pass. One page is
    /// always kept.
    fn make_room(&self, directory: &mut Directory, wanted: u64) {
        while self.held.load(Ordering::Relaxed) >= self.budget {
            let Some((last, _)) = directory.pages.last_key_value() else { return };
            let last = *last;
            if last < wanted {
                directory.end = wanted;
                return;
            }
            if let Some(page) = directory.pages.remove(&last) {
                let memory = locked(&page).as_ref().map_or(0, Page::memory);
                self.held.fetch_sub(memory, Ordering::Relaxed);
            }
            directory.end = last;
        }
    }
}
