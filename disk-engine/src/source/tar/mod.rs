//! A disk inside a tar archive.
//!
//! ```text
//! ┌─ L, K, x: about the next ─┐┌ header ┬ sparse map ┬ data ┬ padding ┐┌ … ┐┌ zeros ─── to the end
//! └───────────────────────────┘└────────┴────────────┴──────┴─────────┘└───┘└ at least one block
//! ```
//!
//! One pass, since standard input has no second. A member that may be the disk is told extent by
//! extent while it passes; the others are read over. The archive must end where it says, with
//! nothing but zeros after it.
//!
//! ```text
//! header    one 512-byte record           sparse    the four forms of a sparse map
//! number    octal, base-256, decimal      member    which member is the disk
//! pax       records about a member
//! ```
//!
//! Caller: `source::Opened`.

pub(crate) mod header;
pub(crate) mod member;
pub(crate) mod number;
pub(crate) mod pax;
pub(crate) mod sparse;

#[cfg(test)]
pub(crate) mod build;

use crate::error::{Error, ErrorKind, Result};
use crate::source::content::{BLOCK, Content, at_most};
use crate::source::extent::{DiskShape, Extent, ExtentSource};
use crate::source::limits::{Defect, Limits};
use crate::source::probe;
use header::{Header, Kind};
use member::{Chooser, Verdict};
use pax::{Attributes, Budget};
use sparse::{SparseForm, SparseMap};

/// More padding than this after an archive is no padding.
const MOST_PADDING: u64 = 1 << 30;

/// A tar archive, read front to back.
pub(crate) struct Tar {
    content: Content,
    limits: Limits,
    chooser: Chooser,
    /// What global pax records say about every member.
    global: Attributes,
    members: u64,
    current: Option<Member>,
    chosen: Option<Chosen>,
    /// The bytes taken for the disk are not a disk's: told if no later member takes its place.
    refusal: Option<Error>,
}

/// The member that is the disk.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) form: SparseForm,
}

/// The disk, where it lies.
#[derive(Debug)]
pub(crate) struct Located {
    /// The member that is the disk, if an archive is around it.
    pub(crate) member: Option<String>,
    pub(crate) map: SparseMap,
    /// Where its stored bytes begin in the content; they follow each other.
    pub(crate) start: u64,
}

/// The member whose extents are being told.
struct Member {
    map: SparseMap,
    /// Index of the next range of the map.
    next: usize,
    /// Everything before this guest offset was told.
    told: u64,
    /// Bytes of the range just told that were not read yet.
    unread: u64,
    padding: u64,
}

/// A member's header and everything that came with it.
struct Described {
    name: Vec<u8>,
    kind: Kind,
    map: SparseMap,
    form: SparseForm,
    /// Bytes of data that follow.
    stored: u64,
}

impl Tar {
    pub(crate) fn new(content: Content, limits: &Limits, member: Option<&str>) -> Self {
        Self {
            content,
            limits: *limits,
            chooser: Chooser::new(member),
            global: Attributes::default(),
            members: 0,
            current: None,
            chosen: None,
            refusal: None,
        }
    }

    /// The member that was the disk; known once all extents were told.
    pub(crate) fn chosen(&self) -> Option<&Chosen> {
        self.chosen.as_ref()
    }

    pub(crate) fn into_content(self) -> Content {
        self.content
    }

