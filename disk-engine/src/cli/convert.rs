//! The `convert` command: a disk in any form into any other, with qemu-img's option letters.

mod report;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use qcow2_format::CreateOptions;
use qcow2_format::create::BackingFile;
use qcow2_format::image::Preallocation;

use crate::base::BaseFormat;
use crate::cli::follow::Follow;
use crate::cli::overlay::Format;
use crate::cli::source::SourceOptions;
use crate::cli::{Output, options, progress, size, stdout};
use crate::disk::chain::probe_top;
use crate::disk::policy::plain_path;
use crate::disk::{Disk, DiskOptions, Locking, PastEnd, WritableDiskOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::convert::{
    Below, ConvertOptions, ConvertReport, ConvertSource, ConvertTarget, DiskSpec, READ_FROM, Spill,
    TargetFormat, convert,
};
use crate::ops::pack::PackOptions;
use crate::sink::CopyOffload;
use crate::sys::open::is_same_file;
use crate::sys::pending::{Durability, Existing};

/// Convert a disk: images and chains, snapshots, archives and pipes, into raw or qcow2
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to read: an image; without -f an archive or a compressed image too; '-' reads
    /// standard input
    source: PathBuf,
    /// The file to make; '-' is standard output, the report then goes to standard error
    target: PathBuf,
    /// The source's format; an archive, a compressed image or raw unless given, and never guessed
    #[arg(short = 'f', long, value_enum)]
    format: Option<Format>,
    /// The target's format
    #[arg(short = 'O', long, value_enum, default_value = "raw")]
    target_format: Target,
    /// Options of the target, as qemu-img names them: compat, cluster_size, refcount_bits,
    /// lazy_refcounts, extended_l2, compression_type, preallocation, backing_file, backing_fmt, size
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Store clusters compressed
    #[arg(short = 'c', long)]
    compress: bool,
    /// The file the target stands on: only what differs is stored. A relative name counts from the
    /// target's folder
    #[arg(short = 'B', long = "backing", value_name = "BASE")]
    backing: Option<OsString>,
    /// The backing file's format, which is never guessed
    #[arg(short = 'F', long = "backing-format", value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Read this snapshot of the image, by id or name
    #[arg(short = 'l', long, value_name = "NAME")]
    snapshot: Option<String>,
    /// Leave copying to the kernel, even where that shares no storage: stored zeros stay data
    #[arg(short = 'C', long)]
    copy_offload: bool,
    /// Leave out zeros of at least so many bytes in a row; 0 stores them all [default: 4k, and
    /// storage that can be shared with the source is not looked at]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = size::parse)]
    sparse: Option<u64>,
    /// Write into the target that is there, which keeps its shape
    #[arg(short = 'n', long)]
    into_existing: bool,
    /// The target that is there reads as zeros
    #[arg(long, requires = "into_existing")]
    target_is_zero: bool,
    /// Pass over so many bytes of the source
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    offset: u64,
    /// Take so many bytes of the source
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    length: Option<u64>,
    /// Begin so far into the target that is there
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0", requires = "into_existing")]
    target_offset: u64,
    /// Move so many bytes of data in a second at the most
    #[arg(short = 'r', long, value_name = "SIZE", value_parser = size::parse)]
    rate_limit: Option<u64>,
    /// Read what can be read: the rest is zeros, and listed
    #[arg(long)]
    salvage: bool,
    /// The folder that keeps what cannot go straight through a pipe
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    spill: PathBuf,
    /// Most bytes to keep there
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1T")]
    spill_limit: u64,
    #[command(flatten)]
    follow: Follow,
    /// Read even while a VM writes to the source
    #[arg(long, short = 'U')]
    force_share: bool,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Have the target on the medium before saying so
    #[arg(long)]
    durable: bool,
    #[command(flatten)]
    packed: SourceOptions,
}

/// What a disk can be converted into.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Target {
    Raw,
    Qcow2,
    /// A sparse archive, as `pack` makes it without options
    Archive,
}

impl Target {
    fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Archive => "archive",
        }
    }
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let to_stdout = arguments.target.as_os_str() == "-";
    if to_stdout && (arguments.force || arguments.durable || arguments.into_existing) {
        return Err(usage("standard output is neither replaced, nor made durable, nor there")
            .with_hint("leave out --force, --durable and -n"));
    }
    let disk = arguments.follow.disk(arguments.force_share);
    let disk = DiskOptions { past_end: PastEnd::Fails, ..disk };
    let source = source(&arguments, &disk)?;
    let (control, drawing) = progress::draw(output);
    let mut options = options(&arguments, &disk)?;
    options.control = control;
    let label = if to_stdout { Path::new("standard output") } else { arguments.target.as_path() };
    let outcome = if to_stdout {
        into_stdout(source, label, &options)
    } else {
        convert(source, ConvertTarget::File(label), &options)
    };
    drop(drawing);
    let report = outcome?;
    let summary = report::summary(&arguments, label, &report);
    let text = report::text(label, &report);
    if to_stdout { output.report_aside(&summary, &text) } else { output.report(&summary, &text) }
}

