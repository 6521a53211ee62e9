//! `info`: what an image says of itself and of what it stands on, in qemu-img's field names.
//!
//! Names found inside an image are printed; they are opened only as far as the policy allows. Tables
//! are read as far as they tell what is listed; the guest's data is not.

mod listed;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow2_format::Header;
use qcow2_format::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use qcow2_format::header::extension::HeaderExtension;
use qcow2_format::header::{CryptMethod, Version};
use serde::Serialize;

use crate::base::BaseFormat;
use crate::disk::chain::{Chain, ChainImage};
use crate::disk::policy::BackingPolicy;
use crate::error::Result;
use crate::ops::names;
use crate::overlay::BaseIdentity;
use crate::sys::image_lock::Locking;
pub use listed::{
    BitmapInfo, ChildInfo, EncryptInfo, FileInfo, FileSpecific, LuksInfo, Nothing, SlotInfo,
    SnapshotInfo,
};

/// How an image is looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InfoOptions {
    /// Which backing files may be opened.
    pub policy: BackingPolicy,
    /// Whether the images are locked; they are not unless said otherwise, so that a running VM's can
    /// be looked at.
    pub locking: Locking,
}

impl Default for InfoOptions {
    fn default() -> Self {
        Self { policy: BackingPolicy::default(), locking: Locking::Off }
    }
}

impl From<BackingPolicy> for InfoOptions {
    fn from(policy: BackingPolicy) -> Self {
        Self { policy, ..Self::default() }
    }
}

/// An image and its chain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InfoReport {
    /// The image itself: qemu-img's fields at the top level.
    #[serde(flatten)]
    pub image: ImageInfo,
    /// What it stands on, as far as the policy followed.
    pub backing_chain: Vec<ImageInfo>,
    /// Why the chain ends before its base, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_followed: Option<String>,
}

/// Which part an image plays when a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Takes one VM's writes.
    ReadWritePerVm,
    /// Read by every VM that stands on it, written by none.
    ReadOnlyShared,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Where it lies.
    pub filename: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Which part it plays when a VM runs.
    pub role: Role,
    /// The file it lies in.
    pub children: Vec<ChildInfo>,
    /// Its internal snapshots, if it has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes it takes on its file system.
    pub actual_size: u64,
    /// Whether refcounts may be wrong.
    pub dirty_flag: bool,
    /// The cluster size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Present and true if the guest's data is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// The backing file's name as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The path that name means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// The backing file's format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// What only qcow2 images have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatSpecific>,
    /// The header, field by field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderInfo>,
}

/// qemu-img's envelope around [`Qcow2Info`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FormatSpecific {
    /// Always `qcow2`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The fields.
    pub data: Qcow2Info,
}

/// What qemu-img says of a qcow2 image in particular.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// `0.10` or `1.1`.
    pub compat: &'static str,
    /// `zlib` or `zstd`.
    pub compression_type: &'static str,
    /// Whether refcount updates may be postponed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Its persistent bitmaps, if it has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapInfo>,
    /// The refcount width in bits.
    pub refcount_bits: u32,
    /// How the guest's data is encrypted, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<EncryptInfo>,
    /// Whether the image is marked corrupt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// Whether L2 entries carry subclusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// The external data file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether the external data file is a raw image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
}

/// The header's fields, under their names in the specification.
#[derive(Clone, Debug, Serialize)]
pub struct HeaderInfo {
    /// 2 or 3.
    pub version: u32,
    /// Length of the header in bytes.
    pub header_length: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table starts.
    pub l1_table_offset: u64,
    /// Where the refcount table starts.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub nb_snapshots: u32,
    /// Where the snapshot table starts.
    pub snapshots_offset: u64,
    /// Names of the set incompatible feature bits.
    pub incompatible_features: Vec<&'static str>,
    /// Names of the set compatible feature bits.
    pub compatible_features: Vec<&'static str>,
    /// Names of the set autoclear feature bits.
    pub autoclear_features: Vec<&'static str>,
    /// The header extensions, in file order.
    pub extensions: Vec<String>,
}

/// Looks at the image at `path` in the format the caller states, and at its chain as far as the policy
/// allows.
///
/// # Errors
///
/// As [`Chain::open`]; [`crate::ErrorKind::Busy`] if images are locked and another process has one;
/// snapshots, bitmaps or a LUKS header that are damaged or cannot be read.
pub fn info(path: &Path, format: BaseFormat, options: &InfoOptions) -> Result<InfoReport> {
    let chain = Chain::open_locked(path, format, &options.policy, options.locking)?;
    let count = chain.images.len();
    let mut images = Vec::new();
    for (depth, image) in chain.images.iter().enumerate() {
        // A qcow2 image on top takes writes; whatever lies below is only read.
        let role = match (depth, image.format) {
            (0, BaseFormat::Qcow2) => Role::ReadWritePerVm,
            (0, BaseFormat::Raw) if count == 1 => Role::ReadWritePerVm,
            _ => Role::ReadOnlyShared,
        };
        images.push(ImageInfo::of(image, role, path)?);
    }
    let mut images = images.into_iter();
    let Some(image) = images.next() else {
        return Err(
            crate::Error::new(crate::ErrorKind::Corrupt, "the chain is empty").with_path(path)
        );
    };
    Ok(InfoReport {
        image,
        backing_chain: images.collect(),
        not_followed: chain.not_followed.as_ref().map(ToString::to_string),
    })
}

