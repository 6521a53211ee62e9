//! `qemu-img info`.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use serde_json::Value;

use super::getopt::{Known, Words, flag, long, long_value, value};
use super::help::Help;
use super::image::{Named, Naming};
use super::{Form, Outcome, Stop, bitmaps, complaint, json, next_option, print};
use crate::cli::size::human;
use crate::disk::inspect;
use crate::disk::policy::BackingPolicy;
use crate::ops::info::{ImageInfo, InfoOptions, SnapshotInfo, info};
use crate::sys::local_time;

pub(super) const KNOWN: &[Known] = &[
    flag(b'h', "help"),
    value(b'f', "format"),
    long_value("output"),
    flag(b'b', "backing-chain"),
    long_value("object"),
    long("image-opts"),
    flag(b'U', "force-share"),
];

/// What `--help` says.
pub(super) const HELP: Help = Help {
    what: "Tells what an image says of itself",
    usage: "[-f FMT | --image-opts] [-b] [-U] [--output human|json] FILENAME",
    operands: &[("FILENAME", "the image")],
};

pub(super) fn run(words: Vec<OsString>) -> Outcome {
    let mut words = Words::new(words, KNOWN);
    let (mut naming, mut form, mut chain) = (Naming::default(), Form::Human, false);
    while let Some(found) = next_option("info", &mut words)? {
        match found.name {
            "format" => naming.format = Some(found.text()),
            "output" => form = Form::parse(&found)?,
            "backing-chain" => chain = true,
            "image-opts" => naming.image_opts = true,
            "force-share" => naming.force_share = true,
            // Keys and the like: nothing here asks for one.
            _ => {}
        }
    }
    let operands = words.operands();
    let [word] = operands.as_slice() else {
        return Err(Stop::usage("Expecting one image file name"));
    };
    let named = naming.resolve(word)?.looked_at();
    let images = images(&named, chain)?;
    match form {
        Form::Human => {
            let texts: Vec<_> = images.iter().map(human_image).collect();
            print(&texts.join("\n"));
        }
        Form::Json => {
            let mut values = Vec::new();
            for image in &images {
                values.push(fields(image)?);
            }
            let value = match (chain, values.pop()) {
                (false, Some(value)) => value,
                (_, last) => Value::Array(values.into_iter().chain(last).collect()),
            };
            print(&format!("{}\n", json::pretty(&value)));
        }
    }
    Ok(0)
}

/// The image, and with `chain` all that it stands on.
fn images(named: &Named, chain: bool) -> Outcome<Vec<ImageInfo>> {
    let (mut images, mut named) = (Vec::new(), named.clone());
    let mut seen = Vec::new();
    let not_opened =
        |reason: String| Stop::said(format!("Could not open '{}': {reason}", named.shown));
    named.other.alone().map_err(not_opened)?;
    if named.protocol {
        return Err(not_opened(super::image::unsupported("file")));
    }
    loop {
        let mut options = InfoOptions::from(BackingPolicy::Deny);
        options.locking = named.locking();
        let report = info(&named.path, named.format, &options);
        let report = report.map_err(|error| {
            let reason = complaint::reason(&error, &named.path);
            Stop::said(format!("Could not open '{}': {reason}", named.shown))
        })?;
        named.warn_alone();
        bitmaps::check_loaded(&named)?;
        let mut image = report.image;
        if let Some(name) = named.other.name(&image.filename) {
            image.filename = name;
            image.virtual_size = named.size_and_files(&named.disk())?.0;
        }
        let next = image.full_backing_filename.clone().filter(|_| chain);
        seen.push(image.filename.clone());
        let format = image.backing_filename_format.clone();
        images.push(image);
        let Some(next) = next else { return Ok(images) };
        if seen.contains(&next) {
            return Err(Stop::said(format!("Backing file '{next}' creates an infinite loop.")));
        }
        // What an image calls its backing file is a plain name, and nothing else.
        let image = inspect(&named.path, named.format).ok();
        let header = image.as_ref().and_then(|image| image.header.as_ref());
        let name = header.and_then(qcow2_format::Header::backing_file).unwrap_or_default();
        if qcow2_format::create::protocol(name).is_some() {
            let reason = "an image may name plain files only, and no protocol";
            return Err(Stop::said(format!("Could not open '{next}': {reason}")));
        }
        let folder = named.path.parent().unwrap_or(std::path::Path::new(""));
        let path = folder.join(OsStr::from_bytes(name));
        if format.is_none() && path.exists() {
            let reason = "the image above does not state its format, which is never guessed";
            return Err(Stop::said(format!("Could not open '{next}': {reason}")));
        }
        let naming = Naming { format, image_opts: false, force_share: named.force_share };
        named = naming.resolve(path.as_os_str())?.looked_at();
    }
}

