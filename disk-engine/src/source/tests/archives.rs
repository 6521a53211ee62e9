//! Files made by other programs: `testdata/archives`, whose README says by which.

use super::*;
use crate::digest::Sha256Digest;
use crate::source::SparseForm;

fn archive(name: &str) -> Source {
    Source::path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/archives").join(name))
}

fn digest(bytes: &[u8]) -> Sha256Digest {
    use sha2::Digest;
    Sha256Digest(sha2::Sha256::digest(bytes).into())
}

/// All of them hold this disk.
const DISK: &str = "3e5798f62e50e58ae003ef21de4399fcfe6c30960f17ed39938c3078178c694e";

/// One dialect each, most of them with a name of 144 bytes.
const DENSE_IN_XZ: [(&str, SparseForm); 10] = [
    ("gnu.tar.xz", SparseForm::Dense),
    ("posix.tar.xz", SparseForm::Dense),
    ("bsdtar-ustar.tar.xz", SparseForm::Dense),
    ("bsdtar-v7.tar.xz", SparseForm::Dense),
    ("pax-ustar.tar.xz", SparseForm::Dense),
    ("python-pax.tar.xz", SparseForm::Dense),
    ("python-gnu.tar.xz", SparseForm::Dense),
    ("python-ustar.tar.xz", SparseForm::Dense),
    ("tar-crate-gnu.tar.xz", SparseForm::Dense),
    ("tar-crate-ustar.tar.xz", SparseForm::Dense),
];

#[test]
fn every_good_file_of_the_folder_is_tried() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/archives");
    let source = include_str!("archives.rs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_good = [".zst", ".gz", ".xz"].iter().any(|end| name.ends_with(end))
            && !name.starts_with("corrupt-");
        assert!(!is_good || source.contains(&format!("\"{name}\"")), "{name} is not read");
    }
}

#[test]
fn what_other_programs_pack_is_unpacked() {
    for (name, form) in [
        ("bare.img.zst", SparseForm::Dense),
        ("frames.img.zst", SparseForm::Dense),
        ("gnu-sparse.tar.zst", SparseForm::OldGnu),
        ("oldgnu-sparse.tar.zst", SparseForm::OldGnu),
        ("tar-crate-sparse.tar.zst", SparseForm::OldGnu),
        ("several.tar.zst", SparseForm::OldGnu),
        ("pax-0.0.tar.zst", SparseForm::Pax00),
        ("pax-0.1.tar.zst", SparseForm::Pax01),
        ("pax-1.0.tar.zst", SparseForm::Pax10),
        ("bsdtar-pax.tar.zst", SparseForm::Pax10),
        #[cfg(feature = "gzip")]
        ("bare.img.gz", SparseForm::Dense),
        #[cfg(feature = "gzip")]
        ("bsdtar-gnutar.tar.gz", SparseForm::Dense),
        #[cfg(feature = "gzip")]
        ("v7.tar.gz", SparseForm::Dense),
        #[cfg(feature = "xz")]
        ("bare.img.xz", SparseForm::Dense),
        #[cfg(feature = "xz")]
        ("ustar.tar.xz", SparseForm::Dense),
    ]
    .into_iter()
    .chain(DENSE_IN_XZ.iter().filter(|_| cfg!(feature = "xz")).copied())
    {
        let (bytes, report) = run(archive(name)).unwrap();
        assert_eq!(digest(&bytes), DISK.parse().unwrap(), "{name}");
        assert_eq!(report.sparse_form, form, "{name}");
        // 40 pieces of at most 2560 bytes: two blocks each at the most.
        assert!(report.written_bytes <= 80 * 4096, "{name}: {}", report.written_bytes);
    }
}

#[test]
fn a_disk_of_50_gib_is_a_hole_with_data_far_away() {
    let file = tempfile::tempfile().unwrap();
    let source = archive("gnu-large.tar.zst");
    let report = extract_into(source, &file, Path::new("x"), &TransferOptions::default()).unwrap();
    assert_eq!((report.virtual_size, report.written_bytes), (50 << 30, 4096));
    let mut bytes = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 12_884_902_400).unwrap();
    assert_eq!(&bytes, b"far away");
}

#[test]
fn windows_to_128_mib_are_accepted_and_larger_ones_on_request() {
    let window = |name, max_window| {
        let limits = crate::source::Limits { max_window, ..Default::default() };
        let file = tempfile::tempfile().unwrap();
        let source = archive(name).with_limits(limits);
        extract_into(source, &file, Path::new("x"), &TransferOptions::default())
            .map(|report| (report.virtual_size, report.written_bytes))
    };
    assert_eq!(window("window-27.img.zst", 128 << 20).unwrap(), (300 << 20, 0));
    assert_eq!(window("window-28.img.zst", 256 << 20).unwrap(), (300 << 20, 0));
    let error = window("window-28.img.zst", 128 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.message().contains("256 MiB") && error.hint().unwrap().contains("--long"));
}

#[test]
fn corrupt_files_are_refused_with_a_place() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/archives");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let handled = name.ends_with(".zst")
            || (cfg!(feature = "gzip") && name.ends_with(".gz"))
            || (cfg!(feature = "xz") && name.ends_with(".xz"));
        if name.starts_with("corrupt-") && handled {
            let error = run(archive(&name)).map(|_| ()).expect_err(&name);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
            assert!(error.offset().is_some() && error.path().is_some(), "{name}: {error}");
            seen += 1;
        }
    }
    assert!(seen >= 5);
}
