//! A check's report as qemu-img writes it, for a person and for a program.
//!
//! Callers: `check`, and whoever else answers for qemu-img.

use std::fmt::Write;

use serde::Serialize;

use crate::ops::check::CheckReport;

/// The report with qemu-img's field names; what is zero is left out where qemu-img leaves it out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Fields {
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    filename: String,
    format: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
}

impl From<&CheckReport> for Fields {
    fn from(report: &CheckReport) -> Self {
        Self {
            image_end_offset: report.image_end_offset,
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            corruptions: report.corruptions,
            check_errors: report.check_errors,
            leaks: report.leaks,
            corruptions_fixed: report.corruptions_fixed,
            leaks_fixed: report.leaks_fixed,
            allocated_clusters: report.allocated_clusters,
            filename: report.filename.to_string_lossy().into_owned(),
            format: report.format,
            fragmented_clusters: report.fragmented_clusters,
        }
    }
}

impl Fields {
    /// The same of a file that the caller calls `filename`.
    pub(crate) fn of(self, filename: &str) -> Self {
        Self { filename: filename.to_owned(), ..self }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's way of asking")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What qemu-img prints of a repair before it checks once more; nothing if nothing was fixed.
pub(crate) fn repaired(report: &CheckReport) -> String {
    if report.leaks_fixed == 0 && report.corruptions_fixed == 0 {
        return String::new();
    }
    format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} \
         corruptions\n\nDouble checking the fixed image now...\n",
        report.leaks_fixed, report.corruptions_fixed
    )
}

/// What qemu-img prints of a check.
pub(crate) fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    let CheckReport { corruptions, leaks, check_errors, .. } = *report;
    if corruptions == 0 && leaks == 0 && check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if corruptions > 0 {
        let _ = write!(
            text,
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it.\n"
        );
    }
    if leaks > 0 {
        let _ = write!(
            text,
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, \
             but no harm to data.\n"
        );
    }
    if check_errors > 0 {
        let what = "internal errors have occurred during the check.";
        let _ = write!(text, "\n{check_errors} {what}\n");
    }
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    if total > 0 && allocated > 0 {
        let _ = writeln!(
            text,
            "{allocated}/{total} = {}% allocated, {}% fragmented, {}% compressed clusters",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        );
    }
    if report.image_end_offset > 0 {
        let _ = writeln!(text, "Image end offset: {}", report.image_end_offset);
    }
    text
}

/// With two digits behind the point, as C prints it.
#[expect(clippy::cast_precision_loss, reason = "so does qemu-img")]
fn percent(part: u64, of: u64) -> String {
    format!("{:.2}", part as f64 * 100.0 / of as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_rounded_as_in_c() {
        assert_eq!(percent(15, 160), "9.38");
        assert_eq!(percent(1, 3), "33.33");
        assert_eq!(percent(3, 3), "100.00");
    }
}
