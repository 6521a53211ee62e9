//! `qemu-img map`.

use std::ffi::OsString;
use std::io;

use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::Naming;
use super::number::{self, SIZE_MAX};
use super::{Form, Outcome, Stop, complaint, next_option};
use crate::cli::map::{self, Page, Unmappable};
use crate::ops::map::{MapOptions, map};

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'f', "format"),
    long_value("output"),
    long_value("object"),
    long("image-opts"),
    flag(b'U', "force-share"),
    value(b's', "start-offset"),
    value(b'l', "max-length"),
];

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Tells what each part of a disk is and where it lies",
    usage: "[-f FMT | --image-opts] [--output human|json]\n        [-s OFFSET] [-l LENGTH] [-U] FILENAME",
    operands: &[("FILENAME", "the image")],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let (mut naming, mut form) = (Naming::default(), Form::Human);
    let mut options = MapOptions::default();
    while let Some(found) = next_option("map", &mut words)? {
        match found.name {
            "format" => naming.format = Some(found.text()),
            "output" => form = Form::parse(&found)?,
            "image-opts" => naming.image_opts = true,
            "force-share" => naming.force_share = true,
            "start-offset" => {
                options.start = number::bounded(&found.text(), "start offset", 0, SIZE_MAX)?;
            }
            "max-length" => {
                let length = number::bounded(&found.text(), "max length", 0, SIZE_MAX)?;
                options.length = Some(length);
            }
            _ => {}
        }
    }
    let operands = words.operands();
    let [word] = operands.as_slice() else {
        return Err(Stop::usage("Expecting one image file name"));
    };
    let named = naming.resolve(word)?.looked_at();
    options.disk = named.disk();
    let form = match form {
        Form::Human => map::Form::Human,
        Form::Json => map::Form::Json,
    };
    let mut page = Page::new(io::stdout().lock(), form);
    let mut started = false;
    named.warn();
    let shown = map(&named.path, named.format, &options, |entry| {
        started = true;
        page.entry(entry)
    });
    let ended = if started || shown.is_ok() { page.end(shown.is_ok()) } else { Ok(()) };
    match shown.and(ended) {
        Ok(()) => Ok(0),
        Err(error) if map::closed_pipe(&error) => Ok(1),
        Err(error) if Unmappable::caused(&error) => {
            Err(Stop::said("File contains external, encrypted or compressed clusters."))
        }
        Err(error) if started => Err(Stop::said(complaint::own(&error))),
        Err(error) => Err(complaint::not_opened(&named, &error)),
    }
}
