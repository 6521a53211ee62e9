//! `qemu-img convert`.
//!
//! ```text
//! words ─▶ Asked ─▶ objections, in qemu-img's order ─▶ ConvertOptions ─▶ ops::convert
//! ```
//!
//! What tunes qemu-img's way of copying (`-m`, `-W`, caches) is checked and changes nothing: the same
//! bytes come out. A target appears whole or not at all, unless its file has to be written in place
//! (`Existing::Overwrite`). Callers: `qemu_img`; `dd` shares the target.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow2_format::image::Preallocation;

use super::asked::{Asked, KNOWN};
use super::compare::is_cache_mode;
use super::create::{self, destination};
use super::getopt::Words;
use super::image::{Named, Naming};
use super::new_image;
use super::opts::{self, Opts, Target};
use super::progress::shown;
use super::{Outcome, Stop, complaint, device, next_option, print, warn};
use crate::base::BaseFormat;
use crate::control::Event;
use crate::disk::sectors::whole_sectors;
use crate::disk::{DiskOptions, WritableDiskOptions};
use crate::error::Error;
use crate::ops::convert::{
    Below, ConvertOptions, ConvertReport, ConvertSource, ConvertTarget, DiskSpec, TargetFormat,
    convert,
};
use crate::sink::CopyOffload;
use crate::sys::pending::{Durability, Existing};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let mut asked = Asked::default();
    while let Some(found) = next_option("convert", &mut words)? {
        asked.set(found)?;
    }
    let mut operands = words.operands();
    let target = if operands.len() > 1 { operands.pop() } else { None };
    asked.object()?;
    if asked.list.as_deref().is_some_and(opts::asks_help) {
        let format = asked.format.as_deref().unwrap_or("raw");
        let made = create::target(format).map_err(Stop::said)?;
        print(&opts::help(made, format, target.is_some()));
        return Ok(0);
    }
    let Some(target) = target else {
        return Err(Stop::said("Must specify image file name"));
    };
    if asked.skip_broken && !asked.bitmaps {
        return Err(Stop::said("Use of --skip-broken-bitmaps requires --bitmaps"));
    }
    let drawn = asked.progress && !asked.quiet;
    if drawn {
        print("    (0.00/100%)\r");
    }
    let outcome = asked.convert(&operands, &target);
    // The line that progress is drawn on ends, whatever comes of it.
    if drawn {
        print("\n");
    }
    outcome
}

impl Asked {
    fn convert(&self, sources: &[OsString], target: &OsStr) -> Outcome {
        let cache =
            |mode: &Option<String>| mode.as_ref().filter(|mode| !is_cache_mode(mode)).cloned();
        if let Some(mode) = cache(&self.source_cache) {
            return Err(Stop::said(format!("Invalid source cache option: {mode}")));
        }
        let mut named = Vec::new();
        for word in sources {
            let source = self.naming.resolve(word)?;
            source.check(None)?;
            named.push(source);
        }
        if let Some(snapshot) = &self.snapshot {
            if named.len() > 1 {
                return Err(Stop::said("No support for concatenating multiple snapshot"));
            }
            for source in &named {
                source.check(Some(snapshot))?;
            }
        }
        let size = named.iter().map(|source| self.size_of(source)).sum::<Outcome<u64>>()?;
        let format = self.format.as_deref().unwrap_or("raw");
        let (path, mut options) = if self.into_existing {
            self.existing(target, format, size)?
        } else {
            self.new_image(target, format, size, named.len())?
        };
        self.unsupported()?;
        if let Some(mode) = cache(&self.target_cache) {
            return Err(Stop::said(format!("Invalid cache option: {mode}")));
        }
        options.compress = self.compress;
        options.salvage = self.salvage;
        options.rate_limit = self.rate;
        options.sparse = self.sparse.unwrap_or(4096);
        options.existing = Existing::Overwrite;
        options.mode = create::MODE;
        options.target_is_zero = self.target_is_zero;
        options.offload = match (self.offload, self.sparse) {
            (true, _) => CopyOffload::Copy,
            (false, None) => CopyOffload::Share,
            // Zeros are to be looked for.
            (false, Some(_)) => CopyOffload::Off,
        };
        if self.target_cache.as_deref().is_some_and(|mode| mode != "unsafe") {
            options.durability = Durability::Full;
        }
        let progress = self.progress && !self.quiet;
        options.control = shown(progress, move |event| match event {
            Event::Progress { source_bytes, source_length, .. } => {
                Some((*source_bytes, source_length.unwrap_or(size)))
            }
            _ => None,
        });
        let source = named.iter().map(|source| self.spec(source)).collect();
        let report = convert(ConvertSource::Images(source), ConvertTarget::File(&path), &options);
        let report = report.map_err(|error| failed(target, format, &options, &error))?;
        self.tell_unreadable(&report);
        if progress {
            print("    (100.00/100%)\r");
        }
        Ok(0)
    }

