//! `qemu-img check`.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use super::compare::is_cache_mode;
use super::getopt::{Known, Words, flag, long, long_value, value};
use super::image::Naming;
use super::{Form, NAME, Outcome, Stop, complaint, json, next_option, print, tell};
use crate::base::BaseFormat;
use crate::cli::check_report::{self, Fields};
use crate::error::ErrorKind;
use crate::ops::check::{CheckEvent, CheckOptions, RepairMode, UNSUPPORTED, check};

const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'f', "format"),
    value(b'r', "repair"),
    long_value("output"),
    value(b'T', "cache"),
    flag(b'q', "quiet"),
    long_value("object"),
    long("image-opts"),
    flag(b'U', "force-share"),
];

/// Lines that are put off; more are told as they come.
const LATER_MAX: usize = 1 << 16;

/// What the program ends with if the format has nothing to check.
const EXIT_UNSUPPORTED: u8 = 63;

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let (mut naming, mut form, mut quiet) = (Naming::default(), Form::Human, false);
    let mut cache = "writeback".to_owned();
    let mut options = CheckOptions::default();
    while let Some(found) = next_option("check", &mut words)? {
        match found.name {
            "format" => naming.format = Some(found.text()),
            "repair" => {
                options.repair = Some(match found.text().as_str() {
                    "leaks" => RepairMode::Leaks,
                    "all" => RepairMode::All,
                    other => {
                        let text = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
                        return Err(Stop::usage(text));
                    }
                });
            }
            "output" => form = Form::parse(&found)?,
            "cache" => cache = found.text(),
            "quiet" => quiet = true,
            "image-opts" => naming.image_opts = true,
            "force-share" => naming.force_share = true,
            _ => {}
        }
    }
    let operands = words.operands();
    let [word] = operands.as_slice() else {
        return Err(Stop::usage("Expecting one image file name"));
    };
    if !is_cache_mode(&cache) {
        return Err(Stop::said(format!("Invalid source cache option: {cache}")));
    }
    let named = naming.resolve(word)?;
    if options.repair.is_some() && named.force_share {
        let reason = "force-share=on can only be used with read-only images";
        return Err(Stop::said(format!("Could not open '{}': {reason}", named.shown)));
    }
    options.locking = named.locking();
    if options.repair.is_some() && naming.format.is_none() && named.format == BaseFormat::Raw {
        tell(&format!(
            "WARNING: Image format was not specified for '{0}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on \
             block 0 will be restricted.\n         Specify the 'raw' format explicitly to remove the \
             restrictions.\n",
            named.path.to_string_lossy()
        ));
    }
    named.check(None)?;
    // What entries say of refcounts comes after the refcounts.
    let mut later = Vec::new();
    let mut lines = BufWriter::new(io::stderr());
    let report = check(&named.path, named.format, &options, |event| {
        let _ = match event {
            CheckEvent::Found(finding, times) => {
                let line = finding.to_string();
                if line.starts_with("ERROR OFLAG_COPIED") && later.len() < LATER_MAX {
                    later.push(line);
                    Ok(())
                } else {
                    (0..*times).try_for_each(|_| writeln!(lines, "{line}"))
                }
            }
            CheckEvent::Fixing(fix) => writeln!(lines, "{fix}"),
        };
    });
    let _ = later.iter().try_for_each(|line| writeln!(lines, "{line}"));
    let _ = lines.flush();
    drop(lines);
    let report = match report {
        Ok(report) => report,
        Err(error) if error.kind() == ErrorKind::Unsupported && error.message() == UNSUPPORTED => {
            return Err(Stop::said(UNSUPPORTED).with_code(EXIT_UNSUPPORTED));
        }
        Err(error) => return Err(complaint::not_opened(&named, &error)),
    };
    if !quiet {
        let repaired = check_report::repaired(&report);
        match form {
            Form::Human => print(&format!("{repaired}{}", check_report::text(&report))),
            Form::Json => {
                let value = serde_json::to_value(Fields::from(&report));
                let value = value.map_err(|error| error.to_string())?;
                print(&format!("{}\n", json::pretty(&value)));
            }
        }
    }
    if report.check_errors > 0 {
        tell(&format!("{NAME}: Check failed\n"));
    }
    Ok(report.exit_code())
}
