//! Image formats that are not read here, told by their first bytes under QEMU's names for them.
//!
//! ```text
//! 0     4b 44 4d 56 ("KDMV") …     all but one begin with what they are known by
//! 64    7f 10 da be                vdi, behind a text that is free
//! ```
//!
//! A guest writes what it likes into a raw disk, so that none of this is asked where the caller said that
//! a file is raw. Callers: `chain`, `source::probe`, `cli::qemu_img`.

/// Formats by the bytes they begin with.
const KINDS: [(&[u8], &str); 10] = [
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"QED\0", "qed"),
    (b"QFI\xfb\0\0\0\x01", "qcow"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"Bochs Virtual HD Image", "bochs"),
];
/// Where VDI images have their magic number, and that.
const VDI: (usize, &[u8]) = (64, b"\x7f\x10\xda\xbe");

/// Bytes of a file's start that tell.
pub(crate) const LENGTH: usize = VDI.0 + VDI.1.len();

/// The format of a file that begins with `start`, if it is an image of another format.
pub(crate) fn foreign_format(start: &[u8]) -> Option<&'static str> {
    let begins = KINDS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name);
    let vdi = || start.get(VDI.0..).is_some_and(|rest| rest.starts_with(VDI.1)).then_some("vdi");
    begins.or_else(vdi)
}
