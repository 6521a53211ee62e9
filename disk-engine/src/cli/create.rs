//! `disk-engine create`: a new qcow2 image, with qemu-img's option names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use qcow2_format::CreateOptions;
use qcow2_format::create::{BackingFile, BackingFormat};
use serde::Serialize;

use crate::base::{BaseFormat, BaseImage};
use crate::cli::{Output, options, size};
use crate::disk::policy::plain_path;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::create::{CreateFileOptions, create};
use crate::sys::pending::Existing;

/// Make a new qcow2 image
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to make
    file: PathBuf,
    /// Size of the disk, as in 50G; the backing file's unless given
    #[arg(value_parser = size::parse)]
    size: Option<u64>,
    /// The file to stand on; a relative name counts from the new file's folder
    #[arg(short = 'b', long = "backing", value_name = "BASE")]
    backing: Option<OsString>,
    /// The backing file's format, which is never guessed
    #[arg(short = 'F', long = "backing-format", value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Options of the image, as qemu-img names them: compat, cluster_size, refcount_bits,
    /// lazy_refcounts, extended_l2, compression_type, backing_file, backing_fmt, size
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Do not look at the backing file; a size is needed then
    #[arg(short = 'u', long = "unsafe")]
    unchecked: bool,
    /// Replace a file that stands there
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    filename: String,
    virtual_size: u64,
    cluster_size: u64,
    backing_filename: Option<String>,
    backing_filename_format: Option<String>,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    let options = options::parse(&arguments.options)?;
    if options.data_file.is_some() || options.data_file_raw {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "images with an external data file are not made",
        )
        .with_field("data_file"));
    }
    let backing_name = arguments.backing.or(options.backing_file.map(OsString::from));
    let backing_format = arguments.backing_format.or(options.backing_format);
    let backing = match (backing_name, backing_format) {
        (None, None) => None,
        (Some(name), Some(format)) => {
            Some(BackingFile::new(name.into_vec(), options::backing_format(&format)))
        }
        (Some(_), None) => {
            return Err(
                usage("a backing file needs its format").with_hint("add -F raw or -F qcow2")
            );
        }
        (None, Some(_)) => return Err(usage("a backing format needs a backing file (-b)")),
    };
    let backing_size = match &backing {
        Some(backing) if !arguments.unchecked => backing_size(&arguments.file, backing)?,
        _ => None,
    };
    let size = arguments
        .size
        .or(options.size)
        .or(backing_size)
        .ok_or_else(|| usage("the size of the disk is missing"))?;
    let mut image: CreateOptions = options.image.virtual_size(size);
    if let Some(backing) = backing {
        image = image.backing(backing);
    }
    let existing = if arguments.force { Existing::Replace } else { Existing::Refuse };
    let header =
        create(&arguments.file, &image, &CreateFileOptions { existing, ..Default::default() })?;
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let report = Report {
        filename: arguments.file.to_string_lossy().into_owned(),
        virtual_size: header.virtual_size(),
        cluster_size: header.geometry().cluster_bits.bytes(),
        backing_filename: header.backing_file().map(lossy),
        backing_filename_format: header.backing_format().map(lossy),
    };
    let on = report.backing_filename.as_ref().map(|name| format!(" over {name:?}"));
    let text = format!(
        "{:?}: qcow2, {} ({} bytes){}",
        arguments.file,
        size::human(report.virtual_size),
        report.virtual_size,
        on.unwrap_or_default()
    );
    output.report(&report, &text)
}

/// Size of the disk in the backing file; `None` for formats we do not read.
fn backing_size(image: &Path, backing: &BackingFile) -> Result<Option<u64>> {
    let format = match backing.format {
        BackingFormat::Raw => BaseFormat::Raw,
        BackingFormat::Qcow2 => BaseFormat::Qcow2,
        _ => return Ok(None),
    };
    // The caller's own name; the check for protocols comes with a better hint from the planner.
    let Ok(path) = plain_path(image, &backing.name) else { return Ok(Some(0)) };
    BaseImage::open(path, format).map(|base| Some(base.virtual_size()))
}

fn usage(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
