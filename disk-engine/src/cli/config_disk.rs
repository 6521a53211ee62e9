//! The `config-disk` command.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::{Output, size};
use crate::config_disk::{CloudInit, ConfigDisk, DEFAULT_LABEL, NO_CLOUD_LABEL};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::config_disk::{ConfigDiskOptions, config_disk};
use crate::sys::pending::Existing;

/// Make a FAT disk with a label from a folder, for a guest to find at its first boot
///
/// The same folder gives the same bytes, whatever the files' times and modes. Symbolic links and
/// special files are refused. The disk is raw: attach it with --raw.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to put on the disk
    folder: PathBuf,
    /// The raw file to make, with mode 0600
    file: PathBuf,
    /// What the guest finds the disk by: 1 to 11 letters [default: CONFIG, or cidata]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Make a seed for cloud-init: the folder must hold user-data and meta-data
    #[arg(long)]
    cloud_init: bool,
    /// Make the disk at least this large, as in 8M; as small as possible unless given
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// Replace a file that stands there
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    filename: Cow<'a, str>,
    format: &'static str,
    virtual_size: u64,
    label: &'a str,
    file_system: &'static str,
    files: usize,
    folders: usize,
    content_bytes: u64,
}

pub(crate) fn run(arguments: Arguments, output: &Output) -> Result<()> {
    refuse_inside(&arguments.folder, &arguments.file)?;
    if arguments.cloud_init {
        CloudInit::check_folder(&arguments.folder)?;
    }
    let default = if arguments.cloud_init { NO_CLOUD_LABEL } else { DEFAULT_LABEL };
    let label = arguments.label.as_deref().unwrap_or(default);
    let disk = ConfigDisk::new()
        .label(label)
        .min_size(arguments.size.unwrap_or(0))
        .folder(&arguments.folder)?;
    let existing = if arguments.force { Existing::Replace } else { Existing::Refuse };
    let options = ConfigDiskOptions { existing, ..ConfigDiskOptions::default() };
    let made = config_disk(&disk, &arguments.file, &options)?;
    let shape = made.shape;
    let report = Report {
        filename: made.path.to_string_lossy(),
        format: "raw",
        virtual_size: shape.size,
        label,
        file_system: shape.fat.as_str(),
        files: shape.files,
        folders: shape.folders,
        content_bytes: shape.content_bytes,
    };
    let text = format!(
        "{:?}: {}, {}, label {label}, {} files",
        made.path,
        size::human(shape.size),
        shape.fat.as_str(),
        shape.files,
    );
    output.report(&report, &text)
}

/// A disk inside the folder would hold its own last version the next time.
fn refuse_inside(folder: &Path, file: &Path) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let (Ok(folder), Ok(parent)) = (folder.canonicalize(), parent.canonicalize()) else {
        // Whoever opens them says what is wrong.
        return Ok(());
    };
    if parent.starts_with(&folder) {
        let message = "the disk would be made inside the folder it is made from";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_path(file));
    }
    Ok(())
}
