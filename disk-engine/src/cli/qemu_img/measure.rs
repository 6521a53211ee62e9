//! `qemu-img measure`.

use std::ffi::OsString;

use qcow2_format::create::measure::Shape;
use qcow2_format::header::Version;
use qcow2_format::image::Preallocation;
use qcow2_format::{ClusterBits, Geometry, RefcountOrder};

use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::{self, Named, Naming};
use super::number::{self, SIZE_MAX};
use super::opts::{self, Opts, Target};
use super::snapshot;
use super::{Form, NAME, Outcome, Stop, complaint, json, next_option, print};
use crate::cli::measure::render;
use crate::error::ErrorKind;
use crate::ops::measure::{MeasureTarget, measure, measure_size};

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'O', "target-format"),
    value(b'f', "format"),
    value(b'o', "options"),
    value(b'l', "snapshot"),
    long_value("object"),
    long("image-opts"),
    long_value("output"),
    long_value("size"),
    flag(b'U', "force-share"),
];

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Tells how long a new image would get",
    usage: "[-f FMT | --image-opts] [-O FMT] [-o KEY=VALUE,…]\n        [-l SNAPSHOT] [-U] [--output human|json] (--size SIZE | FILENAME)",
    operands: &[("FILENAME", "the image that would be copied")],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let (mut naming, mut form) = (Naming::default(), Form::Human);
    let (mut list, mut size, mut snapshot) = (None, None, None);
    let mut target = "raw".to_owned();
    while let Some(found) = next_option("measure", &mut words)? {
        match found.name {
            "format" => naming.format = Some(found.text()),
            "target-format" => target = found.text(),
            "options" => opts::add(&mut list, &found.text())?,
            "size" => size = Some(number::bounded(&found.text(), "image size", 0, SIZE_MAX)?),
            "snapshot" => snapshot = Some(snapshot::Asked::parse(&found.text())?),
            "output" => form = Form::parse(&found)?,
            "image-opts" => naming.image_opts = true,
            "force-share" => naming.force_share = true,
            _ => {}
        }
    }
    let operands = words.operands();
    if operands.len() > 1 {
        return Err(Stop::said("At most one filename argument is allowed."));
    }
    let word = operands.first();
    if word.is_none() {
        let reason = "require a filename argument.";
        if naming.image_opts || naming.format.is_some() || snapshot.is_some() {
            return Err(Stop::said(format!("--image-opts, -f, and -l {reason}")));
        }
        if size.is_none() {
            return Err(Stop::said("Either --size N or one filename must be specified."));
        }
    } else if size.is_some() {
        return Err(Stop::said("--size N cannot be used together with a filename."));
    }
    let source = word.map(|word| naming.resolve(word)).transpose()?.map(Named::looked_at);
    let mut found = None;
    if let Some(source) = &source {
        source.check(None)?;
        found = snapshot.map(|snapshot| snapshot.of(source)).transpose()?;
        if found.is_some() {
            source.check(found.as_deref())?;
        }
    }
    let made = match target.as_str() {
        "raw" => Target::Raw,
        "qcow2" => Target::Qcow2,
        other if image::is_known(other) => {
            return Err(Stop::said(format!(
                "Block driver '{other}' does not support size measurement"
            )));
        }
        other => return Err(Stop::said(format!("Unknown file format '{other}'"))),
    };
    let mut asked = Opts::new(made);
    if let Some(list) = &list {
        asked.parse(list).map_err(|text| {
            Stop::said(format!("{text}\n{NAME}: Invalid options for file format '{target}'"))
        })?;
    }
    if asked.text("encrypt.format") == Some("luks") {
        return Err(Stop::said("the option 'encrypt.format' is not supported by this program"));
    }
    let wanted = match made {
        Target::Raw => MeasureTarget::Raw,
        Target::Qcow2 => MeasureTarget::Qcow2(shape(&asked)?),
    };
    let report = match (&source, size.or(asked.number("size"))) {
        (None, size) => measure_size(size.unwrap_or(0), &wanted).map_err(|error| {
            Stop::said(match error.kind() {
                ErrorKind::InvalidInput => {
                    "The image size is too large (try using a larger cluster size)".to_owned()
                }
                _ => complaint::own(&error),
            })
        })?,
        (Some(source), _) => {
            let mut disk = source.disk();
            disk.snapshot = found;
            measure(&source.path, source.format, &disk, &wanted)
                .map_err(|error| complaint::not_opened(source, &error))?
        }
    };
    match form {
        Form::Human => print(&render(&report)),
        Form::Json => {
            let value = serde_json::to_value(report).map_err(|error| error.to_string())?;
            print(&format!("{}\n", json::pretty(&value)));
        }
    }
    Ok(0)
}

/// What of a new image's options its length depends on.
fn shape(asked: &Opts) -> Outcome<Shape> {
    let extended_l2 = asked.is_on("extended_l2");
    let cluster_size = asked.number("cluster_size").unwrap_or(65536);
    let cluster_bits = ClusterBits::from_bytes(cluster_size)
        .ok_or_else(|| Stop::said("Cluster size must be a power of two between 512 and 2048k"))?;
    if extended_l2 && cluster_bits < ClusterBits::EXTENDED_L2_MIN {
        let least =
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes";
        return Err(Stop::said(least));
    }
    let version = match asked.text("compat") {
        None | Some("1.1") => Version::V3,
        Some("0.10") => Version::V2,
        Some(other) => return Err(Stop::said(format!("Invalid compatibility level: '{other}'"))),
    };
    let refcount_bits = asked.number("refcount_bits").unwrap_or(16);
    let refcount_order = u32::try_from(refcount_bits).ok().and_then(RefcountOrder::from_bits);
    let refcount_order = refcount_order.ok_or_else(|| {
        Stop::said("Refcount width must be a power of two and may not exceed 64 bits")
    })?;
    if version == Version::V2 && refcount_order != RefcountOrder::DEFAULT {
        return Err(Stop::said(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
             compat=1.1 or greater)",
        ));
    }
    let preallocation = match asked.text("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(Stop::said(format!("invalid parameter value: {other}"))),
    };
    Ok(Shape {
        geometry: Geometry { cluster_bits, refcount_order, extended_l2 },
        version,
        preallocation,
        backed: asked.text("backing_file").is_some(),
    })
}
