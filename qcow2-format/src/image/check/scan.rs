//! L2 tables, entry by entry: what they refer to, and what is wrong with them.
//!
//! ```text
//! entry ─┬▶ compressed            its sectors' clusters, once each
//!        ├▶ standard, zero+place  a cluster; neighbours are counted as one run
//!        └▶ neither               nothing
//! ```
//!
//! Several threads scan, each its own tables, and are heard in the tables' order. Callers: `check`.

use std::ops::Range;

use crate::address::{GuestOffset, HostOffset};
use crate::compressed::CompressedDescriptor;
use crate::error::{Error, Result};
use crate::header::Version;
use crate::image::check::finding::{Finding, Metadata};
use crate::image::check::tables::Table;
use crate::image::check::tally::{Cursor, Tally};
use crate::image::check::walk::{Landmarks, Subject, beyond};
use crate::io::ReadAt;
use crate::l2::{COMPRESSED, COPIED, OFFSET, RESERVED, SubclusterBitmap, ZERO};

/// Clusters that are allocated in the active disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stored {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    pub(super) compressed: u64,
}

/// So much a thread remembers before it waits for its turn to tell.
const FINDINGS_MAX: usize = 8 << 10;

/// What a thread has found in the tables it was given, and not told.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) findings: Vec<(Finding, u64)>,
    pub(super) stored: Stored,
}

/// Tells what was found so far.
pub(super) type Tell<'t> = dyn FnMut(&mut Found) -> Result<()> + 't;

/// Clusters one behind the other, mapped by entries one behind the other.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    first: u64,
    count: u64,
    copied: bool,
    /// The first of the entries.
    index: u64,
}

/// What every thread needs to know.
#[derive(Debug)]
pub(super) struct Scan<'a, S> {
    pub(super) subject: &'a Subject<'a, S>,
    pub(super) tally: &'a Tally<'a, S>,
    pub(super) landmarks: &'a Landmarks,
    /// All tables of the round.
    pub(super) tables: &'a [Table],
    /// Whether this is the first pass.
    pub(super) first: bool,
}

/// A table being scanned.
struct Reader<'a, 's, 't, S> {
    scan: &'s Scan<'a, S>,
    cursor: &'s mut Cursor,
    found: &'s mut Found,
    tell: &'s mut Tell<'t>,
    table: &'s Table,
    words: &'s [u64],
    span: Span,
    /// Where the next cluster lies if it is no fragment; 0 before the first.
    expected: u64,
}

impl<S: ReadAt> Scan<'_, S> {
    /// Scans `table`, whose words are `words`. What is found is told by `tell` where it is much.
    pub(super) fn table(
        &self,
        table: &Table,
        words: &[u64],
        cursor: &mut Cursor,
        found: &mut Found,
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        let per_entry = if self.subject.header.geometry.extended_l2 { 2 } else { 1 };
        let mut reader = Reader {
            scan: self,
            cursor,
            found,
            tell,
            table,
            words,
            span: Span::default(),
            expected: 0,
        };
        for (index, entry) in (0_u64..).zip(words.chunks_exact(per_entry)) {
            match entry {
                [0] | [0, 0] => {}
                [raw] => reader.entry(index, *raw, SubclusterBitmap(0))?,
                [raw, bitmap] => reader.entry(index, *raw, SubclusterBitmap(*bitmap))?,
                _ => {}
            }
            reader.make_room()?;
        }
        reader.finish()
    }
}

