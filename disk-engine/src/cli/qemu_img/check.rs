//! `qemu-img check`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use super::compare::is_cache_mode;
use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::{Named, Naming};
use super::{Form, NAME, Outcome, Stop, complaint, json, next_option, print, tell};
use crate::base::BaseFormat;
use crate::cli::check_report::{self, Fields};
use crate::error::{Error, ErrorKind};
use crate::ops::check::{
    CheckEvent, CheckOptions, CheckReport, Finding, Fix, RepairMode, Severity, UNSUPPORTED, check,
};

pub(super) const KNOWN: &[Known] = &[
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

/// Findings that are put off at once; if there are more, the image is looked at once again.
const LATER_MAX: usize = 1 << 18;

/// What the program ends with if the format has nothing to check.
const EXIT_UNSUPPORTED: u8 = 63;

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Looks for what is wrong with an image, and repairs it if asked to",
    usage: "[-f FMT | --image-opts] [-T MODE] [-r leaks|all] [-q] [-U]\n        [--output human|json] FILENAME",
    operands: &[("FILENAME", "the image")],
};

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
    if options.repair.is_some()
        && let Some(taken) = complaint::taken(&named.path, &named.path.to_string_lossy())
    {
        return Err(Stop::said(format!("Could not open '{}': {taken}", named.shown)));
    }
    if options.repair.is_some() && naming.format.is_none() && named.format == BaseFormat::Raw {
        tell(&format!(
            "WARNING: Image format was not specified for '{0}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on \
             block 0 will be restricted.\n         Specify the 'raw' format explicitly to remove the \
             restrictions.\n",
            named.path.to_string_lossy()
        ));
    }
    named.check_tables()?;
    let report = told(&named, &options);
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
                let value = serde_json::to_value(Fields::from(&report).of(&named.shown));
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

/// Checks, and writes the lines. What entries say of refcounts comes after the refcounts and in the order
/// of the disk, as many lines as it may be.
fn told(named: &Named, options: &CheckOptions) -> Result<CheckReport, Error> {
    // What a repair of leaks leaves is known when it has ended.
    let mut later = Later { more: options.repair == Some(RepairMode::Leaks), ..Later::default() };
    let mut lines = BufWriter::new(io::stderr());
    // That nobody reads them is no failure of the check.
    let report = check(&named.path, named.format, options, |event| match event {
        // Where flags are repaired, that says it.
        CheckEvent::Found(finding, _) if is_of_flags(finding) => {
            if options.repair.is_none() {
                later.add(finding);
            }
        }
        CheckEvent::Found(finding, times) => {
            let _ = each_line(finding, *times, &mut lines);
        }
        CheckEvent::Fixing(fix) => {
            let _ = match fix {
                // qemu-img does not say where.
                Fix::Rebuilt { .. } => writeln!(lines, "Rebuilding refcount structure"),
                Fix::UnknownFeatures { .. } | Fix::MarkedClean => Ok(()),
                _ => writeln!(lines, "{fix}"),
            };
        }
    })?;
    while later.write(&mut lines) && report.corruptions > 0 {
        let again = CheckOptions { repair: None, ..options.clone() };
        check(&named.path, named.format, &again, |event| {
            if let CheckEvent::Found(finding, _) = event
                && is_of_flags(finding)
            {
                later.add(finding);
            }
        })?;
    }
    let _ = lines.flush();
    Ok(report)
}

/// As many lines as qemu-img writes of it.
fn each_line(finding: &Finding, times: u64, lines: &mut impl Write) -> io::Result<()> {
    match *finding {
        _ if finding.severity() == Severity::Note => Ok(()),
        Finding::RefcountUnknown { cluster, count } => {
            let clusters = cluster..cluster.saturating_add(count);
            let one = |cluster| Finding::RefcountUnknown { cluster, count: 1 };
            clusters.into_iter().try_for_each(|cluster| writeln!(lines, "{}", one(cluster)))
        }
        _ => {
            let line = finding.to_string();
            (0..times).try_for_each(|_| writeln!(lines, "{line}"))
        }
    }
}

fn is_of_flags(finding: &Finding) -> bool {
    matches!(finding, Finding::L1Copied { .. } | Finding::L2Copied { .. })
}

/// Where on the disk a finding is, an L1 entry before the entries of its table; and which of several.
type Place = (u64, bool, u64);

/// Findings that are put off: the first ones behind those that were written.
#[derive(Debug, Default)]
struct Later {
    written: Option<Place>,
    next: BTreeMap<Place, Finding>,
    /// How many were shown in this round.
    seen: u64,
    /// Whether some did not fit.
    more: bool,
}

impl Later {
    fn add(&mut self, finding: &Finding) {
        self.seen = self.seen.saturating_add(1);
        let guest = finding.guest().map_or(0, qcow2_format::GuestOffset::to_u64);
        let place = (guest, matches!(finding, Finding::L2Copied { .. }), self.seen);
        if self.written.is_some_and(|written| place <= written) {
            return;
        }
        self.next.insert(place, finding.clone());
        if self.next.len() > LATER_MAX {
            self.next.pop_last();
            self.more = true;
        }
    }

    /// Writes what there is, and forgets it. Whether there is more.
    fn write(&mut self, lines: &mut impl Write) -> bool {
        if let Some((last, _)) = self.next.last_key_value() {
            self.written = Some(*last);
        }
        let _ = self.next.values().try_for_each(|finding| writeln!(lines, "{finding}"));
        self.next.clear();
        self.seen = 0;
        std::mem::take(&mut self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_comes_in_the_next_round() {
        let finding = |number: u64| Finding::L2Copied {
            entry: number,
            refcount: 1,
            guest: qcow2_format::GuestOffset(number * 7919 % 300_007),
        };
        let count = LATER_MAX as u64 + 1000;
        let (mut later, mut lines, mut rounds) = (Later::default(), Vec::new(), 0);
        loop {
            (0..count).for_each(|number| later.add(&finding(number)));
            rounds += 1;
            if !later.write(&mut lines) {
                break;
            }
        }
        let mut expected: Vec<_> = (0..count).map(finding).collect();
        expected.sort_by_key(Finding::guest);
        let expected: String = expected.iter().map(|finding| format!("{finding}\n")).collect();
        assert!(rounds == 2 && lines == expected.as_bytes());
    }
}
