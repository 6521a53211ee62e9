//! Bitmaps: whether qemu-img would load them, whether there are some to be copied, and whether the target
//! could take them.
//!
//! They are not copied: an image that has some which qemu-img would copy is refused by name. Callers:
//! `convert`, `info`.

use qcow2_format::Header;
use qcow2_format::bitmap::Bitmap;
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

/// Objects to an image that has a bitmap which qemu-img would not load.
pub(super) fn check_loaded(image: &Named) -> Outcome<()> {
    let refused = |text| Err(Stop::said(format!("Could not open '{}': {text}", image.shown)));
    let unread = |error| complaint::not_opened(image, &error);
    let found = inspect(&image.path, image.format).map_err(unread)?;
    let Some(header) = &found.header else { return Ok(()) };
    for bitmap in found.bitmaps().map_err(unread)? {
        let name = String::from_utf8_lossy(&bitmap.name);
        match Loaded::of(&bitmap, header) {
            Loaded::Yes => {}
            Loaded::No => {
                return refused(format!("Bitmap '{name}' doesn't satisfy the constraints"));
            }
            Loaded::Unread => {
                return refused(format!(
                    "Could not read bitmap '{name}' from image: Invalid argument"
                ));
            }
        }
    }
    Ok(())
}

/// What qemu-img makes of a bitmap's entry.
enum Loaded {
    Yes,
    /// It breaks a rule.
    No,
    /// Its table is not as long as the disk needs.
    Unread,
}

impl Loaded {
    fn of(bitmap: &Bitmap, header: &Header) -> Self {
        const BITS: std::ops::RangeInclusive<u8> = 9..=31;
        const BYTES_MAX: u64 = 512 << 20;
        let (cluster, entries) = (header.geometry().cluster_bits, u64::from(bitmap.table_size));
        let table = bitmap.table_offset.to_u64();
        let bytes = entries.saturating_mul(cluster.bytes());
        let known = Bitmap::IN_USE | Bitmap::AUTO;
        let is_sound = entries > 0
            && table > 0
            && cluster.is_aligned(table)
            && BITS.contains(&bitmap.granularity_bits)
            && bitmap.flags & !known == 0
            && (1..=1023).contains(&bitmap.name.len())
            && bitmap.kind == 1
            && bytes <= BYTES_MAX;
        if !is_sound {
            return Self::No;
        }
        if bitmap.is_in_use() {
            // Its bits are not read.
            return Self::Yes;
        }
        // At most 2^31, as was looked at.
        let granularity = 1_u64.checked_shl(bitmap.granularity_bits.into()).unwrap_or(u64::MAX);
        let needed = header.virtual_size().div_ceil(granularity).div_ceil(8);
        match needed.div_ceil(cluster.bytes()) {
            needed if needed > entries => Self::No,
            needed if needed < entries => Self::Unread,
            _ => Self::Yes,
        }
    }
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
