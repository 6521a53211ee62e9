//! A VM reboots: the overlay that stands there is kept if it fits, and never replaced.

use std::fs;
use std::path::Path;

use qcow2_format::Header;
use qcow2_format::feature::IncompatibleFeatures;
use qcow2_format::header::Version;

use crate::base::{BaseImage, check_readable};
use crate::disk::chain;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay::identity::BaseIdentity;

/// Checks that the overlay at `path` stands on `base`, in its format, and is at least
/// `virtual_size` bytes large. Returns its size.
pub(super) fn verify(path: &Path, base: &BaseImage, virtual_size: u64) -> Result<u64> {
    let file = chain::open_top(path)?;
    let header = chain::read_header(&file, path).map_err(|error| match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Unsupported => {
            Error::new(ErrorKind::Mismatch, "what stands there is not an overlay to reuse")
                .with_path(path)
                .with_hint("it is left as it is: remove it, or choose another path")
                .with_source(error)
        }
        // The storage is in trouble, which says nothing about the overlay.
        _ => error,
    })?;
    check_readable(&header, path)?;
    if header.version() != Version::V3 {
        return Err(misfit(path, "is version 2 of the format (compat=0.10)"));
    }
    if header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE) {
        return Err(misfit(path, "keeps its data in another file"));
    }
    verify_backing(&header, path, base)?;
    if header.virtual_size() < virtual_size {
        return Err(misfit(
            path,
            &format!(
                "has {} bytes, and at least {virtual_size} are asked for",
                header.virtual_size()
            ),
        ));
    }
    Ok(header.virtual_size())
}

fn verify_backing(header: &Header, path: &Path, base: &BaseImage) -> Result<()> {
    let Some(named) = super::backing_path(header, path) else {
        return Err(misfit(path, "stands on no base"));
    };
    let format = header.backing_format().unwrap_or_default();
    if format != base.format().as_str().as_bytes() {
        return Err(misfit(
            path,
            &format!(
                "names its base as \"{}\", and the base is {}",
                format.escape_ascii(),
                base.format().as_str()
            ),
        ));
    }
    // The caller's own base is the common case and needs no look at the file system.
    if named != base.path() {
        let resolved = fs::canonicalize(&named).map_err(|error| {
            misfit(path, &format!("names the base {named:?}, which cannot be resolved"))
                .with_source(error)
        })?;
        if resolved != base.path() {
            return Err(misfit(path, &format!("stands on {resolved:?}, not on {:?}", base.path())));
        }
    }
    match BaseIdentity::recorded_difference(header, base) {
        Some(difference) => Err(misfit(path, &difference)),
        None => Ok(()),
    }
}

fn misfit(path: &Path, how: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("the overlay does not fit: it {how}"))
        .with_path(path)
        .with_hint("it is left as it is: rebase it if its base moved, or remove it")
}
