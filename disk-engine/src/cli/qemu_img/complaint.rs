//! Errors of ours in qemu-img's words.
//!
//! ```text
//! Could not open 'top': Could not open backing file: Could not open 'base': No such file or directory
//! └ the caller's word   └ once for each image above           └ the file     └ what the system says
//! ```
//!
//! qemu-img checks less than we do; what it has no words for is said in ours. Callers: the commands of
//! `qemu_img`.

use std::path::{Path, PathBuf};

use qcow2_format::error::{FieldError, RequestError, Unsupported, Violation};

use super::Stop;
use super::image::Named;
use crate::base::BaseFormat;
use crate::disk::chain::{DEPTH_MAX, backing_format, open_top};
use crate::disk::opening::NO_DATA_FILE;
use crate::disk::{StatedBacking, inspect, policy};
use crate::error::{Error, ErrorKind};
use crate::ops::convert::READ_FROM;
use crate::ops::names::reported;
use crate::sys::image_lock::{self, Conflict, Permission};

const BACKING: &str = "Could not open backing file: ";

/// Why `named` could not be opened.
pub(super) fn not_opened(named: &Named, error: &Error) -> Stop {
    let mut reason = String::new();
    let (mut path, mut format) = (named.path.clone(), named.format);
    let mut stated = &named.top.backing;
    for _ in 0..DEPTH_MAX {
        match below(&path, format, std::mem::replace(&mut stated, &StatedBacking::Own)) {
            Below::None => break,
            Below::Fails(error) => {
                reason.push_str(&self::reason(&error, &path));
                return Stop::said(format!("Could not open '{}': {reason}", named.shown));
            }
            Below::Named(next, next_format) => {
                // What is wrong is wrong with an image above.
                if error.path() == Some(path.as_path()) && error.kind() != ErrorKind::NotFound {
                    break;
                }
                // A raw image is locked only when it becomes what another stands on.
                if next_format != BaseFormat::Raw || !is_conflict(error) {
                    reason.push_str(BACKING);
                }
                (path, format) = (next, next_format);
            }
            Below::Refused(error) => {
                reason.push_str(BACKING);
                reason.push_str(&self::reason(&error, &path));
                return Stop::said(format!("Could not open '{}': {reason}", named.shown));
            }
        }
    }
    let depth = error.path().filter(|at| *at != named.path).map(|_| reason.as_str());
    let reason = format!("{}{}", depth.unwrap_or_default(), self::reason(error, &path));
    Stop::said(format!("Could not open '{}': {reason}", named.shown))
}

/// Why a snapshot could not be had, if that is what went wrong.
pub(super) fn no_snapshot(named: &Named, name: Option<&str>, error: &Error) -> Option<String> {
    name?;
    if named.format == BaseFormat::Raw {
        return (error.message() == "a raw image has no snapshots").then(|| {
            "Failed to load snapshot: Block format 'raw' used by device '' does not support \
             temporarily loading internal snapshots"
                .to_owned()
        });
    }
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(RequestError::NoSuchSnapshot { .. }) = source.downcast_ref() {
            return Some("Failed to load snapshot: Can't find snapshot".to_owned());
        }
        if let Some(field) = source.downcast_ref::<FieldError>()
            && field.field.starts_with("snapshot's l1")
        {
            let text = match field.violation {
                Violation::L1TooLarge { .. } => "Snapshot L1 table too large",
                Violation::Unaligned { .. } => "Snapshot L1 table offset invalid",
                Violation::BeyondFile { .. } if field.value > i64::MAX.unsigned_abs() => {
                    "Snapshot L1 table offset invalid"
                }
                _ => return None,
            };
            return Some(format!("Failed to load snapshot: {text}"));
        }
        cause = source.source();
    }
    None
}

/// Whether the image has no refcount table, or one that is said to be its header: a check says what
/// follows from it.
pub(super) fn lacks_refcounts(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(FieldError { field, violation, .. }) = source.downcast_ref() {
            return match violation {
                Violation::NoRefcountTable => true,
                Violation::OverlapsHeader => *field == "refcount_table_offset",
                _ => false,
            };
        }
        cause = source.source();
    }
    false
}

/// What an image stands on, as its header says.
pub(super) enum Below {
    /// Nothing.
    None,
    /// The image cannot be looked at.
    Fails(Error),
    /// That file, of that format.
    Named(PathBuf, BaseFormat),
    /// Something that is not opened.
    Refused(Error),
}