    /// Finds the disk by the same rule as telling it, and reads none of it but its first block.
    pub(crate) fn locate(mut self) -> Result<Located> {
        let mut located = None;
        while self.next_disk()?.is_some() {
            let Some(member) = self.current.take() else { continue };
            let start = self.content.position();
            let first = member.map.ranges.first();
            if first.is_some_and(|range| range.offset == 0) {
                let block = self.content.block("a member's data")?.unwrap_or([0; BLOCK]);
                let length = first.map_or(0, |range| at_most(range.length, BLOCK));
                let bytes = block.get(..length).unwrap_or_default();
                if let Err(defect) = probe::refuse_encoded(bytes) {
                    self.refusal = Some(self.content.fault(defect));
                }
            }
            // Ranges below 2^63 that are disjoint.
            let stored: u64 = member.map.ranges.iter().map(|range| range.length).sum();
            let read = self.content.position() - start;
            let left = stored.saturating_add(member.padding).saturating_sub(read);
            self.content.skip(left, "a member's data")?;
            located = Some((member.map, start));
        }
        match (located, self.chosen) {
            (Some((map, start)), Some(chosen)) => {
                Ok(Located { member: Some(chosen.name), map, start })
            }
            _ => Err(Error::new(ErrorKind::NotFound, "the archive holds no file")),
        }
    }

    /// Goes on to the next member that may be the disk; `None` after the archive's end.
    fn next_disk(&mut self) -> Result<Option<DiskShape>> {
        while let Some(member) = self.next_member()? {
            let verdict = self.chooser.consider(&member.name, member.kind);
            let padding = padding_of(member.stored);
            match verdict.map_err(|defect| self.content.fault(defect))? {
                Verdict::Skip => {
                    self.content.skip(member.stored, "a member's data")?;
                    self.content.skip(padding, "a member's padding")?;
                }
                Verdict::Take => return self.take(member, padding).map(Some),
            }
        }
        self.content.expect_zeros(MOST_PADDING)?;
        let chosen = self.chooser.conclude().map_err(|defect| self.content.fault(defect))?;
        if let Some(chosen_member) = &mut self.chosen {
            chosen_member.name = String::from_utf8_lossy(&chosen).into_owned();
        }
        match self.refusal.take() {
            Some(refusal) => Err(refusal),
            None => Ok(None),
        }
    }

    fn take(&mut self, member: Described, padding: u64) -> Result<DiskShape> {
        let size = member.map.size;
        if size > self.limits.max_image_size {
            let message =
                format!("the disk has {size} bytes, more than {}", self.limits.max_image_size);
            return Err(self.content.fault(Defect::limit(message, "max_image_size (--max-size)")));
        }
        self.refusal = None;
        self.chosen = Some(Chosen { name: String::new(), form: member.form });
        self.current = Some(Member { map: member.map, next: 0, told: 0, unread: 0, padding });
        let data = (member.form != SparseForm::Dense).then_some(member.stored);
        Ok(DiskShape { size: Some(size), data })
    }

    /// The next extent of the member being told; `None` when it is over.
    fn next_in_member(&mut self) -> Result<Option<Extent>> {
        let Some(member) = &mut self.current else { return Ok(None) };
        if member.unread > 0 {
            // The caller did not want these bytes.
            let unread = std::mem::take(&mut member.unread);
            self.content.skip(unread, "a member's data")?;
        }
        let range = member.map.ranges.get(member.next).copied();
        let next_data = range.map_or(member.map.size, |range| range.offset);
        if next_data > member.told {
            let extent = Extent::Zero { offset: member.told, length: next_data - member.told };
            member.told = next_data;
            return Ok(Some(extent));
        }
        if let Some(range) = range {
            member.next += 1;
            member.told = range.offset.saturating_add(range.length);
            member.unread = range.length;
            return Ok(Some(Extent::Data { offset: range.offset, length: Some(range.length) }));
        }
        let padding = member.padding;
        self.current = None;
        self.content.skip(padding, "a member's padding")?;
        Ok(None)
    }

