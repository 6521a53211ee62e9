//! What `info` lists of an image besides its header: the file below it, snapshots, bitmaps, encryption.
//! Field names are qemu-img's.
//!
//! ```text
//! snapshot table ─▶ SnapshotInfo      bitmap directory ─▶ BitmapInfo      LUKS header ─▶ EncryptInfo
//! ```
//!
//! Callers: `info`.

use qcow2_format::bitmap::Bitmap;
use qcow2_format::header::CryptMethod;
use qcow2_format::luks::{LuksHeader, LuksSlot};
use qcow2_format::snapshot::Snapshot;
use serde::Serialize;

use crate::disk::chain::{ChainImage, length};
use crate::disk::sectors::whole_sectors;
use crate::error::Result;
use crate::ops::info::text;

const NANOSECONDS: u64 = 1_000_000_000;

/// A node below an image: here always the file that it lies in.
#[derive(Clone, Debug, Serialize)]
pub struct ChildInfo {
    /// `file`.
    pub name: &'static str,
    /// What it says of itself.
    pub info: FileInfo,
}

/// The file that an image lies in.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileInfo {
    /// A file has none.
    pub children: [(); 0],
    /// Its length in bytes of whole sectors.
    pub virtual_size: u64,
    /// Its path.
    pub filename: String,
    /// `file`, or `host_device` for a block device.
    pub format: &'static str,
    /// Bytes it takes on its file system.
    pub actual_size: u64,
    /// Its kind once more.
    pub format_specific: FileSpecific,
    /// A file is never dirty.
    pub dirty_flag: bool,
}

/// qemu-img's envelope around what it says of a file: nothing.
#[derive(Clone, Debug, Serialize)]
pub struct FileSpecific {
    /// `file`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Nothing.
    pub data: Nothing,
}

/// An object without fields.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Nothing {}

impl ChildInfo {
    pub(super) fn of(image: &ChainImage, filename: String) -> Result<Self> {
        let is_file = image.file.file().metadata().is_ok_and(|metadata| metadata.is_file());
        Ok(Self {
            name: "file",
            info: FileInfo {
                children: [],
                virtual_size: whole_sectors(length(&image.file, &image.path)?),
                filename,
                format: if is_file { "file" } else { "host_device" },
                actual_size: image.actual_size,
                format_specific: FileSpecific { kind: "file", data: Nothing {} },
                dirty_flag: false,
            },
        })
    }
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Bytes of the virtual machine's state.
    pub vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// The rest of the time it was taken, in nanoseconds.
    pub date_nsec: u32,
    /// Seconds the guest had run.
    pub vm_clock_sec: u64,
    /// The rest of the time the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions the guest had run, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
}

impl SnapshotInfo {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            id: text(&snapshot.id),
            name: text(&snapshot.name),
            vm_state_size: snapshot.vm_state_size,
            date_sec: snapshot.date_sec,
            date_nsec: snapshot.date_nsec,
            vm_clock_sec: snapshot.vm_clock_nsec / NANOSECONDS,
            vm_clock_nsec: snapshot.vm_clock_nsec % NANOSECONDS,
            // QEMU's word for "not known".
            icount: snapshot.icount.filter(|count| *count != u64::MAX),
        }
    }
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BitmapInfo {
    /// `in-use` (it may be wrong) and `auto` (it follows writes), as they apply.
    pub flags: Vec<&'static str>,
    /// Its name.
    pub name: String,
    /// Bytes of the disk that a bit stands for.
    pub granularity: u64,
}

impl BitmapInfo {
    pub(super) fn of(bitmap: &Bitmap) -> Self {
        let flags = [(Bitmap::IN_USE, "in-use"), (Bitmap::AUTO, "auto")];
        Self {
            flags: flags
                .into_iter()
                .filter(|(flag, _)| bitmap.flags & flag != 0)
                .map(|(_, name)| name)
                .collect(),
            name: text(&bitmap.name),
            granularity: 1_u64.checked_shl(bitmap.granularity_bits.into()).unwrap_or(0),
        }
    }
}

/// How an image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct EncryptInfo {
    /// `aes` or `luks`.
    pub format: &'static str,
    /// What the LUKS header says.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub luks: Option<LuksInfo>,
}

/// What a LUKS header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LuksInfo {
    /// The cipher with the length of its key, as in `aes-256`.
    pub cipher_alg: String,
    /// How it is used, as in `xts`.
    pub cipher_mode: String,
    /// How initial vectors are made, as in `plain64`.
    pub ivgen_alg: String,
    /// The hash that initial vectors are made with, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivgen_hash_alg: Option<String>,
    /// The hash that keys are derived with.
    pub hash_alg: String,
    /// A qcow2 image has its LUKS header itself.
    pub detached_header: bool,
    /// Where encrypted data would start behind the header, in bytes.
    pub payload_offset: u64,
    /// Rounds of the master key's digest.
    pub master_key_iters: u32,
    /// The header's UUID.
    pub uuid: String,
    /// The eight key slots.
    pub slots: Vec<SlotInfo>,
}

/// A key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotInfo {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of the derivation of its key, if it holds one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iters: Option<u32>,
    /// Stripes its key material is spread over, if it holds a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
    /// Where its key material lies behind the start of the header, in bytes.
    pub key_offset: u64,
}

impl EncryptInfo {
    pub(super) fn of(image: &ChainImage) -> Result<Option<Self>> {
        let method = image.header.as_ref().map(qcow2_format::Header::crypt_method);
        Ok(match method {
            None | Some(CryptMethod::None) => None,
            Some(CryptMethod::Aes) => Some(Self { format: "aes", luks: None }),
            Some(CryptMethod::Luks) => Some(Self {
                format: "luks",
                luks: image.luks()?.map(|header| LuksInfo::of(&header)),
            }),
        })
    }
}

impl LuksInfo {
    fn of(header: &LuksHeader) -> Self {
        let (mode, ivgen) = header.cipher_mode.split_once('-').unwrap_or((&header.cipher_mode, ""));
        let (ivgen_alg, hash) = match ivgen.split_once(':') {
            Some((ivgen, hash)) => (ivgen, Some(hash.to_owned())),
            None => (ivgen, None),
        };
        // XTS takes two keys, one behind the other.
        let keys = if mode == "xts" { 2 } else { 1 };
        let key_bits = u64::from(header.key_bytes) * 8 / keys;
        Self {
            cipher_alg: format!("{}-{key_bits}", header.cipher_name),
            cipher_mode: mode.to_owned(),
            ivgen_alg: ivgen_alg.to_owned(),
            ivgen_hash_alg: hash,
            hash_alg: header.hash_spec.clone(),
            detached_header: false,
            payload_offset: header.payload_offset,
            master_key_iters: header.master_key_iterations,
            uuid: header.uuid.clone(),
            slots: header.slots.iter().map(SlotInfo::of).collect(),
        }
    }
}

impl SlotInfo {
    fn of(slot: &LuksSlot) -> Self {
        Self {
            active: slot.active,
            iters: slot.active.then_some(slot.iterations),
            stripes: slot.active.then_some(slot.stripes),
            key_offset: slot.key_offset,
        }
    }
}