/// The image's fields, without those that only our reports have.
fn fields(image: &ImageInfo) -> Outcome<Value> {
    let mut value = serde_json::to_value(image).map_err(|error| error.to_string())?;
    if let Value::Object(fields) = &mut value {
        fields.remove("role");
        fields.remove("header");
    }
    Ok(value)
}

fn human_image(image: &ImageInfo) -> String {
    let mut text = format!(
        "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
        image.filename,
        image.format,
        human(image.virtual_size),
        image.virtual_size,
        human(image.actual_size)
    );
    if image.encrypted == Some(true) {
        text.push_str("encrypted: yes\n");
    }
    if let Some(size) = image.cluster_size {
        let _ = writeln!(text, "cluster_size: {size}");
    }
    if image.dirty_flag {
        text.push_str("cleanly shut down: no\n");
    }
    if let Some(name) = &image.backing_filename {
        let _ = write!(text, "backing file: {name}");
        if let Some(full) = image.full_backing_filename.as_ref().filter(|full| *full != name) {
            let _ = write!(text, " (actual path: {full})");
        }
        text.push('\n');
        if let Some(format) = &image.backing_filename_format {
            let _ = writeln!(text, "backing file format: {format}");
        }
    }
    if !image.snapshots.is_empty() {
        text.push_str("Snapshot list:\n");
        text.push_str(&row("ID", "TAG", ["VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]));
        for snapshot in &image.snapshots {
            text.push_str(&snapshot_row(snapshot));
        }
    }
    if let Some(specific) = &image.format_specific {
        text.push_str("Format specific information:\n");
        let value = serde_json::to_value(&specific.data).unwrap_or_default();
        json::outline(&mut text, &value, 1);
    }
    for child in &image.children {
        let file = &child.info;
        let _ = write!(
            text,
            "Child node '/{}':\n    filename: {}\n    protocol type: {}\n    file length: {} ({} \
             bytes)\n    disk size: {}\n",
            child.name,
            file.filename,
            file.format,
            human(file.virtual_size),
            file.virtual_size,
            human(file.actual_size)
        );
    }
    text
}

/// A row of the list of snapshots. The first columns are as wide as C has them, in bytes.
fn row(id: &str, tag: &str, [size, date, clock, count]: [&str; 4]) -> String {
    let behind = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.len()));
    let (id_end, tag_end) = (behind(id, 7), behind(tag, 16));
    format!("{id}{id_end} {tag}{tag_end} {size:>8} {date:>19} {clock:>15} {count:>10}\n")
}

fn snapshot_row(snapshot: &SnapshotInfo) -> String {
    let seconds = snapshot.vm_clock_sec;
    let clock = format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        snapshot.vm_clock_nsec / 1_000_000
    );
    let date = local_time::of(snapshot.date_sec.into());
    let count = snapshot.icount.map_or_else(|| "--".to_owned(), |count| count.to_string());
    let size = human(snapshot.vm_state_size);
    row(&snapshot.id, &snapshot.name, [&size, &date, &clock, &count])
}
