//! What options say of an image: `json:{…}`, or a list with `--image-opts`.
//!
//! ```text
//! {"driver": "qcow2", "file": {"filename": "a"}} ─┐
//! driver=qcow2,file.filename=a ───────────────────┴─▶ driver qcow2, filename a
//! ```
//!
//! What tunes QEMU's way of reading is taken and changes nothing; what would change the bytes that are
//! read, and is not supported, is refused by name. Callers: `image`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{json, opts, warn};
use crate::base::BaseFormat;
use crate::disk::chain::backing_format;
use crate::disk::{RawPart, StatedBacking, StatedTop, inspect};

/// What options say of an image.
#[derive(Debug, Default)]
pub(super) struct Stated {
    pub(super) driver: Option<String>,
    pub(super) filename: Option<String>,
    /// The name given to the image itself, which only the protocol takes.
    own_filename: Option<String>,
    pub(super) file_driver: Option<String>,
    pub(super) force_share: bool,
    /// What is said of its parts.
    pub(super) other: Other,
}

/// What options say of an image besides where it lies and in which format.
#[derive(Clone, Debug, Default)]
pub(super) struct Other {
    offset: Option<Value>,
    size: Option<Value>,
    no_backing: bool,
    backing_driver: Option<String>,
    backing_file: Option<String>,
    data_file: Option<String>,
    /// An option that whoever opens no backing file does not know.
    backing_option: Option<String>,
}

impl Stated {
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        let parsed = json::parse(text)
            .map_err(|wrong| format!("Could not parse the JSON options: {wrong}"))?;
        let Value::Object(fields) = parsed else {
            return Err("Invalid JSON object given".to_owned());
        };
        let mut stated = Self::default();
        stated.set_all(flat("", &Value::Object(fields)))?;
        Ok(stated)
    }

    pub(super) fn from_list(list: &str) -> Result<Self, String> {
        let mut stated = Self::default();
        let (mut given, mut node) = (Vec::new(), None);
        for (index, part) in opts::split(list).into_iter().enumerate() {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                // What comes first and has no name is the node that the image lies in.
                None if index == 0 => {
                    node = Some(part);
                    continue;
                }
                None => short_form(part),
            };
            given.push((name, Value::String(value)));
        }
        if let Some(node) = node {
            return Err(no_node(&node));
        }
        stated.set_all(given)?;
        Ok(stated)
    }

    /// Whether what it lies in is no plain file.
    fn is_nested(&self) -> bool {
        self.file_driver.as_deref().is_some_and(|driver| driver != "file")
    }

    /// The file, and whether the protocol was asked for it, without a format.
    pub(super) fn file(&self) -> Result<(PathBuf, bool), String> {
        const NO_FILE: &str = "A block device must be specified for \"file\"";
        match (self.driver.as_deref(), &self.filename, &self.own_filename) {
            (Some("file"), None, Some(name)) => Ok((PathBuf::from(name), true)),
            (Some(driver), Some(_), Some(_)) => {
                Err(format!("Block format '{driver}' does not support the option 'filename'"))
            }
            (_, Some(name), _) => Ok((PathBuf::from(name), false)),
            // It has no file, and need not have: its driver is looked at next.
            (_, None, _) if self.is_nested() => Ok((PathBuf::from("."), false)),
            (None, None, _) => Err("Must specify either driver or file".to_owned()),
            (Some(_), None, _) => Err(NO_FILE.to_owned()),
        }
    }

    /// Sets what is given; drivers first, which say what the rest means.
    fn set_all(&mut self, mut given: Vec<(String, Value)>) -> Result<(), String> {
        given.sort_by_key(|(name, _)| !matches!(name.as_str(), "driver" | "file.driver"));
        given.into_iter().try_for_each(|(name, value)| self.set(&name, value))
    }

    fn set(&mut self, name: &str, value: Value) -> Result<(), String> {
        let text = shown(&value);
        let unsupported = || Err(format!("the option '{name}' is not supported by this program"));
        if name.starts_with("backing.") {
            self.other.backing_option.get_or_insert_with(|| name.to_owned());
        }
        let nested = self.is_nested();
        match name {
            "driver" => self.driver = Some(text),
            "file" => return Err(no_node(&text)),
            "file.filename" => self.filename = Some(text),
            "filename" => self.own_filename = Some(text),
            "file.driver" => self.file_driver = Some(text),
            "force-share" | "file.force-share" => {
                self.force_share |= opts::switch("force-share", &text)?;
            }
            "offset" => self.other.offset = Some(value),
            "size" => self.other.size = Some(value),
            "backing" if value.is_null() => self.other.no_backing = true,
            "backing" if text.is_empty() => {
                warn("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
                self.other.no_backing = true;
            }
            "backing" | "data-file" => return Err(no_node(&text)),
            "backing.driver" if matches!(text.as_str(), "raw" | "qcow2") => {
                self.other.backing_driver = Some(text);
            }
            "backing.file.filename" => self.other.backing_file = Some(text),
            "backing.file.driver" | "data-file.file.driver" if text == "file" => {}
            "data-file.driver" if matches!(text.as_str(), "file" | "raw") => {}
            "data-file.filename" | "data-file.file.filename" => self.other.data_file = Some(text),
            _ if name.starts_with("backing") || name.starts_with("data-file") => {
                return unsupported();
            }
            _ if name.starts_with("encrypt.") => return unsupported(),
            // The driver is, which is said when all was read.
            _ if nested && name.starts_with("file.") => {}
            _ if tuning(name, &text)? => {}
            _ => {
                let format = self.driver.as_deref().unwrap_or("raw");
                return Err(match name.strip_prefix("file.") {
                    Some(name) => {
                        format!("Block protocol 'file' doesn't support the option '{name}'")
                    }
                    None => format!("Block format '{format}' does not support the option '{name}'"),
                });
            }
        }
        Ok(())
    }
}

