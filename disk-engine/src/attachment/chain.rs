//! The files below a qcow2 image, as a hypervisor will open them.
//!
//! ```text
//! primary.qcow2 ──header──▶ layer.qcow2 ──header──▶ base.raw
//! ```
//!
//! Following is `disk::chain`'s work, under the caller's policy. What a hypervisor could not open
//! with plain arguments (encrypted images, external data files, a chain cut by the policy) is
//! refused here, by name.

use qcow2_format::feature::IncompatibleFeatures;

use super::Layer;
use crate::base::{BaseFormat, check_readable};
use crate::disk::chain::{Chain, ChainImage};
use crate::disk::policy::BackingPolicy;
use crate::error::{Error, ErrorKind, Result};

/// What lies below `top`, nearest first.
pub(super) fn below(top: &Layer, policy: &BackingPolicy) -> Result<Vec<Layer>> {
    if top.format() == BaseFormat::Raw {
        return Ok(Vec::new());
    }
    let chain = Chain::open(top.path(), top.format(), policy)?;
    if let Some(reason) = chain.not_followed {
        return Err(reason);
    }
    chain.images.iter().try_for_each(check_attachable)?;
    let below = chain.images.into_iter().skip(1);
    below.map(|image| Layer::new(image.path, image.format)).collect()
}

fn check_attachable(image: &ChainImage) -> Result<()> {
    let Some(header) = &image.header else { return Ok(()) };
    check_readable(header, &image.path)?;
    if header.incompatible_features().contains(IncompatibleFeatures::EXTERNAL_DATA_FILE) {
        return Err(Error::new(ErrorKind::Unsupported, "the image's data lies in another file")
            .with_field("incompatible_features")
            .with_path(&image.path));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::attachment::Disk;
    use qcow2_format::create::{BackingFile, BackingFormat};
    use qcow2_format::{CreateOptions, Memory};
    use std::fs;

    /// A small image, with a backing name and format.
    pub(in crate::attachment) fn image(backing: Option<(&[u8], BackingFormat)>) -> Vec<u8> {
        let mut options = CreateOptions::new(1 << 20);
        if let Some((name, format)) = backing {
            options = options.backing(BackingFile::new(name, format));
        }
        let storage = Memory::default();
        options.plan().unwrap().write_to(&storage).unwrap();
        storage.into_bytes()
    }

    #[test]
    fn relative_names_start_at_the_folder_of_the_file_that_holds_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("vm")).unwrap();
        fs::create_dir(path("cache")).unwrap();
        let top = image(Some((b"../cache/middle", BackingFormat::Qcow2)));
        fs::write(path("vm/top"), top).unwrap();
        fs::write(path("cache/middle"), image(Some((b"base", BackingFormat::Raw)))).unwrap();
        // The base spells a header of its own, and nobody looks: it is raw.
        let spelled = image(Some((b"/etc/passwd", BackingFormat::Raw)));
        fs::write(path("cache/base"), spelled).unwrap();
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
        let strict = Disk::qcow2_within(path("vm/top"), &BackingPolicy::default());
        assert_eq!(strict.unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_loop_a_missing_file_and_a_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), image(Some((b"b", BackingFormat::Qcow2)))).unwrap();
        fs::write(path("b"), image(Some((b"a", BackingFormat::Qcow2)))).unwrap();
        fs::write(path("c"), image(Some((b"gone", BackingFormat::Raw)))).unwrap();
        fs::write(path("d"), image(Some((b".", BackingFormat::Raw)))).unwrap();
        fs::write(path("e"), image(Some((b"a", BackingFormat::Other(b"vmdk".into()))))).unwrap();
        for (name, kind) in [
            ("a", ErrorKind::Corrupt),
            ("c", ErrorKind::NotFound),
            ("d", ErrorKind::Refused),
            ("e", ErrorKind::Unsupported),
            (".", ErrorKind::InvalidInput),
        ] {
            assert_eq!(Disk::qcow2(path(name)).unwrap_err().kind(), kind, "{name}");
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(Disk::probe(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
