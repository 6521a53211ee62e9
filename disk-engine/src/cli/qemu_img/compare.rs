//! `qemu-img compare`.

use std::ffi::OsString;

use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::Naming;
use super::progress::shown;
use super::{Outcome, Stop, complaint, next_option, print};
use crate::cli::compare::render;
use crate::control::Event;
use crate::ops::compare::{CompareError, CompareOptions, Step, Which, compare};

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'f', "a-format"),
    long_value("left-format"),
    value(b'F', "b-format"),
    long_value("right-format"),
    value(b'T', "cache"),
    flag(b'p', "progress"),
    flag(b'q', "quiet"),
    flag(b's', "strict"),
    flag(b'U', "force-share"),
    long_value("object"),
    long("image-opts"),
];

/// Cache modes that qemu-img knows. They change nothing here: whatever is read goes through the host's
/// cache, which is one for all programs.
pub(super) fn is_cache_mode(word: &str) -> bool {
    matches!(word, "none" | "off" | "directsync" | "writeback" | "unsafe" | "writethrough")
}

/// What is said of disks that are the same but for their sizes.
const SIZES_DIFFER: &str = "Warning: Image size mismatch!\n";

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Compares what two images hold",
    usage: "[--image-opts | [-f FMT] [-F FMT]] [-s] [-p] [-q]\n        [-T MODE] [-U] FILENAME1 FILENAME2",
    operands: &[("FILENAME1, FILENAME2", "the images")],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let (mut first, mut second) = (Naming::default(), Naming::default());
    let (mut progress, mut quiet) = (false, false);
    let mut cache = "writeback".to_owned();
    let mut options = CompareOptions::default();
    while let Some(found) = next_option("compare", &mut words)? {
        match found.name {
            "a-format" | "left-format" => first.format = Some(found.text()),
            "b-format" | "right-format" => second.format = Some(found.text()),
            "cache" => cache = found.text(),
            "progress" => progress = true,
            "quiet" => quiet = true,
            "strict" => options.strict = true,
            "force-share" => (first.force_share, second.force_share) = (true, true),
            "image-opts" => (first.image_opts, second.image_opts) = (true, true),
            _ => {}
        }
    }
    let operands = words.operands();
    let [one, other] = operands.as_slice() else {
        return Err(Stop::usage("Expecting two image file names"));
    };
    let open = |naming: &Naming, word| {
        let named = naming.resolve(word)?.looked_at();
        named.check(None).map(|()| named)
    };
    let progress = progress && !quiet;
    let both = match is_cache_mode(&cache) {
        true => open(&first, one).and_then(|one| Ok((one, open(&second, other)?))),
        false => Err(Stop::said(format!("Invalid source cache option: {cache}"))),
    };
    let (one, other) = both.map_err(|stop| {
        // The line that progress would have been drawn on.
        if progress {
            print("\n");
        }
        stop.with_code(2)
    })?;
    (options.first, options.second) = (one.disk(), other.disk());
    if progress {
        print("    (0.00/100%)\r");
    }
    options.control = shown(progress, |event| match event {
        Event::Comparing { compared_bytes, total_bytes } => Some((*compared_bytes, *total_bytes)),
        _ => None,
    });
    let compared = compare((&one.path, one.format), (&other.path, other.format), &options);
    let outcome = match compared {
        Ok(report) => {
            let text = render(&report);
            // What is said of the sizes is said before the rest of the larger one is looked at.
            let (before, text) = match text.strip_prefix(SIZES_DIFFER) {
                Some(rest) if report.identical => (SIZES_DIFFER, rest),
                _ => ("", text.as_str()),
            };
            if !quiet {
                print(before);
            }
            if progress && report.identical {
                print("    (100.00/100%)\r");
            }
            if !quiet {
                print(text);
            }
            Ok(u8::from(!report.identical))
        }
        Err(error) => {
            let named = if error.which == Which::First { &one } else { &other };
            let CompareError { step, offset, error, .. } = error;
            let cause =
                error.io_error().map_or_else(|| complaint::own(&error), complaint::strerror);
            let (path, code) = (&named.shown, exit_code(step));
            Err(match step {
                Step::Open => complaint::not_opened(named, &error),
                Step::Map => {
                    Stop::said(format!("Sector allocation test failed for {path}: {cause}"))
                }
                Step::Read => {
                    Stop::said(format!("Error while reading offset {offset} of {path}: {cause}"))
                }
            }
            .with_code(code))
        }
    };
    if progress {
        print("\n");
    }
    outcome
}

fn exit_code(step: Step) -> u8 {
    match step {
        Step::Open => 2,
        Step::Map => 3,
        Step::Read => 4,
    }
}