    fn tell_unreadable(&self, report: &ConvertReport) {
        if self.quiet {
            return;
        }
        for part in &report.unreadable.parts {
            warn(&format!("error while reading offset {}: {}", part.offset, part.reason));
        }
    }

    fn spec(&self, source: &Named) -> DiskSpec {
        let disk = DiskOptions { snapshot: self.snapshot.clone(), ..source.disk() };
        DiskSpec { path: source.path.clone(), format: source.format, disk }
    }

    fn size_of(&self, source: &Named) -> Outcome<u64> {
        let spec = self.spec(source);
        let disk = Below::open(&spec).map_err(|error| complaint::not_opened(source, &error))?;
        Ok(whole_sectors(disk.size()))
    }

    /// What is asked for and not done here.
    fn unsupported(&self) -> Outcome<()> {
        let format = self.format.as_deref().unwrap_or("raw");
        if self.bitmaps && format == "raw" {
            return Err(Stop::said("Format driver 'raw' does not support bitmaps"));
        }
        if self.bitmaps {
            return Err(Stop::said("the option --bitmaps is not supported by this program"));
        }
        Ok(())
    }

    /// The disk that is there, and how it is written to.
    fn existing(
        &self,
        target: &OsStr,
        format: &str,
        size: u64,
    ) -> Outcome<(PathBuf, ConvertOptions)> {
        let stated = if self.target_image_opts { None } else { Some(format.to_owned()) };
        let naming =
            Naming { format: stated, image_opts: self.target_image_opts, force_share: false };
        let named = naming.resolve(target)?;
        named.check(None)?;
        let spec = DiskSpec { path: named.path.clone(), format: named.format, disk: named.disk() };
        let room =
            Below::open(&spec).map_err(|error| complaint::not_opened(&named, &error))?.size();
        if whole_sectors(room) < size {
            return Err(Stop::said("output file is smaller than input file"));
        }
        let format = match named.format {
            BaseFormat::Raw if self.compress => return Err(Stop::said(NOT_COMPRESSED)),
            BaseFormat::Raw => TargetFormat::Raw { preallocation: Preallocation::Off },
            BaseFormat::Qcow2 => TargetFormat::Qcow2(qcow2_format::CreateOptions::new(0)),
        };
        let options = ConvertOptions {
            into_existing: true,
            // In whole sectors, as what is read.
            size: Some(size),
            target: WritableDiskOptions { disk: named.disk(), ..WritableDiskOptions::default() },
            ..ConvertOptions::new(format)
        };
        Ok((named.path, options))
    }

