//! What options say of an image: `json:{…}`, or a list with `--image-opts`.
//!
//! ```text
//! {"driver": "qcow2", "file": {"filename": "a"}} ─┐
//! driver=qcow2,file.filename=a ───────────────────┴─▶ driver qcow2, filename a
//! ```
//!
//! What tunes QEMU's way of reading is taken and changes nothing; what would change the bytes that are
//! read, and is not supported, is refused by name. Callers: `image`.

use serde_json::Value;

use super::{json, opts};

/// What options say of an image.
#[derive(Debug, Default)]
pub(super) struct Stated {
    pub(super) driver: Option<String>,
    pub(super) filename: Option<String>,
    pub(super) file_driver: Option<String>,
    pub(super) force_share: bool,
}

impl Stated {
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        let parsed = json::parse(text)
            .map_err(|wrong| format!("Could not parse the JSON options: {wrong}"))?;
        let Value::Object(fields) = parsed else {
            return Err("Invalid JSON object given".to_owned());
        };
        let mut stated = Self::default();
        for (name, value) in flat("", &Value::Object(fields)) {
            stated.set(&name, value)?;
        }
        Ok(stated)
    }

    pub(super) fn from_list(list: &str) -> Result<Self, String> {
        let mut stated = Self::default();
        for (index, part) in opts::split(list).into_iter().enumerate() {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                // What comes first and has no name is the node that the image lies in.
                None if index == 0 => {
                    return Err(no_node(&part));
                }
                None => (part, "on".to_owned()),
            };
            stated.set(&name, value)?;
        }
        Ok(stated)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "driver" => self.driver = Some(value),
            "file" => return Err(no_node(&value)),
            "file.filename" | "filename" => self.filename = Some(value),
            "file.driver" => self.file_driver = Some(value),
            "force-share" | "file.force-share" => {
                self.force_share |= value == "on" || value == "true";
            }
            // What tunes QEMU's way of reading changes nothing of what is read.
            "read-only"
            | "auto-read-only"
            | "node-name"
            | "discard"
            | "detect-zeroes"
            | "file.node-name"
            | "file.read-only"
            | "file.auto-read-only"
            | "file.locking"
            | "file.aio"
            | "file.discard"
            | "lazy-refcounts"
            | "cache-size"
            | "l2-cache-size"
            | "l2-cache-entry-size"
            | "refcount-cache-size"
            | "cache-clean-interval"
            | "overlap-check"
            | "pass-discard-request"
            | "pass-discard-snapshot"
            | "pass-discard-other"
            | "discard-no-unref" => {}
            _ if name.starts_with("cache.") || name.starts_with("file.cache.") => {}
            "size" | "offset" => {
                return Err(format!("the option '{name}' is not supported by this program"));
            }
            _ if name.starts_with("backing") || name.starts_with("data-file") => {
                return Err(format!("the option '{name}' is not supported by this program"));
            }
            _ if name.starts_with("encrypt.") => {
                return Err(format!("the option '{name}' is not supported by this program"));
            }
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

/// There are no nodes that a name could mean.
fn no_node(name: &str) -> String {
    format!("Cannot find device='{name}' nor node-name='{name}'")
}

/// The fields of nested objects under names with dots.
fn flat(prefix: &str, value: &Value) -> Vec<(String, String)> {
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
        Value::String(text) => vec![(prefix.to_owned(), text.clone())],
        Value::Bool(true) => vec![(prefix.to_owned(), "on".to_owned())],
        Value::Bool(false) => vec![(prefix.to_owned(), "off".to_owned())],
        other => vec![(prefix.to_owned(), other.to_string())],
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
        for text in ["a", "driver=qcow2,x=y", "json:{", "json:[]", "backing.driver=raw"] {
            assert!(stated(text).is_err(), "{text}");
        }
    }
}
