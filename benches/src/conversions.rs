//! Two ways to convert a disk: ours and `qemu-img convert`.

use std::ffi::OsStr;
use std::path::Path;

use disk_engine::BaseFormat;
use disk_engine::disk::DiskOptions;
use disk_engine::ops::convert::{
    ConvertOptions, ConvertReport, ConvertSource, ConvertTarget, DiskSpec, TargetFormat, convert,
};
use disk_engine::sys::pending::Existing;
use qcow2_format::CreateOptions;
use qcow2_format::header::CompressionType;
use qcow2_format::image::Preallocation;

use crate::images::qemu;

/// What a disk is converted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A sparse raw file.
    Raw,
    /// qcow2, with clusters as they are.
    Qcow2,
    /// qcow2, compressed with zlib.
    Zlib,
    /// qcow2, compressed with zstd.
    Zstd,
}

/// Ours.
///
/// # Panics
///
/// The disk cannot be converted; so does the other.
pub fn ours(from: &Path, format: BaseFormat, to: &Path, into: Form) -> ConvertReport {
    let image = CreateOptions::new(0);
    let target = match into {
        Form::Raw => TargetFormat::Raw { preallocation: Preallocation::Off },
        Form::Qcow2 | Form::Zlib => TargetFormat::Qcow2(image),
        Form::Zstd => TargetFormat::Qcow2(image.compression_type(CompressionType::Zstd)),
    };
    let options = ConvertOptions {
        compress: matches!(into, Form::Zlib | Form::Zstd),
        existing: Existing::Replace,
        ..ConvertOptions::new(target)
    };
    let disk = DiskSpec { path: from.to_path_buf(), format, disk: DiskOptions::default() };
    let source = ConvertSource::Images(vec![disk]);
    convert(source, ConvertTarget::File(to), &options).expect("the disk is converted")
}

/// `qemu-img convert`.
///
/// # Panics
///
/// See [`ours`].
pub fn qemu_img(from: &Path, format: BaseFormat, to: &Path, into: Form) {
    let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"convert", &"-f"];
    let format = format.as_str();
    words.push(&format);
    match into {
        Form::Raw => words.extend([&"-O" as &dyn AsRef<OsStr>, &"raw"]),
        Form::Qcow2 => words.extend([&"-O" as &dyn AsRef<OsStr>, &"qcow2"]),
        Form::Zlib => words.extend([&"-O" as &dyn AsRef<OsStr>, &"qcow2", &"-c"]),
        Form::Zstd => words.extend([
            &"-O" as &dyn AsRef<OsStr>,
            &"qcow2",
            &"-c",
            &"-o",
            &"compression_type=zstd",
        ]),
    }
    words.extend([&from as &dyn AsRef<OsStr>, &to]);
    qemu::img(&words);
}