/// What the image at `path` stands on, as far as the caller did not say.
pub(super) fn below(path: &Path, format: BaseFormat, stated: &StatedBacking) -> Below {
    match stated {
        StatedBacking::Nothing => return Below::None,
        StatedBacking::File { path, format } => return Below::Named(path.clone(), *format),
        StatedBacking::Own | StatedBacking::Format(_) => {}
    }
    let image = match inspect(path, format) {
        Ok(image) => image,
        Err(error) => return Below::Fails(error),
    };
    let Some(header) = &image.header else { return Below::None };
    let Some(name) = header.backing_file() else { return Below::None };
    let plain = match policy::plain_path(path, name) {
        Ok(plain) => reported(path, &plain).to_path_buf(),
        Err(error) => return Below::Refused(error),
    };
    if let StatedBacking::Format(format) = stated {
        return Below::Named(plain, *format);
    }
    match backing_format(header, path) {
        Ok(format) => Below::Named(plain, format),
        Err(error) => Below::Refused(match std::fs::metadata(&plain) {
            Err(gone) => Error::io("open", plain, gone),
            Ok(_) => error,
        }),
    }
}

/// What is wrong with the file at `path`.
pub(super) fn reason(error: &Error, path: &Path) -> String {
    let shown = reported(path, error.path().unwrap_or(path)).to_string_lossy().into_owned();
    let shown = shown.as_str();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(field) = source.downcast_ref::<FieldError>() {
            return broken(field).unwrap_or_else(|| own(error));
        }
        if let Some(unsupported) = source.downcast_ref::<Unsupported>() {
            return self::unsupported(unsupported);
        }
        if let Some(conflict) = source.downcast_ref::<Conflict>() {
            return in_use(*conflict, shown);
        }
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            if error.kind() == ErrorKind::InvalidInput {
                break;
            }
            return format!("Could not open '{shown}': {}", strerror(io));
        }
        cause = source.source();
    }
    match error.kind() {
        ErrorKind::InvalidInput if error.message() == NO_DATA_FILE => {
            "'data-file' can only be set for images with an external data file".to_owned()
        }
        ErrorKind::InvalidInput if error.message().starts_with("an image is a regular file") => {
            format!("'file' driver requires '{shown}' to be a regular file")
        }
        _ => own(error),
    }
}

