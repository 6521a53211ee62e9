//! `--bitmaps`: whether there are bitmaps to be copied, and whether the target could take them.
//!
//! They are not copied: an image that has some which qemu-img would copy is refused by name. Callers:
//! `convert`.

use qcow2_format::header::Version;

use super::convert::Goal;
use super::image::Named;
use super::{NAME, Outcome, Stop, complaint, warn};
use crate::disk::inspect;
use crate::ops::convert::{ConvertOptions, TargetFormat};

/// Objects to sources whose bitmaps cannot be copied; says which are left out, if broken ones are.
pub(super) fn check_sources(sources: &[Named], skip_broken: bool) -> Outcome<()> {
    let [source] = sources else {
        return Err(Stop::said("Copying bitmaps only possible with single source"));
    };
    let unread = |error| complaint::not_opened(source, &error);
    let image = inspect(&source.path, source.format).map_err(unread)?;
    if image.header.as_ref().is_none_or(|header| header.version() == Version::V2) {
        return Err(Stop::said("Source lacks bitmap support"));
    }
    let bitmaps = image.bitmaps().map_err(unread)?;
    let mut whole = 0_usize;
    for bitmap in &bitmaps {
        let name = String::from_utf8_lossy(&bitmap.name);
        match (bitmap.is_in_use(), skip_broken) {
            (false, _) => whole += 1,
            (true, true) => warn(&format!("Skipping inconsistent bitmap '{name}'")),
            (true, false) => {
                return Err(Stop::said(format!(
                    "Cannot copy inconsistent bitmap '{name}'\nTry --skip-broken-bitmaps, or use \
                     '{NAME} bitmap --remove' to delete it"
                )));
            }
        }
    }
    if whole > 0 {
        let text =
            "the option --bitmaps is not supported by this program for an image that has some";
        return Err(Stop::said(text));
    }
    Ok(())
}

/// Objects to a target that has no bitmaps.
pub(super) fn check_target(goal: &Goal, options: &ConvertOptions) -> Outcome<()> {
    let (name, takes) = match (&options.format, goal) {
        (TargetFormat::Qcow2(_), Goal::There(named)) => {
            let image = inspect(&named.path, named.format);
            let image = image.map_err(|error| complaint::not_opened(named, &error))?;
            ("qcow2", image.header.is_some_and(|header| header.version() != Version::V2))
        }
        (TargetFormat::Qcow2(image), Goal::New(_)) => {
            let plan = image.plan();
            ("qcow2", plan.is_ok_and(|plan| plan.header().version() != Version::V2))
        }
        (TargetFormat::Raw { .. } | TargetFormat::Archive(_), _) => ("raw", false),
    };
    if takes {
        return Ok(());
    }
    Err(Stop::said(format!("Format driver '{name}' does not support bitmaps")))
}