impl Other {
    /// What is said of the top image at `image`, of that format.
    pub(super) fn top(&self, image: &Path, format: BaseFormat) -> Result<StatedTop, String> {
        let mut top = StatedTop::default();
        let part = [("offset", &self.offset), ("size", &self.size)];
        let part = part.map(|(name, value)| value.as_ref().map(|value| (name, shown(value))));
        if let Some((name, _)) = part.iter().flatten().next()
            && format != BaseFormat::Raw
        {
            return Err(does_not(name));
        }
        if part.iter().any(Option::is_some) {
            let number = |given: &Option<(&str, String)>| {
                given.as_ref().map(|(name, text)| opts::size(name, text)).transpose()
            };
            let [offset, size] = part.each_ref().map(number);
            top.part = Some(fitting(offset?.unwrap_or(0), size?, image)?);
        }
        let backing = self.backing_option.as_deref().or(self.no_backing.then_some("backing"));
        let data_file = self.data_file.as_ref().map(|_| "data-file");
        if let (BaseFormat::Raw, Some(name)) = (format, backing.or(data_file)) {
            return Err(match name.split('.').next() {
                Some(child) if name == child => {
                    format!("the option '{child}' is not supported by this program for raw images")
                }
                _ => format!("Block format 'raw' does not support the option '{name}'"),
            });
        }
        top.data_file = self.data_file.as_ref().map(PathBuf::from);
        let driver = self.backing_driver.as_deref().map(|driver| match driver {
            "raw" => BaseFormat::Raw,
            _ => BaseFormat::Qcow2,
        });
        top.backing = match (&self.backing_file, driver) {
            _ if self.no_backing => StatedBacking::Nothing,
            (Some(file), driver) => {
                let path = PathBuf::from(file);
                // The image's own word for it counts for another file, too.
                let named = || {
                    let header = inspect(image, format).ok()?.header?;
                    backing_format(&header, image).ok()
                };
                let format = match driver.or_else(named) {
                    Some(format) => format,
                    None => super::image::probe(&path)
                        .map_err(|why| format!("Could not open backing file: {why}"))?,
                };
                StatedBacking::File { path, format }
            }
            (None, Some(format)) => StatedBacking::Format(format),
            (None, None) => StatedBacking::Own,
        };
        Ok(top)
    }

    /// What is wrong with the options for who opens the image without its backing file.
    pub(super) fn alone(&self) -> Result<(), String> {
        self.backing_option.as_deref().map_or(Ok(()), |name| Err(does_not(name)))
    }

    /// What a report calls the image at `path`, of which a part is taken; `None` of a whole one.
    pub(super) fn name(&self, path: &str) -> Option<String> {
        if self.offset.is_none() && self.size.is_none() {
            return None;
        }
        let file = [("driver", "file"), ("filename", path)]
            .map(|(name, value)| (name.to_owned(), Value::from(value)));
        let mut fields = Map::new();
        fields.insert("driver".to_owned(), Value::from("raw"));
        fields.insert("file".to_owned(), Value::Object(file.into_iter().collect()));
        for (name, value) in [("offset", &self.offset), ("size", &self.size)] {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value.clone());
            }
        }
        Some(format!("json:{}", json::line(&Value::Object(fields))))
    }
}

fn does_not(name: &str) -> String {
    format!("Block format 'qcow2' does not support the option '{name}'")
}

