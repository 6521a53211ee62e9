//! Every image of `testdata/images`, and what its header says or why it is refused.
//!
//! Three promises per file:
//!
//! - reading gives exactly the text in the table: the fields, or the one error with the field, its
//!   value, its offset and the rule;
//! - a header that can be read is written again byte for byte, up to the end of its cluster;
//! - a file that the table does not know, or the other way round, is a failure.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::PathBuf;

use qcow2_format::header::CryptMethod;
use qcow2_format::header::extension::HeaderExtension;
use qcow2_format::{Header, HostOffset};

/// What reading a file must give.
enum Expected {
    /// These fields, and the same bytes when written again.
    Fields(&'static str),
    /// These fields, and an equal header when written again, in other bytes: the file keeps its
    /// backing file name where we would not put it, or has none there.
    Moved(&'static str),
    /// This error.
    Refused(&'static str),
}

use Expected::{Fields, Moved, Refused};

#[rustfmt::skip]
const TABLE: &[(&str, Expected)] = &[
    ("v3", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("v2", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compat 0.10 header 72")),
    ("empty", Fields("clusters 512 size 0x0 L1 0@0x0 refcounts 1@0x200")),
    ("one-sector", Fields("clusters 512 size 0x200 L1 1@0x600 refcounts 1@0x200")),
    ("feature-names", Fields("clusters 8192 size 0x100000 L1 1@0x6000 refcounts 1@0x2000 [feature names]")),
    ("refcount-bits-1", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 1-bit")),
    ("refcount-bits-2", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 2-bit")),
    ("refcount-bits-4", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 4-bit")),
    ("refcount-bits-8", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 8-bit")),
    ("refcount-bits-32", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 32-bit")),
    ("refcount-bits-64", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 64-bit")),
    ("extended-l2", Fields("clusters 16384 size 0x100000 L1 1@0xc000 refcounts 1@0x4000 incompatible 0x10 [feature names]")),
    ("zstd", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 zstd incompatible 0x8")),
    ("lazy-refcounts", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compatible 0x1")),
    ("preallocated-metadata", Fields("clusters 512 size 0x8000 L1 1@0x600 refcounts 1@0x200")),
    ("preallocated-falloc", Fields("clusters 512 size 0x8000 L1 1@0x600 refcounts 1@0x800")),
    ("preallocated-full", Fields("clusters 512 size 0x8000 L1 1@0x600 refcounts 1@0x800")),
    ("backing", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format raw] on \"/images/base.img\"")),
    ("backing-v2", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compat 0.10 header 72 [format qcow2] on \"base.qcow2\"")),
    ("backing-name-1023", Fields("clusters 2048 size 0x100000 L1 2@0x1800 refcounts 1@0x800 [format raw] on \"(1019 slashes)base\"")),
    ("backing-name-not-utf8", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format raw] on \"/images/\\\\xff\\\\n\\\\x1b[31m.img\"")),
    ("data-file", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 incompatible 0x4 [data file guest.data]")),
    ("data-file-raw", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 incompatible 0x4 autoclear 0x2 [data file guest.data]")),
    ("luks", Fields("clusters 4096 size 0x100000 L1 1@0x3000 refcounts 1@0x1000 Luks [LUKS 0x81000@0x4000]")),
    ("aes", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 Aes")),
    ("written", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("compressed", Fields("clusters 4096 size 0x10000 L1 1@0x3000 refcounts 1@0x1000")),
    ("compressed-zstd", Fields("clusters 4096 size 0x10000 L1 1@0x3000 refcounts 1@0x1000 zstd incompatible 0x8")),
    ("dirty", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 incompatible 0x1 compatible 0x1")),
    ("snapshots", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 snapshots 2@0x2000")),
    ("snapshot-deleted", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("bitmaps", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 autoclear 0x1 [bitmaps 2 0x40@0x1000]")),
    ("bitmap-removed", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("grown", Fields("clusters 512 size 0x800000 L1 256@0x800 refcounts 1@0x200")),
    ("shrunk", Fields("clusters 512 size 0x100000 L1 256@0x600 refcounts 1@0x200")),
    ("rebased", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format qcow2] on \"/new.img\"")),
    ("backing-removed", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("upgraded", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format raw] on \"base.img\"")),
    ("downgraded", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compat 0.10 header 72 [format raw] on \"base.img\"")),
    ("refcounts-widened", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0xa00 64-bit")),
    ("unknown-extension", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [0x71687066 hello]")),
    ("additional-fields", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 header 128")),
    ("backing-without-format", Moved("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 on \"/images/base.img\"")),
    ("backing-v2-without-end-marker", Moved("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compat 0.10 header 72 on \"base.qcow2\"")),
    ("backing-name-empty", Moved("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200")),
    ("luks-without-keys", Fields("clusters 4096 size 0x100000 L1 1@0x3000 refcounts 1@0x1000 Luks [LUKS 0x1000@0x4000]")),
    ("luks-without-keys-v2", Fields("clusters 4096 size 0x100000 L1 1@0x3000 refcounts 1@0x1000 compat 0.10 header 72 Luks [LUKS 0x1000@0x4000]")),
    ("header-length-104", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 header 104")),
    ("bitmaps-bit-alone", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 autoclear 0x1")),
    ("bad-raw-data-bit-alone", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 autoclear 0x2")),
    ("bad-raw-data-with-backing", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 incompatible 0x4 autoclear 0x2 [format raw] on \"/images/base.img\"")),
    ("backing-format-with-nul", Moved("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format ] on \"/images/base.img\"")),
    ("extension-twice", Moved("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [format raw]")),
    ("bitmaps-inconsistent", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [bitmaps 2 0x40@0x1000]")),
    ("bitmaps-inconsistent-nonsense", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 [0x23852875 \\x00\\x00\\x00\\x02\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00@\\x00\\x00\\x00\\x00\\x00\\x00\\x01#]")),
    ("compatible-unknown-bit", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 compatible 0x8000000000000000")),
    ("autoclear-unknown-bit", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 autoclear 0x8000000000000000")),
    ("corrupt-bit", Fields("clusters 512 size 0x100000 L1 32@0x600 refcounts 1@0x200 incompatible 0x2")),
    ("bad-magic", Refused("the image is corrupt: magic at offset 0x0 is 0x514649fa: a qcow2 image begins with 0x514649fb")),
    ("bad-empty-file", Refused("the image is corrupt: header at offset 0x0 is 0x0: the structure needs 72 bytes and 0 are there")),
    ("bad-cut-in-v2-header", Refused("the image is corrupt: header at offset 0x0 is 0x47: the structure needs 72 bytes and 71 are there")),
    ("bad-cut-in-v3-header", Refused("the image is corrupt: header at offset 0x0 is 0x67: the structure needs 104 bytes and 103 are there")),
    ("bad-cut-behind-header", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0x600: the table takes 0x100 bytes and the file ends at 0x200")),
    ("bad-cut-in-l1-table", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0x600: the table takes 0x100 bytes and the file ends at 0x6ff")),
    ("bad-version-1", Refused("the image needs what is not supported: version 1 of the format, at offset 0x4 (versions 2 and 3 are known)")),
    ("bad-version-4", Refused("the image needs what is not supported: version 4 of the format, at offset 0x4 (versions 2 and 3 are known)")),
    ("bad-cluster-bits-8", Refused("the image is corrupt: cluster_bits at offset 0x14 is 0x8: cluster sizes go from 9 bits (512 bytes) to 21 bits (2 MiB)")),
    ("bad-cluster-bits-22", Refused("the image is corrupt: cluster_bits at offset 0x14 is 0x16: cluster sizes go from 9 bits (512 bytes) to 21 bits (2 MiB)")),
    ("bad-cluster-bits-huge", Refused("the image is corrupt: cluster_bits at offset 0x14 is 0xffffffff: cluster sizes go from 9 bits (512 bytes) to 21 bits (2 MiB)")),
    ("bad-size-over-limit", Refused("the image is corrupt: size at offset 0x18 is 0x2000000001: with these clusters a disk has at most 0x2000000000 bytes")),
    ("bad-size-huge", Refused("the image is corrupt: size at offset 0x18 is 0xffffffffffffffff: with these clusters a disk has at most 0x2000000000 bytes")),
    ("bad-crypt-method", Refused("the image is corrupt: crypt_method at offset 0x20 is 0x3: encryption methods are 0 (none), 1 (AES) and 2 (LUKS)")),
    ("bad-luks-without-header", Refused("the image is corrupt: crypt_method at offset 0x20 is 0x2: a LUKS image has a full disk encryption header pointer")),
    ("bad-l1-size-too-small", Refused("the image is corrupt: l1_size at offset 0x24 is 0x1f: the virtual size needs 32 L1 entries")),
    ("bad-l1-size-too-large", Refused("the image is corrupt: l1_size at offset 0x24 is 0x400001: an L1 table has at most 4194304 entries")),
    ("bad-l1-size-huge", Refused("the image is corrupt: l1_size at offset 0x24 is 0xffffffff: an L1 table has at most 4194304 entries")),
    ("bad-l1-table-unaligned", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0x601: a table starts on a cluster boundary, here a multiple of 0x200")),
    ("bad-l1-table-in-header", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0x0: the first cluster holds the header and no table")),
    ("bad-l1-table-beyond-file", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0x800: the table takes 0x100 bytes and the file ends at 0x700")),
    ("bad-l1-table-wraps", Refused("the image is corrupt: l1_table_offset at offset 0x28 is 0xfffffffffffffe00: the table takes 0x100 bytes and the file ends at 0x700")),
    ("bad-refcount-table-unaligned", Refused("the image is corrupt: refcount_table_offset at offset 0x30 is 0x208: a table starts on a cluster boundary, here a multiple of 0x200")),
    ("bad-refcount-table-in-header", Refused("the image is corrupt: refcount_table_offset at offset 0x30 is 0x0: the first cluster holds the header and no table")),
    ("bad-refcount-table-beyond-file", Refused("the image is corrupt: refcount_table_offset at offset 0x30 is 0x100000000: the table takes 0x200 bytes and the file ends at 0x700")),
    ("bad-refcount-table-absent", Refused("the image is corrupt: refcount_table_clusters at offset 0x38 is 0x0: an image has a refcount table of at least one cluster")),
    ("bad-refcount-table-too-large", Refused("the image is corrupt: refcount_table_clusters at offset 0x38 is 0x4001: a refcount table has at most 16384 clusters of this size")),
    ("bad-refcount-table-huge", Refused("the image is corrupt: refcount_table_clusters at offset 0x38 is 0xffffffff: a refcount table has at most 16384 clusters of this size")),
    ("bad-snapshots-too-many", Refused("the image is corrupt: nb_snapshots at offset 0x3c is 0x10001: an image has at most 65536 snapshots")),
    ("bad-snapshot-table-in-header", Refused("the image is corrupt: snapshots_offset at offset 0x40 is 0x0: the first cluster holds the header and no table")),
    ("bad-snapshot-table-unaligned", Refused("the image is corrupt: snapshots_offset at offset 0x40 is 0x1: a table starts on a cluster boundary, here a multiple of 0x200")),
    ("bad-snapshot-table-beyond-file", Refused("the image is corrupt: snapshots_offset at offset 0x40 is 0x80000000: the table takes 0x50 bytes and the file ends at 0x208f")),
    ("bad-incompatible-bit-5", Refused("the image needs what is not supported: incompatible_features at offset 0x48 is 0x20: unknown bit 5")),
    ("bad-incompatible-bit-named", Refused("the image needs what is not supported: incompatible_features at offset 0x48 is 0x20: \"external data file\" (bit 5)")),
    ("bad-data-file-with-snapshots", Refused("the image is corrupt: nb_snapshots at offset 0x3c is 0x2: an image with an external data file has no internal snapshots")),
    ("bad-refcount-order-7", Refused("the image is corrupt: refcount_order at offset 0x60 is 0x7: refcounts are at most 1 << 6 bits wide")),
    ("bad-header-length-96", Refused("the image is corrupt: header_length at offset 0x64 is 0x60: a version 3 header has at least 104 bytes")),
    ("bad-header-length-108", Refused("the image is corrupt: header_length at offset 0x64 is 0x6c: the header's length is a multiple of 8")),
    ("bad-header-length-beyond-cluster", Refused("the image is corrupt: header_length at offset 0x64 is 0x208: the header fits in the first cluster of 0x200 bytes")),
    ("bad-compression-type-unannounced", Refused("the image is corrupt: compression_type at offset 0x68 is 0x1: a compression type other than 0 needs the compression type bit")),
    ("bad-compression-type-missing", Refused("the image is corrupt: compression_type at offset 0x68 is 0x0: the compression type bit is set and the field says deflate, or is absent")),
    ("bad-compression-type-2", Refused("the image needs what is not supported: compression_type at offset 0x68 is 2 (0, zlib, and 1, zstd, are known)")),
    ("bad-extended-l2-small-clusters", Refused("the image is corrupt: cluster_bits at offset 0x14 is 0x9: extended L2 entries need clusters of at least 14 bits (16 KiB)")),
    ("bad-backing-name-in-header", Refused("the image is corrupt: backing_file_offset at offset 0x8 is 0x6f: the backing file name lies behind the header, which has 112 bytes")),
    ("bad-backing-name-beyond-cluster", Refused("the image is corrupt: backing_file_offset at offset 0x8 is 0x1f8: the backing file name ends before the first cluster does, at 0x200")),
    ("bad-backing-name-offset-wraps", Refused("the image is corrupt: backing_file_offset at offset 0x8 is 0xffffffffffffffff: the backing file name ends before the first cluster does, at 0x200")),
    ("bad-backing-name-1024", Refused("the image is corrupt: backing_file_size at offset 0x10 is 0x400: a backing file name has at most 1023 bytes")),
    ("bad-backing-name-with-nul", Refused("the image is corrupt: backing file name at offset 0x90 is 0x0: the name holds a NUL byte")),
    ("bad-backing-format-too-long", Refused("the image is corrupt: backing file format name length at offset 0x74 is 0x10: a backing format name has at most 15 bytes")),
    ("bad-extension-too-long", Refused("the image is corrupt: header extension length at offset 0x74 is 0x11: the extension is 17 bytes long and its area has 16 left")),
    ("bad-extension-huge", Refused("the image is corrupt: header extension length at offset 0x74 is 0xffffffff: the extension is 4294967295 bytes long and its area has 16 left")),
    ("bad-bitmaps-length", Refused("the image is corrupt: bitmaps extension at offset 0x74 is 0x10: the extension has 24 bytes")),
    ("bad-bitmaps-none", Refused("the image is corrupt: nb_bitmaps at offset 0x78 is 0x0: the bitmaps extension names 1 to 65535 bitmaps")),
    ("bad-bitmaps-too-many", Refused("the image is corrupt: nb_bitmaps at offset 0x78 is 0x10000: the bitmaps extension names 1 to 65535 bitmaps")),
    ("bad-bitmaps-reserved", Refused("the image is corrupt: bitmaps reserved at offset 0x7c is 0x1: the field is reserved and must be zero")),
    ("bad-bitmap-directory-too-small", Refused("the image is corrupt: bitmap_directory_size at offset 0x80 is 0x2f: the directory of 2 bitmaps takes 48 bytes to 64 MiB")),
    ("bad-bitmap-directory-too-large", Refused("the image is corrupt: bitmap_directory_size at offset 0x80 is 0x4000001: the directory of 2 bitmaps takes 48 bytes to 64 MiB")),
    ("bad-bitmap-directory-unaligned", Refused("the image is corrupt: bitmap_directory_offset at offset 0x88 is 0xe08: a table starts on a cluster boundary, here a multiple of 0x200")),
    ("bad-bitmap-directory-beyond-file", Refused("the image is corrupt: bitmap_directory_offset at offset 0x88 is 0x100000: the table takes 0x40 bytes and the file ends at 0x1040")),
    ("bad-luks-pointer-without-luks", Refused("the image is corrupt: full disk encryption header at offset 0x78 is 0x4000: only a LUKS image has a full disk encryption header pointer")),
    ("bad-luks-pointer-length", Refused("the image is corrupt: full disk encryption header at offset 0x74 is 0x8: the extension has 16 bytes")),
    ("bad-luks-pointer-unaligned", Refused("the image is corrupt: full disk encryption header offset at offset 0x78 is 0x4001: a table starts on a cluster boundary, here a multiple of 0x1000")),
    ("bad-luks-header-beyond-file", Refused("the image is corrupt: full disk encryption header offset at offset 0x78 is 0x4000: the table takes 0x100000000 bytes and the file ends at 0x5000")),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/images")
}

/// The header in one line. What is as in most images is left out: version 3, 16 bits a refcount,
/// no snapshots, no encryption, deflate, no extensions, no feature bits, 112 bytes of header.
fn describe(header: &Header) -> String {
    let geometry = header.geometry();
    let mut text = format!(
        "clusters {} size {:#x} L1 {}@{} refcounts {}@{}",
        geometry.cluster_bits.bytes(),
        header.virtual_size(),
        header.l1_size(),
        header.l1_table_offset(),
        header.refcount_table_clusters(),
        header.refcount_table_offset(),
    );
    let mut add = |condition: bool, more: &dyn std::fmt::Display| {
        if condition {
            text.push(' ');
            text.push_str(&more.to_string());
        }
    };
    let bits = geometry.refcount_order.bits();
    add(header.version().to_u32() != 3, &format_args!("compat {}", header.version().compat()));
    add(header.header_length() != 112, &format_args!("header {}", header.header_length()));
    add(bits != 16, &format_args!("{bits}-bit"));
    let snapshots = (header.nb_snapshots(), header.snapshots_offset());
    add(
        snapshots != (0, HostOffset(0)),
        &format_args!("snapshots {}@{}", snapshots.0, snapshots.1),
    );
    let crypt_method = header.crypt_method();
    add(crypt_method != CryptMethod::None, &format_args!("{crypt_method:?}"));
    add(header.compression_type().as_str() != "zlib", &header.compression_type().as_str());
    for (field, value) in [
        ("incompatible", header.incompatible_features().0),
        ("compatible", header.compatible_features().0),
        ("autoclear", header.autoclear_features().0),
    ] {
        add(value != 0, &format_args!("{field} {value:#x}"));
    }
    for extension in header.extensions() {
        add(true, &describe_extension(extension));
    }
    if let Some(name) = header.backing_file() {
        let shown: String = name.escape_ascii().to_string();
        let shown = shown.replace(&"/".repeat(1019), "(1019 slashes)");
        add(true, &format_args!("on {shown:?}"));
    }
    text
}

fn describe_extension(extension: &HeaderExtension) -> String {
    match extension {
        HeaderExtension::BackingFormat(name) => format!("[format {}]", name.escape_ascii()),
        HeaderExtension::FeatureNameTable(_) => "[feature names]".into(),
        HeaderExtension::Bitmaps(bitmaps) => format!(
            "[bitmaps {} {:#x}@{:#x}]",
            bitmaps.nb_bitmaps, bitmaps.bitmap_directory_size, bitmaps.bitmap_directory_offset
        ),
        HeaderExtension::EncryptionHeader(at) => {
            format!("[LUKS {:#x}@{:#x}]", at.length, at.offset)
        }
        HeaderExtension::ExternalDataFile(name) => format!("[data file {}]", name.escape_ascii()),
        HeaderExtension::Unknown { extension_type, data } => {
            format!("[{extension_type:#x} {}]", data.escape_ascii())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn every_image_reads_as_the_table_says() {
    let mut wrong = String::new();
    for (name, expected) in TABLE {
        let path = folder().join(name).with_extension("qcow2");
        let header = Header::read(&File::open(&path).unwrap());
        let found = match &header {
            Ok(header) => describe(header),
            Err(error) => error.to_string(),
        };
        let (Fields(text) | Moved(text) | Refused(text)) = expected;
        if found != *text || header.is_err() != matches!(expected, Refused(_)) {
            writeln!(wrong, "{name}\n  expected {text}\n  found    {found}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_was_read_is_written_again() {
    for (name, expected) in TABLE {
        let bytes = fs::read(folder().join(name).with_extension("qcow2")).unwrap();
        let Ok(header) = Header::parse(&bytes, bytes.len() as u64) else { continue };
        let written = header.encode().unwrap();
        match expected {
            Fields(_) => {
                let cluster = usize::try_from(header.geometry().cluster_bits.bytes()).unwrap();
                let (area, behind) = bytes[..cluster].split_at(written.len());
                assert!(written == area, "{name} is written differently");
                assert!(behind.iter().all(|byte| *byte == 0), "{name} has more in its header");
            }
            Moved(_) => {
                assert!(written != bytes[..written.len()], "{name} has not moved");
                let again = Header::parse(&written, bytes.len() as u64).unwrap();
                assert_eq!(again, header, "{name}");
            }
            Refused(_) => panic!("{name} can be read"),
        }
    }
}

#[test]
fn the_table_and_the_folder_agree() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !matches!(name.as_str(), "README.md" | "make.sh"))
        .collect();
    let table: BTreeSet<String> = TABLE.iter().map(|(name, _)| format!("{name}.qcow2")).collect();
    assert_eq!(TABLE.len(), table.len(), "a file appears twice in the table");
    assert_eq!(files, table);
}
