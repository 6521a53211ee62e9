//! A stand-in for the sources, until they land: a bare image, copied.
#![allow(missing_docs)]

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

pub struct Source {
    pub(crate) input: Input,
    member: Option<String>,
}

pub(crate) enum Input {
    Path(PathBuf),
    Reader(Box<dyn Read + Send>, String),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

impl Source {
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self { input: Input::Path(path.into()), member: None }
    }
    pub fn reader(reader: impl Read + Send + 'static, label: impl Into<String>) -> Self {
        Self { input: Input::Reader(Box::new(reader), label.into()), member: None }
    }
    #[must_use]
    pub fn stdin() -> Self {
        Self::reader(std::io::stdin(), "standard input")
    }
    #[must_use]
    pub fn with_member(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        match &self.input {
            Input::Path(path) => Some(path),
            Input::Reader(..) => None,
        }
    }
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        self.member.as_deref()
    }
    #[must_use]
    pub fn label(&self) -> String {
        match &self.input {
            Input::Path(path) => path.display().to_string(),
            Input::Reader(_, label) => label.clone(),
        }
    }
}