impl<S: ReadAt> Reader<'_, '_, '_, S> {
    /// Tells what was found, if that is much.
    fn make_room(&mut self) -> Result<()> {
        if self.found.findings.len() < FINDINGS_MAX { Ok(()) } else { (self.tell)(self.found) }
    }

    fn tell(&mut self, finding: Finding) {
        if self.scan.first {
            let times = self.table.active.saturating_add(self.table.snapshots);
            self.found.findings.push((finding, times));
        }
    }

    fn guest(&self, index: u64) -> GuestOffset {
        let start = self.scan.subject.guest_of(self.table.l1_index);
        GuestOffset(start.0.saturating_add(index * self.scan.subject.cluster_bits().bytes()))
    }

    /// Whether COPIED flags mean anything here: in a table of the active disk, in the first pass. An L1
    /// entry of offset 0 names no table, whatever its flags; and as in QEMU, nothing is said of a table
    /// whose own refcount is not known.
    fn has_flags(&self) -> bool {
        let subject = self.scan.subject;
        let cluster = self.table.offset >> subject.cluster_bits().to_u32();
        self.scan.first
            && self.table.active > 0
            && self.table.offset != 0
            && !subject.is_unknown(cluster)
    }

    fn times(&self) -> u64 {
        self.table.active.saturating_add(self.table.snapshots)
    }

    fn entry(&mut self, index: u64, raw: u64, bitmap: SubclusterBitmap) -> Result<()> {
        let subject = self.scan.subject;
        let guest = self.guest(index);
        let (raw, bitmap) =
            if subject.as_mended { subject.mended_l2(raw, bitmap, guest) } else { (raw, bitmap) };
        if raw & COMPRESSED != 0 {
            return self.compressed(index, raw, bitmap);
        }
        let extended = subject.header.geometry.extended_l2;
        if raw & RESERVED != 0 {
            self.tell(Finding::L2Reserved { entry: raw, guest });
        }
        if raw & ZERO != 0 && (extended || subject.header.version == Version::V2) {
            self.tell(Finding::ZeroBit { entry: raw, guest });
        }
        let zero = raw & ZERO != 0 && !extended;
        let (host, copied) = (raw & OFFSET, raw & COPIED != 0);
        // The first cluster of an external data file lies at 0; COPIED tells it from no cluster.
        if host == 0 && (zero || !subject.has_data_file() || !copied) {
            if bitmap.allocated() != 0 {
                self.tell(Finding::SubclusterWithoutCluster { guest });
            }
            return Ok(());
        }
        let offset = HostOffset(host);
        if bitmap.allocated() & bitmap.zero() != 0 {
            self.tell(Finding::SubclusterConflict { offset, guest });
        }
        let bits = subject.cluster_bits();
        let aligned = bits.is_aligned(host);
        if !aligned {
            let data = if extended { bitmap.allocated() != 0 } else { !zero };
            self.tell(Finding::ClusterUnaligned { offset, data, guest });
        }
        self.stored(host);
        if subject.has_data_file() {
            if host != guest.0 {
                self.tell(Finding::ExternalDataElsewhere { offset, guest });
            }
            if !copied && self.has_flags() {
                let finding = Finding::L2Copied { entry: raw, refcount: 1, guest };
                self.found.findings.push((finding, self.table.active));
            }
            return Ok(());
        }
        let cluster = host >> bits.to_u32();
        if aligned && host < subject.file_length {
            let span = &mut self.span;
            if span.count > 0
                && cluster == span.first.saturating_add(span.count)
                && index == span.index.saturating_add(span.count)
                && copied == span.copied
            {
                span.count += 1;
                return Ok(());
            }
            self.finish()?;
            self.span = Span { first: cluster, count: 1, copied, index };
            return Ok(());
        }
        self.finish()?;
        match subject.within(host, bits.bytes()) {
            Some(clusters) => self.scan.tally.add(self.cursor, clusters, self.times())?,
            None => self.tell(beyond(host, bits.bytes(), Some(guest))),
        }
        self.check_copied(cluster, raw, guest)
    }

    /// Holds the entry's flag against the refcount of the cluster.
    fn check_copied(&mut self, cluster: u64, entry: u64, guest: GuestOffset) -> Result<()> {
        if !self.has_flags() {
            return Ok(());
        }
        let refcount = self.scan.subject.refcount(self.scan.tally, self.cursor, cluster)?;
        if let Some(refcount) = refcount
            && (refcount == 1) != (entry & COPIED != 0)
        {
            let finding = Finding::L2Copied { entry, refcount, guest };
            self.found.findings.push((finding, self.table.active));
        }
        Ok(())
    }

    fn compressed(&mut self, index: u64, raw: u64, bitmap: SubclusterBitmap) -> Result<()> {
        let subject = self.scan.subject;
        let guest = self.guest(index);
        let descriptor = CompressedDescriptor::decode(raw, subject.cluster_bits());
        if raw & COPIED != 0 {
            self.tell(Finding::CompressedCopied { offset: descriptor.host(), guest });
        }
        let entry = raw & !COPIED;
        if subject.has_data_file() {
            self.tell(Finding::CompressedWithDataFile { index, entry, guest });
            return Ok(());
        }
        if bitmap.0 != 0 {
            self.tell(Finding::CompressedWithBitmap { index, entry, guest });
            return Ok(());
        }
        if self.scan.first {
            let stored = &mut self.found.stored;
            stored.allocated = stored.allocated.saturating_add(self.table.active);
            stored.compressed = stored.compressed.saturating_add(self.table.active);
            // A part of a sector is read with its neighbours.
            stored.fragmented = stored.fragmented.saturating_add(self.table.active);
        }
        let (offset, length) = (descriptor.host().0, descriptor.length());
        match subject.within(offset, length) {
            Some(clusters) => {
                self.overlap(&clusters, guest);
                self.scan.tally.add(self.cursor, clusters, self.times())
            }
            None => {
                self.tell(beyond(offset, length, Some(guest)));
                Ok(())
            }
        }
    }

    fn stored(&mut self, host: u64) {
        if !self.scan.first || self.table.active == 0 {
            return;
        }
        let stored = &mut self.found.stored;
        stored.allocated = stored.allocated.saturating_add(self.table.active);
        if self.expected != 0 && self.expected != host {
            stored.fragmented = stored.fragmented.saturating_add(self.table.active);
        }
        self.expected = host.saturating_add(self.scan.subject.cluster_bits().bytes());
    }

    /// Counts the clusters of the span, and holds its flags against their refcounts.
    fn finish(&mut self) -> Result<()> {
        let span = std::mem::take(&mut self.span);
        if span.count == 0 {
            return Ok(());
        }
        let clusters = span.first..span.first.saturating_add(span.count);
        self.overlap(&clusters, self.guest(span.index));
        let (looks, times) = (self.has_flags(), self.times());
        let mut agree = true;
        let counted = self.scan.tally.visit(self.cursor, clusters.clone(), |page, range, _| {
            page.used.add(range.clone(), times).map_err(Error::io("count references", 0))?;
            agree &= !looks
                || match span.copied {
                    true => page.said.all_ones(range),
                    false => page.said.no_ones(range),
                };
            Ok(())
        })?;
        self.scan.tally.refer(clusters.end);
        if !looks || agree && counted == clusters.end {
            return Ok(());
        }
        let per_entry = if self.scan.subject.header.geometry.extended_l2 { 2 } else { 1 };
        for (ahead, cluster) in (0..).zip(clusters) {
            let index = span.index.saturating_add(ahead);
            let word = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(per_entry);
            let entry = self.words.get(word).copied().unwrap_or_default();
            self.check_copied(cluster, entry, self.guest(index))?;
            self.make_room()?;
        }
        Ok(())
    }

    /// Notes metadata that lies where guest data is said to.
    fn overlap(&mut self, clusters: &Range<u64>, guest: GuestOffset) {
        if !self.scan.first {
            return;
        }
        let bits = self.scan.subject.cluster_bits();
        let tables = self.scan.tables;
        let table = || {
            let start = bits.offset_of(crate::address::HostCluster(clusters.start)).0;
            let index = tables.partition_point(|table| table.offset < start);
            let cluster = tables.get(index)?.offset >> bits.to_u32();
            (cluster < clusters.end).then_some((cluster, Metadata::L2Table))
        };
        if let Some((cluster, metadata)) = self.scan.landmarks.find(clusters).or_else(table) {
            let ahead = cluster.saturating_sub(clusters.start).saturating_mul(bits.bytes());
            let guest = Some(GuestOffset(guest.0.saturating_add(ahead)));
            self.tell(Finding::Overlap { cluster, metadata, guest });
        }
    }
}
