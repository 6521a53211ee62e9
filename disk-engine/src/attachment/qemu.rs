//! QEMU's arguments, in either of its two forms.
//!
//! ```text
//! blockdev                                     one node per file and per format, each with a name
//!   virtio-blk-pci ─▶ disk0 (qcow2) ─▶ disk0-file (file, O_DIRECT)
//!                       └─ backing ─▶ disk0-base1 (raw) ─▶ disk0-base1-file (file, page cache)
//!
//! drive                                        one flat list for the whole chain
//!   virtio-blk-pci ─▶ disk0: format=qcow2, file.filename=…, backing.file.filename=…
//! ```
//!
//! In both the base is read-only and opened without `O_DIRECT` whatever the disk's own cache mode:
//! without being told, QEMU hands `O_DIRECT` down the chain and every VM reads the base from storage.
//!
//! Both are written as QEMU's `key=value` lists, where a doubled comma stands for a comma and every
//! other byte for itself; a JSON argument could not carry a path that is not UTF-8. A path stands
//! behind `filename` of an explicitly named `file` driver, where QEMU looks for no protocol in it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::{Disk, Layer};
use crate::error::Result;

/// The form in which QEMU is told about a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `-blockdev`: explicit nodes, what QMP and live operations work with.
    #[default]
    Blockdev,
    /// `-drive if=none`: one argument per disk, for scripts that already speak it.
    Drive,
}

/// The arguments that attach `disks` in this order, as `disk0`, `disk1`, … on virtio-blk-pci.
///
/// # Errors
///
/// As [`Disk::check`].
pub fn arguments(disks: &[Disk], form: Form) -> Result<Vec<OsString>> {
    let mut arguments = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        disk.check()?;
        // Node names have at most 31 bytes; `disk65535-base256-file` is far below.
        let name = format!("disk{index}");
        match form {
            Form::Blockdev => blockdev(&mut arguments, disk, &name),
            Form::Drive => {
                arguments.push("-drive".into());
                arguments.push(drive(disk, &name).finish());
            }
        }
        arguments.push("-device".into());
        arguments.push(device(disk, &name).finish());
    }
    Ok(arguments)
}

/// Nodes from the base up, since a node must exist before it is referred to.
fn blockdev(arguments: &mut Vec<OsString>, disk: &Disk, name: &str) {
    let mut push = |node: List| {
        arguments.push("-blockdev".into());
        arguments.push(node.finish());
    };
    let mut below: Option<String> = None;
    for (depth, layer) in disk.backing.iter().enumerate().rev() {
        let node = format!("{name}-base{}", depth + 1);
        push(base_file(layer, &node));
        push(base_format(layer, &node, below.as_deref()));
        below = Some(node);
    }
    push(top_file(disk, name));
    push(top_format(disk, name, below.as_deref()));
}

fn base_file(layer: &Layer, node: &str) -> List {
    List::new("driver", "file")
        .with("node-name", &format!("{node}-file"))
        .with_path("filename", &layer.path)
        .with("read-only", "on")
        .with("cache.direct", "off")
}

fn base_format(layer: &Layer, node: &str, below: Option<&str>) -> List {
    List::new("driver", layer.format.as_str())
        .with("node-name", node)
        .with("file", &format!("{node}-file"))
        .with_some("backing", below)
        .with("read-only", "on")
        .with("cache.direct", "off")
}

fn top_file(disk: &Disk, name: &str) -> List {
    let node = List::new("driver", "file")
        .with("node-name", &format!("{name}-file"))
        .with_path("filename", disk.path())
        .with_some("aio", disk.io.map(super::Io::as_str));
    // A disk that cannot be written fails at start, not at the guest's first write.
    top_options(node.with("auto-read-only", "off"), disk)
}

fn top_format(disk: &Disk, name: &str, below: Option<&str>) -> List {
    let node = List::new("driver", disk.format().as_str())
        .with("node-name", name)
        .with("file", &format!("{name}-file"))
        .with_some("backing", below);
    top_options(node, disk).with_some("detect-zeroes", disk.detect_zeroes_word())
}

/// What the file and the format of a disk's own file share: a discard has to pass both.
fn top_options(node: List, disk: &Disk) -> List {
    node.with("read-only", on_off(disk.read_only))
        .with("cache.direct", on_off(disk.cache.is_direct()))
        .with("cache.no-flush", on_off(disk.cache.ignores_flush()))
        .with_some("discard", disk.discard_word())
}

fn drive(disk: &Disk, name: &str) -> List {
    let mut list = List::new("if", "none")
        .with("id", name)
        .with("format", disk.format().as_str())
        .with("file.driver", "file")
        .with_path("file.filename", disk.path())
        .with("file.auto-read-only", "off")
        .with("cache", disk.cache.as_str())
        .with_some("aio", disk.io.map(super::Io::as_str))
        .with("readonly", on_off(disk.read_only))
        .with_some("discard", disk.discard_word())
        .with_some("detect-zeroes", disk.detect_zeroes_word());
    let mut prefix = String::new();
    for layer in &disk.backing {
        prefix.push_str("backing.");
        list = list
            .with(&format!("{prefix}driver"), layer.format.as_str())
            .with(&format!("{prefix}file.driver"), "file")
            .with_path(&format!("{prefix}file.filename"), &layer.path)
            .with(&format!("{prefix}read-only"), "on")
            .with(&format!("{prefix}cache.direct"), "off");
    }
    list
}