/// An error in our own words, with its causes.
pub(super) fn own(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

/// What the system says, without its number.
pub(super) fn strerror(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// What is said of a file at `path` that is to be written to and that another program has, in a way that
/// forbids this; `None` if none does.
pub(super) fn taken(path: &Path, shown: &str) -> Option<String> {
    let file = open_top(path).ok()?;
    image_lock::conflict_for_writing(&file).map(|conflict| in_use(conflict, shown))
}

/// What is said of a file that is to be written to and that the same command reads.
pub(super) fn read_from(shown: &str) -> String {
    in_use(Conflict::Keeps(Permission::Write), shown)
}

/// Whether an error that names a source came while that was read.
pub(super) fn is_read(error: &Error) -> bool {
    error.message() != READ_FROM
}

/// Whether an error that no source is to blame for came while the target's content was written.
pub(super) fn is_write(error: &Error) -> bool {
    error.io_error().is_some() && error.offset().is_some()
}

/// What a system call failed with, or what we say ourselves.
pub(super) fn cause(error: &Error) -> String {
    error.io_error().map_or_else(|| own(error), strerror)
}

fn is_conflict(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    error.kind() == ErrorKind::Busy
        && source.and_then(|source| source.downcast_ref::<Conflict>()).is_some()
}

fn in_use(conflict: Conflict, shown: &str) -> String {
    let name = |permission| match permission {
        Permission::ConsistentRead => "consistent read",
        Permission::Write => "write",
        Permission::Resize => "resize",
    };
    let lock = match conflict {
        // We would have nobody do what it does.
        Conflict::Uses(permission) => format!("shared \"{}\"", name(permission)),
        Conflict::Keeps(permission) => format!("\"{}\"", name(permission)),
    };
    format!("Failed to get {lock} lock\nIs another process using the image [{shown}]?")
}

fn unsupported(what: &Unsupported) -> String {
    match what {
        Unsupported::Version { version } => format!("Unsupported qcow2 version {version}"),
        Unsupported::CompressionType { value } => {
            format!("qcow2: unknown compression type: {value}")
        }
        Unsupported::IncompatibleFeatures { value, names } => features(*value, names),
        Unsupported::Encryption { .. } => {
            "Parameter 'encrypt.key-secret' is required for cipher".to_owned()
        }
        other => other.to_string(),
    }
}

/// Bits by the image's own names, those without one as a number.
fn features(value: u64, names: &[String]) -> String {
    let (mut words, mut unnamed) = (Vec::new(), 0);
    for name in names {
        match name.strip_prefix("unknown bit ").and_then(|bit| bit.parse::<u32>().ok()) {
            Some(bit) => unnamed |= 1_u64.checked_shl(bit).unwrap_or(0) & value,
            None => {
                let quoted = name.split('"').nth(1);
                words.push(quoted.unwrap_or(name).to_owned());
            }
        }
    }
    if unnamed != 0 {
        words.push(format!("Unknown incompatible feature: {unnamed:x}"));
    }
    format!("Unsupported qcow2 feature(s): {}", words.join(", "))
}

/// A broken rule of the header that qemu-img checks as well.
fn broken(error: &FieldError) -> Option<String> {
    let FieldError { field, value, .. } = error;
    let is = |part: &str| field.contains(part);
    Some(match error.violation {
        Violation::Magic => "Image is not in qcow2 format".to_owned(),
        Violation::Truncated { available: 0..4, .. } => "Image is not in qcow2 format".to_owned(),
        Violation::Truncated { .. } if is("header") => "qcow2 header too short".to_owned(),
        Violation::HeaderLengthTooShort => "qcow2 header too short".to_owned(),
        Violation::HeaderLengthBeyondCluster { .. } => {
            "qcow2 header exceeds cluster size".to_owned()
        }
        Violation::ClusterBits => format!("Unsupported cluster size: 2^{value}"),
        Violation::ClusterBitsForExtendedL2 => {
            let size = 1_u64.checked_shl(u32::try_from(*value).ok()?)? / 32;
            format!("Unsupported subcluster size: {size}")
        }
        Violation::VirtualSize { .. } if *value > i64::MAX.unsigned_abs() => {
            "Could not refresh total sector count: File too large".to_owned()
        }
        Violation::BeyondFile { .. }
            if *field == "l1_table_offset" && *value > i64::MAX.unsigned_abs() =>
        {
            "Active L1 table offset invalid".to_owned()
        }
        Violation::BackingNameBeyondCluster { .. } if *value > i64::MAX.unsigned_abs() => {
            "Invalid backing file offset".to_owned()
        }
        Violation::VirtualSize { .. } | Violation::L1TooSmall { .. } => {
            "L1 table is too small".to_owned()
        }
        Violation::RawExternalDataAlone => "data-file-raw requires a data file".to_owned(),
        Violation::CryptMethod => format!("Unsupported encryption method {value}"),
        Violation::L1TooLarge { .. } => "Active L1 table too large".to_owned(),
        Violation::Unaligned { .. } if *field == "l1_table_offset" => {
            "Active L1 table offset invalid".to_owned()
        }
        Violation::Unaligned { .. } if *field == "refcount_table_offset" => {
            "Reference count table offset invalid".to_owned()
        }
        Violation::Unaligned { .. } if *field == "snapshots_offset" => {
            "Snapshot table offset invalid".to_owned()
        }
        Violation::Unaligned { .. } if is("bitmap") => {
            "bitmaps_ext: invalid bitmap directory offset".to_owned()
        }
        Violation::Unaligned { cluster_size } if is("encryption header") => format!(
            "Encryption header offset '{value}' is not a multiple of cluster size '{cluster_size}'"
        ),
        Violation::NoRefcountTable => "Image does not contain a reference count table".to_owned(),
        Violation::RefcountTableTooLarge { .. } => "Reference count table too large".to_owned(),
        Violation::TooManySnapshots => "Snapshot table too large".to_owned(),
        Violation::RefcountOrder => {
            "Reference count entry width too large; may not exceed 64 bits".to_owned()
        }
        Violation::CompressionTypeMissing => {
            "qcow2: Compression type incompatible feature bit must not be set".to_owned()
        }
        Violation::CompressionTypeUnannounced => {
            "qcow2: Compression type incompatible feature bit must be set".to_owned()
        }
        Violation::BackingNameTooLong | Violation::BackingNameBeyondCluster { .. } => {
            "Backing file name too long".to_owned()
        }
        Violation::ExtensionTooLong { .. } => "Header extension too large".to_owned(),
        Violation::BackingFormatTooLong => {
            format!("ERROR: ext_backing_format: len={value} too large (>=16)")
        }
        Violation::ExtensionLength { .. } if is("bitmap") => {
            "bitmaps_ext: Invalid extension length".to_owned()
        }
        Violation::ExtensionLength { expected } if is("encryption header") => {
            format!("CRYPTO header extension size {value}, but expected size {expected}")
        }
        Violation::BitmapCount if *value == 0 => {
            "found bitmaps extension with zero bitmaps".to_owned()
        }
        Violation::BitmapCount => format!(
            "bitmaps_ext: Image has {value} bitmaps, exceeding the QEMU supported maximum of 65535"
        ),
        Violation::BitmapDirectory => "Broken bitmap directory".to_owned(),
        Violation::Reserved if is("bitmap") => "bitmaps_ext: Reserved field is not zero".to_owned(),
        Violation::BitmapDirectorySize { min, .. } if *value < min => {
            "Broken bitmap directory".to_owned()
        }
        Violation::BitmapDirectorySize { .. } => format!(
            "bitmaps_ext: bitmap directory size ({value}) exceeds the maximum supported size \
             (67107840)"
        ),
        Violation::EncryptionHeaderMissing => {
            format!("Missing CRYPTO header for crypt method {value}")
        }
        Violation::EncryptionHeaderUnexpected => {
            "CRYPTO header extension only expected with LUKS encryption method".to_owned()
        }
        _ => return None,
    })
}
