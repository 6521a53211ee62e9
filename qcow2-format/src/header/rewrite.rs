//! From a header back to bytes, and what may change in a header that stands in a file.
//!
//! ```text
//! 0         header_length                                          at most a cluster
//! [ fields ][ extension │ … │ end ][ backing file name ][ zeros up to the old area's end ]
//! ```
//!
//! Callers: `create` (a new image), disk-engine's `overlay` (rebase).

use zerocopy::IntoBytes;

use crate::create::BackingFile;
use crate::error::{Error, OptionsError, Result};
use crate::feature::AutoclearFeatures;
use crate::header::extension::{HeaderExtension, encode_end};
use crate::header::{Header, Version};
use crate::io::WriteAt;
use crate::raw::{MAGIC, RawHeaderV2, RawHeaderV3};

impl Header {
    /// The header area of the image: header, extensions and backing file name, to be written at
    /// offset 0.
    ///
    /// # Errors
    ///
    /// [`OptionsError::HeaderTooLarge`] if it does not fit in the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let header_length = self.header_length();
        let mut behind = Vec::new();
        for extension in &self.extensions {
            extension.encode(&mut behind);
        }
        encode_end(&mut behind);
        let name_offset = u64::from(header_length).saturating_add(behind.len() as u64);
        let name = self.backing_file.as_deref().unwrap_or_default();
        let (backing_file_offset, backing_file_size) = match u32::try_from(name.len()) {
            Ok(length) if length > 0 => (name_offset, length),
            _ => (0, 0),
        };
        behind.extend_from_slice(name);

        let needed = u64::from(header_length).saturating_add(behind.len() as u64);
        let cluster_size = self.geometry.cluster_bits.bytes();
        if needed > cluster_size {
            return Err(OptionsError::HeaderTooLarge { needed, cluster_size }.into());
        }

        let fixed = RawHeaderV2 {
            magic: MAGIC.into(),
            version: self.version.to_u32().into(),
            backing_file_offset: backing_file_offset.into(),
            backing_file_size: backing_file_size.into(),
            cluster_bits: self.geometry.cluster_bits.to_u32().into(),
            size: self.virtual_size.into(),
            crypt_method: self.crypt_method.to_u32().into(),
            l1_size: self.l1_size.into(),
            l1_table_offset: self.l1_table_offset.to_u64().into(),
            refcount_table_offset: self.refcount_table_offset.to_u64().into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            nb_snapshots: self.nb_snapshots.into(),
            snapshots_offset: self.snapshots_offset.to_u64().into(),
        };
        let mut bytes = fixed.as_bytes().to_vec();
        if self.version == Version::V3 {
            let v3 = RawHeaderV3 {
                incompatible_features: self.incompatible.0.into(),
                compatible_features: self.compatible.0.into(),
                autoclear_features: self.autoclear.0.into(),
                refcount_order: self.geometry.refcount_order.to_u32().into(),
                header_length: header_length.into(),
            };
            bytes.extend_from_slice(v3.as_bytes());
            bytes.extend_from_slice(&self.additional);
        }
        bytes.extend_from_slice(&behind);
        Ok(bytes)
    }

    /// Names another backing file, with its format. Everything else stays as it is, but for
    /// autoclear bits that the specification does not name, or that vouch for nothing: who rewrites a
    /// header clears them.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if no image can carry that name or format, or this one cannot. The
    /// header is then as it was.
    pub fn set_backing_file(&mut self, backing: &BackingFile) -> Result<()> {
        backing.check()?;
        if self.upheld_autoclear().contains(AutoclearFeatures::RAW_EXTERNAL_DATA) {
            return Err(OptionsError::BackingWithRawExternalData.into());
        }
        let mut header = self.clone();
        let format = HeaderExtension::BackingFormat(backing.format.to_vec());
        let place = header
            .extensions
            .iter_mut()
            .find(|extension| matches!(extension, HeaderExtension::BackingFormat(_)));
        match place {
            Some(place) => *place = format,
            None => header.extensions.insert(0, format),
        }
        header.backing_file = Some(backing.name.clone());
        self.become_rewritten(header)
    }

    /// Writes this header over `previous`, the one the image in `storage` has, in one call.
    /// Whatever the previous header area held beyond the new one becomes zero.
    ///
    /// A killed process leaves the old or the new header, never a mixture, where the storage does
    /// not tear a single write; a file system tears none that stays within a page of 4096 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the header does not fit; [`Error::Io`] from the storage.
    pub fn replace(&self, previous: &Self, storage: &(impl WriteAt + ?Sized)) -> Result<()> {
        let mut bytes = self.encode()?;
        let old_length = previous.encode()?.len();
        if bytes.len() < old_length {
            bytes.resize(old_length, 0);
        }
        storage.write_all_at(&bytes, 0).map_err(Error::io("rewrite the header", 0))
    }

    /// Replaces the unknown extension of `extension_type`, or adds it behind the others.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the type is one of the specification's own, or the header would no
    /// longer fit in its cluster. The header is then as it was.
    pub fn set_unknown_extension(&mut self, extension_type: u32, data: Vec<u8>) -> Result<()> {
        let extension = HeaderExtension::unknown(extension_type, data)?;
        let mut header = self.clone();
        match header.extensions.iter_mut().find(|other| other.extension_type() == extension_type) {
            Some(place) => *place = extension,
            None => header.extensions.push(extension),
        }
        self.become_rewritten(header)
    }

    /// Becomes `header`, if that can be written.
    fn become_rewritten(&mut self, mut header: Self) -> Result<()> {
        header.autoclear = header.upheld_autoclear();
        // A header that does not fit is better known now than at the write.
        header.encode()?;
        *self = header;
        Ok(())
    }
}