    /// Reads headers up to the next member and all that describes it.
    fn next_member(&mut self) -> Result<Option<Described>> {
        let mut attributes = Attributes { path: self.global.path.clone(), ..Default::default() };
        let mut long_name = None;
        let mut pax_seen = false;
        let mut described = false;
        let mut budget = Budget::new(&self.limits);
        loop {
            let Some(block) = self.content.block("a member's header")? else {
                return Err(self.content.truncated("the archive, before the zeros that end it"));
            };
            let header = Header::parse(&block).map_err(|defect| self.content.fault(defect))?;
            let Some(header) = header else {
                if described {
                    return Err(self.content.fault(Defect::corrupt(
                        "the archive ends after a header that describes another member",
                    )));
                }
                return Ok(None);
            };
            let (kind, size) = header
                .kind()
                .and_then(|kind| Ok((kind, header.size()?)))
                .map_err(|defect| self.content.fault(defect))?;
            // A pax record's size is the file's; these headers have their own.
            let spent = match kind {
                Kind::LongName | Kind::LongLink => budget.spend(size.saturating_add(512)),
                Kind::Pax | Kind::PaxGlobal => budget.spend(512),
                _ => Ok(()),
            };
            spent.map_err(|defect| self.content.fault(defect))?;
            match kind {
                Kind::LongName => {
                    let name = self.long_name(size)?;
                    if long_name.replace(name).is_some() {
                        return Err(self
                            .content
                            .fault(Defect::corrupt("a member has two long names")));
                    }
                    described = true;
                }
                Kind::LongLink => {
                    self.content.skip(size, "a link's target")?;
                    self.content.skip(padding_of(size), "a link's target")?;
                    described = true;
                }
                Kind::Pax => {
                    if std::mem::replace(&mut pax_seen, true) {
                        return Err(self
                            .content
                            .fault(Defect::corrupt("a member has two pax headers")));
                    }
                    let limits = &self.limits;
                    pax::read(
                        &mut self.content,
                        size,
                        false,
                        &mut attributes,
                        &mut budget,
                        limits,
                    )?;
                    described = true;
                }
                Kind::PaxGlobal => {
                    if described {
                        return Err(self.content.fault(Defect::corrupt(
                            "a global pax header stands between a member and its description",
                        )));
                    }
                    let (global, limits) = (&mut self.global, &self.limits);
                    pax::read(&mut self.content, size, true, global, &mut budget, limits)?;
                    attributes.path.clone_from(&self.global.path);
                }
                _ => return self.describe(&header, kind, size, attributes, long_name).map(Some),
            }
        }
    }

    /// Puts a member's header together with what was said about it before.
    fn describe(
        &mut self,
        header: &Header,
        kind: Kind,
        header_size: u64,
        attributes: Attributes,
        long_name: Option<Vec<u8>>,
    ) -> Result<Described> {
        self.members += 1;
        if self.members > self.limits.max_members {
            let message = format!("the archive has more than {} members", self.limits.max_members);
            return Err(self.content.fault(Defect::limit(message, "max_members (--max-members)")));
        }
        let mut sparse = attributes.sparse;
        let name = sparse.name.take().or(attributes.path).or(long_name);
        let name = name.unwrap_or_else(|| header.name());
        let size = attributes.size.unwrap_or(header_size);
        let is_pax_sparse = sparse.is_some();
        let most = self.limits.max_extents;
        let corrupt = |content: &Content, message: &str| {
            Err(content.fault(Defect::corrupt(message.to_owned())))
        };
        if is_pax_sparse && kind != Kind::File {
            return corrupt(
                &self.content,
                "pax records describe the holes of something without any",
            );
        }
        let before = self.content.position();
        let (map, form) = match kind {
            Kind::Special(_) if size > 0 => {
                // Some readers expect data here and some do not.
                return corrupt(&self.content, "a link, device or folder has a size");
            }
            Kind::GnuSparse => {
                (sparse::read_gnu(&mut self.content, header, size, most)?, SparseForm::OldGnu)
            }
            Kind::File if is_pax_sparse => self.pax_map(sparse, size)?,
            _ => (SparseMap::dense(size), SparseForm::Dense),
        };
        // A PAX 1.0 map is part of what the member stores; GNU's extension headers are not.
        let of_data = match form {
            SparseForm::Pax10 => self.content.position() - before,
            _ => 0,
        };
        Ok(Described { name, kind, map, form, stored: size.saturating_sub(of_data) })
    }

