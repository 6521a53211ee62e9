//! `qemu-img dd`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use qcow2_format::CreateOptions;
use qcow2_format::image::Preallocation;

use super::create::{MODE, target};
use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::Naming;
use super::number;
use super::opts::Target;
use super::place::Place;
use super::{Outcome, Stop, complaint, device, next_option, tell};
use crate::disk::sectors::{SECTOR, whole_sectors};
use crate::ops::convert::{
    ConvertOptions, ConvertSource, ConvertTarget, DiskSpec, TargetFormat, convert,
};
use crate::sys::pending::Existing;

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'f', "format"),
    long_value("object"),
    long("image-opts"),
    value(b'O', "output-format"),
    flag(b'U', "force-share"),
];

/// Most bytes of a block.
const BLOCK_MAX: u64 = i32::MAX.unsigned_abs() as u64;

/// What the operands say.
#[derive(Debug, Default)]
struct Operands {
    input: Option<OsString>,
    output: Option<OsString>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

impl Operands {
    fn set(&mut self, word: &OsString) -> Outcome<()> {
        let bytes = word.as_bytes();
        let text = word.to_string_lossy();
        let Some((name, value)) = text.split_once('=') else {
            return Err(Stop::said(format!("unrecognized operand {text}")));
        };
        // Names of files are bytes.
        let file = || bytes.get(3..).map(|name| OsStr::from_bytes(name).to_owned());
        match name {
            "if" => self.input = file(),
            "of" => self.output = file(),
            "bs" => self.block = Some(number::bounded(value, "bs", 1, BLOCK_MAX)?),
            "count" => self.count = Some(number::count(value, "count")?),
            "skip" => self.skip = Some(number::count(value, "skip")?),
            _ => return Err(Stop::said(format!("unrecognized operand {name}"))),
        }
        Ok(())
    }
}

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Copies blocks of a disk into a new image",
    usage: "[-f FMT | --image-opts] [-O FMT] [-U]\n        [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    operands: &[
        ("bs=SIZE", "bytes of a block; 512 unless given"),
        ("count=BLOCKS", "where the copy ends, in blocks of the input"),
        ("skip=BLOCKS", "where it begins"),
        ("if=INPUT", "the image that is read"),
        ("of=OUTPUT", "the image that is made"),
    ],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let mut naming = Naming::default();
    let mut format = "raw".to_owned();
    while let Some(found) = next_option("dd", &mut words)? {
        match found.name {
            "format" => naming.format = Some(found.text()),
            "output-format" => format = found.text(),
            "image-opts" => naming.image_opts = true,
            "force-share" => naming.force_share = true,
            _ => {}
        }
    }
    let mut operands = Operands::default();
    for word in words.operands() {
        operands.set(&word)?;
    }
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Stop::said("Must specify both input and output files"));
    };
    let named = naming.resolve(input)?.looked_at();
    named.check(None)?;
    let made =
        target(&format).map_err(|text| match text.strip_suffix(&format!(" '{format}'")) {
            Some(text) => Stop::said(text),
            None => Stop::said(text),
        })?;
    let place = Place::new(output, made).map_err(Stop::said)?;
    let spec = DiskSpec { path: named.path.clone(), format: named.format, disk: named.disk() };
    let (size, read) = named.size_and_files(&spec.disk)?;

    let block = operands.block.unwrap_or(SECTOR);
    let end = match operands.count.map(|count| count.checked_mul(block)) {
        Some(Some(end)) => end.min(size),
        _ => size,
    };
    let start = operands.skip.unwrap_or(0).saturating_mul(block);
    let length = end.saturating_sub(start);
    if operands.skip.is_some() && start > end {
        tell(&format!("{}: {}: cannot skip to specified offset\n", super::NAME, named.shown));
    }
    let shown = output.to_string_lossy();
    let creating =
        |text: String| Stop::said(format!("{shown}: error while creating output image: {text}"));
    place.check_folders().map_err(creating)?;
    let options = ConvertOptions {
        offset: start.min(end),
        length: Some(length),
        size: Some(whole_sectors(length)),
        existing: Existing::Overwrite,
        mode: MODE,
        ..ConvertOptions::new(match made {
            Target::Raw => TargetFormat::Raw { preallocation: Preallocation::Off },
            Target::Qcow2 => TargetFormat::Qcow2(CreateOptions::new(whole_sectors(length))),
        })
    };
    let device = match made {
        Target::Raw => device::taking(&place.path, whole_sectors(length), Preallocation::Off)
            .map_err(creating)?,
        Target::Qcow2 => None,
    };
    let options = match device {
        Some(_) => ConvertOptions { into_existing: true, size: None, ..options },
        None => options,
    };
    let copied =
        convert(ConvertSource::Images(vec![spec]), ConvertTarget::File(&place.path), &options);
    copied.map(|_| place.allocate(whole_sectors(length))).map(|()| 0).map_err(|error| {
        let cause = complaint::cause(&error);
        match error.path() {
            Some(path) if complaint::is_read(&error) && read.iter().any(|read| read == path) => {
                Stop::said(format!("error while reading from input image file: {cause}"))
            }
            _ if complaint::is_write(&error) => {
                Stop::said(format!("error while writing to output image file: {cause}"))
            }
            _ => creating(place.not_made(&error)),
        }
    })
}
