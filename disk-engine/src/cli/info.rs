//! `disk-engine info`: what an image says of itself and of what it stands on.

use std::fmt::Write;
use std::path::PathBuf;

use crate::cli::output::is_hidden;
use crate::cli::overlay::Format;
use crate::cli::{Output, size};
use crate::disk::chain::probe_top;
use crate::disk::policy::BackingPolicy;
use crate::error::Result;
use crate::ops::info::{ImageInfo, InfoReport, Role, info};

/// Show an image's header, extensions and chain
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image
    file: PathBuf,
    /// The image's format; without it a file that begins as qcow2 is shown as qcow2
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// Follow backing files wherever the image says; else only in the image's folder and below
    #[arg(long)]
    backing_chain: bool,
    /// Follow backing files below this folder too
    #[arg(long, value_name = "DIR", conflicts_with = "backing_chain")]
    allow: Vec<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let format = match arguments.format {
        Some(format) => format.into(),
        None => probe_top(&arguments.file)?,
    };
    let policy = if arguments.backing_chain {
        BackingPolicy::Any
    } else {
        BackingPolicy::Beneath(arguments.allow)
    };
    let report = info(&arguments.file, format, &policy.into())?;
    output.report(&report, &render(&report))
}

fn render(report: &InfoReport) -> String {
    let mut text = render_image(&report.image);
    for image in &report.backing_chain {
        let _ = write!(text, "\n{}", render_image(image));
    }
    let _ = write!(text, "\nchain: ");
    for (depth, image) in std::iter::once(&report.image).chain(&report.backing_chain).enumerate() {
        let arrow = if depth == 0 { "" } else { " -> " };
        let role = match image.role {
            Role::ReadWritePerVm => "read-write, one VM's",
            Role::ReadOnlyShared => "read-only, shared",
        };
        let _ = write!(text, "{arrow}{:?} ({}, {role})", image.filename, image.format);
    }
    if let Some(reason) = &report.not_followed {
        let _ = write!(text, " -> not followed: {reason}");
    }
    text.push('\n');
    text
}

fn render_image(image: &ImageInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // A name from an image must not drive the terminal.
        let value: String = value
            .chars()
            .map(|letter| if is_hidden(letter) { '\u{fffd}' } else { letter })
            .collect();
        let _ = writeln!(text, "{name}: {value}");
    };
    let bytes = |bytes| format!("{} ({bytes} bytes)", size::human(bytes));
    line("image", &image.filename);
    line("file format", image.format);
    line("virtual size", &bytes(image.virtual_size));
    line("disk size", &size::human(image.actual_size));
    if let Some(cluster_size) = image.cluster_size {
        line("cluster_size", &cluster_size.to_string());
    }
    if image.encrypted == Some(true) {
        line("encrypted", "yes");
    }
    if let Some(name) = &image.backing_filename {
        line("backing file", name);
    }
    if let Some(format) = &image.backing_filename_format {
        line("backing file format", format);
    }
    if let Some(specific) = &image.format_specific {
        let on = |value: Option<bool>| value.map_or("-".to_owned(), |value| value.to_string());
        let data = &specific.data;
        line("compat", data.compat);
        line("compression type", data.compression_type);
        line("lazy refcounts", &on(data.lazy_refcounts));
        line("refcount bits", &data.refcount_bits.to_string());
        line("corrupt", &on(data.corrupt));
        line("extended l2", &on(data.extended_l2));
        if let Some(name) = &data.data_file {
            line("data file", name);
        }
        for bitmap in &data.bitmaps {
            let flags: String = bitmap.flags.iter().map(|flag| format!(", {flag}")).collect();
            line("bitmap", &format!("{}, {} bytes a bit{flags}", bitmap.name, bitmap.granularity));
        }
        if let Some(encrypt) = &data.encrypt {
            line("encryption", encrypt.format);
        }
    }
    if let Some(header) = &image.header {
        line("l1 table", &format!("{} entries at {:#x}", header.l1_size, header.l1_table_offset));
        line(
            "refcount table",
            &format!(
                "{} clusters at {:#x}",
                header.refcount_table_clusters, header.refcount_table_offset
            ),
        );
        line("snapshots", &header.nb_snapshots.to_string());
        for snapshot in &image.snapshots {
            line("snapshot", &format!("{} {}", snapshot.id, snapshot.name));
        }
        for extension in &header.extensions {
            line("extension", extension);
        }
        for feature in
            [&header.incompatible_features, &header.compatible_features, &header.autoclear_features]
                .into_iter()
                .flatten()
        {
            line("feature", feature);
        }
    }
    text
}