    fn pax_map(&mut self, sparse: pax::Sparse, stored: u64) -> Result<(SparseMap, SparseForm)> {
        let most = self.limits.max_extents;
        let wrong =
            |content: &Content, message: &'static str| content.fault(Defect::corrupt(message));
        match (sparse.major, sparse.minor, sparse.map) {
            (Some(1), Some(0), None) => {
                let size = match (sparse.real_size, sparse.size) {
                    (Some(size), None) | (None, Some(size)) => size,
                    _ => return Err(wrong(&self.content, "a PAX sparse file has no single size")),
                };
                let map = sparse::read_pax_10(&mut self.content, size, stored, most)?;
                Ok((map, SparseForm::Pax10))
            }
            (None | Some(0), None | Some(0 | 1), map) => {
                let size = match (sparse.size, sparse.real_size) {
                    (Some(size), None) | (None, Some(size)) => size,
                    _ => return Err(wrong(&self.content, "a PAX sparse file has no single size")),
                };
                let (map, at_once) = match (map, sparse.numblocks) {
                    (Some(map), _) => map,
                    (None, Some(0)) => (sparse::MapBuilder::new(most), false),
                    (None, _) => return Err(wrong(&self.content, "a PAX sparse file has no map")),
                };
                if sparse.numblocks.is_some_and(|count| count != map.entries() as u64) {
                    return Err(wrong(
                        &self.content,
                        "GNU.sparse.numblocks is not the number of entries",
                    ));
                }
                let map = map.finish(size, stored).map_err(|defect| self.content.fault(defect))?;
                Ok((map, if at_once { SparseForm::Pax01 } else { SparseForm::Pax00 }))
            }
            (Some(1), Some(0), Some(_)) => {
                Err(wrong(&self.content, "a PAX sparse file has two maps"))
            }
            (major, minor, _) => Err(self.content.fault(Defect::unsupported(format!(
                "the archive has a sparse file of PAX form {}.{}",
                major.unwrap_or(0),
                minor.unwrap_or(0)
            )))),
        }
    }

    /// The name after an `L` header: up to its NUL. Its length was paid for.
    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = Vec::new();
        let mut left = size;
        while left > 0 {
            let block = self.content.expect_block("a long name")?;
            let count = at_most(left, BLOCK);
            name.extend_from_slice(block.get(..count).unwrap_or_default());
            left -= count as u64;
        }
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        if name.is_empty() {
            return Err(self.content.fault(Defect::corrupt("a long name is empty")));
        }
        Ok(name)
    }
}

impl ExtentSource for Tar {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        match self.next_in_member()? {
            Some(extent) => Ok(Some(extent)),
            None => Ok(self.next_disk()?.map(Extent::Disk)),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let Some(member) = &mut self.current else { return Ok(0) };
        let wanted = at_most(member.unread, bytes.len());
        let room = bytes.get_mut(..wanted).unwrap_or_default();
        if self.content.read_disk(room)? < wanted {
            return Err(self.content.truncated("a member's data"));
        }
        let from_start = member.told == member.unread;
        member.unread -= wanted as u64;
        if from_start && let Err(defect) = probe::refuse_encoded(room) {
            self.refusal = Some(self.content.fault(defect));
        }
        Ok(wanted)
    }

    fn map(&self) -> Option<Vec<(u64, u64)>> {
        let member = self.current.as_ref()?;
        let sparse = self.chosen.as_ref().is_some_and(|chosen| chosen.form != SparseForm::Dense);
        let ranges = &member.map.ranges;
        (sparse && self.chooser.is_final())
            .then(|| ranges.iter().map(|range| (range.offset, range.length)).collect())
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.content.progress()
    }
}

/// Bytes between the end of `size` bytes of data and the next block.
fn padding_of(size: u64) -> u64 {
    // Sizes are below 2^63.
    size.next_multiple_of(BLOCK as u64) - size
}
