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
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use qcow2_format::image::Preallocation;

use super::asked::{Asked, KNOWN};
use super::bitmaps;
use super::compare::is_cache_mode;
use super::create;
use super::getopt::Words;
use super::help::Help;
use super::image::{Named, Naming};
use super::new_image;
use super::opts::{self, Opts, Target};
use super::place::Place;
use super::progress::shown;
use super::{Outcome, Stop, complaint, device, next_option, print, warn};
use crate::base::BaseFormat;
use crate::control::Event;
use crate::disk::sectors::whole_sectors;
use crate::disk::{DataFileNames, Disk, DiskContent, DiskOptions, WritableDiskOptions};
use crate::error::Error;
use crate::ops::convert::{
    Below, ConvertOptions, ConvertReport, ConvertSource, ConvertTarget, DiskSpec, READ_FROM,
    TargetFormat, convert,
};
use crate::sink::CopyOffload;
use crate::source::content::is_zero;
use crate::sys::pending::{Durability, Existing};

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Copies the disk in one or more images into another",
    usage: "[-f FMT | --image-opts] [-T MODE] [-l SNAPSHOT] [-U]\n        [-O FMT] [-o KEY=VALUE,…] [-n [--target-image-opts] [--target-is-zero]] [-t MODE] [-c]\n        [-B FILE -F FMT] [-S SIZE] [-C] [-m NUMBER] [-W] [-r RATE] [-p] [-q] [--salvage]\n        [--bitmaps [--skip-broken-bitmaps]] SOURCE [SOURCE …] TARGET",
    operands: &[
        ("SOURCE", "an image that is read; several are one disk, one behind the other"),
        ("TARGET", "the image that is written"),
    ],
};

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
    fn convert(&mut self, sources: &[OsString], target: &OsStr) -> Outcome {
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
                let snapshot = snapshot.of(source)?;
                source.check(Some(&snapshot))?;
                self.found = Some(snapshot);
            }
        }
        if self.bitmaps {
            bitmaps::check_sources(&named, self.skip_broken)?;
        }
        let (mut size, mut read) = (0_u64, Vec::new());
        for source in &named {
            let (one, files) = source.size_and_files(&self.spec(source).disk)?;
            size = size.saturating_add(one);
            read.extend(files);
        }
        let format = self.format.as_deref().unwrap_or("raw");
        let (goal, mut options) = if self.into_existing {
            self.existing(target, format, size)?
        } else {
            self.new_image(target, format, size, &named)?
        };
        if self.bitmaps {
            bitmaps::check_target(&goal, &options)?;
        }
        if let Some(mode) = cache(&self.target_cache) {
            return Err(Stop::said(format!("Invalid cache option: {mode}")));
        }
        options.compress = self.compress;
        options.salvage = self.salvage;
        options.rate_limit = self.rate;
        options.sparse = self.sparse.unwrap_or(4096);
        options.existing = Existing::Overwrite;
        options.mode = create::MODE;
        options.data_file_names = DataFileNames::OfWorkingFolder;
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
        let report =
            convert(ConvertSource::Images(source), ConvertTarget::File(goal.path()), &options);
        let report = report.map_err(|error| match error.path() {
            Some(path) if complaint::is_read(&error) && read.iter().any(|read| read == path) => {
                let (at, cause) = (error.offset().unwrap_or(0), complaint::cause(&error));
                Stop::said(format!("error while reading at byte {at}: {cause}"))
            }
            _ => goal.failed(&target.to_string_lossy(), format, &error),
        })?;
        if let Goal::New(place) = &goal {
            place.allocate(size);
        }
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
        let disk = DiskOptions { snapshot: self.found.clone(), ..source.disk() };
        DiskSpec { path: source.path.clone(), format: source.format, disk }
    }

    /// The disk that is there, and how it is written to.
    fn existing(&self, target: &OsStr, format: &str, size: u64) -> Outcome<(Goal, ConvertOptions)> {
        let stated = if self.target_image_opts { None } else { Some(format.to_owned()) };
        let naming =
            Naming { format: stated, image_opts: self.target_image_opts, force_share: false };
        let small = || Stop::said("output file is smaller than input file");
        let named = naming.resolve(target)?;
        let device = named.path.metadata().is_ok_and(|file| file.file_type().is_char_device());
        if device && named.format == BaseFormat::Raw && size > 0 {
            return Err(small());
        }
        if let Some(taken) = complaint::taken(&named.path, &named.path.to_string_lossy()) {
            return Err(Stop::said(format!("Could not open '{}': {taken}", named.shown)));
        }
        named.check(None)?;
        let (room, _) = named.size_and_files(&named.disk())?;
        if room < size {
            return Err(small());
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
        Ok((Goal::There(Box::new(named)), options))
    }

    /// The file to make, and what it is to be.
    fn new_image(
        &self,
        target: &OsStr,
        format: &str,
        size: u64,
        sources: &[Named],
    ) -> Outcome<(Goal, ConvertOptions)> {
        let made = create::target(format).map_err(Stop::said)?;
        let place = Place::new(target, made).map_err(Stop::said)?;
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
        if backing.is_some() && sources.len() > 1 {
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
        let place = place.with_data_file(asked.text("data_file"));
        if made == Target::Raw {
            new_image::check_raw_preallocation(&asked).map_err(refused)?;
        }
        place.check_folders().map_err(refused)?;
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
        options.size = Some(size);
        if let TargetFormat::Raw { preallocation } = options.format
            && device::taking(&place.path, size, preallocation).map_err(refused)?.is_some()
        {
            options.into_existing = true;
        }
        if let Some(backing) = &backing {
            options.below = Some(below(&place.path, &shown, backing, asked.text("backing_fmt"))?);
        }
        if self.compress && asked.text("data_file").is_some() {
            return Err(self.not_compressed(sources, asked.number("cluster_size"))?);
        }
        Ok((Goal::New(place), options))
    }
}

impl Asked {
    /// Nothing in an external data file is compressed, which qemu-img finds out with the first data.
    fn not_compressed(&self, sources: &[Named], cluster: Option<u64>) -> Outcome<Stop> {
        const PIECE: u64 = 2 << 20;
        let cluster = cluster.unwrap_or(65536);
        let (mut start, mut bytes) = (0_u64, Vec::new());
        for source in sources {
            let spec = self.spec(source);
            let unread = |error: Error| complaint::not_opened(source, &error);
            let how = DiskOptions { holes: true, ..spec.disk };
            let disk = Disk::open(&spec.path, spec.format, &how).map_err(unread)?;
            for run in disk.map(0..disk.size()).map_err(unread)? {
                let run = run.map_err(unread)?;
                let end = run.start.saturating_add(run.length);
                let mut at = if run.zero { end } else { run.start - run.start % cluster };
                while at < end {
                    let piece = PIECE.min(end - at);
                    bytes.resize(usize::try_from(piece).unwrap_or(0), 0);
                    disk.read_at(&mut bytes, at).map_err(unread)?;
                    if !is_zero(&bytes) {
                        let at = start.saturating_add(at);
                        let text = format!("error while writing at byte {at}: {NOT_SUPPORTED}");
                        return Ok(Stop::said(text));
                    }
                    at = at.saturating_add(piece);
                }
            }
            start = start.saturating_add(whole_sectors(disk.size()));
        }
        Ok(Stop::silent(1))
    }
}

const NOT_SUPPORTED: &str = "Operation not supported";
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

/// Where the disk goes.
pub(super) enum Goal {
    New(Place),
    There(Box<Named>),
}

impl Goal {
    fn path(&self) -> &Path {
        match self {
            Self::New(place) => &place.path,
            Self::There(named) => &named.path,
        }
    }

    /// Why nothing came of it, which no source is to blame for.
    fn failed(&self, shown: &str, format: &str, error: &Error) -> Stop {
        if complaint::is_write(error) {
            let (at, cause) = (error.offset().unwrap_or(0), complaint::cause(error));
            return Stop::said(format!("error while writing at byte {at}: {cause}"));
        }
        match self {
            Self::New(place) => {
                let reason = place.not_made(error);
                Stop::said(format!("{shown}: error while converting {format}: {reason}"))
            }
            Self::There(named) if error.message() == READ_FROM => {
                let reason = complaint::read_from(&named.path.to_string_lossy());
                Stop::said(format!("Could not open '{}': {reason}", named.shown))
            }
            Self::There(named) => complaint::not_opened(named, error),
        }
    }
}
