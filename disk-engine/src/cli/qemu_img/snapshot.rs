//! `-l SNAPSHOT`: which of an image's snapshots is meant.
//!
//! ```text
//! first                                the snapshot of that id, else of that name
//! snapshot.id=1,snapshot.name=first    the one that has all that is said
//! ```
//!
//! Callers: `convert`, `measure`.

use super::image::Named;
use super::{NAME, Outcome, Stop, opts, warn};
use crate::base::BaseFormat;
use crate::disk::inspect;

/// A snapshot as the caller describes it.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Word(String),
    Described { id: Option<String>, name: Option<String> },
}

impl Asked {
    pub(super) fn parse(word: &str) -> Outcome<Self> {
        if !word.starts_with("snapshot.") {
            return Ok(Self::Word(word.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for part in opts::split(word) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, value),
                None => {
                    warn(&format!(
                        "short-form boolean option '{part}' deprecated\nPlease use {part}=on instead"
                    ));
                    (part.as_str(), "on")
                }
            };
            match key {
                "snapshot.id" => id = Some(value.to_owned()),
                "snapshot.name" => name = Some(value.to_owned()),
                _ => {
                    return Err(Stop::said(format!(
                        "Invalid parameter '{key}'\n{NAME}: Failed in parsing snapshot param '{word}'"
                    )));
                }
            }
        }
        Ok(Self::Described { id, name })
    }

    /// The id of the snapshot that is meant, or what was given for it.
    pub(super) fn of(&self, image: &Named) -> Outcome<String> {
        let (id, name) = match self {
            Self::Word(word) => return Ok(word.clone()),
            // It has none, which is found out when one is asked for.
            Self::Described { .. } if image.format == BaseFormat::Raw => return Ok(String::new()),
            Self::Described { id, name } => (id, name),
        };
        let is = |wanted: &Option<String>, has: &[u8]| {
            wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == has)
        };
        let snapshots = inspect(&image.path, image.format).and_then(|image| image.snapshots());
        let found = snapshots.unwrap_or_default();
        let found = found.iter().find(|has| is(id, &has.id) && is(name, &has.name));
        let id = found.and_then(|snapshot| String::from_utf8(snapshot.id.clone()).ok());
        id.ok_or_else(|| Stop::said("Failed to load snapshot: Can't find snapshot"))
    }
}
