//! `qemu-img create`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::getopt::{Known, Words, flag, long_value, value};
use super::help::Help;
use super::image::{self, Naming};
use super::new_image::{check_raw_preallocation, qcow2, raw_preallocation};
use super::number::{self, SIZE_MAX};
use super::opts::{self, Opts, Target};
use super::place::Place;
use super::{Outcome, Stop, complaint, device, next_option, print, warn};
use crate::disk::StatedTop;
use crate::disk::chain::Chain;
use crate::disk::policy::{BackingPolicy, DataFileNames};
use crate::disk::sectors::{SECTOR, whole_sectors};
use crate::ops::create::{CreateFileOptions, create, create_raw};
use crate::sys::pending::{Existing, FileMode};

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    flag(b'q', "quiet"),
    long_value("object"),
    value(b'f', "format"),
    value(b'o', "options"),
    value(b'b', "backing"),
    value(b'F', "backing-format"),
    flag(b'u', "backing-unsafe"),
];

/// The permission bits that qemu-img gives new files, less the umask.
pub(super) const MODE: FileMode = FileMode::Masked(0o644);

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Makes a new image",
    usage: "[-f FMT] [-o KEY=VALUE,…] [-b FILE [-F FMT]] [-u] [-q]\n        FILENAME [SIZE]",
    operands: &[
        ("FILENAME", "the image; what is there is replaced"),
        (
            "SIZE",
            "of its disk, in bytes or with one of the units bkKMGTPE; without it, the\n     backing file's",
        ),
    ],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let mut new = New { format: "raw".to_owned(), ..New::default() };
    let mut list = None;
    while let Some(found) = next_option("create", &mut words)? {
        match found.name {
            "format" => new.format = found.text(),
            "backing" => new.backing = Some(found.argument),
            "backing-format" => new.backing_format = Some(found.text()),
            "backing-unsafe" => new.unchecked = true,
            "options" => opts::add(&mut list, &found.text())?,
            "quiet" => new.quiet = true,
            // Keys: an image that needs one is not made.
            _ => {}
        }
    }
    let operands = words.operands();
    let mut operands = operands.iter();
    let filename = operands.next();
    if list.as_deref().is_some_and(opts::asks_help) {
        return help(&new.format, filename.is_some());
    }
    let filename = filename.ok_or_else(|| Stop::usage("Expecting image file name"))?;
    if let Some(size) = operands.next() {
        let size = size.to_string_lossy();
        new.size = Some(number::bounded(&size, "image size", 0, SIZE_MAX)?);
    }
    if let Some(more) = operands.next() {
        let more = more.to_string_lossy();
        return Err(Stop::usage(format!("Unexpected argument: {more}")));
    }
    let shown = filename.to_string_lossy().into_owned();
    new.make(filename, list.as_deref())
        .map(|()| 0)
        .map_err(|text| Stop::said(format!("{shown}: {text}")))
}

fn help(format: &str, file: bool) -> Outcome {
    match target(format) {
        Ok(target) => {
            print(&opts::help(target, format, file));
            Ok(0)
        }
        Err(text) => Err(Stop::said(text)),
    }
}

/// The format that images are to be made in.
pub(super) fn target(format: &str) -> Result<Target, String> {
    match format {
        "raw" => Ok(Target::Raw),
        "qcow2" => Ok(Target::Qcow2),
        other if image::is_known(other) => Err(image::unsupported(other)),
        other => Err(format!("Unknown file format '{other}'")),
    }
}

/// An image that is to be made.
#[derive(Debug, Default)]
pub(super) struct New {
    pub(super) format: String,
    pub(super) backing: Option<OsString>,
    pub(super) backing_format: Option<String>,
    pub(super) unchecked: bool,
    pub(super) size: Option<u64>,
    pub(super) quiet: bool,
}

impl New {
    /// Makes the image, and says before what it will be.
    pub(super) fn make(&self, filename: &OsStr, list: Option<&str>) -> Result<(), String> {
        let target = target(&self.format)?;
        let place = Place::new(filename, target)?;
        let mut asked = Opts::new(target);
        if let Some(list) = list {
            asked.parse(list)?;
        }
        if asked.text("size").is_some() && self.size.is_some() {
            return Err("The image size must be specified only once".to_owned());
        }
        if let Some(size) = self.size {
            asked.set("size", size.to_string())?;
        }
        self.add_backing(&mut asked)?;
        let backing = asked.text("backing_file").map(OsString::from);
        let backing = self.backing.clone().or(backing);
        if let Some(backing) = &backing {
            if backing.as_os_str() == filename {
                return Err(
                    "Error: Trying to create an image with the same filename as the backing \
                            file"
                        .to_owned(),
                );
            }
            if backing.is_empty() {
                return Err("Expected backing file name, got empty string".to_owned());
            }
            let format = asked.text("backing_fmt").map(ToOwned::to_owned);
            if self.unchecked {
                if format.is_none() {
                    return Err("Backing file specified without backing format".to_owned());
                }
            } else {
                let size = backing_size(&place.path, backing, format.as_deref())?;
                if asked.text("size").is_none() {
                    asked.set("size", size.to_string())?;
                }
            }
        }
        if asked.number("size").is_none_or(|size| size == u64::MAX) {
            return Err("Image creation needs a size parameter".to_owned());
        }
        if !self.quiet {
            let shown = filename.to_string_lossy();
            print(&format!("Formatting '{shown}', fmt={} {}\n", self.format, asked.shown()));
        }
        write(target, &place.with_data_file(asked.text("data_file")), backing.as_deref(), &asked)
    }