fn device(disk: &Disk, name: &str) -> List {
    List::new("driver", "virtio-blk-pci")
        .with("drive", name)
        .with_some("serial", disk.serial.as_deref())
        .with_some("bootindex", disk.boot_index.map(|index| index.to_string()).as_deref())
        // With -blockdev nobody else says that the guest must not be promised a cache.
        .with_some("write-cache", (!disk.cache.has_write_cache()).then_some("off"))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A `key=value,key=value` list. Keys are ours, values anyone's.
struct List(Vec<u8>);

impl List {
    fn new(key: &str, value: &str) -> Self {
        Self(Vec::new()).with(key, value)
    }

    fn with(self, key: &str, value: &str) -> Self {
        self.with_bytes(key, value.as_bytes())
    }

    fn with_some(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn with_path(self, key: &str, path: &Path) -> Self {
        self.with_bytes(key, path.as_os_str().as_bytes())
    }

    fn with_bytes(mut self, key: &str, value: &[u8]) -> Self {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        for &byte in value {
            if byte == b',' {
                self.0.push(b',');
            }
            self.0.push(byte);
        }
        self
    }

    fn finish(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::CacheMode;
    use crate::attachment::chain::tests::image;
    use qcow2_format::create::BackingFormat;
    use std::ffi::OsStr;
    use std::fs;

    fn text(disks: &[Disk], form: Form) -> Vec<String> {
        let arguments = arguments(disks, form).unwrap();
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    fn overlay(folder: &Path) -> Disk {
        fs::write(folder.join("top"), image(Some((b"mid", BackingFormat::Qcow2)))).unwrap();
        fs::write(folder.join("mid"), image(Some((b"base", BackingFormat::Raw)))).unwrap();
        fs::write(folder.join("base"), b"").unwrap();
        Disk::qcow2(folder.join("top")).unwrap()
    }

    #[test]
    fn nodes_are_defined_before_they_are_used_and_only_the_top_is_direct() {
        let folder = tempfile::tempdir().unwrap();
        let disk = overlay(folder.path()).serial("a,b").boot_index(1);
        let folder = folder.path().display();
        assert_eq!(
            text(&[disk], Form::Blockdev),
            [
                "-blockdev",
                &format!(
                    "driver=file,node-name=disk0-base2-file,filename={folder}/base,read-only=on,\
                     cache.direct=off"
                ),
                "-blockdev",
                "driver=raw,node-name=disk0-base2,file=disk0-base2-file,read-only=on,\
                 cache.direct=off",
                "-blockdev",
                &format!(
                    "driver=file,node-name=disk0-base1-file,filename={folder}/mid,read-only=on,\
                     cache.direct=off"
                ),
                "-blockdev",
                "driver=qcow2,node-name=disk0-base1,file=disk0-base1-file,backing=disk0-base2,\
                 read-only=on,cache.direct=off",
                "-blockdev",
                &format!(
                    "driver=file,node-name=disk0-file,filename={folder}/top,auto-read-only=off,\
                     read-only=off,cache.direct=on,cache.no-flush=off,discard=unmap"
                ),
                "-blockdev",
                "driver=qcow2,node-name=disk0,file=disk0-file,backing=disk0-base1,read-only=off,\
                 cache.direct=on,cache.no-flush=off,discard=unmap,detect-zeroes=unmap",
                "-device",
                "driver=virtio-blk-pci,drive=disk0,serial=a,,b,bootindex=1",
            ]
        );
    }

    #[test]
    fn one_drive_argument_tells_the_whole_chain() {
        let folder = tempfile::tempdir().unwrap();
        let disk = overlay(folder.path()).cache(CacheMode::Directsync);
        let folder = folder.path().display();
        assert_eq!(
            text(&[disk], Form::Drive),
            [
                "-drive",
                &format!(
                    "if=none,id=disk0,format=qcow2,file.driver=file,file.filename={folder}/top,\
                     file.auto-read-only=off,cache=directsync,readonly=off,discard=unmap,detect-zeroes=unmap,\
                     backing.driver=qcow2,backing.file.driver=file,\
                     backing.file.filename={folder}/mid,backing.read-only=on,\
                     backing.cache.direct=off,\
                     backing.backing.driver=raw,backing.backing.file.driver=file,\
                     backing.backing.file.filename={folder}/base,backing.backing.read-only=on,\
                     backing.backing.cache.direct=off"
                ),
                "-device",
                "driver=virtio-blk-pci,drive=disk0,write-cache=off",
            ]
        );
    }

    #[test]
    fn disks_are_numbered_in_their_order() {
        let disk = |path| Disk::raw(path).unwrap().read_only(true);
        let arguments = text(&[disk("/a"), disk("/b")], Form::Drive);
        assert!(arguments[1].contains("id=disk0") && arguments[1].contains("filename=/a,"));
        assert!(arguments[5].contains("id=disk1") && arguments[5].contains("filename=/b,"));
    }

    #[test]
    fn a_comma_is_doubled_and_every_other_byte_stands_for_itself() {
        let name = OsStr::from_bytes(b"/a,b=c:d 'e'\"\n\xff,,");
        let disk = Disk::raw(name).unwrap().read_only(true);
        for form in [Form::Blockdev, Form::Drive] {
            let arguments = arguments(std::slice::from_ref(&disk), form).unwrap();
            let expected = b"filename=/a,,b=c:d 'e'\"\n\xff,,,,,".as_slice();
            assert!(
                arguments[1].as_bytes().windows(expected.len()).any(|part| part == expected),
                "{arguments:?}"
            );
        }
    }
}
