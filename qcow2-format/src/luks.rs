//! The LUKS header of an encrypted image (spec: "Full disk encryption header pointer"; LUKS1 On-Disk
//! Format Specification).
//!
//! ```text
//! header extension ─▶ offset, length ─▶ [ "LUKS" … cipher, hash, uuid │ slot 0 │ … │ slot 7 ]
//! ```
//!
//! Read-only, and only what it says of itself: no key is asked for and nothing is decrypted. Callers:
//! disk-engine's `ops::info`.

use zerocopy::FromBytes;

use crate::error::{Error, FieldError, Result, Violation};
use crate::header::Header;
use crate::header::extension::HeaderExtension;
use crate::io::ReadAt;
use crate::raw::RawLuksHeader;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
/// Offsets in a LUKS header count sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;
/// A slot that holds a key says so with this.
const ACTIVE: u32 = 0x00ac_71f3;

/// What a LUKS header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// The cipher's name, as in `aes`.
    pub cipher_name: String,
    /// How the cipher is used, as in `xts-plain64`.
    pub cipher_mode: String,
    /// The hash that keys are derived with, as in `sha256`.
    pub hash_spec: String,
    /// Where the encrypted data would start behind this header, in bytes.
    pub payload_offset: u64,
    /// Length of the master key in bytes.
    pub key_bytes: u32,
    /// Rounds of the master key's digest.
    pub master_key_iterations: u32,
    /// The header's UUID, as text.
    pub uuid: String,
    /// The eight key slots.
    pub slots: Vec<LuksSlot>,
}

/// A key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksSlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of the derivation of its key.
    pub iterations: u32,
    /// Where its key material starts behind the start of the header, in bytes.
    pub key_offset: u64,
    /// Stripes that its key material is spread over.
    pub stripes: u32,
}

impl LuksHeader {
    /// Reads the LUKS header that `header` points to in `storage`; `None` if there is no pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] from the storage; [`Error::Corrupt`] if no LUKS header of version 1 lies there.
    pub fn read(storage: &(impl ReadAt + ?Sized), header: &Header) -> Result<Option<Self>> {
        let pointer = header.extensions().iter().find_map(|extension| match extension {
            HeaderExtension::EncryptionHeader(pointer) => Some(*pointer),
            _ => None,
        });
        let Some(pointer) = pointer else { return Ok(None) };
        let offset = pointer.offset;
        let mut bytes = [0; size_of::<RawLuksHeader>()];
        let needed = bytes.len() as u64;
        let count = storage
            .read_full_at(&mut bytes, offset)
            .map_err(Error::io("read the LUKS header", offset))?;
        let available = (count as u64).min(pointer.length);
        if available < needed {
            let violation = Violation::Truncated { needed, available };
            return Err(corrupt("LUKS header", pointer.length, offset, violation));
        }
        let raw = RawLuksHeader::read_from_bytes(&bytes).map_err(|_| {
            corrupt("LUKS header", needed, offset, Violation::Truncated { needed, available })
        })?;
        let version = raw.version.get();
        if raw.magic != MAGIC || version != VERSION {
            return Err(corrupt("LUKS version", version.into(), offset, Violation::LuksHeader));
        }
        let sectors = |count: u32| u64::from(count) * SECTOR_BYTES;
        let slots = raw.key_slots.iter().map(|slot| LuksSlot {
            active: slot.active.get() == ACTIVE,
            iterations: slot.iterations.get(),
            key_offset: sectors(slot.key_material_offset.get()),
            stripes: slot.stripes.get(),
        });
        Ok(Some(Self {
            cipher_name: text(&raw.cipher_name),
            cipher_mode: text(&raw.cipher_mode),
            hash_spec: text(&raw.hash_spec),
            payload_offset: sectors(raw.payload_offset.get()),
            key_bytes: raw.key_bytes.get(),
            master_key_iterations: raw.mk_digest_iterations.get(),
            uuid: text(&raw.uuid),
            slots: slots.collect(),
        }))
    }
}

/// A name in a field of fixed length: up to its first NUL.
fn text(field: &[u8]) -> String {
    let name = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn corrupt(field: &'static str, value: u64, offset: u64, violation: Violation) -> Error {
    FieldError { field, value, offset, violation }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LUKS: &[u8] = include_bytes!("../../testdata/images/luks.qcow2");

    #[test]
    fn qemus_header_is_read() {
        let header = Header::read(LUKS).unwrap();
        let luks = LuksHeader::read(LUKS, &header).unwrap().unwrap();
        assert_eq!(luks.cipher_name, "aes");
        assert_eq!((luks.key_bytes, luks.slots.len()), (16, 8));
        assert_eq!(luks.slots.iter().filter(|slot| slot.active).count(), 1);
        assert_eq!(luks.uuid.len(), 36);
        let plain: &[u8] = include_bytes!("../../testdata/images/v3.qcow2");
        assert_eq!(LuksHeader::read(plain, &Header::read(plain).unwrap()).unwrap(), None);
    }

    #[test]
    fn something_else_is_no_luks_header() {
        let header = Header::read(LUKS).unwrap();
        let at = match header.extensions().iter().find(|e| e.extension_type() == 0x0537_be77) {
            Some(HeaderExtension::EncryptionHeader(pointer)) => pointer.offset,
            other => panic!("{other:?}"),
        };
        let mut image = LUKS.to_vec();
        image[usize::try_from(at).unwrap()] = b'X';
        let error = LuksHeader::read(&image[..], &header).unwrap_err();
        assert!(matches!(error, Error::Corrupt(FieldError { offset, .. }) if offset == at));
    }
}