/// A part of the raw image at `path`, if that has it.
fn fitting(offset: u64, size: Option<u64>, path: &Path) -> Result<RawPart, String> {
    let length = super::image::length(path)?;
    match size {
        None if offset > length => Err(format!(
            "Offset ({offset}) cannot be greater than size of the containing file ({length})"
        )),
        Some(size) if offset.checked_add(size).is_none_or(|end| end > length) => Err(format!(
            "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  \
             actual size of the containing file ({length})"
        )),
        Some(size) if !size.is_multiple_of(512) => {
            Err("Specified size is not multiple of 512".to_owned())
        }
        _ => Ok(RawPart { offset, size }),
    }
}

/// Whether an option tunes QEMU's way of reading, which changes nothing of what is read; and what is wrong
/// with its value.
fn tuning(name: &str, text: &str) -> Result<bool, String> {
    // The file's own options are named without it.
    let own = name.strip_prefix("file.").unwrap_or(name);
    let one_of = |values: &[&str]| match values.contains(&text) {
        true => Ok(()),
        false => Err(format!("invalid parameter value: {text}")),
    };
    match own {
        "read-only" | "auto-read-only" | "cache.direct" | "cache.no-flush" => {
            opts::switch(own, text).map(|_| ())
        }
        "discard" if matches!(text, "ignore" | "off" | "unmap" | "on") => Ok(()),
        "discard" => Err("Invalid discard option".to_owned()),
        "detect-zeroes" => one_of(&["off", "on", "unmap"]),
        "node-name" if text.is_empty() => Err(format!("Invalid node-name: '{text}'")),
        "node-name" => Ok(()),
        "locking" if own != name => one_of(&["auto", "on", "off"]),
        "aio" if own != name => one_of(&["threads", "native", "io_uring"]),
        "lazy-refcounts"
        | "pass-discard-request"
        | "pass-discard-snapshot"
        | "pass-discard-other"
        | "discard-no-unref" => opts::switch(own, text).map(|_| ()),
        "cache-size" | "l2-cache-size" | "l2-cache-entry-size" | "refcount-cache-size" => {
            opts::size(own, text).map(|_| ())
        }
        "cache-clean-interval" => opts::count(own, text).map(|_| ()),
        "overlap-check" if matches!(text, "none" | "constant" | "cached" | "all") => Ok(()),
        "overlap-check" => Err(format!(
            "Unsupported value '{text}' for qcow2 option 'overlap-check'. Allowed are any of the \
             following: none, constant, cached, all"
        )),
        _ => return Ok(false),
    }
    .map(|()| true)
}

/// A value as an option's text.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        other => other.to_string(),
    }
}

/// What an option without a value means, of which qemu-img warns.
fn short_form(part: String) -> (String, String) {
    let (name, value) = match part.strip_prefix("no") {
        Some(name) if !name.is_empty() => (name.to_owned(), "off"),
        _ => (part.clone(), "on"),
    };
    warn(&format!(
        "short-form boolean option '{part}' deprecated\nPlease use {name}={value} instead"
    ));
    (name, value.to_owned())
}

/// There are no nodes that a name could mean.
fn no_node(name: &str) -> String {
    format!("Cannot find device='{name}' nor node-name='{name}'")
}

/// The fields of nested objects under names with dots.
fn flat(prefix: &str, value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Object(fields) => {
            // The driver first: messages name it.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name != "driver");
            let name = |field: &str| {
                if prefix.is_empty() { field.to_owned() } else { format!("{prefix}.{field}") }
            };
            fields.into_iter().flat_map(|(field, value)| flat(&name(field), value)).collect()
        }
        other => vec![(prefix.to_owned(), other.clone())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(text: &str) -> Result<(Option<String>, Option<String>), String> {
        let stated = match text.strip_prefix("json:") {
            Some(text) => Stated::from_json(text),
            None => Stated::from_list(text),
        };
        stated.map(|stated| (stated.driver, stated.filename))
    }

    #[test]
    fn a_list_and_json_say_the_same() {
        let expected = Ok((Some("qcow2".to_owned()), Some("a,b".to_owned())));
        for text in [
            "driver=qcow2,file.filename=a,,b",
            "driver=qcow2,file.driver=file,file.filename=a,,b,file.locking=off",
            "json:{'driver':'qcow2','file':{'driver':'file','filename':'a,b'}}",
            "json:{\"driver\": \"qcow2\", \"file.filename\": \"a,b\"}",
        ] {
            assert_eq!(stated(text), expected, "{text}");
        }
        for text in ["a", "driver=qcow2,x=y", "json:{", "json:[]", "backing.driver=vmdk"] {
            assert!(stated(text).is_err(), "{text}");
        }
    }
}
