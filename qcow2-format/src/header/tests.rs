//! Real headers by qemu-img with one thing changed, and the exact error each change gives; then
//! arbitrary headers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::extension::{Bitmaps, EncryptionHeader, FeatureNameTable};
use super::*;
use crate::create::{BackingFile, BackingFormat, CreateOptions};
use crate::error::FieldError;
use crate::error::{Error, OptionsError, Result, Unsupported, Violation};
use crate::feature::FeatureType;
use crate::io::Memory;

/// An image of `testdata/images`.
macro_rules! image {
    ($name:literal) => {
        include_bytes!(concat!("../../../testdata/images/", $name, ".qcow2"))
    };
}

const V3: &[u8] = image!("v3");
const V2: &[u8] = image!("v2");
const ZSTD: &[u8] = image!("zstd");
const BACKING: &[u8] = image!("backing");
const FEATURE_NAMES: &[u8] = image!("feature-names");
const SNAPSHOTS: &[u8] = image!("snapshots");
const BITMAPS: &[u8] = image!("bitmaps");
const LUKS: &[u8] = image!("luks-without-keys");
const UNKNOWN: &[u8] = image!("unknown-extension");

/// Bytes to put at an offset.
type Edit<'a> = (usize, &'a [u8]);

/// `image` with `bytes` at each offset.
fn edited(image: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut image = image.to_vec();
    for (offset, bytes) in edits {
        image[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    image
}

fn parse(image: &[u8]) -> Result<Header> {
    Header::parse(image, image.len() as u64)
}

fn u32s(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn u64s(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// A string that tells variants apart. A new variant does not compile until it is listed: among
/// those that a header can have, or those that others test.
macro_rules! variants {
    ($type:ident: $($variant:ident),*; not here: $($other:ident),* $(,)?) => {
        (
            |value: &$type| match value {
                $($type::$variant { .. } => stringify!($variant),)*
                $($type::$other { .. } => stringify!($other),)*
            },
            [$(stringify!($variant)),*],
        )
    };
}

#[test]
fn each_rule_is_checked_and_names_its_field() {
    use Violation as V;
    let within = |length| V::BeyondFile { length, file_length: 1792 };
    let boundary = V::Unaligned { cluster_size: 512 };
    let long_name = [b'/'; 1024];
    type Row<'a> = (&'a [u8], &'a [Edit<'a>], &'a str, u64, u64, V);
    let rows: &[Row] = &[
        (V3, &[(0, b"QED\0")], "magic", 0x5145_4400, 0, V::Magic),
        (b"QFI\xfb", &[], "header", 4, 0, V::Truncated { needed: 72, available: 4 }),
        (&V3[..103], &[], "header", 103, 0, V::Truncated { needed: 104, available: 103 }),
        (&V3[..104], &[], "header_length", 112, 100, V::Truncated { needed: 112, available: 104 }),
        (
            &BACKING[..0x90],
            &[],
            "backing_file_offset",
            0x88,
            8,
            V::Truncated { needed: 0x98, available: 0x90 },
        ),
        (V3, &[(8, &u64s(111)), (16, &u32s(1))], "backing_file_offset", 111, 8, {
            V::BackingNameInHeader { header_length: 112 }
        }),
        (V2, &[(8, &u64s(71)), (16, &u32s(1))], "backing_file_offset", 71, 8, {
            V::BackingNameInHeader { header_length: 72 }
        }),
        (BACKING, &[(8, &u64s(497))], "backing_file_offset", 497, 8, {
            V::BackingNameBeyondCluster { cluster_size: 512 }
        }),
        (BACKING, &[(8, &u64s(u64::MAX))], "backing_file_offset", u64::MAX, 8, {
            V::BackingNameBeyondCluster { cluster_size: 512 }
        }),
        (
            FEATURE_NAMES,
            &[(8, &u64s(0x208)), (16, &u32s(1024)), (0x208, &long_name)],
            "backing_file_size",
            1024,
            16,
            V::BackingNameTooLong,
        ),
        (BACKING, &[(0x97, &[0])], "backing file name", 0, 0x97, V::NameWithNul),
        (V3, &[(20, &u32s(8))], "cluster_bits", 8, 20, V::ClusterBits),
        (V3, &[(20, &u32s(22))], "cluster_bits", 22, 20, V::ClusterBits),
        (V3, &[(20, &u32s(64 + 9))], "cluster_bits", 73, 20, V::ClusterBits),
        (FEATURE_NAMES, &[(72, &u64s(16))], "cluster_bits", 13, 20, V::ClusterBitsForExtendedL2),
        (V3, &[(24, &u64s((128 << 30) + 1))], "size", (128 << 30) + 1, 24, {
            V::VirtualSize { max: 128 << 30 }
        }),
        (V3, &[(32, &u32s(3))], "crypt_method", 3, 32, V::CryptMethod),
        (V3, &[(32, &u32s(2))], "crypt_method", 2, 32, V::EncryptionHeaderMissing),
        (V3, &[(36, &u32s(31))], "l1_size", 31, 36, V::L1TooSmall { needed: 32 }),
        (V3, &[(36, &u32s(0))], "l1_size", 0, 36, V::L1TooSmall { needed: 32 }),
        (V3, &[(36, &u32s((4 << 20) + 1))], "l1_size", (4 << 20) + 1, 36, {
            V::L1TooLarge { max: 4 << 20 }
        }),
        (V3, &[(36, &u32s(33))], "l1_table_offset", 0x600, 40, within(33 * 8)),
        (V3, &[(40, &u64s(0x601))], "l1_table_offset", 0x601, 40, boundary.clone()),
        (V3, &[(40, &u64s(0))], "l1_table_offset", 0, 40, V::OverlapsHeader),
        (V3, &[(40, &u64s(0x800))], "l1_table_offset", 0x800, 40, within(256)),
        (V3, &[(40, &u64s(!0x1ff))], "l1_table_offset", !0x1ff, 40, within(256)),
        (V3, &[(48, &u64s(0x3ff))], "refcount_table_offset", 0x3ff, 48, boundary.clone()),
        (V3, &[(48, &u64s(0))], "refcount_table_offset", 0, 48, V::OverlapsHeader),
        (V3, &[(48, &u64s(0x600))], "refcount_table_offset", 0x600, 48, within(512)),
        (V3, &[(56, &u32s(0))], "refcount_table_clusters", 0, 56, V::NoRefcountTable),
        (V3, &[(56, &u32s(16385))], "refcount_table_clusters", 16385, 56, {
            V::RefcountTableTooLarge { max: 16384 }
        }),
        (V3, &[(56, &u32s(16384))], "refcount_table_offset", 0x200, 48, within(8 << 20)),
        (V3, &[(60, &u32s(65537))], "nb_snapshots", 65537, 60, V::TooManySnapshots),
        (SNAPSHOTS, &[(64, &u64s(0))], "snapshots_offset", 0, 64, V::OverlapsHeader),
        (V3, &[(64, &u64s(0x208))], "snapshots_offset", 0x208, 64, boundary.clone()),
        (V3, &[(60, &u32s(65536)), (64, &u64s(0x200))], "snapshots_offset", 0x200, 64, {
            within(65536 * 40)
        }),
        (SNAPSHOTS, &[(72, &u64s(4))], "nb_snapshots", 2, 60, V::SnapshotsWithExternalData),
        (V3, &[(96, &u32s(7))], "refcount_order", 7, 96, V::RefcountOrder),
        (V3, &[(96, &u32s(u32::MAX))], "refcount_order", u32::MAX.into(), 96, V::RefcountOrder),
        (V3, &[(100, &u32s(72))], "header_length", 72, 100, V::HeaderLengthTooShort),
        (V3, &[(100, &u32s(105))], "header_length", 105, 100, V::HeaderLengthUnaligned),
        (V3, &[(100, &u32s(520))], "header_length", 520, 100, {
            V::HeaderLengthBeyondCluster { cluster_size: 512 }
        }),
        (V3, &[(104, &[1])], "compression_type", 1, 104, V::CompressionTypeUnannounced),
        (ZSTD, &[(104, &[0])], "compression_type", 0, 104, V::CompressionTypeMissing),
        (ZSTD, &[(100, &u32s(104)), (104, &[0])], "compression_type", 0, 104, {
            V::CompressionTypeMissing
        }),
        (BACKING, &[(116, &u32s(17))], "header extension length", 17, 116, {
            V::ExtensionTooLong { length: 17, available: 16 }
        }),
        (V3, &[(112, &[1; 8])], "header extension length", 0x0101_0101, 116, {
            V::ExtensionTooLong { length: 0x0101_0101, available: 392 }
        }),
        (BACKING, &[(116, &u32s(16))], "backing file format name length", 16, 116, {
            V::BackingFormatTooLong
        }),
        (
            V3,
            &[(72, &u64s(4)), (112, b"DATA\0\0\0\x02a\0")],
            "external data file name",
            0,
            121,
            V::NameWithNul,
        ),
        (BITMAPS, &[(116, &u32s(23))], "bitmaps extension", 23, 116, {
            V::ExtensionLength { expected: 24 }
        }),
        (BITMAPS, &[(120, &u32s(0))], "nb_bitmaps", 0, 120, V::BitmapCount),
        (BITMAPS, &[(120, &u32s(65536))], "nb_bitmaps", 65536, 120, V::BitmapCount),
        (BITMAPS, &[(124, &u32s(1))], "bitmaps reserved", 1, 124, V::Reserved),
        (BITMAPS, &[(128, &u64s(47))], "bitmap_directory_size", 47, 128, {
            V::BitmapDirectorySize { bitmaps: 2, min: 48 }
        }),
        (BITMAPS, &[(128, &u64s((64 << 20) + 1))], "bitmap_directory_size", (64 << 20) + 1, 128, {
            V::BitmapDirectorySize { bitmaps: 2, min: 48 }
        }),
        (BITMAPS, &[(136, &u64s(8))], "bitmap_directory_offset", 8, 136, boundary),
        (BITMAPS, &[(136, &u64s(0))], "bitmap_directory_offset", 0, 136, V::OverlapsHeader),
        (BITMAPS, &[(136, &u64s(0x1200))], "bitmap_directory_offset", 0x1200, 136, {
            V::BeyondFile { length: 64, file_length: 4160 }
        }),
        (LUKS, &[(32, &u32s(0))], "full disk encryption header", 0x4000, 120, {
            V::EncryptionHeaderUnexpected
        }),
        (LUKS, &[(32, &u32s(1))], "full disk encryption header", 0x4000, 120, {
            V::EncryptionHeaderUnexpected
        }),
        (LUKS, &[(116, &u32s(17))], "full disk encryption header", 17, 116, {
            V::ExtensionLength { expected: 16 }
        }),
        (LUKS, &[(120, &u64s(0x4200))], "full disk encryption header offset", 0x4200, 120, {
            V::Unaligned { cluster_size: 4096 }
        }),
        (LUKS, &[(128, &u64s(u64::MAX))], "full disk encryption header offset", 0x4000, 120, {
            V::BeyondFile { length: u64::MAX, file_length: 20480 }
        }),
    ];

    let (name, all) = variants!(Violation:
        Magic, Truncated, ClusterBits, ClusterBitsForExtendedL2, VirtualSize, CryptMethod,
        L1TooLarge, L1TooSmall, Unaligned, OverlapsHeader, BeyondFile, NoRefcountTable,
        RefcountTableTooLarge, TooManySnapshots, RefcountOrder, HeaderLengthTooShort,
        HeaderLengthUnaligned, HeaderLengthBeyondCluster, CompressionTypeMissing,
        CompressionTypeUnannounced, BackingNameInHeader, BackingNameBeyondCluster,
        BackingNameTooLong, NameWithNul, SnapshotsWithExternalData, ExtensionTooLong,
        BackingFormatTooLong, ExtensionLength, BitmapCount, Reserved, BitmapDirectorySize,
        EncryptionHeaderMissing, EncryptionHeaderUnexpected;
        // In the tests of `l1`, `l2`, `compressed`, `snapshot`, `bitmap`, `luks`, `image` and
        // `image::write`.
        not here: ReservedBits, ClusterUnaligned, ZeroBit, SubclusterBothBits,
        SubclusterWithoutCluster, CompressedWithExternalData, ExternalDataElsewhere,
        CompressedData, SnapshotTableTooLarge, SnapshotExtraData, Overlap, NotTheOnlyReference,
        UnusedInUse, RefcountOverflow, DuplicateRefcountBlock, StartsBeyondFile, BitmapDirectory,
        SharedL2Table, LuksHeader, Inconsistent, RawExternalDataAlone,
    );
    let mut seen = BTreeSet::new();
    for (image, edits, field, value, offset, violation) in rows {
        let error = parse(&edited(image, edits)).unwrap_err();
        let Error::Corrupt(FieldError { field: f, value: v, offset: o, violation: found }) = &error
        else {
            panic!("{violation:?} expected: {error:?}")
        };
        assert_eq!((f, v, o, found), (field, value, offset, violation), "{error}");
        seen.insert(name(found));
    }
    assert_eq!(seen, all.into(), "each rule has a row");
}

#[test]
fn what_is_valid_and_unknown_is_unsupported() {
    let named = [&[0, 63][..], b"shiny \x1b[31m\n"].concat();
    let rows: [(Vec<u8>, Unsupported); 6] = [
        (edited(V3, &[(4, &u32s(0))]), Unsupported::Version { version: 0 }),
        (edited(V3, &[(4, &u32s(4))]), Unsupported::Version { version: 4 }),
        (edited(ZSTD, &[(104, &[255])]), Unsupported::CompressionType { value: 255 }),
        (
            edited(V3, &[(72, &u64s(0x21))]),
            Unsupported::IncompatibleFeatures { value: 0x21, names: vec!["unknown bit 5".into()] },
        ),
        (
            // The image's own name for a bit is shown, escaped.
            edited(FEATURE_NAMES, &[(72, &u64s(1 << 63 | 1 << 5)), (120, &named)]),
            Unsupported::IncompatibleFeatures {
                value: 1 << 63 | 1 << 5,
                names: vec!["\"shiny \\u{1b}[31m\\n\" (bit 63)".into(), "unknown bit 5".into()],
            },
        ),
        (
            // A feature nobody knows may have changed every other rule.
            edited(V3, &[(72, &u64s(32)), (96, &u32s(9)), (32, &u32s(9)), (112, &[255; 8])]),
            Unsupported::IncompatibleFeatures { value: 32, names: vec!["unknown bit 5".into()] },
        ),
    ];
    for (image, expected) in rows {
        match parse(&image).unwrap_err() {
            Error::Unsupported(found) => assert_eq!(found, expected),
            other => panic!("{expected:?} expected: {other:?}"),
        }
    }
}

#[test]
fn what_qemu_puts_up_with_is_no_reason_to_refuse_an_image() {
    // Autoclear bits that vouch for nothing are cleared by whoever rewrites the header.
    let mut header = parse(&edited(V3, &[(88, &u64s(3))])).unwrap();
    assert_eq!(header.autoclear_features(), AutoclearFeatures(3));
    header.set_backing_file(&BackingFile::new("/base.img", BackingFormat::Raw)).unwrap();
    assert_eq!(header.autoclear_features(), AutoclearFeatures(0));

    let unnamed = parse(&edited(BACKING, &[(8, &u64s(71)), (16, &u32s(0))])).unwrap();
    assert_eq!((unnamed.backing_file(), unnamed.extensions().len()), (None, 0));

    let format = |data: &[u8; 8]| [&u32s(0xe279_2aca)[..], &u32s(8), data].concat();
    let twice = [format(b"qcow2\0\0x"), format(b"raw\0\0\0\0\0")].concat();
    let header = parse(&edited(V3, &[(112, &twice)])).unwrap();
    assert_eq!(header.extensions(), [HeaderExtension::BackingFormat(b"raw".to_vec())]);
    let none = parse(&edited(V3, &[(112, &format(b"\0raw\0\0\0\0"))])).unwrap();
    assert_eq!(none.backing_format(), None);

    let named = parse(&edited(V3, &[(112, b"DATA\0\0\0\x02a\0")])).unwrap();
    assert_eq!(named.external_data_file(), Some(&b"a"[..]));
    assert_eq!(parse(&edited(V3, &[(24, &u64s(1025))])).unwrap().virtual_size(), 1024);
}

#[test]
fn a_feature_name_table_ends_where_a_name_is_empty() {
    let named = |names: &[&[u8]]| {
        let entries = names.iter().zip(10_u8..).map(|(name, bit)| {
            let mut entry = vec![0; 48];
            entry[1] = bit;
            entry[2..2 + name.len()].copy_from_slice(name);
            entry
        });
        FeatureNameTable::of(entries.flatten().collect())
    };
    let table = named(&[b"one", b"", b"three"]);
    let name = |bit| table.name(FeatureType::Incompatible, bit);
    assert_eq!((name(10).as_deref(), name(11), name(12)), (Some("one"), None, None));
}

#[test]
fn every_field_is_read_from_its_place() {
    let header = parse(SNAPSHOTS).unwrap();
    assert_eq!(header.version(), Version::V3);
    assert_eq!(header.virtual_size(), 1 << 20);
    assert_eq!((header.l1_size(), header.l1_table_offset()), (32, HostOffset(0x600)));
    assert_eq!(header.refcount_table_offset(), HostOffset(0x200));
    assert_eq!(header.refcount_table_clusters(), 1);
    assert_eq!((header.nb_snapshots(), header.snapshots_offset()), (2, HostOffset(0x2000)));

    let bitmaps =
        Bitmaps { nb_bitmaps: 2, bitmap_directory_size: 64, bitmap_directory_offset: 0x1000 };
    assert_eq!(parse(BITMAPS).unwrap().extensions(), [HeaderExtension::Bitmaps(bitmaps)]);
    let pointer = EncryptionHeader { offset: 0x4000, length: 0x1000 };
    assert_eq!(parse(LUKS).unwrap().extensions(), [HeaderExtension::EncryptionHeader(pointer)]);
    assert_eq!(parse(LUKS).unwrap().crypt_method(), CryptMethod::Luks);

    let header = parse(FEATURE_NAMES).unwrap();
    let standard = FeatureNameTable::standard();
    assert_eq!(standard.name(FeatureType::Incompatible, 4).unwrap(), "extended L2 entries");
    assert_eq!(standard.name(FeatureType::Autoclear, 2), None);
    assert_eq!(header.extensions(), [HeaderExtension::FeatureNameTable(standard)]);
}

#[test]
fn limits_themselves_are_legal() {
    let legal: [(&[u8], &[Edit], u64); 5] = [
        // The largest disk of these clusters, and its L1 table of 32 MiB.
        (V3, &[(24, &u64s(128 << 30)), (36, &u32s(4 << 20))], 1 << 40),
        (V3, &[(56, &u32s(16384))], 1 << 40),
        (V3, &[(60, &u32s(65536)), (64, &u64s(0x800))], 1 << 40),
        (BITMAPS, &[(120, &u32s(65535)), (128, &u64s(64 << 20))], 1 << 40),
        // A name that ends with the cluster.
        (BACKING, &[(8, &u64s(496)), (496, b"/images/base.img")], 1792),
    ];
    for (image, edits, length) in legal {
        if let Err(error) = Header::parse(&edited(image, edits), length) {
            panic!("{error}");
        }
    }
}

#[test]
fn reading_takes_the_whole_first_cluster() {
    for image in [FEATURE_NAMES, image!("backing-name-1023"), image!("extended-l2"), V3] {
        assert_eq!(Header::read(image).unwrap(), parse(image).unwrap());
    }
    let error = Header::read(&V3[..71]).unwrap_err();
    assert!(matches!(error, Error::Corrupt(FieldError { field: "header", value: 71, .. })));
}

#[test]
fn what_lies_far_behind_is_read_where_something_leads_there() {
    let storage = Memory::default();
    let options = CreateOptions::new(1 << 30);
    options.plan().unwrap().write_to(&storage).unwrap();
    let plain = storage.into_bytes();
    let start = usize::try_from(u32::from_be_bytes(*plain[100..].first_chunk().unwrap())).unwrap();
    // The second extension and the end come before, across and behind what is read at first.
    for length in (3928..4000).chain([9000]) {
        let next = start + 8 + usize::next_multiple_of(length, 8);
        let extension =
            |length: usize| [u32s(0x1234_5678), u32s(u32::try_from(length).unwrap())].concat();
        let (first, second) = (extension(length), extension(4));
        let name = next + 24;
        for backing in [0, name] {
            let image = edited(
                &plain,
                &[
                    (8, &u64s(backing as u64)),
                    (16, &u32s(if backing == 0 { 0 } else { 8 })),
                    (start, &first),
                    (next, &second),
                    (next + 8, b"far\0\0\0\0\0\0\0\0\0\0\0\0\0base.img"),
                ],
            );
            let header = Header::read(&image[..]).unwrap();
            assert_eq!(header, parse(&image).unwrap());
            assert_eq!(header.extensions().len(), 2);
            assert_eq!(header.backing_file().is_some(), backing > 0);
        }
    }
}

#[test]
fn what_is_unknown_is_written_back_as_it_came() {
    for image in [UNKNOWN, image!("additional-fields"), image!("autoclear-unknown-bit")] {
        let bytes = parse(image).unwrap().encode().unwrap();
        assert_eq!(bytes, image[..bytes.len()]);
    }
    assert_eq!(parse(UNKNOWN).unwrap().unknown_extension(0x7168_7066), Some(&b"hello"[..]));
}

#[test]
fn another_backing_file_leaves_the_rest_alone() {
    let mut header = parse(UNKNOWN).unwrap();
    header.set_backing_file(&BackingFile::new("/base.img", BackingFormat::Raw)).unwrap();
    let mut file = UNKNOWN.to_vec();
    let bytes = header.encode().unwrap();
    file[..bytes.len()].copy_from_slice(&bytes);
    let again = parse(&file).unwrap();
    assert_eq!(again, header);
    assert_eq!(again.backing_file(), Some(&b"/base.img"[..]));
    assert_eq!(again.backing_format(), Some(&b"raw"[..]));
    assert_eq!(again.unknown_extension(0x7168_7066), Some(&b"hello"[..]));
    assert_eq!(again.l1_table_offset(), parse(UNKNOWN).unwrap().l1_table_offset());

    // A second time: the format is replaced, not added.
    header.set_backing_file(&BackingFile::new("/b", BackingFormat::Qcow2)).unwrap();
    assert_eq!(header.backing_format(), Some(&b"qcow2"[..]));
    assert_eq!(header.extensions().len(), 2);
}

#[test]
fn a_rewritten_header_vouches_for_nothing_unknown() {
    let mut header = parse(&edited(BITMAPS, &[(88, &u64s(1 << 40 | 1))])).unwrap();
    header.set_backing_file(&BackingFile::new("/base.img", BackingFormat::Raw)).unwrap();
    assert_eq!(header.autoclear_features(), AutoclearFeatures::BITMAPS);

    let mut header = parse(image!("autoclear-unknown-bit")).unwrap();
    header.set_unknown_extension(7, b"seven".to_vec()).unwrap();
    assert_eq!(header.autoclear_features(), AutoclearFeatures(0));
}

#[test]
fn a_change_that_cannot_be_written_changes_nothing() {
    let original = parse(image!("autoclear-unknown-bit")).unwrap();
    let mut header = original.clone();
    let error = header.set_backing_file(&BackingFile::new([b'/'; 400], BackingFormat::Raw));
    let too_large = |error| match error {
        Err(Error::Options(OptionsError::HeaderTooLarge { needed, cluster_size: 512 })) => needed,
        other => panic!("{other:?}"),
    };
    assert_eq!(too_large(error), 112 + 16 + 8 + 400);
    assert_eq!(header, original);
    assert_eq!(too_large(header.set_unknown_extension(7, vec![0; 401])), 112 + 8 + 408 + 8);
    assert_eq!(header, original);

    for extension_type in [0, 0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441] {
        let error = header.set_unknown_extension(extension_type, Vec::new()).unwrap_err();
        let taken = OptionsError::ExtensionTypeTaken { extension_type };
        assert!(matches!(error, Error::Options(found) if found == taken));
    }

    let mut header = parse(image!("data-file-raw")).unwrap();
    let error = header.set_backing_file(&BackingFile::new("/b", BackingFormat::Raw)).unwrap_err();
    assert!(matches!(error, Error::Options(OptionsError::BackingWithRawExternalData)));
}

/// A header that parsed is written and parses again to the same, or does not fit.
fn check_identity(header: &Header, file_length: u64) -> Result<(), TestCaseError> {
    match header.encode() {
        Ok(bytes) => {
            let again = Header::parse(&bytes, file_length);
            prop_assert_eq!(header, &again.unwrap());
        }
        Err(Error::Options(OptionsError::HeaderTooLarge { .. })) => {}
        Err(other) => prop_assert!(false, "{}", other),
    }
    Ok(())
}

fn valid_image() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        V3,
        V2,
        ZSTD,
        BACKING,
        FEATURE_NAMES,
        SNAPSHOTS,
        BITMAPS,
        LUKS,
        UNKNOWN,
        image!("backing-v2"),
        image!("data-file-raw"),
        image!("additional-fields"),
    ])
    .prop_map(<[u8]>::to_vec)
}