    fn add_backing(&self, asked: &mut Opts) -> Result<(), String> {
        let format = &self.format;
        if let Some(backing) = &self.backing {
            let text = backing.to_string_lossy().into_owned();
            let refused = |_| format!("Backing file not supported for file format '{format}'");
            asked.set("backing_file", text).map_err(refused)?;
        }
        if let Some(backing_format) = &self.backing_format {
            let refused =
                |_| format!("Backing file format not supported for file format '{format}'");
            asked.set("backing_fmt", backing_format.clone()).map_err(refused)?;
        }
        Ok(())
    }
}

/// The file that a new image's name means.
pub(super) fn destination(filename: &OsStr) -> Result<PathBuf, String> {
    let name = filename.as_bytes();
    let path = match name.strip_prefix(b"file:") {
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
        None => match qcow2_format::create::protocol(name) {
            None => PathBuf::from(filename),
            Some(protocol) => {
                let protocol = String::from_utf8_lossy(protocol);
                if protocol == "fat" {
                    let text = "Protocol driver 'vvfat' does not support image creation";
                    return Err(text.to_owned());
                }
                return Err(if image::is_protocol(&protocol) || protocol == "json" {
                    format!("the protocol '{protocol}' is not supported by this program")
                } else {
                    format!("Unknown protocol '{protocol}'")
                });
            }
        },
    };
    Ok(path)
}

/// Size of the disk in the backing file of an image at `path`.
fn backing_size(path: &Path, backing: &OsStr, format: Option<&str>) -> Result<u64, String> {
    let hint = |text: String| format!("{text}\nCould not open backing image.");
    let folder = path.parent().unwrap_or(Path::new(""));
    let protocol = qcow2_format::create::protocol(backing.as_bytes());
    let full = match protocol {
        None => folder.join(backing),
        Some(_) => PathBuf::from(backing),
    };
    let naming = Naming { format: format.map(ToOwned::to_owned), ..Naming::default() };
    let named = naming.resolve(full.as_os_str()).map_err(|stop| {
        // Said of the file alone, not of who names it.
        let start = format!("Could not open '{}': ", full.to_string_lossy());
        hint(stop.text.strip_prefix(&start).unwrap_or(&stop.text).to_owned())
    })?;
    if named.top != StatedTop::default() {
        let text = "options of a backing file's parts are not supported by this program";
        return Err(hint(text.to_owned()));
    }
    let policy = BackingPolicy::Any;
    let opened = Chain::open(&named.path, named.format, &policy).and_then(|chain| {
        match chain.not_followed {
            Some(error) => Err(error),
            None => Ok(chain.images.first().map_or(0, |image| image.virtual_size)),
        }
    });
    let size = opened.map_err(|error| {
        let text = complaint::not_opened(&named, &error).text;
        let start = format!("Could not open '{}': ", named.shown);
        hint(text.strip_prefix(&start).unwrap_or(&text).to_owned())
    })?;
    if format.is_none() {
        return Err(format!(
            "Backing file specified without backing format\nDetected format of {}.",
            named.format.as_str()
        ));
    }
    Ok(whole_sectors(size))
}

/// Writes the image that was described.
fn write(
    target: Target,
    place: &Place,
    backing: Option<&OsStr>,
    asked: &Opts,
) -> Result<(), String> {
    let (path, not_made) = (&place.path, |error| place.not_made(&error));
    let size = asked.number("size").unwrap_or(0);
    if target == Target::Raw {
        check_raw_preallocation(asked)?;
    }
    place.check_folders()?;
    let options = CreateFileOptions {
        existing: Existing::Overwrite,
        mode: MODE,
        data_file_names: DataFileNames::OfWorkingFolder,
        ..CreateFileOptions::default()
    };
    if asked.number("extent_size_hint").is_some_and(|hint| hint != 0) {
        warn("Failed to set extent size hint: Operation not supported");
    }
    match target {
        Target::Raw => {
            let preallocation = raw_preallocation(asked)?;
            if size > SIZE_MAX - SIZE_MAX % SECTOR {
                return Err("Could not resize file: Invalid argument".to_owned());
            }
            let size = whole_sectors(size);
            if let Some(device) = device::taking(path, size, preallocation)? {
                return device::clear(device);
            }
            create_raw(path, size, preallocation, &options).map_err(not_made)?;
            place.allocate(size);
            Ok(())
        }
        Target::Qcow2 => {
            let image = qcow2(backing, asked)?;
            if size > SIZE_MAX - SIZE_MAX % SECTOR {
                return Err("Could not resize image: Image size cannot be negative".to_owned());
            }
            create(path, &image, &options).map_err(not_made)?;
            place.allocate(size);
            Ok(())
        }
    }
}
