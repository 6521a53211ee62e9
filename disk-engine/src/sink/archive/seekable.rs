//! The seek table of the zstd seekable format, version 0.1.0: where each frame begins.
//!
//! ```text
//! ┌───────┬───────┬ ─ ┬──────────────────────────────────────────────┐
//! │ frame │ frame │ … │ skippable frame: the table                   │
//! └───────┴───────┴ ─ ┴──────────────────────────────────────────────┘
//!   5e 2a 4d 18   length of what follows                             magic, 32 bits
//!   compressed size │ decompressed size │ XXH64's low 32 bits        per frame, 32 bits each
//!   number of frames │ descriptor: 0x80, sums are there │ b1 ea 92 8f       footer, 9 bytes
//! ```
//!
//! All numbers are little-endian. A decoder of plain zstd passes over the table, so the archive stays
//! one for everybody. The sum of a frame is the checksum libzstd put at its own end. Callers: `frames`
//! writes the table; readers use the constants.

use crate::error::{Error, ErrorKind, Result};

/// Begins the skippable frame.
pub(crate) const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
/// Ends the table.
pub(crate) const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Bit of the descriptor: every entry has a sum.
pub(crate) const CHECKSUM_FLAG: u8 = 0x80;
/// Most frames the format counts.
pub(crate) const FRAMES_MAX: u64 = 0x0800_0000;
/// Bytes of an entry with a sum.
pub(crate) const ENTRY: usize = 12;
/// Bytes of the footer.
pub(crate) const FOOTER: usize = 9;
/// Least bytes in a frame: below, tables of frames outgrow what they save.
pub(crate) const FRAME_SIZE_MIN: u64 = 64 << 10;
/// Most bytes in a frame that the format's reference reader takes.
pub(crate) const FRAME_SIZE_MAX: u64 = 1 << 30;

/// The entries so far, as they will lie in the file: 12 bytes per frame.
#[derive(Debug, Default)]
pub(crate) struct SeekTable {
    entries: Vec<u8>,
}

impl SeekTable {
    /// Adds a frame: its bytes as compressed, with a checksum at their end, and how many they decode
    /// to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if the format cannot count so far, or there is no memory.
    pub(crate) fn push(&mut self, compressed: &[u8], decompressed: u64) -> Result<()> {
        let too_large = || Error::new(ErrorKind::Limit, "too much for a seek table");
        if (self.entries.len() / ENTRY) as u64 >= FRAMES_MAX {
            return Err(too_large());
        }
        self.entries
            .try_reserve(ENTRY)
            .map_err(|_| Error::new(ErrorKind::Limit, "no memory for the seek table"))?;
        let sum = compressed.last_chunk::<4>().ok_or_else(too_large)?;
        self.entries.extend(little(u32::try_from(compressed.len()).map_err(|_| too_large())?));
        self.entries.extend(little(u32::try_from(decompressed).map_err(|_| too_large())?));
        // It is little-endian there too.
        self.entries.extend(sum);
        Ok(())
    }

    /// The skippable frame with all entries.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if there is no memory for it.
    pub(crate) fn encode(self) -> Result<Vec<u8>> {
        let too_large = || Error::new(ErrorKind::Limit, "no memory for the seek table");
        let body = self.entries.len() + FOOTER;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(8 + body).map_err(|_| too_large())?;
        bytes.extend(little(SKIPPABLE_MAGIC));
        bytes.extend(little(u32::try_from(body).map_err(|_| too_large())?));
        bytes.extend_from_slice(&self.entries);
        let frames = u32::try_from(self.entries.len() / ENTRY).map_err(|_| too_large())?;
        bytes.extend(little(frames));
        bytes.push(CHECKSUM_FLAG);
        bytes.extend(little(SEEKABLE_MAGIC));
        Ok(bytes)
    }
}

#[expect(clippy::little_endian_bytes, reason = "the seekable format is little-endian, as zstd is")]
fn little(number: u32) -> [u8; 4] {
    number.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_specifications() {
        let mut table = SeekTable::default();
        table.push(&[0xaa, 1, 2, 3, 4], 0x0102_0304).unwrap();
        table.push(&[9; 300], 5).unwrap();
        let expected = [
            [0x5e, 0x2a, 0x4d, 0x18],
            [33, 0, 0, 0],
            [5, 0, 0, 0],
            [4, 3, 2, 1],
            [1, 2, 3, 4],
            [44, 1, 0, 0],
            [5, 0, 0, 0],
            [9, 9, 9, 9],
            [2, 0, 0, 0],
        ]
        .concat();
        let bytes = table.encode().unwrap();
        assert_eq!(bytes, [&expected[..], &[0x80, 0xb1, 0xea, 0x92, 0x8f]].concat());
    }

    #[test]
    fn what_does_not_fit_into_32_bits_is_refused() {
        let mut table = SeekTable::default();
        assert_eq!(table.push(&[0; 9], 1 << 32).unwrap_err().kind(), ErrorKind::Limit);
        assert_eq!(table.push(&[0; 3], 1).unwrap_err().kind(), ErrorKind::Limit);
    }
}
