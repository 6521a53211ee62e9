//! A source whose content is the disk itself, without an archive around it.
//!
//! ```text
//! content ──▶ Disk { size? }  Data { 0, to the end }
//! ```
//!
//! How long the disk is, is known beforehand only when nothing is compressed and the source is a
//! file. Caller: `source::Opened`.

use crate::error::Result;
use crate::source::content::{BLOCK, Content};
use crate::source::extent::{DiskShape, Extent, ExtentSource};
use crate::source::limits::{Defect, Limits};
use crate::source::probe::{self, Compression};

/// The bare disk.
pub(crate) struct Bare {
    content: Content,
    size: Option<u64>,
    max_size: u64,
    told: u8,
}

impl Bare {
    pub(crate) fn new(content: Content, limits: &Limits) -> Result<Self> {
        let plain = content.compression() == Compression::None;
        if plain && content.head().len() < BLOCK {
            // A tar cut within its first header looks like this too.
            return Err(content.fault(
                Defect::corrupt("the source is shorter than one sector of 512 bytes")
                    .hint("no disk is that small; the file may be cut short"),
            ));
        }
        probe::refuse_encoded(content.head()).map_err(|defect| content.fault(defect))?;
        let size = if plain { content.progress().1 } else { None };
        Ok(Self { content, size, max_size: limits.max_image_size, told: 0 })
    }

    pub(crate) fn into_content(self) -> Content {
        self.content
    }

    /// Whether nothing is compressed.
    pub(crate) fn is_plain(&self) -> bool {
        self.content.compression() == Compression::None
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size > self.max_size {
            let message = format!("the disk is larger than {} bytes", self.max_size);
            return Err(self.content.fault(Defect::limit(message, "max_image_size (--max-size)")));
        }
        Ok(())
    }
}

impl ExtentSource for Bare {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        self.told += 1;
        Ok(match self.told {
            1 => {
                self.check_size(self.size.unwrap_or(0))?;
                Some(Extent::Disk(DiskShape { size: self.size, data: None }))
            }
            2 => Some(Extent::Data { offset: 0, length: self.size }),
            _ => {
                self.told = 2;
                // With a length known beforehand nobody has read past it yet.
                if self.size.is_some() && self.content.read(&mut [0])? > 0 {
                    return Err(self
                        .content
                        .fault(Defect::corrupt("the source grew while it was read")));
                }
                None
            }
        })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let count = self.content.read_disk(bytes)?;
        self.check_size(self.content.position())?;
        if self.size.is_some() && count < bytes.len() {
            return Err(self.content.truncated("the disk, which shrank while it was read"));
        }
        Ok(count)
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.content.progress()
    }
}
