//! The files below a qcow2 image, found by following its headers.
//!
//! ```text
//! primary.qcow2 ──header──▶ layer.qcow2 ──header──▶ base.raw
//!                           opened, read            looked at, never opened
//! ```
//!
//! The walk ends at the first raw file. It is bounded, and a file met twice ends it with an error:
//! whatever the headers say, the work is finite.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use super::{Layer, header};
use crate::base::BaseFormat;
use crate::error::{Error, ErrorKind, Result};

/// More files than any chain kept by hand has, and fewer than QEMU has stack for.
const DEPTH_MAX: usize = 256;

/// What lies below `top`, nearest first.
pub(super) fn below(top: &Layer) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen = Vec::new();
    let mut current = top.clone();
    while current.format() == BaseFormat::Qcow2 {
        let path = current.path();
        let file = open(path)?;
        let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
        let identity = (metadata.dev(), metadata.ino());
        if seen.contains(&identity) {
            return Err(
                Error::new(ErrorKind::Corrupt, "the backing chain is a loop").with_path(path)
            );
        }
        seen.push(identity);
        if layers.len() == DEPTH_MAX {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("the backing chain is more than {DEPTH_MAX} files deep"),
            )
            .with_path(top.path()));
        }
        let Some((name, format)) =
            header::overlay_backing(&file).map_err(|error| error.or_path(path))?
        else {
            break;
        };
        // An absolute path has a parent unless it is the root, which is no regular file.
        let folder = path.parent().unwrap_or(Path::new("/"));
        let next = Layer::new(folder.join(name), format)?;
        let found = fs::metadata(next.path()).map_err(|error| {
            Error::io(format!("find the backing file of {path:?}"), next.path(), error)
        })?;
        refuse_unless_regular(next.path(), &found)?;
        layers.push(next.clone());
        current = next;
    }
    Ok(layers)
}

/// Opens a regular file for reading, without waiting for a FIFO's other end.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| Error::io("open the disk", path, error))?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    refuse_unless_regular(path, &metadata)?;
    Ok(file)
}

fn refuse_unless_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "only regular files are attached as disks")
        .with_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::Disk;
    use crate::attachment::header::tests::image;

    #[test]
    fn relative_names_start_at_the_folder_of_the_file_that_holds_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("vm")).unwrap();
        fs::create_dir(path("cache")).unwrap();
        fs::write(path("vm/top"), image(Some((b"../cache/middle", b"qcow2")))).unwrap();
        fs::write(path("cache/middle"), image(Some((b"base", b"raw")))).unwrap();
        // The base spells a header of its own, and nobody looks: it is raw.
        fs::write(path("cache/base"), image(Some((b"/etc/passwd", b"raw")))).unwrap();
        let disk = Disk::qcow2(path("vm/top")).unwrap();
        let layers: Vec<_> =
            disk.backing().iter().map(|layer| (layer.path().to_owned(), layer.format())).collect();
        assert_eq!(
            layers,
            [
                (path("vm/../cache/middle"), BaseFormat::Qcow2),
                (path("vm/../cache/base"), BaseFormat::Raw),
            ]
        );
    }

    #[test]
    fn a_loop_a_missing_file_and_a_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), image(Some((b"b", b"qcow2")))).unwrap();
        fs::write(path("b"), image(Some((b"a", b"qcow2")))).unwrap();
        fs::write(path("c"), image(Some((b"gone", b"raw")))).unwrap();
        fs::write(path("d"), image(Some((b".", b"raw")))).unwrap();
        for (name, kind) in [
            ("a", ErrorKind::Corrupt),
            ("c", ErrorKind::NotFound),
            ("d", ErrorKind::Unsupported),
            (".", ErrorKind::Unsupported),
        ] {
            assert_eq!(Disk::qcow2(path(name)).unwrap_err().kind(), kind, "{name}");
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(Disk::probe(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