/// What is read. Without a format it is what its bytes say, unless that is qcow2: then the caller
/// has to say what is meant, since a guest may have written the look.
fn source(arguments: &Arguments, disk: &DiskOptions) -> Result<ConvertSource> {
    let path = &arguments.source;
    let is_stdin = path.as_os_str() == "-";
    let is_pipe = is_stdin || fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    let is_image = arguments.format.is_some() && !is_pipe;
    if arguments.snapshot.is_some()
        && arguments.format.map(BaseFormat::from) != Some(BaseFormat::Qcow2)
    {
        return Err(usage("only qcow2 images have snapshots").with_hint("add -f qcow2"));
    }
    if arguments.force_share && !is_image {
        return Err(usage("only images are shared with VMs").with_hint("add -f raw or -f qcow2"));
    }
    if arguments.packed.names_member() && is_image {
        return Err(usage("an image has no members").with_hint("leave out -f for an archive"));
    }
    let format = match arguments.format {
        Some(format) => BaseFormat::from(format),
        None if is_pipe => return Ok(ConvertSource::Packed(arguments.packed.at(path))),
        None if probe_top(path)? == BaseFormat::Qcow2 => {
            return Err(usage("the source begins as a qcow2 image, and its format is not stated")
                .with_path(path)
                .with_hint("add -f qcow2, or -f raw if a guest wrote that"));
        }
        None => return Ok(ConvertSource::Packed(arguments.packed.at(path))),
    };
    if is_pipe {
        return match format {
            BaseFormat::Raw => Ok(ConvertSource::Packed(arguments.packed.at(path))),
            BaseFormat::Qcow2 => {
                let label = if is_stdin { Path::new("standard input") } else { path }.to_path_buf();
                let pipe = match is_stdin {
                    true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
                    false => File::open(path),
                };
                let pipe = pipe.map_err(|error| Error::io("open", &label, error))?;
                let snapshot = arguments.snapshot.clone();
                Ok(ConvertSource::Piped { reader: Box::new(pipe), label, snapshot })
            }
        };
    }
    let mut disk = disk.clone();
    disk.snapshot.clone_from(&arguments.snapshot);
    Ok(ConvertSource::Images(vec![DiskSpec { path: path.clone(), format, disk }]))
}

fn options(arguments: &Arguments, disk: &DiskOptions) -> Result<ConvertOptions> {
    let image = options::parse(&arguments.options)?;
    if arguments.into_existing && !arguments.options.is_empty() {
        return Err(usage("the disk that is there keeps its shape").with_field("-o"));
    }
    let mut below = None;
    let format = match arguments.target_format {
        Target::Archive => {
            raw_preallocation(&image.image)?;
            TargetFormat::Archive(PackOptions::default())
        }
        Target::Raw => TargetFormat::Raw { preallocation: raw_preallocation(&image.image)? },
        Target::Qcow2 => {
            let name = arguments.backing.clone().or(image.backing_file.map(OsString::from));
            let stated = arguments.backing_format.clone().or(image.backing_format);
            let mut image = image.image;
            match (name, stated) {
                (None, None) => {}
                (Some(_), None) => {
                    return Err(usage("a backing file needs its format")
                        .with_hint("add -F raw or -F qcow2"));
                }
                (None, Some(_)) => {
                    return Err(usage("a backing format needs a backing file (-B)"));
                }
                (Some(name), Some(format)) => {
                    let name = name.into_vec();
                    let path = plain_path(&arguments.target, &name)?;
                    let written = options::backing_format(&format);
                    let format = options::base_format(&format)?;
                    below = Some(Below::open(&DiskSpec { path, format, disk: disk.clone() })?);
                    image = image.backing(BackingFile::new(name, written));
                }
            }
            TargetFormat::Qcow2(image)
        }
    };
    Ok(ConvertOptions {
        size: image.size,
        offset: arguments.offset,
        length: arguments.length,
        offload: match (arguments.copy_offload, arguments.sparse) {
            (true, _) => CopyOffload::Copy,
            (false, None) => CopyOffload::Share,
            (false, Some(_)) => CopyOffload::Off,
        },
        compress: arguments.compress,
        sparse: arguments.sparse.unwrap_or(SPARSE),
        below,
        into_existing: arguments.into_existing,
        target_offset: arguments.target_offset,
        target_is_zero: arguments.target_is_zero,
        target: WritableDiskOptions {
            disk: DiskOptions { locking: Locking::Auto, ..disk.clone() },
            ..WritableDiskOptions::default()
        },
        salvage: arguments.salvage,
        rate_limit: arguments.rate_limit.and_then(NonZeroU64::new),
        spill: Spill { folder: arguments.spill.clone(), limit: arguments.spill_limit },
        threads: arguments.packed.threads(),
        existing: if arguments.force { Existing::Replace } else { Existing::Refuse },
        durability: if arguments.durable { Durability::Full } else { Durability::None },
        ..ConvertOptions::new(format)
    })
}

/// Zeros that are left out, in bytes in a row, unless the caller says otherwise.
const SPARSE: u64 = 4096;

/// What of `-o` a raw target has: only how much space is taken at once.
fn raw_preallocation(image: &CreateOptions) -> Result<Preallocation> {
    let preallocation = image.wanted_preallocation();
    if *image == CreateOptions::new(0).preallocation(preallocation) {
        return Ok(preallocation);
    }
    Err(usage("a raw target has no options but size and preallocation").with_field("-o"))
}

fn into_stdout(
    source: ConvertSource,
    label: &Path,
    options: &ConvertOptions,
) -> Result<ConvertReport> {
    let mut file = stdout::for_bytes("a disk", label)?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", label, error))?;
    if let Some(path) = files(&source)?.iter().find(|path| is_same_file(&metadata, path)) {
        return Err(usage(READ_FROM)
            .with_path(path)
            .with_hint("send standard output somewhere else"));
    }
    convert(source, ConvertTarget::Writer { writer: &mut file, label }, options)
}

/// The files a source is read from.
fn files(source: &ConvertSource) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    match source {
        ConvertSource::Images(images) => {
            for image in images {
                let disk = Disk::open(&image.path, image.format, &image.disk)?;
                files.extend(disk.images().map(|image| image.path.to_path_buf()));
            }
        }
        ConvertSource::Packed(source) => files.extend(source.as_path().map(Path::to_path_buf)),
        _ => {}
    }
    Ok(files)
}

fn usage(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