    /// The file to make, and what it is to be.
    fn new_image(
        &self,
        target: &OsStr,
        format: &str,
        size: u64,
        sources: usize,
    ) -> Outcome<(PathBuf, ConvertOptions)> {
        let made = create::target(format).map_err(Stop::said)?;
        let path = destination(target).map_err(Stop::said)?;
        let mut asked = Opts::new(made);
        if let Some(list) = &self.list {
            asked.parse(list)?;
        }
        if let Some(backing) = &self.backing {
            let text = backing.to_string_lossy().into_owned();
            asked
                .set("backing_file", text)
                .map_err(|_| format!("Backing file not supported for file format '{format}'"))?;
        }
        if let Some(backing_format) = &self.backing_format {
            asked.set("backing_fmt", backing_format.clone()).map_err(|_| {
                format!("Backing file format not supported for file format '{format}'")
            })?;
        }
        let backing = self.backing.clone().or(asked.text("backing_file").map(OsString::from));
        if backing.is_some() && sources > 1 {
            return Err(Stop::said(
                "Having a backing file for the target makes no sense when concatenating multiple \
                 input images",
            ));
        }
        if backing.is_some() && asked.text("backing_fmt").is_none() {
            return Err(Stop::said("Use of backing file requires explicit backing format"));
        }
        if self.compress {
            if made == Target::Raw {
                return Err(Stop::said(NOT_COMPRESSED));
            }
            if asked.text("preallocation").is_some_and(|mode| mode != "off") {
                let text = "Compression and preallocation not supported at the same time";
                return Err(Stop::said(text));
            }
        }
        let shown = target.to_string_lossy().into_owned();
        let refused =
            |text: String| Stop::said(format!("{shown}: error while converting {format}: {text}"));
        // As large as what is read, whatever `-o size` says.
        let mut options = ConvertOptions::new(match made {
            Target::Raw => {
                let preallocation = new_image::raw_preallocation(&asked).map_err(refused)?;
                TargetFormat::Raw { preallocation }
            }
            Target::Qcow2 => {
                asked.set("size", size.to_string())?;
                let image = new_image::qcow2(backing.as_deref(), &asked).map_err(refused)?;
                TargetFormat::Qcow2(image)
            }
        });
        create::check_folder(&path).map_err(refused)?;
        options.size = Some(size);
        if let TargetFormat::Raw { preallocation } = options.format
            && device::taking(&path, size, preallocation).map_err(refused)?.is_some()
        {
            options.into_existing = true;
        }
        if let Some(backing) = &backing {
            options.below = Some(below(&path, &shown, backing, asked.text("backing_fmt"))?);
        }
        Ok((path, options))
    }
}

const NOT_COMPRESSED: &str = "Compression not supported for this file format";

/// The disk that the new image at `path` will stand on.
fn below(path: &Path, shown: &str, backing: &OsStr, format: Option<&str>) -> Outcome<Below> {
    let prefix = |stop: Stop, start: &str| {
        let reason = stop.text.strip_prefix(start).unwrap_or(&stop.text);
        Stop::said(format!("Could not open '{shown}': Could not open backing file: {reason}"))
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let full = match qcow2_format::create::protocol(backing.as_bytes()) {
        None => folder.join(backing),
        Some(_) => PathBuf::from(backing),
    };
    let start = format!("Could not open '{}': ", full.to_string_lossy());
    let naming = Naming { format: format.map(ToOwned::to_owned), ..Naming::default() };
    let named = naming.resolve(full.as_os_str()).map_err(|stop| prefix(stop, &start))?;
    let spec = DiskSpec { path: named.path.clone(), format: named.format, disk: named.disk() };
    Below::open(&spec).map_err(|error| prefix(complaint::not_opened(&named, &error), &start))
}

/// Why nothing came of it.
fn failed(target: &OsStr, format: &str, options: &ConvertOptions, error: &Error) -> Stop {
    let shown = target.to_string_lossy();
    let of_target = error.path().is_some_and(|path| path == Path::new(target));
    let cause = error.io_error().map(complaint::strerror);
    match (of_target, cause, error.offset()) {
        (true, _, _) if !options.into_existing => {
            let text = create::not_made(Path::new(target), error);
            Stop::said(format!("{shown}: error while converting {format}: {text}"))
        }
        (true, cause, _) => {
            let cause = cause.unwrap_or_else(|| complaint::own(error));
            Stop::said(format!("error while writing to {shown}: {cause}"))
        }
        (false, cause, offset) => {
            let cause = cause.unwrap_or_else(|| complaint::own(error));
            let at = offset.unwrap_or(0);
            Stop::said(format!("error while reading at byte {at}: {cause}"))
        }
    }
}
