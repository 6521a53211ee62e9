//! Two equal folders: the real qemu-img works in one, the door in the other, with the same words.
//!
//! ```text
//!            ┌─ theirs/  qemu-img WORDS ─▶ code, stdout, stderr, files ─┐
//! images ────┤                                                          ├─ equal
//!            └─ ours/    door WORDS ─────▶ code, stdout, stderr, files ─┘
//! ```
//!
//! Callers: `qemu_img`.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::qemu::{Captured, captured, img};
use crate::tool::memory_folder;

/// Clusters that tables may take in our image and not in theirs.
const CLUSTERS_ELSEWHERE: u64 = 2;

/// How much a qcow2 image may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alike {
    /// In nothing.
    Bytes,
    /// In where its clusters are.
    Content,
    /// In how many there are, too: zeros are stored.
    OfAnyLength,
}

/// How a program answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// What qemu-io says when it waits for commands.
const PROMPT: &[u8; 8] = b"qemu-io>";

/// Two programs that each have an image open, until this is dropped.
#[derive(Debug)]
pub struct Held([Child; 2]);

impl Drop for Held {
    fn drop(&mut self) {
        for holder in &mut self.0 {
            // No more commands come.
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}

/// What tells that nobody wrote to a file since: its inode, its length, when it was last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file's stamps in both folders.
type Stamps = BTreeMap<String, [Stamp; 2]>;

/// Two folders and two programs.
#[derive(Debug)]
pub struct Door {
    folder: TempDir,
    ours: PathBuf,
    /// Files that were found to be the same in both.
    same: Mutex<Stamps>,
    /// Files that are what they were at the start.
    restored: Mutex<Stamps>,
}

impl Door {
    /// Two folders with what `make` puts into one, and `engine` under the name qemu-img.
    ///
    /// # Panics
    ///
    /// They cannot be made.
    #[must_use]
    pub fn new(engine: &str, make: impl FnOnce(&Path)) -> Self {
        let folder = memory_folder();
        let made = folder.path().join("made");
        fs::create_dir(&made).unwrap();
        make(&made);
        // A copy may have more holes than what it was made of, so that both are copies.
        for name in ["theirs", "ours"] {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(&made).arg(folder.path().join(name));
            assert!(copy.status().unwrap().success(), "{copy:?}");
        }
        fs::create_dir(folder.path().join("bin")).unwrap();
        let ours = folder.path().join("bin/qemu-img");
        symlink(engine, &ours).unwrap();
        Self { folder, ours, same: Mutex::default(), restored: Mutex::default() }
    }

    /// Two more folders with what was put into these.
    ///
    /// # Panics
    ///
    /// They cannot be made.
    #[must_use]
    pub fn another(&self, engine: &str) -> Self {
        Self::new(engine, |made| {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(self.folder.path().join("made/.")).arg(made);
            assert!(copy.status().unwrap().success(), "{copy:?}");
        })
    }

    /// The folder the door works in.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("ours")
    }

    /// What qemu-img and the door answer to `words`, in this order.
    ///
    /// # Panics
    ///
    /// One cannot be started.
    #[must_use]
    pub fn ask(&self, words: &[&str]) -> [Answer; 2] {
        self.ask_as("qemu-img", words)
    }

    /// As [`Door::ask`], of programs that are called by that name.
    ///
    /// # Panics
    ///
    /// One cannot be started.
    #[must_use]
    pub fn ask_as(&self, called: &str, words: &[&str]) -> [Answer; 2] {
        let ours = self.ours.as_path();
        let programs = [("theirs", Path::new("qemu-img")), ("ours", ours)];
        programs.map(|(folder, program)| {
            let mut command = Command::new(program);
            command.arg0(called).args(words).current_dir(self.folder.path().join(folder));
            let output = command.env("TZ", "UTC").stdin(Stdio::null()).output().unwrap();
            Answer {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        })
    }

    /// Has qemu-io hold an image in each folder, opened as `words` say.
    ///
    /// # Panics
    ///
    /// It cannot be started, or does not open the image.
    #[must_use]
    pub fn hold(&self, words: &[&str]) -> Held {
        Held(["theirs", "ours"].map(|folder| {
            let mut command = Command::new("qemu-io");
            command.args(words).current_dir(self.folder.path().join(folder));
            let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // It asks for commands once it has opened the image.
            let mut prompt = [0; PROMPT.len()];
            holder.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
            assert_eq!(prompt, *PROMPT, "{command:?}");
            holder
        }))
    }

    /// What is not the same in both folders, one line each; such files are removed from both. A qcow2
    /// image may have its clusters elsewhere as `alike` says, if it holds the same and is in order.
    ///
    /// # Panics
    ///
    /// A folder cannot be read.
    #[must_use]
    pub fn differences(&self, alike: Alike) -> Vec<String> {
        let theirs = listing(&self.folder.path().join("theirs"));
        let ours = listing(&self.folder.path().join("ours"));
        let mut told = Vec::new();
        for name in theirs.keys().chain(ours.keys().filter(|name| !theirs.contains_key(*name))) {
            let (one, other) = (theirs.get(name), ours.get(name));
            if let (Some(one), Some(other)) = (one, other)
                && self.same(name, [*one, *other])
            {
                continue;
            }
            let (one, other) = (one.map(|stamp| stamp.length), other.map(|stamp| stamp.length));
            if alike != Alike::Bytes && one.is_some() && other.is_some() && self.alike(name, alike)
            {
                continue;
            }
            told.push(format!("{name}: {one:?} and {other:?} bytes"));
            for folder in ["theirs", "ours"] {
                let _ = fs::remove_file(self.folder.path().join(folder).join(name));
            }
        }
        told
    }

    /// Makes a file in both folders what it was at the start.
    ///
    /// # Panics
    ///
    /// It cannot be copied.
    pub fn restore(&self, name: &str) {
        let made = self.folder.path().join("made").join(name);
        let paths = ["theirs", "ours"].map(|folder| self.folder.path().join(folder).join(name));
        let stamps = || paths.each_ref().map(|path| path.metadata().ok().map(|m| Stamp::of(&m)));
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        if restored.get(name).is_some_and(|known| stamps() == known.map(Some)) {
            return;
        }
        for path in &paths {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(&made).arg(path);
            assert!(copy.status().unwrap().success(), "{copy:?}");
        }
        restored.insert(name.to_owned(), stamps().map(Option::unwrap));
    }

    /// Removes a file from both folders.
    pub fn remove(&self, name: &str) {
        for folder in ["theirs", "ours"] {
            let _ = fs::remove_file(self.folder.path().join(folder).join(name));
        }
    }

    /// Whether both are qcow2 images of the same kind with the same content, ours without leaks and not
    /// longer than theirs, but for tables that lie elsewhere. Each is looked at in its folder: names of
    /// data files count from where QEMU is started.
    fn alike(&self, name: &str, alike: Alike) -> bool {
        let folders = ["theirs", "ours"].map(|folder| self.folder.path().join(folder));
        let fields = |folder: &PathBuf| {
            let info = img_at(folder, &["info", "-f", "qcow2", "--output", "json", name]);
            let value: Value = serde_json::from_str(&info.stdout).unwrap_or_default();
            let fields = ["virtual-size", "cluster-size", "backing-filename", "format-specific"];
            fields.map(|field| value[field].clone())
        };
        let kinds = folders.each_ref().map(fields);
        if !kinds[0][0].is_u64() || kinds[0] != kinds[1] {
            return false;
        }
        let end = |folder: &PathBuf| {
            let check = img_at(folder, &["check", "-f", "qcow2", "--output", "json", name]);
            let value: Value = serde_json::from_str(&check.stdout).unwrap_or_default();
            (check.status.success(), value["image-end-offset"].as_u64().unwrap_or(0))
        };
        let cluster = kinds[0][1].as_u64().unwrap_or(0);
        let [(_, theirs), (clean, ours)] = folders.each_ref().map(end);
        let longer = ours > theirs + CLUSTERS_ELSEWHERE * cluster;
        clean && (!longer || alike == Alike::OfAnyLength) && self.same_disk(name, &folders)
    }

    /// Whether both images hold the same disk, which each shows in its folder.
    fn same_disk(&self, name: &str, folders: &[PathBuf; 2]) -> bool {
        let disks = ["theirs.disk", "ours.disk"].map(|disk| self.folder.path().join(disk));
        let shown = folders.iter().zip(&disks).all(|(folder, disk)| {
            let disk = disk.to_str().unwrap();
            let words = ["convert", "-f", "qcow2", "-O", "raw", name, disk];
            img_at(folder, &words).status.success()
        });
        let [theirs, ours] = disks.each_ref().map(|disk| disk.to_str().unwrap());
        let compare = ["compare", "-q", "-f", "raw", "-F", "raw", theirs, ours];
        let same = shown && img(compare).status.success();
        for disk in &disks {
            let _ = fs::remove_file(disk);
        }
        same
    }

    /// Whether a file is the same in both folders; one that nobody wrote to since still is.
    fn same(&self, name: &str, stamps: [Stamp; 2]) -> bool {
        let mut known = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(name) == Some(&stamps) {
            return true;
        }
        let same = stamps[0].length == stamps[1].length && self.reads_alike(name, stamps[0].length);
        if same {
            known.insert(name.to_owned(), stamps);
        }
        same
    }

    fn reads_alike(&self, name: &str, length: u64) -> bool {
        let open = |folder: &str| File::open(self.folder.path().join(folder).join(name)).unwrap();
        let (mut one, mut other) = (open("theirs"), open("ours"));
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        // What is longer is holes at its end, and its start tells.
        let mut rest = length.min(64 << 20);
        while rest > 0 {
            let count = usize::try_from(rest).unwrap().min(left.len());
            one.read_exact(&mut left[..count]).unwrap();
            other.read_exact(&mut right[..count]).unwrap();
            if left[..count] != right[..count] {
                return false;
            }
            rest -= count as u64;
        }
        true
    }
}

/// What qemu-img answers in a folder.
fn img_at(folder: &Path, words: &[&str]) -> Captured {
    captured(Command::new("qemu-img").current_dir(folder).args(words))
}

/// The files of a folder, and of those in it.
fn listing(folder: &Path) -> BTreeMap<String, Stamp> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            let inner = listing(&entry.path());
            files.extend(inner.into_iter().map(|(file, stamp)| (format!("{name}/{file}"), stamp)));
        } else if kind.is_file() {
            files.insert(name, Stamp::of(&entry.metadata().unwrap()));
        }
    }
    files
}
