//! The files and folders of a config disk, sorted and checked.
//!
//! ```text
//! "net/eth0.conf", "user-data"   ─▶   net/ ─ eth0.conf
//!                                     user-data
//! ```
//!
//! Names that differ in nothing but case are one name to FAT, so the second is refused. Callers:
//! `config_disk` builds it; `geometry` and `image` walk it.

use std::collections::BTreeMap;

use crate::config_disk::{ConfigDiskLimits, Entry, name};
use crate::error::{Error, ErrorKind, Result};

/// What a folder of the disk holds, by folded name.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    nodes: BTreeMap<String, Node<'a>>,
}

/// A file or folder.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) kind: NodeKind<'a>,
}

#[derive(Debug)]
pub(super) enum NodeKind<'a> {
    File(&'a [u8]),
    Folder(Tree<'a>),
}

/// What a tree adds up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) files: usize,
    pub(super) folders: usize,
    pub(super) bytes: u64,
}

impl<'a> Tree<'a> {
    /// # Errors
    ///
    /// A name FAT cannot hold, or two that it takes for one; more than `limits` allow.
    pub(super) fn new(entries: &'a [Entry], limits: &ConfigDiskLimits) -> Result<Self> {
        let mut tree = Self::default();
        for entry in entries {
            tree.add(entry, limits)?;
        }
        let totals = tree.totals();
        if totals.files.saturating_add(totals.folders) > limits.max_entries {
            return Err(limit(format!("more than {} files and folders", limits.max_entries)));
        }
        if totals.bytes > limits.max_bytes {
            return Err(limit(format!("more than {} bytes of files", limits.max_bytes)));
        }
        Ok(tree)
    }

    fn add(&mut self, entry: &'a Entry, limits: &ConfigDiskLimits) -> Result<()> {
        let path = entry.path.as_str();
        let mut names = path.split('/').peekable();
        let mut tree = self;
        let mut depth = 0;
        while let Some(part) = names.next() {
            name::check(part).map_err(|wrong| invalid(path, &format!("the name {wrong}")))?;
            let is_folder = names.peek().is_some() || entry.content.is_none();
            depth += usize::from(is_folder);
            if depth > limits.max_depth {
                return Err(
                    limit(format!("folders more than {} deep", limits.max_depth)).with_path(path)
                );
            }
            let fresh = || Node {
                name: part,
                kind: match &entry.content {
                    Some(content) if !is_folder => NodeKind::File(content),
                    _ => NodeKind::Folder(Tree::default()),
                },
            };
            let mut new = false;
            let node = tree.nodes.entry(name::folded(part)).or_insert_with(|| {
                new = true;
                fresh()
            });
            if node.name != part {
                let other = format!("FAT takes it for the same as {:?} beside it", node.name);
                return Err(invalid(path, &other));
            }
            match &mut node.kind {
                NodeKind::Folder(inner) if is_folder => tree = inner,
                NodeKind::File(_) if new => return Ok(()),
                _ => return Err(invalid(path, "it is added twice")),
            }
        }
        Ok(())
    }

    /// What is in the folder: names that are short already, then the others, each in order.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        let (short, long): (Vec<_>, Vec<_>) =
            self.nodes.values().partition(|node| name::is_short(node.name));
        short.into_iter().chain(long)
    }

    /// All that is in the folder and below.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for node in self.nodes.values() {
            match &node.kind {
                NodeKind::File(content) => {
                    totals.files += 1;
                    totals.bytes = totals.bytes.saturating_add(content.len() as u64);
                }
                NodeKind::Folder(tree) => {
                    let inner = tree.totals();
                    totals.folders += 1 + inner.folders;
                    totals.files += inner.files;
                    totals.bytes = totals.bytes.saturating_add(inner.bytes);
                }
            }
        }
        totals
    }

    /// Entries that its names take in the folder itself.
    pub(super) fn entries(&self) -> u64 {
        self.nodes.values().map(|node| name::entries(node.name)).sum()
    }

    /// Tells every name and content to `hash`, so that two different trees are told differently.
    pub(super) fn tell(&self, hash: &mut impl FnMut(&[u8])) {
        hash(&(self.nodes.len() as u64).to_be_bytes());
        for node in self.nodes.values() {
            hash(&(node.name.len() as u64).to_be_bytes());
            hash(node.name.as_bytes());
            match &node.kind {
                NodeKind::File(content) => {
                    hash(&[0]);
                    hash(&(content.len() as u64).to_be_bytes());
                    hash(content);
                }
                NodeKind::Folder(tree) => {
                    hash(&[1]);
                    tree.tell(hash);
                }
            }
        }
    }
}

fn invalid(path: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message.to_owned()).with_path(path).with_field("name")
}

/// More than a config disk may hold.
pub(super) fn limit(what: String) -> Error {
    Error::new(ErrorKind::Limit, format!("the config disk would hold {what}"))
}
