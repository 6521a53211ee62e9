//! Records with fixed places, exactly as they lie in the file. No behaviour.
//!
//! ```text
//! byte   0    8    16   24   32   40   48   56   64   72                104     112
//!        [ RawHeaderV2: every image                  ][ RawHeaderV3       ][ …  ]
//!                                                                          └ compression_type,
//!                                                                            7 bytes of padding,
//!                                                                            unknown fields
//! ```
//!
//! Field names are the specification's. Callers: `header`, `snapshot`, `bitmap`, `luks`.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;

/// The 72 bytes every image begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeaderV2 {
    pub magic: U32,
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
}
const _: () = assert!(size_of::<RawHeaderV2>() == 72);

/// The 32 bytes version 3 adds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeaderV3 {
    pub incompatible_features: U64,
    pub compatible_features: U64,
    pub autoclear_features: U64,
    pub refcount_order: U32,
    pub header_length: U32,
}
const _: () = assert!(size_of::<RawHeaderV3>() == 32);

/// The 8 bytes before each header extension's data (spec: "Header extensions").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtensionHeader {
    pub extension_type: U32,
    pub length: U32,
}
const _: () = assert!(size_of::<RawExtensionHeader>() == 8);

/// One entry of the feature name table (spec: "Feature name table").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFeatureName {
    pub feature_type: u8,
    pub bit: u8,
    pub name: [u8; 46],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

/// The data of the bitmaps extension (spec: "Bitmaps extension").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmaps {
    pub nb_bitmaps: U32,
    pub reserved: U32,
    pub bitmap_directory_size: U64,
    pub bitmap_directory_offset: U64,
}
const _: () = assert!(size_of::<RawBitmaps>() == 24);

/// The data of the full disk encryption header pointer (spec section of that name).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEncryptionHeader {
    pub offset: U64,
    pub length: U64,
}
const _: () = assert!(size_of::<RawEncryptionHeader>() == 16);

/// The fixed part of a snapshot table entry (spec: "Snapshots").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSnapshot {
    pub l1_table_offset: U64,
    pub l1_size: U32,
    pub id_str_size: U16,
    pub name_size: U16,
    pub date_sec: U32,
    pub date_nsec: U32,
    pub vm_clock_nsec: U64,
    pub vm_state_size: U32,
    pub extra_data_size: U32,
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

/// The fixed part of a bitmap directory entry (spec: "Bitmap directory").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawBitmap {
    pub bitmap_table_offset: U64,
    pub bitmap_table_size: U32,
    pub flags: U32,
    /// The specification's `type`.
    pub kind: u8,
    pub granularity_bits: u8,
    pub name_size: U16,
    pub extra_data_size: U32,
}
const _: () = assert!(size_of::<RawBitmap>() == 24);

/// What a LUKS header begins with (LUKS1 On-Disk Format Specification, "The partition header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLuksHeader {
    pub magic: [u8; 6],
    pub version: U16,
    pub cipher_name: [u8; 32],
    pub cipher_mode: [u8; 32],
    pub hash_spec: [u8; 32],
    pub payload_offset: U32,
    pub key_bytes: U32,
    pub mk_digest: [u8; 20],
    pub mk_digest_salt: [u8; 32],
    pub mk_digest_iterations: U32,
    pub uuid: [u8; 40],
    pub key_slots: [RawLuksSlot; 8],
}
const _: () = assert!(size_of::<RawLuksHeader>() == 592);

/// A key slot of a LUKS header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLuksSlot {
    pub active: U32,
    pub iterations: U32,
    pub salt: [u8; 32],
    pub key_material_offset: U32,
    pub stripes: U32,
}
const _: () = assert!(size_of::<RawLuksSlot>() == 48);