impl ImageInfo {
    fn of(image: &ChainImage, role: Role, top: &Path) -> Result<Self> {
        let header = image.header.as_ref();
        let name = header.and_then(Header::backing_file);
        let shown = |path: &Path| text(names::reported(top, path).as_os_str().as_bytes());
        let specific = match header {
            None => None,
            Some(header) => Some(FormatSpecific {
                kind: "qcow2",
                data: Qcow2Info {
                    bitmaps: image.bitmaps()?.iter().map(BitmapInfo::of).collect(),
                    encrypt: EncryptInfo::of(image)?,
                    ..Qcow2Info::of(header)
                },
            }),
        };
        Ok(Self {
            filename: shown(&image.path),
            format: image.format.as_str(),
            role,
            children: vec![ChildInfo::of(image, shown(&image.path))?],
            snapshots: image.snapshots()?.iter().map(SnapshotInfo::of).collect(),
            virtual_size: image.virtual_size,
            actual_size: image.actual_size,
            dirty_flag: header.is_some_and(|header| {
                header.incompatible_features().contains(IncompatibleFeatures::DIRTY)
            }),
            cluster_size: header.map(|header| header.geometry().cluster_bits.bytes()),
            encrypted: header
                .is_some_and(|header| header.crypt_method() != CryptMethod::None)
                .then_some(true),
            backing_filename: name.map(text),
            full_backing_filename: name.map(|name| shown(&full_path(&image.path, name))),
            backing_filename_format: name
                .and_then(|_| header.and_then(Header::backing_format))
                .map(text),
            format_specific: specific,
            header: header.map(HeaderInfo::of),
        })
    }
}

impl Qcow2Info {
    fn of(header: &Header) -> Self {
        let incompatible = header.incompatible_features();
        let v3 = header.version() == Version::V3;
        let external = incompatible.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE);
        Self {
            compat: header.version().compat(),
            compression_type: header.compression_type().as_str(),
            lazy_refcounts: v3
                .then(|| header.compatible_features().contains(CompatibleFeatures::LAZY_REFCOUNTS)),
            bitmaps: Vec::new(),
            refcount_bits: header.geometry().refcount_order.bits(),
            encrypt: None,
            corrupt: v3.then(|| incompatible.contains(IncompatibleFeatures::CORRUPT)),
            extended_l2: v3.then(|| header.geometry().extended_l2),
            data_file: header.external_data_file().filter(|_| v3).map(text),
            data_file_raw: external.then(|| {
                header.autoclear_features().contains(AutoclearFeatures::RAW_EXTERNAL_DATA)
            }),
        }
    }
}

impl HeaderInfo {
    fn of(header: &Header) -> Self {
        Self {
            version: header.version().to_u32(),
            header_length: header.header_length(),
            l1_size: header.l1_size(),
            l1_table_offset: header.l1_table_offset().to_u64(),
            refcount_table_offset: header.refcount_table_offset().to_u64(),
            refcount_table_clusters: header.refcount_table_clusters(),
            nb_snapshots: header.nb_snapshots(),
            snapshots_offset: header.snapshots_offset().to_u64(),
            incompatible_features: header.incompatible_features().names().collect(),
            compatible_features: header.compatible_features().names().collect(),
            autoclear_features: header.autoclear_features().names().collect(),
            extensions: header.extensions().iter().map(describe).collect(),
        }
    }
}

/// One extension in a line.
fn describe(extension: &HeaderExtension) -> String {
    match extension {
        HeaderExtension::BackingFormat(name) => {
            format!("backing file format name: {}", text(name))
        }
        HeaderExtension::FeatureNameTable(_) => "feature name table".to_owned(),
        HeaderExtension::Bitmaps(bitmaps) => format!("bitmaps: {}", bitmaps.nb_bitmaps),
        HeaderExtension::EncryptionHeader(header) => {
            format!("full disk encryption header: {} bytes at {:#x}", header.length, header.offset)
        }
        HeaderExtension::ExternalDataFile(name) => format!("external data file: {}", text(name)),
        HeaderExtension::Unknown { extension_type, data } => {
            let ours = (*extension_type == BaseIdentity::EXTENSION_TYPE)
                .then(|| BaseIdentity::parse(data))
                .flatten();
            match ours {
                Some(BaseIdentity { base_length, key: Some(key) }) => {
                    format!("base identity: {base_length} bytes, key {key}")
                }
                Some(BaseIdentity { base_length, key: None }) => {
                    format!("base identity: {base_length} bytes")
                }
                None => format!("unknown {extension_type:#010x}: {} bytes", data.len()),
            }
        }
        other => format!("{:#010x}", other.extension_type()),
    }
}

/// Names are bytes; JSON and terminals want text. What is not UTF-8 is shown as �.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn full_path(image: &Path, name: &[u8]) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(OsStr::from_bytes(name))
}
