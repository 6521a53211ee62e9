//! The `pack` command: a disk in, a compressed sparse archive out.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::BaseFormat;
use crate::cli::overlay::Format;
use crate::cli::{Output, progress, size, stdout};
use crate::disk::chain::probe_top;
use crate::disk::policy::BackingPolicy;
use crate::disk::{Disk, DiskOptions, Locking, PastEnd};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::pack::{PackOptions, PackReport, pack, pack_into};
use crate::sys::open::is_same_file;
use crate::sys::pending::{Durability, Existing};

/// Pack a disk into a compressed sparse archive: the same bytes for the same content
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The disk: a file or a block device
    source: PathBuf,
    /// The archive to make, as in disk-img.tar.zst; '-' is standard output, the report then goes to
    /// standard error
    destination: PathBuf,
    /// The disk's format; raw unless given, and never guessed
    #[arg(long, short = 'f', value_enum)]
    format: Option<Format>,
    /// Pack this snapshot of the image, by id or name, instead of its active disk
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// Follow backing files wherever the image says; else only in the image's folder and below
    #[arg(long)]
    backing_chain: bool,
    /// Follow backing files below this folder too
    #[arg(long, value_name = "DIR", conflicts_with = "backing_chain")]
    allow: Vec<PathBuf>,
    /// Pack even while a VM writes to the disk; if it does meanwhile, no archive is made
    #[arg(long, short = 'U')]
    force_share: bool,
    /// What the archive calls the disk
    #[arg(long, value_name = "NAME", default_value = "disk.img")]
    member: String,
    /// When the archive says the disk was changed, in seconds since 1970
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    mtime: u64,
    /// How hard zstd tries
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// The window as a power of two (zstd's --long); readers have to be told of more than 27
    #[arg(long, value_name = "LOG", default_value_t = 27, value_parser = clap::value_parser!(u32).range(10..=31))]
    long: u32,
    /// Compress every SIZE bytes of the archive as a frame of its own and add a seek table, for
    /// extraction on several cores and reads from anywhere: 64k to 1G, as in 4M
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    frames: Option<u64>,
    /// Threads to use; the bytes are the same with any number [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Have the archive on the medium before saying so
    #[arg(long)]
    durable: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    source: Cow<'a, str>,
    destination: Cow<'a, str>,
    format: &'static str,
    member: &'a str,
    virtual_size: u64,
    data_bytes: u64,
    extents: usize,
    block_size: u64,
    tar_bytes: u64,
    archive_bytes: u64,
    sha256: String,
    frames: u64,
    frame_size: Option<u64>,
    threads: usize,
    seconds: f64,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let source = &arguments.source;
    let format = format_of(source, arguments.format)?;
    let to_stdout = arguments.destination.as_os_str() == "-";
    if to_stdout && (arguments.force || arguments.durable) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "standard output is neither replaced nor made durable",
        )
        .with_hint("leave out --force and --durable"));
    }
    let policy = if arguments.backing_chain {
        BackingPolicy::Any
    } else {
        BackingPolicy::Beneath(arguments.allow)
    };
    let locking = if arguments.force_share { Locking::Shared } else { Locking::Auto };
    let disk = DiskOptions {
        policy,
        snapshot: arguments.snapshot,
        locking,
        past_end: PastEnd::Fails,
        ..DiskOptions::default()
    };
    let (control, drawing) = progress::draw(output);
    let options = PackOptions {
        format,
        disk,
        member: arguments.member,
        mtime: arguments.mtime,
        level: arguments.level,
        window_log: arguments.long,
        frame_size: arguments.frames,
        threads: arguments.threads,
        existing: if arguments.force { Existing::Replace } else { Existing::Refuse },
        durability: if arguments.durable { Durability::Full } else { Durability::None },
        control,
        ..PackOptions::default()
    };
    let label =
        if to_stdout { Path::new("standard output") } else { arguments.destination.as_path() };
    let outcome = if to_stdout {
        into_stdout(source, label, &options)
    } else {
        pack(source, label, &options)
    };
    drop(drawing);
    let report = outcome?;
    let summary = Report {
        source: source.to_string_lossy(),
        destination: label.to_string_lossy(),
        format: format.as_str(),
        member: &options.member,
        virtual_size: report.virtual_size,
        data_bytes: report.data_bytes,
        extents: report.extents,
        block_size: report.block_size,
        tar_bytes: report.tar_bytes,
        archive_bytes: report.archive_bytes,
        sha256: report.sha256.to_string(),
        frames: report.frames,
        frame_size: report.frame_size,
        threads: report.threads,
        seconds: report.elapsed.as_secs_f64(),
    };
    let text = text(label, &report);
    if to_stdout { output.report_aside(&summary, &text) } else { output.report(&summary, &text) }
}

/// The format the caller states. Without one it is raw, unless it looks otherwise: then the caller
/// has to say what is meant, since a guest may have written the look.
fn format_of(path: &Path, stated: Option<Format>) -> Result<BaseFormat> {
    if stated.is_none() && probe_top(path)? == BaseFormat::Qcow2 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the disk begins as a qcow2 image, and its format is not stated",
        )
        .with_path(path)
        .with_hint("add --format qcow2, or --format raw if a guest wrote that"));
    }
    Ok(stated.map_or(BaseFormat::Raw, BaseFormat::from))
}

fn into_stdout(source: &Path, label: &Path, options: &PackOptions) -> Result<PackReport> {
    let mut file = stdout::for_bytes("an archive", label)?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", label, error))?;
    let disk = Disk::open(source, options.format, &options.disk)?;
    if let Some(image) = disk.images().find(|image| is_same_file(&metadata, image.path)) {
        let message = "the disk would be overwritten by its own archive";
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_path(image.path)
            .with_hint("send standard output somewhere else"));
    }
    pack_into(source, &mut file, label, options)
}

fn text(label: &Path, report: &PackReport) -> String {
    let frames = match report.frame_size {
        Some(frame) => format!(" in {} frames of {}", report.frames, size::human(frame)),
        None => String::new(),
    };
    let threads = if report.threads == 1 { "thread" } else { "threads" };
    format!(
        "{}: {}{frames}, from {} virtual with {} of data in {} extents, {} {threads}, {:.2} s\nsha256:{}",
        label.display().to_string().escape_debug(),
        size::human(report.archive_bytes),
        size::human(report.virtual_size),
        size::human(report.data_bytes),
        report.extents,
        report.threads,
        report.elapsed.as_secs_f64(),
        report.sha256,
    )
}
