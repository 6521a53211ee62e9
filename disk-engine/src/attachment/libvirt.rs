//! The libvirt `<disk>` element.
//!
//! ```xml
//! <disk type='file' device='disk'>
//!   <driver name='qemu' type='qcow2' cache='none' discard='unmap' detect_zeroes='unmap'/>
//!   <source file='/vms/0/primary.qcow2'/>
//!   <backingStore type='file'>             the whole chain, so that libvirt probes nothing
//!     <format type='raw'/>
//!     <source file='/cache/base.raw'/>
//!     <backingStore/>                      the chain ends here
//!   </backingStore>
//!   <target dev='vda' bus='virtio'/>
//! </disk>
//! ```
//!
//! libvirt gives the cache mode of a disk to every file of its chain and has no element for "but not
//! the base". Under it, cache mode `none` reads the base past the page cache too; where many VMs share
//! a base, [`CacheMode::Writeback`](super::CacheMode::Writeback) keeps one copy of it in memory. QEMU's
//! own arguments ([`super::qemu`]) need no such choice.
//!
//! An XML document holds Unicode text without most control characters, and there is no way around it
//! by escaping: a path of other bytes is refused.

use std::fmt::Write;
use std::path::Path;

use super::{Disk, Layer, Target};
use crate::error::{Error, ErrorKind, Result};

/// Renders the element, indented by two spaces a level, without a newline at the end.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for a path XML cannot hold; otherwise as [`Disk::check`].
pub fn element(disk: &Disk, target: Target) -> Result<String> {
    disk.check()?;
    let mut xml = Xml::default();
    xml.open("<disk type='file' device='disk'>");
    xml.line(&driver(disk));
    xml.line(&format!("<source file='{}'/>", escape_path(disk.path())?));
    backing(&mut xml, disk.backing())?;
    xml.line(&format!("<target dev='{target}' bus='virtio'/>"));
    if disk.read_only {
        xml.line("<readonly/>");
    }
    if let Some(serial) = &disk.serial {
        xml.line(&format!("<serial>{}</serial>", escape(serial)));
    }
    if let Some(index) = disk.boot_index {
        xml.line(&format!("<boot order='{index}'/>"));
    }
    xml.close("</disk>");
    Ok(xml.text)
}

fn driver(disk: &Disk) -> String {
    let attributes = [
        ("name", Some("qemu")),
        ("type", Some(disk.format().as_str())),
        ("cache", Some(disk.cache.as_str())),
        ("io", disk.io.map(super::Io::as_str)),
        ("discard", disk.discard_word()),
        ("detect_zeroes", disk.detect_zeroes_word()),
    ];
    let mut element = String::from("<driver");
    for (name, value) in attributes {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(element, " {name}='{value}'");
        }
    }
    element + "/>"
}

fn backing(xml: &mut Xml, layers: &[Layer]) -> Result<()> {
    for layer in layers {
        xml.open("<backingStore type='file'>");
        xml.line(&format!("<format type='{}'/>", layer.format().as_str()));
        xml.line(&format!("<source file='{}'/>", escape_path(layer.path())?));
    }
    xml.line("<backingStore/>");
    for _ in layers {
        xml.close("</backingStore>");
    }
    Ok(())
}

/// Lines of text at a depth.
#[derive(Default)]
struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    fn open(&mut self, line: &str) {
        self.line(line);
        self.depth += 1;
    }

    fn close(&mut self, line: &str) {
        self.depth = self.depth.saturating_sub(1);
        self.line(line);
    }

    fn line(&mut self, line: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.extend(std::iter::repeat_n("  ", self.depth));
        self.text.push_str(line);
    }
}

fn escape_path(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if text.chars().all(is_xml) => Ok(escape(text)),
        Some(_) => {
            Err(Error::new(ErrorKind::Unsupported, "the path holds a character that XML cannot")
                .with_path(path))
        }
        None => Err(Error::new(ErrorKind::Unsupported, "the path is not UTF-8, and XML must be")
            .with_path(path)),
    }
}

/// Whether XML 1.0 has the character at all (production 2, `Char`).
fn is_xml(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{1_0000}'..)
}

/// Escapes text for an element and for an attribute in either kind of quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // A parser turns these into spaces when it finds them bare in an attribute.
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::CacheMode;
    use crate::attachment::chain::tests::image;
    use qcow2_format::create::BackingFormat;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn an_overlay_names_its_whole_chain() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("top"), image(Some((b"base", BackingFormat::Raw)))).unwrap();
        fs::write(path("base"), b"").unwrap();
        let disk = Disk::qcow2(path("top")).unwrap().serial("root").boot_index(1);
        let folder = folder.path().display();
        assert_eq!(
            element(&disk, Target::new(1)).unwrap(),
            format!(
                "<disk type='file' device='disk'>\n  \
                   <driver name='qemu' type='qcow2' cache='none' discard='unmap' \
                 detect_zeroes='unmap'/>\n  \
                   <source file='{folder}/top'/>\n  \
                   <backingStore type='file'>\n    \
                     <format type='raw'/>\n    \
                     <source file='{folder}/base'/>\n    \
                     <backingStore/>\n  \
                   </backingStore>\n  \
                   <target dev='vdb' bus='virtio'/>\n  \
                   <serial>root</serial>\n  \
                   <boot order='1'/>\n\
                 </disk>"
            )
        );
    }

    #[test]
    fn a_raw_disk_detects_no_zeroes_and_a_read_only_one_discards_nothing() {
        let disk = Disk::raw("/disk").unwrap().cache(CacheMode::Writeback);
        let xml = element(&disk, Target::default()).unwrap();
        assert!(xml.contains("type='raw' cache='writeback' discard='unmap'/>"), "{xml}");
        let xml = element(&disk.read_only(true), Target::default()).unwrap();
        assert!(xml.contains("type='raw' cache='writeback'/>"), "{xml}");
        assert!(xml.contains("<readonly/>"), "{xml}");
    }

    #[test]
    fn hostile_names_stay_inside_their_attribute() {
        for (name, escaped) in [
            ("a b,c:d", "a b,c:d"),
            ("'/><evil x='", "&apos;/&gt;&lt;evil x=&apos;"),
            ("\"&amp;", "&quot;&amp;amp;"),
            ("a\nb\tc\rd", "a&#10;b&#9;c&#13;d"),
            ("größe-磁盘-💾", "größe-磁盘-💾"),
        ] {
            let disk = Disk::raw(format!("/{name}")).unwrap().read_only(true);
            let xml = element(&disk, Target::default()).unwrap();
            assert!(xml.contains(&format!("<source file='/{escaped}'/>")), "{xml}");
        }
    }

    #[test]
    fn names_xml_cannot_hold_are_refused() {
        for name in [&b"/\x1b[31m"[..], b"/\x01", b"/\xff", "/\u{fffe}".as_bytes()] {
            let disk = Disk::raw(OsStr::from_bytes(name)).unwrap().read_only(true);
            let error = element(&disk, Target::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }
}
