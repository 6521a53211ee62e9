//! What a conversion came to, for a program and for a person.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;

use super::Arguments;
use crate::cli::size;
use crate::ops::convert::{ConvertReport, Unreadable};

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report<'a> {
    source: Cow<'a, str>,
    target: Cow<'a, str>,
    format: &'static str,
    virtual_size: u64,
    stored: u64,
    shared: u64,
    copied_by_kernel: u64,
    compressed_clusters: u64,
    compressed_bytes: u64,
    zeroed: u64,
    file_length: u64,
    spilled: u64,
    unreadable_bytes: u64,
    unreadable: Vec<Part<'a>>,
    unreadable_cut: bool,
    threads: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct Part<'a> {
    offset: u64,
    length: u64,
    reason: &'a str,
}

pub(super) fn summary<'a>(
    arguments: &'a Arguments,
    label: &'a Path,
    report: &'a ConvertReport,
) -> Report<'a> {
    let part = |part: &'a Unreadable| Part {
        offset: part.offset,
        length: part.length,
        reason: &part.reason,
    };
    Report {
        source: arguments.source.to_string_lossy(),
        target: label.to_string_lossy(),
        format: arguments.target_format.as_str(),
        virtual_size: report.virtual_size,
        stored: report.stored_bytes,
        shared: report.shared_bytes,
        copied_by_kernel: report.kernel_bytes,
        compressed_clusters: report.compressed_clusters,
        compressed_bytes: report.compressed_bytes,
        zeroed: report.zeroed_bytes,
        file_length: report.file_length,
        spilled: report.spilled_bytes,
        unreadable_bytes: report.unreadable.bytes,
        unreadable: report.unreadable.parts.iter().map(part).collect(),
        unreadable_cut: report.unreadable.cut,
        threads: report.threads,
        seconds: report.elapsed.as_secs_f64(),
    }
}

pub(super) fn text(label: &Path, report: &ConvertReport) -> String {
    let mut text = format!(
        "{}: {} virtual, {} stored",
        label.display().to_string().escape_debug(),
        size::human(report.virtual_size),
        size::human(report.stored_bytes.saturating_add(report.compressed_bytes)),
    );
    for (bytes, how) in [(report.shared_bytes, "shared"), (report.kernel_bytes, "by the kernel")] {
        if bytes > 0 {
            text.push_str(&format!(", {} of it {how}", size::human(bytes)));
        }
    }
    if report.compressed_clusters > 0 {
        text.push_str(&format!(", {} clusters compressed", report.compressed_clusters));
    }
    if report.spilled_bytes > 0 {
        text.push_str(&format!(", {} kept meanwhile", size::human(report.spilled_bytes)));
    }
    text.push_str(&format!(", {:.2} s", report.elapsed.as_secs_f64()));
    if report.unreadable.bytes > 0 {
        let bytes = size::human(report.unreadable.bytes);
        text.push_str(&format!("\n{bytes} could not be read and are zeros:"));
        for part in &report.unreadable.parts {
            let (offset, length) = (part.offset, part.length);
            text.push_str(&format!("\n  {offset:#x} {length} bytes: {}", part.reason));
        }
        if report.unreadable.cut {
            text.push_str("\n  and more");
        }
    }
    text
}