/// Numbers near the places where something changes.
fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u32..64, -2_i64..3).prop_map(|(bit, near)| (1_u64 << bit).wrapping_add_signed(near)),
        0_u64..1024,
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1024), length in any::<u64>()) {
        let _ = Header::parse(&bytes, length);
        let mut bytes = bytes;
        for (place, byte) in bytes.iter_mut().zip(b"QFI\xfb\0\0\0\x03") {
            *place = *byte;
        }
        let _ = Header::parse(&bytes, length);
    }

    #[test]
    fn changed_headers_parse_to_what_can_be_written(
        mut image in valid_image(),
        words in prop::collection::vec((0_usize..40, any::<bool>(), interesting()), 0..4),
        bytes in prop::collection::vec((0_usize..200, any::<u8>()), 0..4),
        length in prop::option::of(interesting()),
    ) {
        for (place, wide, value) in words {
            let value = value.to_be_bytes();
            let value = if wide { &value[..] } else { &value[4..] };
            image[place * 4..place * 4 + value.len()].copy_from_slice(value);
        }
        for (place, byte) in bytes {
            image[place] = byte;
        }
        let length = length.unwrap_or(image.len() as u64);
        if let Ok(header) = Header::parse(&image, length) {
            check_identity(&header, length)?;
        }
    }

    #[test]
    fn unknown_extensions_and_fields_survive(
        extensions in prop::collection::vec(
            (any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        fields in prop::collection::vec(any::<u64>(), 0..8),
        padding in any::<u8>(),
    ) {
        let mut area: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        let header_length = u32::try_from(112 + area.len()).unwrap();
        for (extension_type, data) in &extensions {
            area.extend_from_slice(&(extension_type | 1 << 31 | 1).to_be_bytes());
            area.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
            area.extend_from_slice(data);
            // "There is no guarantee that zero bytes are used for padding."
            area.resize(area.len().next_multiple_of(8), padding);
        }
        let image = edited(FEATURE_NAMES, &[(100, &u32s(header_length)), (112, &vec![0; 400]), (112, &area)]);
        let header = parse(&image).unwrap();
        let found: Vec<_> = header.extensions().iter().map(|extension| match extension {
            HeaderExtension::Unknown { extension_type, data } => (*extension_type, data.clone()),
            other => panic!("{other:?}"),
        }).collect();
        let expected: Vec<_> =
            extensions.into_iter().map(|(kind, data)| (kind | 1 << 31 | 1, data)).collect();
        prop_assert_eq!(found, expected);
        let bytes = header.encode().unwrap();
        prop_assert_eq!(&bytes[104..header_length as usize], &image[104..header_length as usize]);
        check_identity(&header, image.len() as u64)?;
    }
}
